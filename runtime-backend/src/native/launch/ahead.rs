//! A container's first process, made before anybody has asked for it.
//!
//! Half of what it takes to start a container is the same for most of them: its namespaces, `/proc`, `/dev` and `/sys`
//! with what is masked in them, the seccomp filter in the kernel's form. So a process does that half for the next
//! container, which will probably want what the last one did, and then waits.
//!
//! ```text
//! the next one ──► namespaces ► an empty root with /proc, /dev, /sys ► masks ► pivot ► …waits
//! start of a container that wants these ──► its root over the empty one ► /proc, /dev, /sys moved over ► the rest
//! ```
//!
//! It waits alone in its namespaces, in a root with nothing else, and holds no descriptor of any container. Nothing of an
//! image has been seen when the masks are put in place. It is a fork, and shares no memory with the launcher.

use super::init::{Init, Stage};
use super::mounts::{self, Options, Root};
use super::program::bind_capabilities;
use super::{Launched, Program, Trouble, Trying, World, clone_flag, reaper};
use crate::native::launcher::{MOST_DESCRIPTORS, receive_message, send_message};
use crate::native::reap::collect;
use crate::native::seccomp::{self, Filter};
use crate::native::sys::{self, Called, Clone};
use libc::sock_filter;
use oci_spec::runtime::{
    Capabilities, Linux, LinuxDevice, LinuxNamespace, LinuxNamespaceType, Mount, Process, Spec,
};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// What of a container can be made before its image is known, if its spec mounts it first.
const FURNITURE: [&str; 6] = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"];
/// Where no other mount may be for it to be made ahead: masks have to lie over what is mounted there.
const MASKED_BELOW: [&str; 2] = ["/proc", "/sys"];
/// Control groups are mounted on a place of `/sys` that nothing is masked at.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What is reported by a process that could not be made ahead.
const NOT_READY: &[u8] = b"not ready";
/// The largest message with orders.
const LARGEST: usize = 64 << 10;

/// What a container's world is like before there is anything of the container in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Form {
    namespaces: Vec<LinuxNamespace>,
    mounts: Vec<Mount>,
    devices: Vec<LinuxDevice>,
    /// Where the default devices are.
    ready: Option<PathBuf>,
    masked: Vec<String>,
    read_only: Vec<String>,
    /// What the program can have of capabilities.
    bounding: Option<Capabilities>,
    filter: Filter,
}

impl Form {
    /// That of the containers that are like this one; none if it has something of somebody else.
    pub(crate) fn of(spec: &Spec, filter: &Filter, ready: Option<&Path>) -> Option<Self> {
        let linux = spec.linux().as_ref()?;
        let (mounts, _) = sorted(spec).filter(|_| can_be_ahead(linux))?;
        let below = |paths: &Option<Vec<String>>| select(paths, true).map(str::to_owned).collect();
        Some(Self {
            namespaces: own_namespaces(linux)?.to_vec(),
            mounts: mounts.to_vec(),
            devices: linux.devices().clone().unwrap_or_default(),
            ready: ready.map(Path::to_owned),
            masked: below(linux.masked_paths()),
            read_only: below(linux.readonly_paths()),
            bounding: bounding(spec).clone(),
            filter: filter.clone(),
        })
    }

    /// Whether a container can begin with it.
    pub(crate) fn fits(&self, spec: &Spec, filter: &Filter) -> bool {
        let Some(linux) = spec.linux() else { return false };
        sorted(spec).is_some_and(|(mounts, _)| mounts == self.mounts)
            && own_namespaces(linux) == Some(&self.namespaces)
            && linux.devices().as_deref().unwrap_or_default() == self.devices
            && select(linux.masked_paths(), true).eq(self.masked.iter().map(String::as_str))
            && select(linux.readonly_paths(), true).eq(self.read_only.iter().map(String::as_str))
            && *bounding(spec) == self.bounding
            && *filter == self.filter
    }

    fn spec(&self) -> Spec {
        let mut linux = Linux::default();
        linux
            .set_namespaces(Some(self.namespaces.clone()))
            .set_devices(Some(self.devices.clone()))
            .set_masked_paths(Some(self.masked.clone()))
            .set_readonly_paths(Some(self.read_only.clone()));
        bare_spec(linux, self.mounts.clone())
    }
}

