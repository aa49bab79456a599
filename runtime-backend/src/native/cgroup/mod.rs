//! Control groups: limits where a declaration asks for them, on cgroup v1, v2 and both side by side, as root, in a
//! group that was handed to an ordinary user, or not at all.
//!
//! ```text
//! place: where is each controller ─► delegate: make room there ─► limits: what is written ─► usage: what was used
//! ```

mod delegate;
mod limits;
mod place;
mod usage;

use self::limits::{Setting, settings, wanted};
use self::place::{CONTROLLERS, CPUACCT, Place, Surroundings, mounts, v2_name};
use rustix::fs::OFlags;
use shakedown_spec::{Failure, FailureKind, Resources};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(crate) use self::place::Missing;

/// Deeper than any manager of services nests its groups.
const DEEPEST: usize = 12;

/// The control groups of this machine, as this user may use them.
#[derive(Debug)]
pub(crate) struct Layout {
    places: Vec<(&'static str, Place)>,
    views: Vec<View>,
    /// The scope that the user's systemd has made, once it was asked.
    scope: tokio::sync::OnceCell<Result<PathBuf, Missing>>,
    /// Files that this kernel lacks, found out by making a group.
    lacking: OnceLock<Vec<&'static str>>,
}

/// A hierarchy as a container sees it below `/sys/fs/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// The directory below `/sys/fs/cgroup`; empty for a cgroup v2 that is all there is.
    pub(crate) directory: String,
    /// The file system's type, `cgroup` or `cgroup2`.
    pub(crate) kind: &'static str,
    /// The controllers of a v1 hierarchy, its mount options.
    pub(crate) controllers: Vec<String>,
}

impl Layout {
    /// Finds out where each controller is.
    pub(crate) fn detect() -> Self {
        let here = Surroundings::here();
        let places = CONTROLLERS.map(|controller| (controller, here.place(controller)));
        let views = views(&here.mounts);
        Self { places: places.into(), views, scope: tokio::sync::OnceCell::new(), lacking: OnceLock::new() }
    }

    /// The hierarchies a container sees.
    pub(crate) fn views(&self) -> &[View] {
        &self.views
    }

    /// Why a limit cannot be set, or `None` if it can: `memory`, `swap`, `pids`, `cpu`, `cpuset` or `blkio`.
    pub(crate) fn missing(&self, limit: &str) -> Option<String> {
        self.remedy(limit).map(|(reason, _)| reason)
    }

