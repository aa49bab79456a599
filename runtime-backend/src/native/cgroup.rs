//! Control groups: limits where a declaration asks for them, on cgroup v1, v2 and both side by side.

use rustix::fs::OFlags;
use shakedown_spec::{Failure, FailureKind, Resources};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The controllers the runtime uses.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Which hierarchy a controller is in on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// A cgroup v1 hierarchy; groups are made below this directory.
    V1(PathBuf),
    /// The cgroup v2 hierarchy.
    V2(PathBuf),
    /// It cannot be used, for this reason.
    Missing(String),
}

/// The control groups of this machine, as this user may use them.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    places: Vec<(&'static str, Place)>,
    views: Vec<View>,
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
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let root = rustix::process::geteuid().is_root();
        let places = CONTROLLERS.map(|controller| (controller, place(controller, &mounts, &own, root)));
        Self { places: places.into(), views: views(&mounts) }
    }

    /// The hierarchies a container sees.
    pub(crate) fn views(&self) -> &[View] {
        &self.views
    }

    /// Why a controller cannot be used, or `None` if it can.
    pub(crate) fn missing(&self, controller: &str) -> Option<String> {
        match self.places.iter().find(|(name, _)| *name == controller) {
            Some((_, Place::Missing(reason))) => Some(reason.clone()),
            Some(_) => None,
            None => Some("the runtime does not use it".to_owned()),
        }
    }

    /// Makes the groups of a container that has limits.
    pub(crate) fn create(&self, session: &str, id: &str, resources: &Resources) -> Result<Cgroup, Failure> {
        let wanted = [
            ("memory", resources.memory.is_some() || resources.memory_swap.is_some()),
            ("pids", resources.pids.is_some()),
            ("cpu", resources.cpu_millis.is_some()),
        ];
        let mut cgroup = Cgroup { directories: Vec::new() };
        for (controller, place) in &self.places {
            if !wanted.contains(&(controller, true)) {
                continue;
            }
            let (base, v2) = match place {
                Place::V1(base) => (base, false),
                Place::V2(base) => (base, true),
                Place::Missing(reason) => return Err(unsupported(controller, reason)),
            };
            let path = base.join(group_name(session)).join(id);
            cgroup
                .add(controller, base, &path, v2, resources)
                .map_err(|(file, error)| unsupported(controller, &format!("{}: {error}", file.display())))?;
        }
        Ok(cgroup)
    }

    /// Removes the empty groups that a dead session left.
    ///
    /// Fails with `EBUSY` while a process in one of them is still ending.
    pub(crate) fn sweep(&self, session: &str) -> io::Result<()> {
        for (_, place) in &self.places {
            let (Place::V1(base) | Place::V2(base)) = place else { continue };
            let top = base.join(group_name(session));
            for entry in fs::read_dir(&top).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove_group(&entry.path())?;
                }
            }
            remove_group(&top)?;
        }
        Ok(())
    }
}

/// The directory of a session's groups.
fn group_name(session: &str) -> String {
    format!("shakedown-{session}")
}

fn unsupported(controller: &str, reason: &str) -> Failure {
    Failure::new(FailureKind::Unsupported, format!("the {controller} limit cannot be set here"))
        .fact("reason", reason)
        .hint("leave the limit out, or run as root")
}

fn place(controller: &'static str, mounts: &str, own: &str, root: bool) -> Place {
    let v1 =
        mount_point(mounts, |kind, options| kind == "cgroup" && options.split(',').any(|o| o == controller));
    if let Some(mount) = v1 {
        let path = own_path(own, |controllers| controllers.split(',').any(|name| name == controller));
        return writable(existing(&mount, &path)).map_or_else(Place::Missing, Place::V1);
    }
    let Some(mount) = mount_point(mounts, |kind, _| kind == "cgroup2") else {
        return Place::Missing("no cgroup hierarchy is mounted".to_owned());
    };
    // A v2 group with processes cannot hand controllers to its children, except for the root: cgroups(7), "no
    // internal processes". Root therefore starts at the top.
    let base = if root { mount } else { existing(&mount, &own_path(own, str::is_empty)) };
    let available = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
    if !available.split_ascii_whitespace().any(|name| name == controller) {
        return Place::Missing(format!("controller `{controller}` is not available in {}", base.display()));
    }
    // Only the hierarchy's real root has no type.
    let processes = fs::read_to_string(base.join("cgroup.procs")).unwrap_or_default();
    if base.join("cgroup.type").exists() && !processes.trim().is_empty() {
        let reason =
            "has processes, so it cannot have groups with limits (cgroups(7), \"no internal processes\")";
        return Place::Missing(format!("{} {reason}", base.display()));
    }
    writable(base).map_or_else(Place::Missing, Place::V2)
}