fn bounding(spec: &Spec) -> &Option<Capabilities> {
    let sets = spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
    sets.map_or(&None, |sets| sets.bounding())
}

/// The furniture of a spec and its other mounts; none if one of these has to be there before something is masked.
fn sorted(spec: &Spec) -> Option<(&[Mount], &[Mount])> {
    let mounts = spec.mounts().as_deref()?;
    let is_furniture = |mount: &Mount| {
        let known = FURNITURE.iter().any(|path| Path::new(path) == mount.destination());
        known && mount.typ().as_deref() != Some("cgroup") && !mounts::is_bind(mount)
    };
    let count = mounts.iter().take_while(|mount| is_furniture(mount)).count();
    let (furniture, others) = mounts.split_at(count);
    let again = |number: usize| {
        furniture[..number].iter().any(|earlier| earlier.destination() == furniture[number].destination())
    };
    let covers = |mount: &Mount| {
        let path = mount.destination();
        let below = MASKED_BELOW.iter().any(|top| path.starts_with(top)) && !path.starts_with(CGROUPS);
        below || path == Path::new("/dev") || goes_up(path)
    };
    let fits = count > 0 && !(0..count).any(again) && !others.iter().any(covers);
    fits.then_some((furniture, others))
}

/// The namespaces of a container that shares none, and has the launcher's users.
fn own_namespaces(linux: &Linux) -> Option<&Vec<LinuxNamespace>> {
    let own = |namespace: &LinuxNamespace| {
        namespace.path().is_none() && namespace.typ() != LinuxNamespaceType::User
    };
    let needed = [LinuxNamespaceType::Mount, LinuxNamespaceType::Pid, LinuxNamespaceType::Network];
    let list = linux.namespaces().as_ref()?;
    let has = |kind: &LinuxNamespaceType| list.iter().any(|namespace| namespace.typ() == *kind);
    (list.iter().all(own) && needed.iter().all(has) && linux.rootfs_propagation().is_none()).then_some(list)
}

/// Whether something lies below what is mounted ahead, wherever the image's links lead.
fn is_below_furniture(path: &Path) -> bool {
    !goes_up(path) && !path.starts_with(CGROUPS) && MASKED_BELOW.iter().any(|top| path.starts_with(top))
}

fn goes_up(path: &Path) -> bool {
    path.components().any(|component| component == Component::ParentDir)
}

/// Whether all that is done below the furniture can be done before there is an image.
fn can_be_ahead(linux: &Linux) -> bool {
    let whole = |path: &str| MASKED_BELOW.iter().any(|top| Path::new(top) == Path::new(path));
    let parts_only = |paths: &Option<Vec<String>>| !select(paths, true).any(whole);
    let mut devices = linux.devices().iter().flatten().map(LinuxDevice::path);
    let usual = |path: &PathBuf| mounts::DEVICES.iter().any(|(name, ..)| Path::new(name) == path);
    parts_only(linux.masked_paths())
        && parts_only(linux.readonly_paths())
        // Nodes of a container's own are made in a place of which there is one.
        && devices.all(usual)
}

/// The paths that are below the furniture, or the others.
fn select(paths: &Option<Vec<String>>, below: bool) -> impl Iterator<Item = &str> {
    let is_below = |path: &str| is_below_furniture(Path::new(path));
    paths.iter().flatten().map(String::as_str).filter(move |path| is_below(path) == below)
}

fn bare_spec(linux: Linux, mounts: Vec<Mount>) -> Spec {
    let mut spec = Spec::default();
    spec.set_process(None).set_root(None).set_hostname(None).set_mounts(Some(mounts)).set_linux(Some(linux));
    spec
}

/// What the waiting process is told.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    /// All of the container that is not of its form.
    spec: Spec,
    set_groups: bool,
    dead_nodes: bool,
    reaper: bool,
    binds: usize,
}

