//! The commands, as the command line has them.

use super::create::{self as making, short_path};
use super::notify::Notify;
use super::state::{Place, Record, Status};
use super::talk::Line;
use super::terminal::Terminal;
use super::{Result, exec as entering, failed, groups, hooks, invalid};
use crate::native::launch::{Trouble, Trying};
use crate::native::sys::{self, Called};
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Spec};
use regex::Regex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use super::create::Create;
pub use super::exec::Exec;

/// What `kill` is told.
#[derive(Clone, Debug)]
pub struct Kill {
    /// The signal: a name with or without `SIG`, or a number.
    pub signal: String,
    /// Whether every process of the container gets it.
    pub all: bool,
}

/// What `delete` is told.
#[derive(Clone, Copy, Debug)]
pub struct Delete {
    /// Whether a running container is killed first, and one that does not exist is no error.
    pub force: bool,
}

/// `create`: makes a container; its program runs once it is started.
///
/// # Errors
///
/// The bundle cannot be used, the id is taken, or the container cannot be made.
pub fn create(request: &Create) -> Result<()> {
    making::create(request).map(drop)
}

/// `start`: lets the program of a created container run.
///
/// # Errors
///
/// There is no such container, it is not in the state `created`, or its program cannot be executed.
pub fn start(root: &Path, id: &str) -> Result<()> {
    let (notify, process) = begin(root, id)?;
    if let (Some(notify), Some(process)) = (notify, process) {
        notify.wait(&process);
    }
    Ok(())
}

/// Lets the program run; gives the socket at which it says that it is ready, if it has one, and the first process.
fn begin(root: &Path, id: &str) -> Result<(Option<Notify>, Option<OwnedFd>)> {
    let place = Place::new(root, id)?;
    let _lock = place.lock()?;
    let record = place.read()?;
    let status = place.status(&record);
    if status != Status::Created {
        return Err(invalid(format!("container `{id}` is {}, so it cannot be started", status.name())));
    }
    let not_started = |trouble: Trouble| failed(id, "started", &trouble);
    let notify = Notify::listen(&place).map_err(not_started)?;
    let process = record.process();
    tell(&place).map_err(not_started)?;
    let spec = spec_of(&place)?;
    let state = hooks::state_json(&record, Status::Running);
    let poststart = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref());
    hooks::run("poststart", poststart, &state).map_err(not_started)?;
    Ok((notify, process))
}

/// Connects to the socket of the first process, which then executes its program; the connection ends when it has.
fn tell(place: &Place) -> std::result::Result<(), Trouble> {
    let doing = || "reach the container's first process".to_owned();
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let directory = rustix::fs::open(&place.path, flags, rustix::fs::Mode::empty())
        .call(|| format!("open({:?})", place.path))
        .trying(doing)?;
    let stream = UnixStream::connect(short_path(&directory));
    let mut stream = stream.map_err(|error| Trouble::new(doing(), error.to_string()))?;
    let mut text = Vec::new();
    let heard = stream.read_to_end(&mut text);
    // Its absence is what tells `created` from `running`.
    let _ = fs::remove_file(place.start_socket());
    heard.map_err(|error| Trouble::new(doing(), error.to_string()))?;
    if text.is_empty() {
        return Ok(());
    }
    Err(serde_json::from_slice(&text)
        .unwrap_or_else(|_| Trouble::new(doing(), "how far it got is not known")))
}

fn spec_of(place: &Place) -> Result<Spec> {
    let spec = Spec::load(place.file("config.json"));
    spec.map_err(|error| place.broken(&std::io::Error::other(error.to_string())))
}

