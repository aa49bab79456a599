//! `exec`: a further process in a running container.

use super::listener::Listener;
use super::state::{Place, Record, Status};
use super::talk::{Line, Word};
use super::{Result, checks, console, failed, filter, groups, home, hooks, invalid, label};
use crate::native::launch::{Program, Trouble, Trying};
use crate::native::sys::{self, Called};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, Spec};
use rustix::process::DumpableBehavior;
use rustix::thread::ThreadNameSpaceType;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What `exec` is told.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// Where states are kept.
    pub root: PathBuf,
    /// The container's name.
    pub id: String,
    /// The process as a file with the form of `process` in `config.json`; without one, what follows counts.
    pub process: Option<PathBuf>,
    /// The argument vector.
    pub argv: Vec<String>,
    /// `NAME=value` pairs on top of the container's.
    pub env: Vec<String>,
    /// The working directory; the container's when unset.
    pub cwd: Option<String>,
    /// `uid` or `uid:gid`; the container's when unset.
    pub user: Option<String>,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Whether to return once the process runs.
    pub detach: bool,
    /// Where to write the process's id.
    pub pid_file: Option<PathBuf>,
    /// The socket to which the master of the terminal is sent.
    pub console_socket: Option<PathBuf>,
    /// How many descriptors behind the standard ones the program gets.
    pub preserve_fds: u32,
    /// Capabilities on top of the container's.
    pub capabilities: Vec<String>,
    /// Groups on top of the user's.
    pub groups: Vec<u32>,
    /// Whether set-user-id programs give nothing; the container's choice when unset.
    pub no_new_privileges: bool,
    /// The security label.
    pub label: Option<String>,
    /// The AppArmor profile.
    pub apparmor: Option<String>,
    /// Whether a paused container is no reason to fail; the process begins when it goes on.
    pub ignore_paused: bool,
    /// Control groups below the container's own: `PATH` for all, `CONTROLLER,…:PATH` for some.
    pub cgroups: Vec<String>,
}

/// A process that has been made.
pub(super) struct Made {
    pub(super) process: OwnedFd,
    /// Where the master of its terminal comes from.
    pub(super) line: Option<Line>,
}

/// Starts the process.
pub(super) fn start(request: &Exec) -> Result<Made> {
    let place = Place::new(&request.root, &request.id)?;
    let record = place.read()?;
    let status = place.status(&record);
    let paused = status == Status::Paused && request.ignore_paused;
    // A created one may be entered as well: engines look around in it before they start it.
    if !matches!(status, Status::Running | Status::Created) && !paused {
        let (id, status) = (&request.id, status.name());
        if status == Status::Paused.name() {
            return Err(invalid(format!("cannot exec in a paused container: `{id}`")));
        }
        return Err(invalid(format!(
            "container not running: `{id}` is {status}, so nothing can be run in it"
        )));
    }
    let spec = Spec::load(place.file("config.json"))
        .map_err(|error| place.broken(&std::io::Error::other(error.to_string())))?;
    let process = wanted(request, &spec)?;
    let terminal = process.terminal().unwrap_or(false);
    let own = terminal && request.console_socket.is_none() && !request.detach;
    if terminal != request.console_socket.is_some() && !own {
        let reason =
            if terminal { "a terminal needs --console-socket" } else { "--console-socket needs a terminal" };
        return Err(invalid(format!("nothing could be run in container `{}`: {reason}", request.id)));
    }
    let not_run = |trouble: Trouble| failed(&request.id, "entered", &trouble);
    let groups = groups::below(&record.groups, &request.cgroups).map_err(not_run)?;
    let _placeholders = checks::hold_places(request.preserve_fds)?;
    let root = PathBuf::from(format!("/proc/{}/root", record.pid));
    let process = home::complete(process, &root);
    let program = filter::program(&spec, &process).map_err(not_run)?;
    let label = label::Label::of_process(&process).map_err(not_run)?;
    let console = request.console_socket.as_deref().map(console::connect).transpose().map_err(not_run)?;
    let (line, console) = if own {
        let (ours, theirs) = Line::pair().map_err(not_run)?;
        (Some(ours), Some(theirs.into_socket()))
    } else {
        (None, console)
    };
    let state = hooks::state_json(&record, Status::Running);
    let listener = Listener::connect(&spec, state).map_err(not_run)?;
    let user_namespace = foreign(record.pid).contains(ThreadNameSpaceType::USER);
    let further = Further {
        program: &program,
        process: &process,
        console: console.as_ref(),
        label: label.as_ref(),
        kept: request.preserve_fds,
        user_namespace,
        listener: listener.as_ref(),
        groups: &groups,
        beside: request.cgroups.is_empty().then_some(record.pid),
    };
    let (pid, mut made) = enter(&record, &further).map_err(not_run)?;
    made.line = line;
    if let Some(file) = &request.pid_file {
        fs::write(file, pid.to_string()).map_err(|error| place.broken(&error))?;
    }
    Ok(made)
}