/// What of a spec is not of its form; none if it cannot be begun ahead.
fn rest(spec: &Spec) -> Option<Spec> {
    let (linux, (_, mounts)) = (spec.linux().as_ref()?, sorted(spec)?);
    let own = |paths: &Option<Vec<String>>| Some(select(paths, false).map(str::to_owned).collect());
    let mut left = Linux::default();
    left.set_namespaces(Some(own_namespaces(linux)?.clone()))
        .set_devices(None)
        .set_resources(None)
        .set_masked_paths(own(linux.masked_paths()))
        .set_readonly_paths(own(linux.readonly_paths()))
        .set_sysctl(linux.sysctl().clone());
    let mut rest = bare_spec(left, mounts.to_vec());
    rest.set_process(spec.process().clone())
        .set_root(spec.root().clone())
        .set_hostname(spec.hostname().clone())
        .set_domainname(spec.domainname().clone());
    Some(rest)
}

/// A process that waits to be a container's first one. It is a child of the launcher's; dropping this ends it.
#[derive(Debug)]
pub(crate) struct Ahead {
    process: Option<Clone>,
    /// Where it is told what to become.
    socket: OwnedFd,
    /// Closed when it executes its program; before that, trouble is written to it.
    report: Option<OwnedFd>,
}

impl Ahead {
    /// Makes one in the current network namespace, as a child of this process's parent. It gets ready by itself.
    pub(crate) fn make(form: &Form) -> Result<Self, Trouble> {
        let doing = || "make a container's first process ahead".to_owned();
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (socket, theirs) = pair.call(|| "socketpair()".to_owned()).trying(doing)?;
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).call(|| "pipe2(O_CLOEXEC)".to_owned());
        let (report, write) = pipe.trying(doing)?;
        // It is in the container's network already. The namespace of control groups is made when it is in the group in which
        // the program will be.
        let later = [LinuxNamespaceType::Network, LinuxNamespaceType::Cgroup];
        let kinds = form.namespaces.iter().map(LinuxNamespace::typ).filter(|kind| !later.contains(kind));
        let flags = kinds.fold(0, |flags, kind| flags | clone_flag(kind));
        let mut write = Some(write);
        let process = sys::fork_sibling(flags, || match write.take() {
            Some(write) => wait_to_be(form, theirs.as_fd(), write),
            None => 127,
        });
        let process = process.call(|| format!("clone3({flags:#x})")).trying(doing)?;
        drop((theirs, write));
        Ok(Self { process: Some(process), socket, report: Some(report) })
    }

    /// Puts this process, which makes them, into a mount namespace of its own with nothing in it but what that takes: each
    /// gets a copy of all mounts, of which a machine may have hundreds, and takes it away again.
    pub(crate) fn leave_mounts(form: &Form, devices: Option<BorrowedFd<'_>>) -> Result<(), Trouble> {
        let doing = || "make a small mount namespace".to_owned();
        // /proc and /sys can be mounted in a user namespace where they are in sight (mount_namespaces(7)). Where nodes cannot
        // be made, the host's are shown.
        let kept = ["/proc", "/sys"].into_iter().chain(devices.is_none().then_some("/dev")).map(Path::new);
        let kept = kept.map(|path| Ok((path.to_owned(), mounts::open_bind(path)?)));
        let mut kept = kept.collect::<Result<Vec<_>, Trouble>>()?;
        if let Some((path, devices)) = form.ready.as_deref().zip(devices) {
            let copied = mounts::clone_mount(devices).call(|| "open_tree(devices, \"\")".to_owned());
            kept.push((path.to_owned(), copied.trying(doing)?));
        }
        sys::unshare_mounts().call(|| "unshare(CLONE_NEWNS)".to_owned()).trying(doing)?;
        let root = empty_root()?;
        Furniture(kept).move_into(&Root::new(root.as_fd()))?;
        let spec = bare_spec(Linux::default(), Vec::new());
        let stage = Stage { spec: &spec, world: &bare_world(&root, None) };
        stage.isolate_mounts()?;
        stage.change_root()
    }

    /// What another process needs to take it over: its id, and its descriptors.
    pub(crate) fn parts(&self) -> Option<(i32, [BorrowedFd<'_>; 3])> {
        let (process, report) = (self.process.as_ref()?, self.report.as_ref()?);
        Some((process.pid, [process.pidfd.as_fd(), self.socket.as_fd(), report.as_fd()]))
    }

    /// The same in the launcher.
    pub(crate) fn of_parts(pid: i32, [pidfd, socket, report]: [OwnedFd; 3]) -> Self {
        Self { process: Some(Clone { pid, pidfd }), socket, report: Some(report) }
    }

    /// Gives it away to another process, which knows it by its [`parts`](Self::parts).
    pub(crate) fn hand_over(mut self) {
        self.process = None;
    }

    /// Ends it; what is left to do is to wait for that.
    pub(crate) fn end(mut self) -> Option<Clone> {
        let process = self.process.take()?;
        let _ = rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL);
        Some(process)
    }

    /// Makes it a container's first process, as [`launch`](super::launch) does, while `write` writes the container's files.
    /// None if there is no such process, or if it cannot be told all of it.
    pub(crate) fn launch(
        mut self,
        spec: &Spec,
        world: &World<'_>,
        set_groups: bool,
        mut write: impl FnMut() -> Result<(), Trouble>,
    ) -> Option<Result<Launched, Trouble>> {
        let orders = Orders {
            spec: rest(spec)?,
            set_groups,
            dead_nodes: world.dead_nodes,
            reaper: world.reaper,
            binds: world.binds.len(),
        };
        let text = serde_json::to_vec(&orders).ok().filter(|text| text.len() <= LARGEST)?;
        let beside = [world.root].into_iter().chain(world.stdio);
        let beside = beside.chain(world.binds.iter().chain(&world.cgroups).map(AsFd::as_fd));
        let beside: Vec<BorrowedFd<'_>> = beside.collect();
        if beside.len() > MOST_DESCRIPTORS || send_message(self.socket.as_fd(), &text, &beside).is_err() {
            return None;
        }
        if let Err(trouble) = write() {
            return Some(Err(trouble));
        }
        // If it has ended meanwhile, it has reported why.
        let _ = send_message(self.socket.as_fd(), &[1], &[]);
        let (process, report) = (self.process.take()?, self.report.take()?);
        let told = reaper::read(report);
        if told.is_empty() {
            return Some(Ok(process));
        }
        collect(&process.pidfd);
        (told != NOT_READY).then(|| Err(reaper::trouble(&told)))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            let _ = rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL);
            collect(&process.pidfd);
        }
    }
}

