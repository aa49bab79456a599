//! Killed processes and full disks leave a store that works.

use crate::images::{Parts, assert_consistent, assert_verifies, bytes, resolve, store};
use crate::server::Registry;
use crate::tape::{Entry, FILE, Tape};
use shakedown_runtime::native::image::{PruneRules, Store, remove_tree};
use shakedown_spec::{FailureKind, ImageSource, PullPolicy};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// This test binary, running one of its ignored tests in a process of its own.
pub(crate) fn child(program: &[&str], test: &str, store: &Path, source: &str) -> Command {
    let own = std::env::current_exe().unwrap();
    let mut command = match program {
        [] => Command::new(own),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(own);
            command
        }
    };
    command.args(["--ignored", "--exact", "--nocapture", "--quiet", test]);
    command.env("SHAKEDOWN_TEST_STORE", store).env("SHAKEDOWN_TEST_SOURCE", source);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

fn told(name: &str) -> String {
    std::env::var(name).expect("set by the test that runs this one")
}

/// Resolves one image; the body of the child processes.
#[tokio::test]
#[ignore = "other tests run it in a process of its own"]
async fn resolve_in_a_child() {
    let store = store(Path::new(&told("SHAKEDOWN_TEST_STORE"))).await;
    // The parent takes the time from here.
    std::io::stdout().write_all(b"opened\n").unwrap();
    resolve(&store, &told("SHAKEDOWN_TEST_SOURCE"), PullPolicy::Missing).await.unwrap();
}

/// An image that takes long enough to be interrupted anywhere.
fn long() -> Parts {
    let layer = |number: u32| {
        let files = (0..1500).fold(Tape::default(), |tape, n| {
            tape.file(&format!("{number}/{}/{n}", n % 40), &"item".repeat(500))
        });
        files.done()
    };
    Parts::of(&[layer(1), layer(2), layer(3)])
}

/// Killed with SIGKILL after `after`, counted from when it had opened the store; false if it had ended by then.
fn kill(mut process: Child, after: Duration) -> bool {
    let output = BufReader::new(process.stdout.take().unwrap());
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in output.lines() {
            if sender.send(line.unwrap()).is_err() {
                break;
            }
        }
    });
    while !lines.recv().expect("the child ended before it opened the store").contains("opened") {}
    // Either the time is over or the output ends because the child has.
    while lines.recv_timeout(after).is_ok() {}
    process.kill().unwrap();
    std::os::unix::process::ExitStatusExt::signal(&process.wait().unwrap()) == Some(9)
}

/// kill -9 at any moment: the next one to open the store finds it consistent and can use it.
#[tokio::test]
async fn killed_processes_leave_a_store_that_works() {
    let work = tempfile::tempdir().unwrap();
    let (layout, root) = (work.path().join("layout"), work.path().join("store"));
    long().layout(&layout, "1");
    let source = format!("oci:{}", layout.display());
    let mut killed = 0;
    for step in 0..12 {
        let process = child(&[], "crash::resolve_in_a_child", &root, &source).spawn().unwrap();
        killed += u32::from(kill(process, Duration::from_millis(20 * step)));
        drop(store(&root).await);
        assert_consistent(&root);
        if step % 4 == 3 {
            remove_tree(&root).unwrap();
        }
    }
    assert!(killed > 3, "only {killed} of 12 were still at work when they were killed");
    let image = resolve(&store(&root).await, &source, PullPolicy::Missing).await.unwrap();
    let files = |layer: &std::path::PathBuf| walk(layer);
    assert_eq!(image.layers.iter().map(files).sum::<usize>(), 4500);
}

/// Random numbers that can be had again (xorshift64*, <https://doi.org/10.18637/jss.v008.i14>).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// Images that share layers, and whose blobs take a while.
fn shelf() -> [Parts; 3] {
    let mut dice = Dice(7);
    let noise: Vec<u8> = (0..1 << 20).map(|_| u8::try_from(dice.below(256)).unwrap()).collect();
    let many = |number: u32| {
        let tape = (0..150)
            .fold(Tape::default(), |tape, n| tape.file(&format!("{number}/{n}"), &"item".repeat(200)));
        tape.done()
    };
    let big = Tape::default().entry(Entry::new(FILE, "noise").data(noise)).done();
    [Parts::of(&[many(1), many(2)]), Parts::of(&[many(1), big.clone()]), Parts::of(&[big, many(3), many(4)])]
}