/// The process that is asked for: of the file, or the container's own with other arguments.
fn wanted(request: &Exec, spec: &Spec) -> Result<Process> {
    if let Some(path) = &request.process {
        let wrong = |reason: String| {
            invalid("the process cannot be read")
                .fact("file", path.display().to_string())
                .fact("reason", reason)
        };
        let text = fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let mut value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        checks::be_lenient(&mut value);
        return serde_json::from_value(value).map_err(|error| wrong(error.to_string()));
    }
    let mut process = checks::process(&request.id, spec)?.clone();
    process.set_args(Some(request.argv.clone())).set_terminal(Some(request.tty));
    let mut env = process.env().clone().unwrap_or_default();
    for pair in &request.env {
        let name = pair.split_once('=').map_or(&**pair, |(name, _)| name);
        env.retain(|old| old.split_once('=').is_none_or(|(old, _)| old != name));
        env.push(pair.clone());
    }
    process.set_env(Some(env));
    if request.no_new_privileges {
        process.set_no_new_privileges(Some(true));
    }
    if request.apparmor.is_some() {
        process.set_apparmor_profile(request.apparmor.clone());
    }
    if request.label.is_some() {
        process.set_selinux_label(request.label.clone());
    }
    add_capabilities(&mut process, &request.capabilities);
    if let Some(cwd) = &request.cwd {
        process.set_cwd(cwd.into());
    }
    if let Some(user) = &request.user {
        let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
        // Numbers only: what a name means, the container's own files would say, which this does not read.
        let number = |text: &str| {
            text.parse::<u32>()
                .map_err(|_| invalid(format!("`{user}` is not a user: write `uid` or `uid:gid`")))
        };
        let (uid, gid) = (number(uid)?, number(gid)?);
        let mut changed = process.user().clone();
        changed.set_uid(uid).set_gid(gid).set_additional_gids(None);
        process.set_user(changed);
    }
    if !request.groups.is_empty() {
        let mut changed = process.user().clone();
        let groups = changed.additional_gids().iter().flatten().chain(&request.groups).copied().collect();
        changed.set_additional_gids(Some(groups));
        process.set_user(changed);
    }
    Ok(process)
}

/// Adds to the sets of the process itself. One that can be inherited would be in the hands of whatever the process executes
/// (CVE-2022-29162). Unknown ones cannot be given.
fn add_capabilities(process: &mut Process, names: &[String]) {
    let added: Vec<Capability> = names.iter().filter_map(|name| checks::capability(name)).collect();
    if added.is_empty() {
        return;
    }
    let mut sets = process.capabilities().clone().unwrap_or_else(no_capabilities);
    let with = |set: &Option<Capabilities>| -> Option<Capabilities> {
        Some(set.iter().flatten().copied().chain(added.iter().copied()).collect())
    };
    let (bounding, effective, permitted) =
        (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(sets));
}

/// The default of the type is not empty.
fn no_capabilities() -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(None).set_effective(None).set_permitted(None).set_inheritable(None).set_ambient(None);
    sets
}

/// The namespaces of a process that this one is not in.
fn foreign(pid: i32) -> ThreadNameSpaceType {
    let kinds = [
        ("user", libc::CLONE_NEWUSER),
        ("mnt", libc::CLONE_NEWNS),
        ("uts", libc::CLONE_NEWUTS),
        ("ipc", libc::CLONE_NEWIPC),
        ("net", libc::CLONE_NEWNET),
        ("pid", libc::CLONE_NEWPID),
        ("cgroup", libc::CLONE_NEWCGROUP),
        ("time", 0x80),
    ];
    let number =
        |process: &str, name: &str| fs::metadata(format!("/proc/{process}/ns/{name}")).ok().map(|m| m.ino());
    let other = kinds.into_iter().filter(|(name, _)| number(&pid.to_string(), name) != number("self", name));
    ThreadNameSpaceType::from_bits_retain(other.fold(0, |flags, (_, flag)| flags | flag as u32))
}