/// The process itself: gets ready, waits, and becomes what it is told. Returns the exit code if it cannot.
fn wait_to_be(form: &Form, socket: BorrowedFd<'_>, report: OwnedFd) -> i32 {
    sys::close_other_than(&[socket, report.as_fd()]);
    sys::overwrite_arguments("shakedown: next");
    let Ok((furniture, filter)) = get_ready(form) else {
        let _ = rustix::io::write(&report, NOT_READY);
        return 1;
    };
    let mut text = vec![0; LARGEST];
    let Ok((length @ 1.., descriptors)) = receive_message(socket, &mut text) else { return 0 };
    match serde_json::from_slice(&text[..length]) {
        Ok(orders) => become_container(&orders, descriptors, &furniture, filter, (socket, report)),
        Err(error) => reaper::tell(&report, &Trouble::new("start the container", error.to_string())),
    }
}

/// Waits until the launcher has written the container's files.
pub(super) fn wait_for_files(socket: BorrowedFd<'_>) -> Result<(), Trouble> {
    match receive_message(socket, &mut [0]) {
        Ok((1.., _)) => Ok(()),
        _ => Err(Trouble::new("start the container", "the launcher has ended")),
    }
}

/// Whether nothing is mounted in the container's own files: a file that is renamed over a place where something is mounted
/// takes the mount away.
pub(crate) fn has_own_files_only(spec: &Spec) -> bool {
    let only = |paths: &Option<Vec<String>>| select(paths, false).next().is_none();
    let linux = spec.linux().as_ref();
    sorted(spec).is_some_and(|(_, others)| others.is_empty())
        && linux.is_some_and(|linux| only(linux.masked_paths()) && only(linux.readonly_paths()))
}

