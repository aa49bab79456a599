//! Control groups: limits, rules for devices and pauses where a declaration or a test asks for them, on cgroup v1, v2 and
//! both side by side, as root, in a group that was handed to an ordinary user, or not at all.
//!
//! ```text
//! place: where is each controller ─► delegate: make room there ─► group: one for a container in each hierarchy
//!                                                   limits, devices: what is written ─► usage, freeze: what is done with it
//! ```
//! In a hierarchy a process is in one group only. So a container's group has the same name for whatever it is made, and is
//! shared by limits, devices and pauses where these are in one hierarchy, as they are with v2 alone.

mod delegate;
mod devices;
mod freeze;
mod group;
mod limits;
mod place;
mod usage;

use self::group::sweep_below;
use self::limits::{settings, wanted};
use self::place::{CONTROLLERS, CPUACCT, DEVICES, FREEZER, Place, Surroundings, mounts, v2_name};
use shakedown_spec::{Failure, FailureKind, Resources};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(crate) use self::freeze::Freezing;
pub(crate) use self::group::Cgroup;
pub(crate) use self::place::Missing;

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
        let limits = CONTROLLERS.map(|controller| (controller, here.place(controller)));
        let others = [(DEVICES, here.devices()), (FREEZER, here.freezer())];
        let views = views(&here.mounts);
        Self {
            places: limits.into_iter().chain(others).collect(),
            views,
            scope: tokio::sync::OnceCell::new(),
            lacking: OnceLock::new(),
        }
    }

    /// The hierarchies a container sees.
    pub(crate) fn views(&self) -> &[View] {
        &self.views
    }

    /// Why a limit cannot be set, or `None` if it can: `memory`, `swap`, `pids`, `cpu`, `cpuset`, `blkio`,
    /// `devices` or `freezer`.
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

    /// Gets ready for groups: where the user's systemd has to hand one over, asks it to, for the process `launcher`. Whether
    /// that has been moved.
    pub(crate) async fn open(&self, session: &str, launcher: i32) -> Result<bool, Failure> {
        if !self.places.iter().any(|(_, place)| *place == Place::Systemd) {
            return Ok(false);
        }
        let first = self.scope.get().is_none();
        let scope = self.scope.get_or_init(|| delegate::scope(session, launcher)).await;
        scope.as_ref().map(|_| first).map_err(|missing| unsupported("a", missing))
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
        let (base, v2) = self.base(controller).map_err(|missing| unsupported(controller, &missing))?;
        let made = cgroup.add(controller, base, v2, session, id);
        made.map_err(|(file, error)| refused(controller, &file, &error))
    }

    /// The group below which this controller's groups are made, and whether it is one of v2.
    fn base(&self, controller: &str) -> Result<(&Path, bool), Missing> {
        match self.place(controller) {
            Some(Place::V1(base)) => Ok((base, false)),
            Some(Place::V2(base)) => Ok((base, true)),
            Some(Place::Systemd) => match self.scope.get() {
                Some(Ok(scope)) => Ok((scope, true)),
                Some(Err(missing)) => Err(missing.clone()),
                None => Err(Missing::kernel("systemd was not asked")),
            },
            Some(Place::Missing(missing)) => Err(missing.clone()),
            None => Err(Missing::kernel("the runtime does not use it")),
        }
    }

    /// Removes the groups that a dead session left, wherever they are: it may have been in another login's group
    /// than this process.
    ///
    /// Fails with `EBUSY` while a process in one of them is still ending.
    pub(crate) fn sweep(session: &str) -> io::Result<()> {
        let here = Surroundings::here();
        let mut swept = Ok(());
        for mount in mounts(&here.mounts) {
            sweep_below(&mount.point(), &group_name(session), &mut swept);
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
}