/// v1 hierarchies with one of the runtime's controllers, each under its own name; or v2 alone.
fn views(mounts: &str) -> Vec<View> {
    let mut views = Vec::new();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - cgroup ") else { continue };
        let directory = before.split_ascii_whitespace().nth(4).and_then(|path| path.rsplit('/').next());
        let options = after.split_ascii_whitespace().nth(1).unwrap_or_default().split(',');
        let controllers: Vec<String> =
            options.filter(|option| !matches!(*option, "rw" | "ro" | "xattr")).map(str::to_owned).collect();
        let ours = controllers.iter().any(|name| CONTROLLERS.contains(&name.as_str()));
        if let Some(directory) = directory.filter(|_| ours) {
            let directory = directory.to_owned();
            let view = View { directory, kind: "cgroup", controllers };
            views.extend((!views.contains(&view)).then_some(view));
        }
    }
    if views.is_empty() && mounts.contains(" - cgroup2 ") {
        views.push(View { directory: String::new(), kind: "cgroup2", controllers: Vec::new() });
    }
    views
}

fn mount_point(mounts: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split_ascii_whitespace();
        let (kind, options) = (after.next()?, after.nth(1)?);
        wanted(kind, options).then(|| before.split_ascii_whitespace().nth(4).map(PathBuf::from))?
    })
}

fn own_path(own: &str, wanted: impl Fn(&str) -> bool) -> String {
    let mut lines = own.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.len() == 3 && wanted(fields[1]));
    found.map_or_else(|| "/".to_owned(), |fields| fields[2].to_owned())
}

/// The own group below the mount point, or the mount point itself where only a part of the hierarchy is mounted.
fn existing(mount: &Path, path: &str) -> PathBuf {
    let own = mount.join(path.trim_start_matches('/'));
    if own.is_dir() { own } else { mount.to_owned() }
}

fn writable(base: PathBuf) -> Result<PathBuf, String> {
    match rustix::fs::access(&base, rustix::fs::Access::WRITE_OK) {
        Ok(()) => Ok(base),
        Err(error) => Err(format!("{} is not writable for this user: {error}", base.display())),
    }
}

/// The groups of one container, removed when dropped (which has to be after its last process has ended).
#[derive(Debug)]
pub(crate) struct Cgroup {
    directories: Vec<PathBuf>,
}

impl Cgroup {
    fn add(
        &mut self,
        controller: &str,
        base: &Path,
        path: &Path,
        v2: bool,
        resources: &Resources,
    ) -> Result<(), (PathBuf, io::Error)> {
        let at = |file: PathBuf| move |error| (file, error);
        if v2 {
            for directory in
                [base.to_owned(), base.join(path.parent().and_then(Path::file_name).unwrap_or_default())]
            {
                fs::create_dir_all(&directory).map_err(at(directory.clone()))?;
                let control = directory.join("cgroup.subtree_control");
                fs::write(&control, format!("+{controller}")).map_err(at(control))?;
            }
        }
        if !self.directories.iter().any(|made| made == path) {
            fs::create_dir_all(path).map_err(at(path.to_owned()))?;
            self.directories.push(path.to_owned());
        }
        for (file, value) in settings(controller, v2, resources) {
            let file = path.join(file);
            match fs::write(&file, &value) {
                // Swap is counted only where the kernel was booted so; without swap the memory limit is the limit.
                Err(error) if error.kind() == io::ErrorKind::NotFound && value_is_swap(&file) => {}
                other => other.map_err(at(file))?,
            }
        }
        Ok(())
    }

    /// The files to which a process writes `0` to join.
    pub(crate) fn joining(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |directory: &PathBuf| {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            Ok(rustix::fs::open(directory.join("cgroup.procs"), flags, rustix::fs::Mode::empty())?)
        };
        self.directories.iter().map(open).collect()
    }