/// `run`: creates, starts, waits and deletes; with `detach` it only creates and starts. The exit code.
///
/// # Errors
///
/// As of [`create`] and [`start`].
pub fn run(request: &Create, detach: bool) -> Result<i32> {
    let signals = if detach { None } else { Some(Signals::take()?) };
    let (request, line) = with_terminal(request, detach)?;
    let request = &request;
    let (place, record) = making::create(request)?;
    let process = record.process();
    let deleted = Deleted { place: &place, keep: detach || request.keep };
    let terminal = line.map(|line| Terminal::take(&line)).transpose();
    let started = terminal
        .map_err(|trouble| failed(&request.id, "started", &trouble))
        .and_then(|terminal| begin(&request.root, &request.id).map(|(notify, _)| (terminal, notify)));
    let (terminal, notify) = match started {
        Ok(started) => started,
        Err(failure) => {
            let mut deleted = deleted;
            deleted.keep = false;
            drop(deleted);
            return Err(failure);
        }
    };
    let Some(signals) = signals else {
        if let (Some(notify), Some(process)) = (notify, process) {
            notify.wait(&process);
        }
        return Ok(0);
    };
    let code = process.map_or(Ok(0), |process| signals.wait_for(&process, &place, terminal, notify));
    drop(deleted);
    code
}

/// In the foreground and without a console socket, the terminal is the one of this process.
fn with_terminal(request: &Create, detach: bool) -> Result<(Create, Option<Line>)> {
    let mut request = request.clone();
    if detach || request.console_socket.is_some() || !making::wants_terminal(&request)? {
        return Ok((request, None));
    }
    let pair = Line::pair().map_err(|trouble| failed(&request.id, "created", &trouble));
    let (ours, theirs) = pair?;
    request.master = Some(Arc::new(theirs.into_socket()));
    Ok((request, Some(ours)))
}

/// Deletes the container of a `run` in the foreground, however the run ends.
struct Deleted<'a> {
    place: &'a Place,
    keep: bool,
}

impl Drop for Deleted<'_> {
    fn drop(&mut self) {
        if !self.keep {
            let root = self.place.path.parent().unwrap_or(Path::new("/"));
            let _ = delete(root, &self.place.id, Delete { force: true });
        }
    }
}

/// Signals to this process, passed on to the container.
struct Signals {
    descriptor: nix::sys::signalfd::SignalFd,
}

impl Signals {
    fn take() -> Result<Self> {
        use nix::sys::signal::{SigSet, Signal};
        use nix::sys::signalfd::{SfdFlags, SignalFd};
        let mut set = SigSet::all();
        for kept in [Signal::SIGCHLD, Signal::SIGPIPE, Signal::SIGURG] {
            set.remove(kept);
        }
        let made = set.thread_block().and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC));
        let descriptor =
            made.map_err(|error| invalid("signals cannot be passed on").fact("reason", error.to_string()))?;
        Ok(Self { descriptor })
    }

    /// Waits for the end of a child; its exit code as shells count.
    fn wait_for(
        self,
        process: &OwnedFd,
        place: &Place,
        mut terminal: Option<Terminal>,
        mut notify: Option<Notify>,
    ) -> Result<i32> {
        loop {
            let nothing = PollFd::from_borrowed_fd(self.descriptor.as_fd(), PollFlags::empty());
            let mut set = vec![
                PollFd::new(process, PollFlags::IN),
                PollFd::from_borrowed_fd(self.descriptor.as_fd(), PollFlags::IN),
                notify.as_ref().map_or(nothing, Notify::polled),
            ];
            set.extend(terminal.iter().flat_map(Terminal::polled));
            match rustix::event::poll(&mut set, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(place.broken(&errno.into())),
                Ok(_) => {}
            }
            let (ended, signalled) = (!set[0].revents().is_empty(), !set[1].revents().is_empty());
            let told = !set[2].revents().is_empty();
            let ready: Vec<bool> = set[3..].iter().map(|one| !one.revents().is_empty()).collect();
            drop(set);
            if let (Some(carried), [output, input]) = (&mut terminal, &ready[..])
                && !carried.carry(*output, *input)
            {
                terminal = None;
            }
            if told && notify.as_ref().is_some_and(Notify::hear) {
                notify = None;
            }
            if ended {
                if let Some(terminal) = &mut terminal {
                    terminal.drain();
                }
                return exit_code(process, place);
            }
            if signalled && let Ok(Some(info)) = self.descriptor.read_signal() {
                if info.ssi_signo.cast_signed() == libc::SIGWINCH
                    && let Some(terminal) = &terminal
                {
                    terminal.resize();
                    continue;
                }
                let _ = sys::send_signal(process.as_fd(), info.ssi_signo.cast_signed());
            }
        }
    }
}