/// Uses a store in every way, without end; the body of the processes that are killed.
#[tokio::test]
#[ignore = "another test runs it in a process of its own"]
async fn work_until_killed() {
    let root = told("SHAKEDOWN_TEST_STORE");
    let sources = told("SHAKEDOWN_TEST_SOURCE");
    let (seed, sources) = sources.split_once(' ').unwrap();
    let sources: Vec<_> = sources.split(' ').collect();
    let mut dice = Dice(seed.parse().unwrap());
    let store = store(Path::new(&root)).await;
    std::io::stdout().write_all(b"opened\n").unwrap();
    loop {
        work(&store, &mut dice, &sources).await;
    }
}

async fn work(store: &Store, dice: &mut Dice, sources: &[&str]) {
    let pick = sources[usize::try_from(dice.below(sources.len() as u64)).unwrap()];
    match dice.below(10) {
        0..4 => drop(resolve(store, pick, PullPolicy::Missing).await.unwrap()),
        4..6 => build(store, dice).await,
        6 => match store.remove(pick, dice.below(2) == 0).await {
            // Somebody else was faster, or uses it.
            Err(failure) if failure.kind == FailureKind::Other => panic!("{failure}"),
            _ => {}
        },
        7 => assert_eq!(store.verify(false).await.unwrap(), []),
        _ => {
            let max_size = (dice.below(2) == 0).then_some(2 << 20);
            let rules =
                PruneRules { nameless: true, all: dice.below(2) == 0, max_size, ..PruneRules::default() };
            store.prune(&rules).await.unwrap();
        }
    }
}

/// What a build does: blobs, a layer that is unpacked at once, an image with a name.
async fn build(store: &Store, dice: &mut Dice) {
    let source: ImageSource = "build:shop".parse().unwrap();
    let ingest = store.ingest(&source, Arc::new(|_, _, _| {})).await.unwrap();
    let number = dice.below(4);
    let layer = (0..60).fold(Tape::default(), |tape, n| tape.file(&format!("built/{number}/{n}"), "x"));
    let mut blob = ingest.blob().unwrap();
    blob.write_all(&layer.done()).unwrap();
    let (layer, id) = blob.finish_layer_tar().unwrap();
    ingest.layer(&layer, id, &mut Vec::new()).await.unwrap();
    let config = bytes(&serde_json::json!({"rootfs": {"type": "layers", "diff_ids": [id]}}));
    ingest.finish(&config, &[layer], &[format!("built:{number}").parse().unwrap()]).await.unwrap();
}

/// kill -9, two hundred times, of processes that pull, build, name, remove and collect in one store: what is there is
/// whole every time, and it goes on.
#[tokio::test]
async fn two_hundred_kills_leave_a_store_that_verifies() {
    const AT_ONCE: u64 = 4;
    let seed = std::env::var("SHAKEDOWN_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    let time = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    let seed: u64 = seed.unwrap_or_else(time);
    std::io::stderr().write_all(format!("SHAKEDOWN_TEST_SEED={seed}\n").as_bytes()).unwrap();
    let mut dice = Dice(seed);
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("store");
    let registry = Registry::start("");
    let mut sources = Vec::new();
    for (number, parts) in shelf().iter().enumerate() {
        registry.push(parts, &format!("shop{number}"), "1", "");
        sources.push(format!("{}/shop{number}:1", registry.address));
    }
    shelf()[0].layout(&work.path().join("layout"), "1");
    sources.push(format!("oci:{}", work.path().join("layout").display()));
    for _round in 0..200 / AT_ONCE {
        let start = |dice: &mut Dice| {
            let told = format!("{} {}", dice.below(1 << 30) + 1, sources.join(" "));
            child(&[], "crash::work_until_killed", &root, &told).spawn().unwrap()
        };
        let processes: Vec<_> = (0..AT_ONCE).map(|_| start(&mut dice)).collect();
        for process in processes {
            assert!(kill(process, Duration::from_millis(dice.below(60))), "a process failed by itself");
        }
        assert_verifies(&root).await;
    }
    for (source, parts) in sources.iter().zip(shelf()) {
        let image = resolve(&store(&root).await, source, PullPolicy::Missing).await.unwrap();
        assert_eq!(image.layers.len(), parts.blobs.len());
    }
    assert_verifies(&root).await;
}

/// A mount namespace of its own; as an ordinary user it needs a user namespace too.
fn unshare() -> [&'static str; 2] {
    if rustix::process::geteuid().is_root() { ["unshare", "-m"] } else { ["unshare", "-rm"] }
}

fn walk(directory: &std::path::PathBuf) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| if entry.file_type().unwrap().is_dir() { walk(&entry.path()) } else { 1 }).sum()
}