/// The parts of a root that were mounted ahead: where each belongs, and the mount.
#[derive(Debug)]
pub(crate) struct Furniture(Vec<(PathBuf, OwnedFd)>);

impl Furniture {
    /// Puts everything in its place in the container's root.
    pub(super) fn move_into(&self, root: &Root<'_>) -> Result<(), Trouble> {
        self.0.iter().try_for_each(|(path, mount)| root.put(mount, path))
    }
}

/// An empty file system to put mounts on.
fn empty_root() -> Result<OwnedFd, Trouble> {
    let options = ["nosuid", "nodev", "noexec", "size=64k", "mode=755"].map(str::to_owned);
    let made = mounts::new_file_system("tmpfs", None, &Options::parse(&options));
    made.trying(|| "make an empty root".to_owned())
}

/// The world of a process that is nobody's yet.
fn bare_world<'a>(root: &'a OwnedFd, devices: Option<&'a Path>) -> World<'a> {
    World {
        root: root.as_fd(),
        network: None,
        home: root.as_fd(),
        binds: Vec::new(),
        cgroups: Vec::new(),
        devices,
        dead_nodes: false,
        joins: Vec::new(),
        stdio: [root.as_fd(); 3],
        reaper: false,
        furniture: None,
        complete: None,
    }
}

fn get_ready(form: &Form) -> Result<(Furniture, Option<Vec<sock_filter>>), Trouble> {
    let doing = || "make a root ahead".to_owned();
    let (root, spec) = (empty_root()?, form.spec());
    let world = bare_world(&root, form.ready.as_deref());
    let stage = Stage { spec: &spec, world: &world };
    stage.isolate_mounts()?;
    stage.mount_all()?;
    stage.cover_paths()?;
    stage.change_root()?;
    let is_below = |path: &Path| {
        form.mounts.iter().any(|other| path != other.destination() && path.starts_with(other.destination()))
    };
    let tops = form.mounts.iter().map(Mount::destination).filter(|path| !is_below(path));
    let open = |path: &PathBuf| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        Ok((path.clone(), opened.call(|| format!("open({path:?})")).trying(doing)?))
    };
    let furniture = Furniture(tops.map(open).collect::<Result<_, _>>()?);
    bind_capabilities(&form.bounding)?;
    rehearse(form);
    Ok((furniture, seccomp::of(&form.filter)?))
}

/// Reads orders that are nobody's. The first time that code runs in a fork, and memory is written to, the kernel has to map
/// and copy a page, which takes longer than the work.
fn rehearse(form: &Form) {
    let mut spec = form.spec();
    spec.set_process(Some(Process::default()));
    let orders = Orders { spec, set_groups: false, dead_nodes: true, reaper: false, binds: 0 };
    let read = serde_json::to_vec(&orders).and_then(|text| serde_json::from_slice::<Orders>(&text));
    let process = read.ok().and_then(|orders| orders.spec.process().clone());
    std::hint::black_box(process.map(|process| Program::new(&process, None, false).is_ok()));
}