fn exit_code(process: &OwnedFd, place: &Place) -> Result<i32> {
    let status = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
    let status = status.map_err(|errno| place.broken(&errno.into()))?;
    let code = status.as_ref().and_then(rustix::process::WaitIdStatus::exit_status);
    let signal = status.as_ref().and_then(rustix::process::WaitIdStatus::terminating_signal);
    Ok(code.unwrap_or_else(|| 128 + signal.unwrap_or(0)))
}

/// `exec`: runs a process in a container; its exit code, or 0 at once if it is detached.
///
/// # Errors
///
/// There is no such container, it does not run, or the process cannot be started.
pub fn execute(request: &Exec) -> Result<i32> {
    let place = Place::new(&request.root, &request.id)?;
    let signals = if request.detach { None } else { Some(Signals::take()?) };
    let mut made = entering::start(request)?;
    let terminal = made.line.take().map(|line| Terminal::take(&line)).transpose();
    let terminal = terminal.map_err(|trouble| failed(&request.id, "entered", &trouble))?;
    signals.map_or(Ok(0), |signals| signals.wait_for(&made.process, &place, terminal, None))
}

/// `state`: what the specification calls the state of a container.
///
/// # Errors
///
/// There is no such container.
pub fn state(root: &Path, id: &str) -> Result<Value> {
    let place = Place::new(root, id)?;
    let record = place.read()?;
    let mut state = hooks::state_json(&record, place.status(&record));
    if state.get("pid").is_none() {
        state["pid"] = 0.into();
    }
    Ok(state)
}

/// A container as `list` shows it; the order of the fields is runc's.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// The version of the specification that its `config.json` names.
    pub oci_version: String,
    /// Its name.
    pub id: String,
    /// Its first process, 0 if that has ended.
    pub pid: i32,
    /// Its state.
    pub status: &'static str,
    /// The directory of its `config.json`.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// When it was made (RFC 3339).
    pub created: String,
    /// The annotations of its `config.json`.
    pub annotations: HashMap<String, String>,
    /// Who made it.
    pub owner: String,
}

/// `list`: the containers below a root.
///
/// # Errors
///
/// A state cannot be read.
pub fn list(root: &Path) -> Result<Vec<Listed>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let Ok(place) = Place::new(root, &entry.file_name().to_string_lossy()) else { continue };
        // One that is just being made or deleted.
        let Ok(record) = place.read() else { continue };
        let status = place.status(&record);
        let pid = if status == Status::Stopped { 0 } else { record.pid };
        let rootfs = spec_of(&place).ok().and_then(|spec| Some(spec.root().as_ref()?.path().clone()));
        found.push(Listed {
            oci_version: record.oci_version,
            id: record.id,
            pid,
            status: status.name(),
            bundle: record.bundle,
            rootfs: rootfs.unwrap_or_default(),
            created: rfc3339(record.created),
            annotations: record.annotations,
            owner: owner_of(&place),
        });
    }
    found.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(found)
}

fn rfc3339(seconds: u64) -> String {
    crate::native::build::time::rfc3339(seconds.cast_signed(), 0)
}