/// A full disk is said, nothing is left on it, and with space the same store goes on.
#[test]
fn a_full_disk_is_said_and_given_back() {
    let work = tempfile::tempdir().unwrap();
    let big = Tape::default().entry(Entry::new(FILE, "big").data(vec![b'x'; 30 << 20])).done();
    let parts = Parts::of(&[Tape::default().file("small", "x").done(), big]);
    parts.layout(&work.path().join("layout"), "1");
    std::fs::create_dir(work.path().join("disk")).unwrap();
    let source = format!("oci:{}", work.path().join("layout").display());
    let status =
        child(&unshare(), "crash::fill_a_disk", &work.path().join("disk"), &source).status().unwrap();
    assert!(status.success());
}

/// The body of the test above, in its own mount namespace.
#[tokio::test]
#[ignore = "another test runs it in a mount namespace of its own"]
async fn fill_a_disk() {
    use rustix::mount::{MountFlags, mount, mount_remount};
    let disk = told("SHAKEDOWN_TEST_STORE");
    let disk = Path::new(&disk);
    mount("tmpfs", disk, "tmpfs", MountFlags::empty(), c"size=8m").unwrap();
    let used = || {
        let stat = rustix::fs::statvfs(disk).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    };
    let root = disk.join("store");
    let store = store(&root).await;
    let source = told("SHAKEDOWN_TEST_SOURCE");
    let failure = resolve(&store, &source, PullPolicy::Missing).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::ImageUnusable);
    let text = failure.to_string();
    assert!(text.contains("no space left on device") && text.contains("hint: free space"), "{text}");
    assert_consistent(&root);
    assert!(used() < 1 << 20, "{} bytes are still used", used());
    let ingest = store.ingest(&"build:shop".parse().unwrap(), Arc::new(|_, _, _| {})).await.unwrap();
    let mut blob = ingest.blob().unwrap();
    let error = blob.write_all(&vec![b'x'; 30 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    drop((blob, ingest));
    assert!(used() < 1 << 20, "{} bytes are still used", used());
    assert_verifies(&root).await;
    mount_remount(disk, MountFlags::empty(), c"size=64m").unwrap();
    let image = resolve(&store, &source, PullPolicy::Missing).await.unwrap();
    assert_eq!(std::fs::metadata(image.layers[1].join("big")).unwrap().len(), 30 << 20);
    assert_consistent(&root);
}

/// A removal stops at a mount, so that what a user mounted into a tree is not lost with it.
#[test]
fn a_removal_stops_at_mounts() {
    let work = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(work.path().join("tree/inner/mount")).unwrap();
    std::fs::create_dir(work.path().join("kept")).unwrap();
    std::fs::write(work.path().join("kept/file"), "here").unwrap();
    let status = child(&unshare(), "crash::remove_a_tree_with_a_mount", work.path(), "").status().unwrap();
    assert!(status.success());
    assert_eq!(std::fs::read(work.path().join("kept/file")).unwrap(), b"here");
}

/// The body of the test above, in its own mount namespace.
#[test]
#[ignore = "another test runs it in a mount namespace of its own"]
fn remove_a_tree_with_a_mount() {
    let work = std::path::PathBuf::from(told("SHAKEDOWN_TEST_STORE"));
    rustix::mount::mount_bind(work.join("kept"), work.join("tree/inner/mount")).unwrap();
    let error = remove_tree(&work.join("tree")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    // The tree itself may be the mount, too.
    assert!(remove_tree(&work.join("tree/inner/mount")).is_err());
}