    /// The same, with what to do about it.
    pub(crate) fn remedy(&self, limit: &str) -> Option<(String, &'static str)> {
        let (controller, files): (_, &[&'static str]) = match limit {
            "swap" => ("memory", &SWAP_FILES),
            "blkio" => ("blkio", &WEIGHT_FILES),
            other => (other, &[]),
        };
        match self.place(controller) {
            Some(Place::Missing(missing)) => Some((missing.reason.clone(), missing.hint)),
            Some(_) if !files.is_empty() && self.lacking().contains(&files[0]) => Some(lacks(limit)),
            Some(_) => None,
            None => Some(("the runtime does not use it".to_owned(), "leave it out")),
        }
    }

    fn place(&self, controller: &str) -> Option<&Place> {
        self.places.iter().find(|(name, _)| *name == controller).map(|(_, place)| place)
    }

    /// The first of each set of files of which this kernel has none. What a group has can be seen in a group only: some
    /// files are not in the root.
    fn lacking(&self) -> &[&'static str] {
        self.lacking.get_or_init(|| {
            let sets: [(&str, &'static [&'static str]); 2] =
                [("memory", &SWAP_FILES), ("blkio", &WEIGHT_FILES)];
            let lacks = |(controller, files): (&str, &'static [&'static str])| {
                let has = |group: &Path| files.iter().any(|file| group.join(file).exists());
                let (Place::V1(base) | Place::V2(base)) = self.place(controller)? else { return None };
                // A v2 group has the files of the controllers that it may hand down; only the root has none itself.
                if base.join("cgroup.type").exists() {
                    return (!has(base)).then_some(files[0]);
                }
                if let Some(Place::V2(_)) = self.place(controller) {
                    let name = v2_name(controller).unwrap_or(controller);
                    fs::write(base.join("cgroup.subtree_control"), format!("+{name}")).ok()?;
                }
                let made = Made::new(base.join(format!("shakedown-probe-{}", std::process::id()))).ok()?;
                (!has(&made.0)).then_some(files[0])
            };
            sets.into_iter().filter_map(lacks).collect()
        })
    }

    /// Gets ready for groups: where the user's systemd has to hand one over, asks it to, for the process `launcher`.
    pub(crate) async fn open(&self, session: &str, launcher: i32) -> Result<(), Failure> {
        if !self.places.iter().any(|(_, place)| *place == Place::Systemd) {
            return Ok(());
        }
        let scope = self.scope.get_or_init(|| delegate::scope(session, launcher)).await;
        scope.as_ref().map(drop).map_err(|missing| unsupported("a", missing))
    }

    /// Makes the groups of a container that has limits. [`open`](Self::open) comes before.
    pub(crate) fn create(&self, session: &str, id: &str, resources: &Resources) -> Result<Cgroup, Failure> {
        let asked = [("swap", resources.memory_swap.is_some()), ("blkio", resources.blkio_weight.is_some())];
        for (limit, _) in asked.into_iter().filter(|(_, asked)| *asked) {
            if let Some((reason, hint)) = self.remedy(limit) {
                return Err(unsupported(limit, &Missing::new(reason, hint)));
            }
        }
        let mut cgroup = Cgroup::default();
        for controller in CONTROLLERS.into_iter().filter(|controller| wanted(controller, resources)) {
            self.add(&mut cgroup, controller, session, id)?;
            for setting in settings(controller, cgroup.is_v2(controller), resources) {
                cgroup
                    .set(controller, &setting)
                    .map_err(|(file, error)| refused(controller, &file, &error))?;
            }
        }
        cgroup.defer_quota().map_err(|(file, error)| refused("cpu", &file, &error))?;
        // Version 2 has one group for all. Of version 1, a container sees the hierarchies side by side, and where it had
        // no group of its own it would see the machine's.
        for controller in CONTROLLERS.into_iter().filter(|controller| is_shown(controller)) {
            if cgroup.group(controller).is_none() && matches!(self.place(controller), Some(Place::V1(_))) {
                self.add(&mut cgroup, controller, session, id)?;
            }
        }
        Ok(cgroup)
    }

    fn add(&self, cgroup: &mut Cgroup, controller: &str, session: &str, id: &str) -> Result<(), Failure> {
        let unusable = |missing: &Missing| unsupported(controller, missing);
        let (base, v2) = match self.place(controller) {
            Some(Place::V1(base)) => (base, false),
            Some(Place::V2(base)) => (base, true),
            Some(Place::Systemd) => match self.scope.get() {
                Some(Ok(scope)) => (scope, true),
                Some(Err(missing)) => return Err(unusable(missing)),
                None => return Err(unusable(&Missing::kernel("systemd was not asked"))),
            },
            Some(Place::Missing(missing)) => return Err(unusable(missing)),
            None => return Err(unusable(&Missing::kernel("the runtime does not use it"))),
        };
        let made = if v2 {
            cgroup.add_v2(controller, base, &base.join(group_name(session)), id)
        } else {
            cgroup.add_v1(controller, base, &base.join(group_name(session)), id)
        };
        made.map_err(|(file, error)| refused(controller, &file, &error))
    }

    /// Removes the empty groups that a dead session left, wherever they are: it may have been in another login's group
    /// than this process.
    ///
    /// Fails with `EBUSY` while a process in one of them is still ending.
    pub(crate) fn sweep(session: &str) -> io::Result<()> {
        let here = Surroundings::here();
        let mut swept = Ok(());
        for mount in mounts(&here.mounts) {
            sweep_below(&mount.point(), &group_name(session), DEEPEST, &mut swept);
        }
        swept
    }
}

const SWAP_FILES: [&str; 2] = ["memory.swap.max", "memory.memsw.limit_in_bytes"];
const WEIGHT_FILES: [&str; 4] = ["io.bfq.weight", "io.weight", "blkio.bfq.weight", "blkio.weight"];

fn lacks(limit: &str) -> (String, &'static str) {
    match limit {
        "swap" => ("the kernel does not count swap".to_owned(), "leave it out, or boot with `swapaccount=1`"),
        _ => {
            let reason = "the kernel has no scheduler with weights for its disks";
            (reason.to_owned(), "leave the weight out, or load `bfq` and choose it for the disk")
        }
    }
}