/// A process that joins the container, makes the one that is wanted as this process's child, and ends.
fn enter(record: &Record, further: &Further<'_>) -> std::result::Result<(i32, Made), Trouble> {
    let doing = || "run a process in the container".to_owned();
    let gone = || Trouble::new(doing(), "its first process has ended");
    let init = record.process().ok_or_else(gone)?;
    let namespaces = foreign(record.pid);
    let (ours, theirs) = Line::pair()?;
    let stage = sys::fork_namespaces(0, || {
        let made = further.prepare().and_then(|()| {
            rustix::thread::move_into_thread_name_spaces(init.as_fd(), namespaces)
                .call(|| format!("setns(pidfd, {namespaces:?})"))
                .trying(|| "join the container's namespaces".to_owned())?;
            sys::fork_sibling(0, || further.run(&theirs)).call(|| "clone3(0)".to_owned()).trying(doing)
        });
        let word = made.map_or_else(Word::Trouble, |child| Word::Born { pid: child.pid });
        i32::from(theirs.say(&word).is_err())
    });
    let stage = stage.call(|| "clone3(0)".to_owned()).trying(doing)?;
    drop(theirs);
    let (mut pid, mut trouble) = (None, None);
    // The line ends when the program is executed, and with it the last copy of its other end.
    loop {
        match ours.hear() {
            Ok(Word::Born { pid: born }) => pid = Some(born),
            Ok(Word::Trouble(told)) => trouble = Some(told),
            Ok(Word::Here | Word::Ready) => {}
            Err(_end) => break,
        }
    }
    crate::native::reap::collect(&stage.pidfd);
    let raw = pid.and_then(rustix::process::Pid::from_raw);
    let process =
        raw.and_then(|raw| rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).ok());
    match (trouble, pid.zip(process)) {
        (Some(trouble), made) => {
            if let Some((_, process)) = made {
                crate::native::reap::collect(&process);
            }
            Err(trouble)
        }
        (None, Some((pid, process))) => Ok((pid, Made { process, line: None })),
        (None, None) => Err(gone()),
    }
}

/// What the further process needs.
struct Further<'a> {
    program: &'a Program,
    process: &'a Process,
    console: Option<&'a OwnedFd>,
    label: Option<&'a label::Label>,
    kept: u32,
    user_namespace: bool,
    listener: Option<&'a Listener>,
    groups: &'a [PathBuf],
    /// The first process, whose group does as well unless one is asked for.
    beside: Option<i32>,
}

impl Further<'_> {
    /// What is done while the host's files are still within reach.
    fn prepare(&self) -> std::result::Result<(), Trouble> {
        if let Some(score) = self.process.oom_score_adj() {
            fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(|error| {
                Trouble::new(format!("set the out-of-memory score to {score}"), error.to_string())
            })?;
        }
        let own = std::process::id().cast_signed();
        match self.beside {
            Some(first) => groups::Groups::enter_beside(self.groups, first, own)?,
            None => groups::Groups::enter(self.groups, own)?,
        }
        // Inherited: until it executes its program, nobody in there may trace or read it (CVE-2019-5736).
        let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
        Ok(())
    }

    fn run(&self, line: &Line) -> i32 {
        let Err(trouble) = self.go(line);
        let _ = line.say(&Word::Trouble(trouble));
        127
    }

    fn go(&self, line: &Line) -> std::result::Result<std::convert::Infallible, Trouble> {
        sys::reset_signals();
        let kept = [Some(line.socket()), self.console.map(AsFd::as_fd), self.label.map(label::Label::proc)];
        let mut kept: Vec<_> = kept.into_iter().flatten().collect();
        kept.extend(self.listener.iter().flat_map(|agent| agent.descriptors()));
        sys::close_from_other_than(3 + self.kept, &kept);
        let _ = rustix::process::setsid();
        if self.user_namespace {
            super::first::become_root()?;
        }
        let label = self.label.map(label::Label::prepare).transpose()?;
        if let Some(to) = self.console {
            let flags =
                rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            let root = rustix::fs::open(Path::new("/"), flags, rustix::fs::Mode::empty())
                .call(|| "open(\"/\")".to_owned())
                .trying(|| "make the terminal".to_owned())?;
            let slave = console::make(root.as_fd(), to, self.process)?;
            console::take(&slave)?;
        }
        console::close_others(self.kept)?;
        self.program.set_limits()?;
        label.map_or(Ok(()), label::Prepared::apply)?;
        self.program.run_told(&|fd| self.listener.map_or(Ok(()), |agent| agent.tell(fd)))
    }
}