fn become_container(
    orders: &Orders,
    descriptors: Vec<OwnedFd>,
    furniture: &Furniture,
    filter: Option<Vec<sock_filter>>,
    (socket, report): (BorrowedFd<'_>, OwnedFd),
) -> i32 {
    let missing = || Trouble::new("run a program", "the spec has no process");
    let process = orders.spec.process().as_ref().ok_or_else(missing);
    let program = match process.and_then(|process| Program::new(process, filter, orders.set_groups)) {
        Ok(program) => program.bound(),
        Err(trouble) => return reaper::tell(&report, &trouble),
    };
    let mut descriptors = descriptors.into_iter();
    let (Some(root), Some(stdin), Some(stdout), Some(stderr)) =
        (descriptors.next(), descriptors.next(), descriptors.next(), descriptors.next())
    else {
        return reaper::tell(&report, &Trouble::new("start the container", "the request has no streams"));
    };
    let world = World {
        root: root.as_fd(),
        network: None,
        home: root.as_fd(),
        binds: descriptors.by_ref().take(orders.binds).collect(),
        cgroups: descriptors.collect(),
        devices: None,
        dead_nodes: orders.dead_nodes,
        joins: Vec::new(),
        stdio: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        reaper: orders.reaper,
        furniture: Some(furniture),
        complete: Some(socket),
    };
    let code = reaper::enter(&Init { spec: &orders.spec, program: &program, world: &world }, report);
    // Most of the descriptors that are owned here have been closed.
    sys::exit(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxBuilder, LinuxNamespaceBuilder, MountBuilder, SpecBuilder};

    fn mounted(kind: &str, target: &str) -> Mount {
        let mount = MountBuilder::default().destination(target).typ(kind).source(kind);
        mount.options(Vec::<String>::new()).build().unwrap()
    }

    /// A container with the usual namespaces and masks, and these mounts.
    fn container(mounts: &[(&str, &str)]) -> Spec {
        let kinds = [LinuxNamespaceType::Mount, LinuxNamespaceType::Pid, LinuxNamespaceType::Network];
        let namespace = |kind| LinuxNamespaceBuilder::default().typ(kind).build().unwrap();
        let linux = LinuxBuilder::default()
            .namespaces(kinds.map(namespace).to_vec())
            .masked_paths(["/proc/kcore", "/srv/secret"].map(str::to_owned))
            .readonly_paths(["/proc/sys".to_owned()]);
        let mounts = mounts.iter().map(|(kind, target)| mounted(kind, target)).collect::<Vec<_>>();
        SpecBuilder::default().linux(linux.build().unwrap()).mounts(mounts).build().unwrap()
    }

    const USUAL: [(&str, &str); 3] = [("proc", "/proc"), ("tmpfs", "/dev"), ("sysfs", "/sys")];

    fn with(more: &[(&str, &str)]) -> Spec {
        container(&[&USUAL[..], more].concat())
    }

    /// What is of the image is not masked ahead, where there is no image yet, but with the rest.
    #[test]
    fn what_is_of_the_image_is_left() {
        let form = Form::of(&with(&[]), &Filter::None, None).unwrap();
        assert_eq!((form.masked.len(), form.mounts.len()), (1, 3));
        assert!(!has_own_files_only(&with(&[])));
    }

    /// A container that has more to mount elsewhere has the same form; control groups are mounted in the end as well.
    #[test]
    fn other_mounts_are_added_to_the_same_form() {
        let form = Form::of(&with(&[]), &Filter::None, None).unwrap();
        for more in [("bind", "/data"), ("tmpfs", "/dev/own"), ("cgroup2", "/sys/fs/cgroup")] {
            assert!(form.fits(&with(&[more]), &Filter::None), "{more:?}");
        }
        assert!(!form.fits(&container(&USUAL[..2]), &Filter::None));
        assert!(!form.fits(&with(&[]), &Filter::Default(Vec::new())));
    }

    /// A mask has to lie over what is mounted in its place: such a container is not begun ahead.
    #[test]
    fn mounts_where_masks_are_come_first() {
        let form = Form::of(&with(&[]), &Filter::None, None).unwrap();
        let once = [("bind", "/sys/firmware"), ("tmpfs", "/proc/acpi")];
        for covered in once.into_iter().chain([("tmpfs", "/dev"), ("bind", "/srv/../sys/firmware")]) {
            assert!(!form.fits(&with(&[covered]), &Filter::None), "{covered:?}");
            assert!(Form::of(&with(&[covered]), &Filter::None, None).is_none(), "{covered:?}");
        }
    }
    /// What is masked among control groups, or by a path that leads out again, is masked when everything is mounted.
    #[test]
    fn masks_elsewhere_are_left() {
        let masked = |path: &str| {
            let mut spec = with(&[("cgroup2", "/sys/fs/cgroup")]);
            let mut linux = spec.linux().clone().unwrap();
            linux.set_masked_paths(Some(vec![path.to_owned()]));
            spec.set_linux(Some(linux));
            Form::of(&spec, &Filter::None, None).map(|form| form.masked.len())
        };
        assert_eq!(["/sys/fs/cgroup/unified", "/proc/../etc/secret"].map(masked), [Some(0), Some(0)]);
        assert_eq!((masked("/proc/kcore"), masked("/sys")), (Some(1), None));
    }
}
