//! `create`: everything up to the point where only the program's execution is left.

use super::first::First;
use super::mounts::Sources;
use super::state::{Place, Record, look, standard_streams};
use super::talk::{Line, Word};
use super::{
    Result, checks, console, failed, filter, groups, home, hooks, ids, invalid, label, mounts, nodes, notify,
};
use crate::native::launch::{Program, Trouble, Trying, clone_flag};
use crate::native::sys::{self, Called};
use oci_spec::runtime::{LinuxDevice, LinuxNamespace, LinuxNamespaceType, Spec};
use rustix::thread::LinkNameSpaceType;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What `create` and `run` are told.
#[derive(Clone, Debug, Default)]
pub struct Create {
    /// Where states are kept.
    pub root: PathBuf,
    /// The container's name.
    pub id: String,
    /// The directory of `config.json`.
    pub bundle: PathBuf,
    /// Another file than `config.json`.
    pub config: Option<PathBuf>,
    /// Where to write the first process's id.
    pub pid_file: Option<PathBuf>,
    /// The socket to which the master of the container's terminal is sent.
    pub console_socket: Option<PathBuf>,
    /// How many descriptors behind the standard ones the program gets.
    pub preserve_fds: u32,
    /// Whether a container that has run in the foreground is kept until it is deleted.
    pub keep: bool,
    /// As `console_socket`, but connected already.
    pub master: Option<Arc<OwnedFd>>,
}

/// A container that is being made; dropped before it is done, everything of it goes again.
struct Making<'a> {
    place: &'a Place,
    groups: Vec<PathBuf>,
    process: Option<OwnedFd>,
    done: bool,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Some(process) = &self.process {
            let _ = sys::send_signal(process.as_fd(), libc::SIGKILL);
            crate::native::reap::collect(process);
        }
        groups::remove(&self.groups);
        let _ = self.place.remove();
    }
}

/// Whether the process of the bundle has a terminal.
pub(super) fn wants_terminal(request: &Create) -> Result<bool> {
    let spec =
        checks::load(&fs::canonicalize(&request.bundle).unwrap_or_default(), request.config.as_deref())?;
    Ok(spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false))
}

/// Makes the container; its first process waits to be started.
pub(super) fn create(request: &Create) -> Result<(Place, Record)> {
    let bundle = fs::canonicalize(&request.bundle).map_err(|error| {
        invalid("the bundle is not there")
            .fact("bundle", request.bundle.display().to_string())
            .fact("reason", error.to_string())
    })?;
    let mut spec = checks::load(&bundle, request.config.as_deref())?;
    let _placeholders = checks::hold_places(request.preserve_fds + checks::sockets())?;
    let place = Place::new(&request.root, &request.id)?;
    ids::add_user_namespace(&mut spec);
    notify::announce(&mut spec, &place);
    let not_created = |trouble: Trouble| failed(&request.id, "created", &trouble);
    checks::parameters(&spec).map_err(not_created)?;
    let program = program(&request.id, &spec)?;
    let terminal = checks::process(&request.id, &spec)?.terminal().unwrap_or(false);
    let master = request.console_socket.is_some() || request.master.is_some();
    if terminal != master {
        let reason = if terminal {
            "`process.terminal` needs --console-socket"
        } else {
            "--console-socket needs `process.terminal`"
        };
        return Err(invalid(format!("container `{}` could not be created: {reason}", request.id)));
    }
    place.make()?;
    let mut making = Making { place: &place, groups: Vec::new(), process: None, done: false };
    let written = serde_json::to_vec(&spec).map_err(|error| place.broken(&error.into()))?;
    fs::write(place.file("config.json"), written).map_err(|error| place.broken(&error))?;
    notify::make_directory(&spec, &place).map_err(not_created)?;
    let record = make(request, &bundle, &mut spec, &program, &mut making).map_err(not_created)?;
    place.write(&record)?;
    if let Some(file) = &request.pid_file {
        fs::write(file, record.pid.to_string()).map_err(|error| place.broken(&error))?;
    }
    making.done = true;
    drop(making);
    Ok((place, record))
}

/// The program of the spec, with its filter.
fn program(id: &str, spec: &Spec) -> Result<Program> {
    let not_created = |trouble: Trouble| failed(id, "created", &trouble);
    let process = checks::process(id, spec)?;
    let root = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
    let process = checks::pass_sockets(home::complete(process.clone(), &root));
    filter::program(spec, &process).map_err(not_created)
}