/// Who made the container: a name if the machine has one for the id.
fn owner_of(place: &Place) -> String {
    use std::os::unix::fs::MetadataExt;
    let uid = fs::metadata(&place.path).map_or(0, |metadata| metadata.uid());
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
    user.ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// `kill`: sends a signal to the first process, or to all.
///
/// # Errors
///
/// There is no such container, it has ended, or the signal is none.
pub fn kill(root: &Path, id: &str, request: &Kill) -> Result<()> {
    let signal = signal_number(&request.signal)?;
    let place = Place::new(root, id)?;
    let record = place.read()?;
    let status = place.status(&record);
    if request.all {
        kill_all(&record, signal);
        return Ok(());
    }
    let process = record.process().filter(|_| !matches!(status, Status::Stopped | Status::Creating));
    let Some(process) = process else {
        // In these words engines look for what happened.
        return Err(invalid(format!("container not running: `{id}` is {}", status.name())));
    };
    thaw_for(&record, signal);
    sys::send_signal(process.as_fd(), signal)
        .call(|| format!("pidfd_send_signal(…, {signal})"))
        .trying(|| format!("send signal {signal}"))
        .map_err(|trouble| failed(id, "killed", &trouble))
}

/// SIGKILL is not delivered in a frozen v1 group, and the end of its pid namespace would be waited for without end.
fn thaw_for(record: &Record, signal: i32) {
    if signal == libc::SIGKILL && groups::is_frozen(&record.groups) {
        let _ = groups::freeze(&record.groups, false);
    }
}

fn kill_all(record: &Record, signal: i32) {
    for pid in groups::processes(&record.groups) {
        let Some(raw) = rustix::process::Pid::from_raw(pid) else { continue };
        let Ok(process) = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) else {
            continue;
        };
        // The id may have been given again between the look and the descriptor.
        if groups::processes(&record.groups).contains(&pid) {
            let _ = sys::send_signal(process.as_fd(), signal);
        }
    }
    thaw_for(record, signal);
}

fn signal_number(text: &str) -> Result<i32> {
    let unknown = || invalid(format!("`{text}` is not a signal"));
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(above) = name.strip_prefix("RTMIN") {
        let above = above.strip_prefix('+').map_or(Some(0), |number| number.parse().ok());
        return above.map(|above: i32| 34 + above).filter(|number| *number <= 64).ok_or_else(unknown);
    }
    format!("SIG{name}")
        .parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| unknown())
}

/// `delete`: takes away what is left of a container.
///
/// # Errors
///
/// There is no such container, or it still runs.
pub fn delete(root: &Path, id: &str, request: Delete) -> Result<()> {
    let place = Place::new(root, id)?;
    if request.force && !place.path.exists() {
        return Ok(());
    }
    let _lock = place.lock()?;
    let Ok(record) = place.read() else {
        // `create` was killed before it could write anything down.
        return if request.force { place.remove() } else { place.read().map(drop) };
    };
    let status = place.status(&record);
    if !matches!(status, Status::Stopped | Status::Created) && !request.force {
        return Err(invalid(format!("container `{id}` is {}, so it cannot be deleted", status.name())));
    }
    if let Some(process) = record.process() {
        // Back into its own group, should it have been moved to one that is frozen: there it could not end.
        let _ = groups::freeze(&record.groups, false);
        let _ = groups::Groups::enter(&record.groups, record.pid);
        let _ = sys::send_signal(process.as_fd(), libc::SIGKILL);
        if !has_ended(&process) {
            let reason = "it has been killed and does not end";
            return Err(failed(id, "deleted", &Trouble::new("end its first process", reason)));
        }
    }
    // Without a pid namespace of its own, a container's other processes outlive the first one.
    kill_all(&record, libc::SIGKILL);
    wait_for_groups(&record);
    groups::remove(&record.groups);
    let spec = spec_of(&place).ok();
    let poststop =
        spec.as_ref().and_then(|spec| spec.hooks().as_ref()).and_then(|hooks| hooks.poststop().as_ref());
    let told = hooks::run("poststop", poststop, &hooks::state_json(&record, Status::Stopped));
    place.remove()?;
    told.map_err(|trouble| failed(id, "deleted without trouble", &trouble))
}

/// Whether a process that was killed ends, which is waited for.
fn has_ended(process: &OwnedFd) -> bool {
    const LONGEST: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
    let mut set = [PollFd::new(process, PollFlags::IN)];
    let ended = loop {
        match rustix::event::poll(&mut set, Some(&LONGEST)) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.is_ok_and(|ready| ready > 0),
        }
    };
    // This process's own child, when `run` deletes.
    let _ = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    ended
}

/// A killed process leaves its group a moment after it was killed.
fn wait_for_groups(record: &Record) {
    for pid in groups::processes(&record.groups) {
        let raw = rustix::process::Pid::from_raw(pid);
        let process =
            raw.and_then(|raw| rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).ok());
        if let Some(process) = process {
            has_ended(&process);
        }
    }
}