/// Removes groups of this name and what is in them, below a directory.
fn sweep_below(directory: &Path, name: &str, depth: usize, swept: &mut io::Result<()>) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    // `file_type` does not follow links: `cpu` is a link to `cpu,cpuacct` on some machines.
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name() == name {
            let inner = fs::read_dir(entry.path()).into_iter().flatten().flatten();
            let groups = inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let removed = groups.map(|group| remove_group(&group.path())).fold(Ok(()), io::Result::and);
            let removed = removed.and_then(|()| remove_group(&entry.path()));
            if swept.is_ok() {
                *swept = removed;
            }
        } else if depth > 0 {
            sweep_below(&entry.path(), name, depth - 1, swept);
        }
    }
}

/// The directory of a session's groups.
fn group_name(session: &str) -> String {
    format!("shakedown-{session}")
}

fn unsupported(controller: &str, missing: &Missing) -> Failure {
    let title = match controller {
        CPUACCT => "what the container uses cannot be counted here".to_owned(),
        "a" => "a limit cannot be set here".to_owned(),
        other => format!("the {other} limit cannot be set here"),
    };
    Failure::new(FailureKind::Unsupported, title).fact("reason", &missing.reason).hint(missing.hint)
}

/// A file of a group that could not be written, or a group that could not be made.
fn refused(controller: &str, file: &Path, error: &io::Error) -> Failure {
    let hint = match error.raw_os_error() {
        // The values were checked; what the machine has was not: `cpuset.cpus` of a processor that is not there.
        Some(libc::EINVAL | libc::ERANGE | libc::ENODEV) => {
            "the kernel refuses the value: does the machine have what it names?"
        }
        Some(libc::ENOENT) => "the kernel has no such limit; leave it out",
        _ => "leave the limit out, or run as root",
    };
    unsupported(controller, &Missing::new(format!("{}: {error}", file.display()), hint))
}

/// Whether a container sees the v1 hierarchy of this controller.
fn is_shown(controller: &str) -> bool {
    controller != "blkio" && CONTROLLERS.contains(&controller)
}

/// v1 hierarchies with one of the runtime's controllers, each under its own name; or v2 alone.
fn views(text: &str) -> Vec<View> {
    let mut views = Vec::new();
    for mount in mounts(text).filter(|mount| mount.kind == "cgroup") {
        let options = mount.options.split(',').filter(|option| !matches!(*option, "rw" | "ro" | "xattr"));
        let controllers: Vec<String> = options.map(str::to_owned).collect();
        if controllers.iter().any(|name| is_shown(name)) {
            let view = View { directory: mount.name().to_owned(), kind: "cgroup", controllers };
            views.extend((!views.contains(&view)).then_some(view));
        }
    }
    if views.is_empty() && mounts(text).any(|mount| mount.kind == "cgroup2") {
        views.push(View { directory: String::new(), kind: "cgroup2", controllers: Vec::new() });
    }
    views
}

/// A directory of the group hierarchy that is removed when dropped.
#[derive(Debug)]
struct Made(PathBuf);

impl Made {
    fn new(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// The groups of one container, removed when dropped (which has to be after its last process has ended).
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    directories: Vec<Group>,
    /// What is written when the first process runs its program.
    later: Vec<(PathBuf, String)>,
}

#[derive(Debug)]
struct Group {
    path: PathBuf,
    v2: bool,
    controllers: Vec<String>,
}

type Written = Result<(), (PathBuf, io::Error)>;

fn at(file: &Path) -> impl FnOnce(io::Error) -> (PathBuf, io::Error) + use<> {
    let file = file.to_owned();
    move |error| (file, error)
}

impl Cgroup {
    /// The group of a v2 controller: every group above it hands the controller down.
    fn add_v2(&mut self, controller: &str, base: &Path, session: &Path, id: &str) -> Written {
        if let Some(name) = v2_name(controller) {
            delegate::make_room(base).map_err(at(base))?;
            for directory in [base, session] {
                make(directory)?;
                let control = directory.join("cgroup.subtree_control");
                fs::write(&control, format!("+{name}")).map_err(at(&control))?;
            }
        }
        make(session)?;
        self.enter(session.join(id), true, controller)
    }

    fn add_v1(&mut self, controller: &str, base: &Path, session: &Path, id: &str) -> Written {
        let group = session.join(id);
        for (above, directory) in [(base, session), (session, &group)] {
            make(directory)?;
            if controller == "cpuset" {
                inherit_cpuset(above, directory)?;
            }
        }
        self.enter(group, false, controller)
    }

    fn enter(&mut self, path: PathBuf, v2: bool, controller: &str) -> Written {
        make(&path)?;
        match self.directories.iter_mut().find(|group| group.path == path) {
            Some(group) => group.controllers.push(controller.to_owned()),
            None => self.directories.push(Group { path, v2, controllers: vec![controller.to_owned()] }),
        }
        Ok(())
    }

