//! The corpus through the unpacker and the store, as root, in a user namespace, and as a user with a single id.
//!
//! Each of these is a process of its own, so that the memory it took can be told.

use crate::arena::Arena;
use crate::corpus::{Case, Content, Form, Verdict, cases};
use crate::images::{assert_consistent, resolve};
use shakedown_runtime::native::image::{
    LocalUnpacker, Owners, Resolver, Store, StoreOptions, UnpackOptions, unpack,
};
use shakedown_spec::PullPolicy;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// What one case may take. The biggest honest one has 12 MiB or 5000 files.
const TIME: Duration = Duration::from_secs(60);
const DISK: u64 = 64 << 20;
/// What all of them together may take at any moment, with the corpus itself, which is in memory (about 30 MiB).
const MEMORY: u64 = 192 << 20;

/// As whom the corpus is unpacked.
#[derive(Clone, Copy, Debug)]
enum Who {
    /// Root: owners are kept.
    Root,
    /// Root of a user namespace: an ordinary user with a range in /etc/subuid.
    Mapped,
    /// An ordinary user without a range: everything belongs to that user.
    Single,
}

impl Who {
    /// By itself a layer is the same to a store as to the unpacker, so this is tried once.
    fn forms(self) -> &'static [Form] {
        match self {
            Self::Root => &[Form::Alone, Form::Between],
            Self::Mapped | Self::Single => &[Form::Between],
        }
    }

    fn options(self, resolver: Resolver) -> UnpackOptions {
        let (owners, userxattr) = match self {
            Self::Root => (Owners::Keep, false),
            Self::Mapped => (Owners::Keep, true),
            Self::Single => (Owners::Squash, true),
        };
        UnpackOptions { owners, userxattr, resolver, ..UnpackOptions::default() }
    }
}

/// One of the ignored tests below in a process of its own, started by this program with these arguments.
fn process(program: &[&str], test: &str) -> Command {
    // By its descriptor: another user may not be able to reach the directory that it lies in.
    static OWN: OnceLock<std::fs::File> = OnceLock::new();
    let own = OWN.get_or_init(|| {
        let own = std::fs::File::open("/proc/self/exe").unwrap();
        rustix::io::fcntl_setfd(&own, rustix::io::FdFlags::empty()).unwrap();
        own
    });
    let own = format!("/proc/self/fd/{}", own.as_raw_fd());
    let words = [program, &[&own]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["--ignored", "--exact", "--nocapture", "--quiet", test]);
    command.env("TMPDIR", "/tmp").current_dir("/");
    command
}