fn make(
    request: &Create,
    bundle: &Path,
    spec: &mut Spec,
    program: &Program,
    making: &mut Making<'_>,
) -> std::result::Result<Record, Trouble> {
    let created = groups::Groups::create(&request.id, spec.linux().as_ref())?;
    making.groups = created.directories;
    let read_only = mounts::complete(spec, &making.groups);
    let dead_nodes = nodes::are_dead(spec);
    if dead_nodes {
        nodes::kill_in_mounts(spec);
    }
    let apart = if opens_for_it(spec) { nodes::take_apart(spec) } else { Vec::new() };
    let spec = &*spec;
    let label = label::Label::of(spec)?;
    let console = request.console_socket.as_deref().map(console::connect).transpose()?;
    let listener = listen(making.place)?;
    let (ours, theirs) = Line::pair()?;
    let mut record = record(request, bundle, spec, &making.groups);
    let first = First {
        spec,
        program,
        record: &record,
        line: &theirs,
        listener: &listener,
        console: console.as_ref().or(request.master.as_deref()),
        kept: request.preserve_fds + checks::sockets(),
        read_only: &read_only,
        dead_nodes,
        label: label.as_ref(),
        given: opens_for_it(spec),
        apart: &apart,
    };
    let Born { pid, process, is_here } = born(spec, &first, &ours)?;
    making.process = Some(process);
    drop(theirs);
    record.pid = pid;
    record.began = look(pid).map_or(0, |(_, began)| began);
    accompany(&Outside { spec, place: making.place, apart: &apart }, &record, &ours, is_here)?;
    Ok(record)
}

fn record(request: &Create, bundle: &Path, spec: &Spec, groups: &[PathBuf]) -> Record {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    Record {
        oci_version: spec.version().clone(),
        id: request.id.clone(),
        pid: 0,
        began: 0,
        bundle: bundle.to_owned(),
        annotations: spec.annotations().clone().unwrap_or_default(),
        groups: groups.to_vec(),
        created: now,
        external_descriptors: standard_streams(),
    }
}

/// The socket at which the first process waits. Its path may be longer than an address takes, hence the detour.
fn listen(place: &Place) -> std::result::Result<OwnedFd, Trouble> {
    let doing = || "make the container's socket".to_owned();
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let directory = rustix::fs::open(&place.path, flags, rustix::fs::Mode::empty())
        .call(|| format!("open({:?})", place.path))
        .trying(doing)?;
    let path = short_path(&directory);
    let listener = std::os::unix::net::UnixListener::bind(&path);
    listener.map(OwnedFd::from).map_err(|error| Trouble::new(doing(), error.to_string()))
}

pub(super) fn short_path(directory: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}/start.sock", directory.as_raw_fd()))
}

/// A first process that has been made.
struct Born {
    pid: i32,
    process: OwnedFd,
    /// Whether it has said already that it is in its namespaces.
    is_here: bool,
}

/// Makes the first process: by itself, or by a process that joins namespaces first.
fn born(spec: &Spec, first: &First<'_>, line: &Line) -> std::result::Result<Born, Trouble> {
    let list = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let flags = new_namespaces(list);
    let joined = joined_namespaces(list)?;
    let doing = || "make the container's namespaces".to_owned();
    if joined.is_empty() {
        let child = sys::fork_namespaces(flags, || first.run())
            .call(|| format!("clone3({flags:#x})"))
            .trying(doing)?;
        return Ok(Born { pid: child.pid, process: child.pidfd, is_here: false });
    }
    let stage = sys::fork_namespaces(0, || {
        let made = join(&joined).and_then(|()| {
            sys::fork_sibling(flags, || first.run()).call(|| format!("clone3({flags:#x})")).trying(doing)
        });
        let word = made.map_or_else(Word::Trouble, |child| Word::Born { pid: child.pid });
        i32::from(first.line.say(&word).is_err())
    });
    let stage = stage.call(|| "clone3(0)".to_owned()).trying(doing)?;
    // The new process may be faster than the stage that tells of it, and then its word comes first.
    let mut is_here = false;
    let born = loop {
        match line.hear() {
            Ok(Word::Born { pid }) => break Ok(pid),
            Ok(Word::Trouble(trouble)) => break Err(trouble),
            Ok(Word::Here | Word::Ready) => is_here = true,
            Err(trouble) => break Err(trouble),
        }
    };
    crate::native::reap::collect(&stage.pidfd);
    let pid = born?;
    let raw = rustix::process::Pid::from_raw(pid).ok_or_else(|| Trouble::new(doing(), "it has no id"))?;
    let process = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty());
    let process = process.call(|| format!("pidfd_open({pid})")).trying(doing)?;
    Ok(Born { pid, process, is_here })
}

fn new_namespaces(list: &[LinuxNamespace]) -> i32 {
    // That of control groups is made after its groups have been joined: its root is where one is then.
    let new = list
        .iter()
        .filter(|namespace| namespace.path().is_none() && namespace.typ() != LinuxNamespaceType::Cgroup);
    new.fold(0, |flags, namespace| flags | clone_flag(namespace.typ()))
}