    /// Whether the kernel has killed a process of the group for its use of memory.
    pub(crate) fn out_of_memory(&self) -> bool {
        let counted = |text: String| {
            text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
        };
        let files = ["memory.oom_control", "memory.events"];
        let paths = self.directories.iter().flat_map(|directory| files.map(|file| directory.join(file)));
        paths.into_iter().any(|path| fs::read_to_string(path).is_ok_and(counted))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for directory in &self.directories {
            // What cannot be removed yet is removed by the sweep of the next session.
            let _ = remove_group(directory);
            // The session's own group goes with the last container that has limits.
            let _ = directory.parent().map(fs::remove_dir);
        }
    }
}

fn remove_group(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn value_is_swap(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == "memory.memsw.limit_in_bytes" || name == "memory.swap.max")
}

/// The files to write, in an order the kernel accepts: memory before memory plus swap.
fn settings(controller: &str, v2: bool, resources: &Resources) -> Vec<(&'static str, String)> {
    const PERIOD: u64 = 100_000;
    let mut list = Vec::new();
    match controller {
        "memory" => {
            // As Docker does: with a memory limit alone, as much swap again.
            let total = resources.memory_swap.or(resources.memory.map(|memory| memory.saturating_mul(2)));
            if let Some(memory) = resources.memory {
                list.push((if v2 { "memory.max" } else { "memory.limit_in_bytes" }, memory.to_string()));
            }
            if let Some(total) = total {
                let swap = total.saturating_sub(resources.memory.unwrap_or(0));
                list.push(if v2 {
                    ("memory.swap.max", swap.to_string())
                } else {
                    ("memory.memsw.limit_in_bytes", total.to_string())
                });
            }
        }
        "pids" => list.extend(resources.pids.map(|pids| ("pids.max", pids.to_string()))),
        _ => {
            if let Some(quota) = resources.cpu_millis.map(|millis| millis * PERIOD / 1000) {
                if v2 {
                    list.push(("cpu.max", format!("{quota} {PERIOD}")));
                } else {
                    list.push(("cpu.cfs_period_us", PERIOD.to_string()));
                    list.push(("cpu.cfs_quota_us", quota.to_string()));
                }
            }
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "30 29 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        31 29 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    /// On a machine with both versions, each controller is found where it is.
    #[test]
    fn controllers_are_found_on_hybrid_hosts() {
        let v1 = mount_point(HYBRID, |kind, options| kind == "cgroup" && options.contains("memory"));
        assert_eq!(v1, Some(PathBuf::from("/sys/fs/cgroup/memory")));
        let v2 = mount_point(HYBRID, |kind, _| kind == "cgroup2");
        assert_eq!(v2, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let [view] = &views(HYBRID)[..] else { panic!("one v1 hierarchy is listed") };
        assert_eq!((view.directory.as_str(), view.kind), ("memory", "cgroup"));
        assert_eq!(views("31 29 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")[0].kind, "cgroup2");
        assert_eq!(own_path("4:memory:/a\n0::/b\n", |c| c == "memory"), "/a");
        let [view] = &views(HYBRID)[..] else { panic!("one v1 hierarchy is listed") };
        assert_eq!((view.directory.as_str(), view.kind), ("memory", "cgroup"));
        assert_eq!(views("31 29 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")[0].kind, "cgroup2");
        assert_eq!(own_path("4:memory:/a\n0::/b\n", str::is_empty), "/b");
    }

    /// The same declaration limits the same on both versions.
    #[test]
    fn limits_are_written_for_each_version() {
        let limits = Resources { memory: Some(64 << 20), cpu_millis: Some(1500), ..Resources::default() };
        assert_eq!(settings("cpu", true, &limits), [("cpu.max", "150000 100000".to_owned())]);
        assert_eq!(settings("cpu", false, &limits)[1], ("cpu.cfs_quota_us", "150000".to_owned()));
        assert_eq!(settings("memory", true, &limits)[1], ("memory.swap.max", (64 << 20).to_string()));
        assert_eq!(settings("memory", false, &limits)[1].1, (128 << 20).to_string());
    }
}