/// `delete --regex`: deletes every container whose name matches.
///
/// # Errors
///
/// The expression is none, or a container could not be deleted; the others are deleted all the same.
pub fn delete_matching(root: &Path, expression: &str, request: Delete) -> Result<()> {
    let wanted = Regex::new(expression).map_err(|error| {
        invalid(format!("`{expression}` is not a regular expression")).fact("reason", error.to_string())
    })?;
    let mut done = Ok(());
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name.to_string_lossy();
        if wanted.is_match(&id) {
            done = done.and(delete(root, &id, request));
        }
    }
    done
}

/// `pause`: stops all processes of a container.
///
/// # Errors
///
/// There is no such container, it does not run, or it has no freezer.
pub fn pause(root: &Path, id: &str) -> Result<()> {
    change(root, id, Status::Running, true)
}

/// `resume`: lets the processes of a paused container go on.
///
/// # Errors
///
/// There is no such container, or it is not paused.
pub fn resume(root: &Path, id: &str) -> Result<()> {
    change(root, id, Status::Paused, false)
}

fn change(root: &Path, id: &str, from: Status, stop: bool) -> Result<()> {
    let place = Place::new(root, id)?;
    let _lock = place.lock()?;
    let record = place.read()?;
    let (status, verb) = (place.status(&record), if stop { "paused" } else { "resumed" });
    if status != from {
        return Err(invalid(format!("container `{id}` is {}, so it cannot be {verb}", status.name())));
    }
    groups::freeze(&record.groups, stop).map_err(|trouble| failed(id, verb, &trouble))
}

/// `update`: changes the limits of a container; `resources` has the form of `linux.resources`.
///
/// # Errors
///
/// There is no such container, or the limits are not accepted.
pub fn update(root: &Path, id: &str, resources: &[u8]) -> Result<()> {
    let place = Place::new(root, id)?;
    let _lock = place.lock()?;
    let record = place.read()?;
    let resources: LinuxResources = serde_json::from_slice(resources)
        .map_err(|error| invalid("the resources cannot be read").fact("reason", error.to_string()))?;
    groups::Groups::change(&record.groups, &resources).map_err(|trouble| failed(id, "updated", &trouble))
}

/// `ps`: the processes of a container, as the host counts.
///
/// # Errors
///
/// There is no such container.
pub fn processes(root: &Path, id: &str) -> Result<Vec<i32>> {
    let place = Place::new(root, id)?;
    Ok(groups::processes(&place.read()?.groups))
}

/// `spec`: a `config.json` to begin with.
///
/// # Errors
///
/// The file is there already, or cannot be written.
pub fn specification(bundle: &Path, rootless: bool) -> Result<()> {
    let file = bundle.join("config.json");
    let failed = |reason: String| {
        invalid("config.json could not be written")
            .fact("file", file.display().to_string())
            .fact("reason", reason)
    };
    let mut spec = if rootless {
        Spec::rootless(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    } else {
        Spec::default()
    };
    spec.set_hostname(Some("shakedown".to_owned()));
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(true));
    }
    if let Some(linux) = spec.linux_mut() {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Cgroup);
        linux.set_namespaces(Some(namespaces));
    }
    let text = serde_json::to_vec_pretty(&spec).map_err(|error| failed(error.to_string()))?;
    let written =
        fs::File::create_new(&file).and_then(|mut made| std::io::Write::write_all(&mut made, &text));
    written.map_err(|error| failed(error.to_string()))
}

/// `features`: what this runtime can do (OCI runtime specification, features.md).
#[must_use]
pub fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": [
            "async", "atime", "bind", "defaults", "dev", "exec", "noatime", "nodev", "nodiratime", "noexec", "norelatime",
            "nostrictatime", "nosuid", "private", "rbind", "relatime", "ro", "rprivate", "rslave", "rw", "slave",
            "strictatime", "suid"
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities(),
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": {
                "enabled": true,
                "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
                "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"],
                "archs": ["SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]
            },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false }
        }
    })
}

fn capabilities() -> Vec<String> {
    use rustix::thread::CapabilitySet;
    CapabilitySet::all()
        .iter_names()
        .map(|(name, _)| if name.starts_with("CAP_") { name.to_owned() } else { format!("CAP_{name}") })
        .collect()
}