type Joined = (LinkNameSpaceType, OwnedFd, PathBuf);

/// The namespaces that exist already; the user namespace first, because the others may belong to it.
fn joined_namespaces(list: &[LinuxNamespace]) -> std::result::Result<Vec<Joined>, Trouble> {
    let mut joined = Vec::new();
    for namespace in list {
        let Some(path) = namespace.path() else { continue };
        let kind = match namespace.typ() {
            LinuxNamespaceType::Mount => LinkNameSpaceType::Mount,
            LinuxNamespaceType::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            LinuxNamespaceType::Ipc => LinkNameSpaceType::InterProcessCommunication,
            LinuxNamespaceType::User => LinkNameSpaceType::User,
            LinuxNamespaceType::Pid => LinkNameSpaceType::ProcessID,
            LinuxNamespaceType::Network => LinkNameSpaceType::Network,
            LinuxNamespaceType::Time => LinkNameSpaceType::Time,
            LinuxNamespaceType::Cgroup => LinkNameSpaceType::ControlGroup,
        };
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
            .call(|| format!("open({path:?})"))
            .trying(|| format!("join the {} namespace at {}", namespace.typ(), path.display()))?;
        joined.push((kind, opened, path.clone()));
    }
    joined.sort_by_key(|(kind, ..)| *kind != LinkNameSpaceType::User);
    Ok(joined)
}

fn join(joined: &[Joined]) -> std::result::Result<(), Trouble> {
    joined.iter().try_for_each(|(kind, namespace, path)| {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(*kind))
            .call(|| format!("setns({path:?}, {kind:?})"))
            .trying(|| format!("join the namespace at {}", path.display()))
    })
}

/// What the first process needs somebody outside for.
struct Outside<'a> {
    spec: &'a Spec,
    place: &'a Place,
    /// Devices that are made out here.
    apart: &'a [LinuxDevice],
}

/// Does it, until the process waits to be started.
fn accompany(
    outside: &Outside<'_>,
    record: &Record,
    line: &Line,
    is_here: bool,
) -> std::result::Result<(), Trouble> {
    let spec = outside.spec;
    let mut heard = is_here.then_some(Word::Here);
    loop {
        match heard.take().map_or_else(|| line.hear(), Ok)? {
            Word::Born { .. } => {}
            Word::Here => {
                ids::map(spec, record.pid)?;
                groups::Groups::enter(&record.groups, record.pid)?;
                adjust_oom_score(spec, record.pid)?;
                let state = hooks::state_json(record, super::state::Status::Creating);
                let hooks = spec.hooks().as_ref();
                hooks::run("prestart", hooks.and_then(prestart), &state)?;
                hooks::run("createRuntime", hooks.and_then(|hooks| hooks.create_runtime().as_ref()), &state)?;
                line.nod()?;
                hand_over(outside, record.pid, line)?;
            }
            Word::Ready => return Ok(()),
            Word::Trouble(trouble) => return Err(trouble),
        }
    }
}

/// Root in a user namespace may be unable to reach what root outside of it can, so that is opened for it.
fn opens_for_it(spec: &Spec) -> bool {
    let list = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let user = list.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    user && rustix::process::geteuid().is_root()
}

fn hand_over(outside: &Outside<'_>, pid: i32, line: &Line) -> std::result::Result<(), Trouble> {
    let spec = outside.spec;
    if !opens_for_it(spec) {
        return Ok(());
    }
    let path = format!("/proc/{pid}/ns/user");
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let users = rustix::fs::open(&path, flags, rustix::fs::Mode::empty())
        .call(|| format!("open({path:?})"))
        .trying(|| "open the container's user namespace".to_owned())?;
    let sources = Sources::open(spec, Some(&users))?;
    line.give(sources.root.as_fd())?;
    let nodes = nodes::make(spec, outside.apart, &outside.place.path)?;
    sources.binds.iter().chain(&nodes).try_for_each(|mount| line.give(mount.as_fd()))
}

/// From outside, because a process that others may not look at cannot write its own score in every user namespace.
fn adjust_oom_score(spec: &Spec, pid: i32) -> std::result::Result<(), Trouble> {
    let score = spec.process().as_ref().and_then(|process| process.oom_score_adj());
    let Some(score) = score else { return Ok(()) };
    let path = format!("/proc/{pid}/oom_score_adj");
    fs::write(&path, score.to_string())
        .map_err(|error| Trouble::new(format!("set the out-of-memory score to {score}"), error.to_string()))
}

fn prestart(hooks: &oci_spec::runtime::Hooks) -> Option<&Vec<oci_spec::runtime::Hook>> {
    hooks.prestart().as_ref()
}