#[track_caller]
fn run(program: &[&str], test: &str) {
    let status = process(program, test).status().unwrap();
    assert!(status.success(), "{test} as {program:?}: {status}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A stranger's image cannot reach anything outside of its directory, whoever unpacks it.
#[test]
fn nothing_gets_out() {
    if !is_root() {
        return run(&[], "hostile::as_a_single_user");
    }
    run(&[], "hostile::as_root");
    run(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"], "hostile::as_a_single_user");
}

/// Neither as an ordinary user whose containers have many ids, in the namespace that gives them.
#[test]
fn nothing_gets_out_of_a_user_namespace() {
    const TEST: &str = "hostile::as_root_of_a_namespace";
    if !is_root() {
        return run(&["unshare", "--user", "--map-root-user", "--"], TEST);
    }
    // `newuidmap` asks /etc/subuid, root need not: the map is written from outside, while the first process waits.
    let mut holder = Command::new("unshare");
    holder.args(["--user", "--", "sh", "-c", "echo; read _"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{map}", holder.id()), "0 100000 65536").unwrap();
    }
    run(&["nsenter", "--user", "--target", &holder.id().to_string(), "--"], TEST);
    drop(holder.stdin.take());
    holder.wait().unwrap();
}

/// The body of the test above.
#[test]
#[ignore = "another test runs it in a process of its own"]
fn as_root() {
    all(Who::Root);
}

/// The body of the test above.
#[test]
#[ignore = "another test runs it in a process of its own"]
fn as_root_of_a_namespace() {
    all(Who::Mapped);
}

/// The body of the test above.
#[test]
#[ignore = "another test runs it in a process of its own"]
fn as_a_single_user() {
    all(Who::Single);
}

fn all(who: Who) {
    let arena = Arena::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut wrong = Vec::new();
    for case in cases(&arena.canary()) {
        for resolver in [Resolver::Auto, Resolver::Walk] {
            wrong.extend(layer(&case, &arena, &who.options(resolver)).err());
            arena.empty();
        }
        for form in who.forms() {
            let result = runtime.block_on(image(&case, &arena, *form, who.options(Resolver::Auto)));
            wrong.extend(result.err());
            arena.empty();
        }
    }
    assert!(wrong.is_empty(), "as {who:?}:\n{}", wrong.join("\n"));
    let used = memory_used();
    assert!(used < MEMORY, "{used} bytes of memory were used");
}

/// The most memory that this process has had.
fn memory_used() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Unpacks the layer of a case by itself.
fn layer(case: &Case, arena: &Arena, options: &UnpackOptions) -> Result<(), String> {
    let Content::Layer { below, layer } = &case.content else { return Ok(()) };
    let mut lower = Vec::new();
    for (number, bytes) in below.iter().enumerate() {
        let directory = arena.work(&format!("below{number}"));
        std::fs::create_dir(&directory).unwrap();
        let file = std::fs::File::open(&directory).unwrap();
        let knowing = UnpackOptions { lower: Some(lower.clone()), ..options.clone() };
        unpack(&bytes[..], file.as_fd(), &knowing)
            .map_err(|error| format!("{} below: {error}", case.name))?;
        lower.push(directory);
    }
    let options = UnpackOptions { lower: Some(lower), ..options.clone() };
    let started = Instant::now();
    let result = arena.unpack(layer, &options).map(|_| ()).map_err(|error| error.to_string());
    judge(case, &result, arena, started)?;
    if let (Ok(()), Verdict::Taken(paths)) = (&result, case.verdict) {
        for path in paths {
            let (wanted, path) = path.strip_prefix('!').map_or((true, *path), |path| (false, path));
            if arena.shows(path) != wanted {
                return Err(format!("{}: `{path}` should be there: {wanted}", case.name));
            }
        }
    }
    Ok(())
}

/// Takes the image of a case into a store.
async fn image(case: &Case, arena: &Arena, form: Form, options: UnpackOptions) -> Result<(), String> {
    let layout = arena.work("layout");
    case.write(&layout, form);
    let root = arena.target().join("store");
    let unpacker = Arc::new(LocalUnpacker::new(options));
    let store = Store::open_with(&root, unpacker, StoreOptions::default()).await.unwrap();
    let source = format!("oci:{}:1", layout.display());
    let started = Instant::now();
    let work = resolve(&store, &source, PullPolicy::Missing);
    let result = tokio::task::block_in_place(|| {
        arena.guard(case.name, || tokio::runtime::Handle::current().block_on(work))
    });
    assert_consistent(&root);
    judge(case, &result.map(|_| ()).map_err(|failure| failure.to_string()), arena, started)
}

fn judge(case: &Case, result: &Result<(), String>, arena: &Arena, started: Instant) -> Result<(), String> {
    let (name, took, disk) = (case.name, started.elapsed(), arena.disk());
    match (result, case.verdict) {
        (Err(reason), Verdict::Refused(expected)) if !reason.contains(expected) => {
            Err(format!("{name}: refused for another reason than `{expected}`: {reason}"))
        }
        // The namespace has no such id, and says so.
        (Err(reason), Verdict::Taken(_)) if !reason.contains("does not map") => {
            Err(format!("{name}: refused: {reason}"))
        }
        (Ok(()), Verdict::Refused(expected)) => {
            Err(format!("{name}: taken, and not refused with `{expected}`"))
        }
        _ if took > TIME => Err(format!("{name} took {took:?}")),
        _ if disk > DISK => Err(format!("{name} took {disk} bytes of disk")),
        _ => Ok(()),
    }
}