    fn group(&self, controller: &str) -> Option<&Group> {
        self.directories.iter().find(|group| group.controllers.iter().any(|name| name == controller))
    }

    fn is_v2(&self, controller: &str) -> bool {
        self.group(controller).is_some_and(|group| group.v2)
    }

    fn set(&self, controller: &str, setting: &Setting) -> Written {
        let Some(group) = self.group(controller) else { return Ok(()) };
        let number = setting.files.iter().position(|file| group.path.join(file).exists());
        if number.is_none() && setting.optional {
            return Ok(());
        }
        let number = number.unwrap_or(0);
        let file = group.path.join(setting.files[number]);
        fs::write(&file, &setting.values[number.min(setting.values.len() - 1)]).map_err(at(&file))
    }

    /// Takes the quota of processor time back, which the kernel has found valid: a process that is being set up would
    /// stand still with it, and the launcher waits for that.
    fn defer_quota(&mut self) -> Written {
        let Some(group) = self.group("cpu") else { return Ok(()) };
        let (name, unlimited) = if group.v2 { ("cpu.max", "max") } else { ("cpu.cfs_quota_us", "-1") };
        let file = group.path.join(name);
        let quota = fs::read_to_string(&file).map_err(at(&file))?;
        if !quota.starts_with(unlimited) {
            fs::write(&file, unlimited).map_err(at(&file))?;
            self.later.push((file, quota.trim().to_owned()));
        }
        Ok(())
    }

    /// Sets the limits that have waited for the first process to run its program.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.later.iter().try_for_each(|(file, value)| fs::write(file, value))
    }

    /// The files to which a process writes `0` to join.
    pub(crate) fn joining(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |group: &Group| {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            Ok(rustix::fs::open(group.path.join("cgroup.procs"), flags, rustix::fs::Mode::empty())?)
        };
        self.directories.iter().map(open).collect()
    }

    /// Whether the kernel has killed a process of the group for its use of memory.
    pub(crate) fn out_of_memory(&self) -> bool {
        let counted = |text: String| {
            text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
        };
        let files = ["memory.oom_control", "memory.events"];
        let paths = self.directories.iter().flat_map(|group| files.map(|file| group.path.join(file)));
        paths.into_iter().any(|path| fs::read_to_string(path).is_ok_and(counted))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for group in &self.directories {
            // What cannot be removed yet is removed by the sweep of the next session.
            let _ = remove_group(&group.path);
            // The session's own group goes with the last container that has limits.
            let _ = group.path.parent().map(fs::remove_dir);
        }
    }
}

fn make(directory: &Path) -> Written {
    fs::create_dir_all(directory).map_err(at(directory))
}

/// A v1 cpuset is empty at first, and takes no process until it has processors and memory nodes (cpusets(7)).
fn inherit_cpuset(above: &Path, directory: &Path) -> Written {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = directory.join(name);
        let has = fs::read_to_string(&file).map_err(at(&file))?;
        if has.trim().is_empty() {
            let from = above.join(name);
            let inherited = fs::read_to_string(&from).map_err(at(&from))?;
            fs::write(&file, inherited.trim()).map_err(at(&file))?;
        }
    }
    Ok(())
}

fn remove_group(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "30 29 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        31 29 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    /// A container on a hybrid machine sees the hierarchies that limit it.
    #[test]
    fn containers_see_the_hierarchies_with_limits() {
        let [view] = &views(HYBRID)[..] else { panic!("one v1 hierarchy is listed") };
        assert_eq!((view.directory.as_str(), view.kind), ("memory", "cgroup"));
        assert_eq!(views("31 29 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")[0].kind, "cgroup2");
    }

    /// A session that died in another login's group is swept all the same, and nobody else's groups are touched.
    #[test]
    fn groups_are_swept_at_any_depth() {
        let root = tempfile::tempdir().unwrap();
        let dead = root.path().join("user.slice/session-7.scope/shakedown-run-1");
        let other = root.path().join("user.slice/shakedown-run-2/redis");
        fs::create_dir_all(dead.join("redis")).unwrap();
        fs::create_dir_all(&other).unwrap();
        let mut swept = Ok(());
        sweep_below(root.path(), "shakedown-run-1", DEEPEST, &mut swept);
        swept.unwrap();
        assert!(!dead.exists() && other.exists());
    }
}
