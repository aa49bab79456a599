//! Where each controller is on this machine, and whether this user may make groups there.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The controllers the runtime uses, as cgroup v1 names them.
pub(super) const CONTROLLERS: [&str; 6] = ["memory", "pids", "cpu", "cpuset", "blkio", CPUACCT];

/// What lets devices be used; in v2 every group takes a program for it.
pub(super) const DEVICES: &str = "devices";

/// What halts processes; in v2 every group does.
pub(super) const FREEZER: &str = "freezer";

/// What counts processor time.
pub(super) const CPUACCT: &str = "cpuacct";

/// Which hierarchy a controller is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A cgroup v1 hierarchy; groups are made below this directory.
    V1(PathBuf),
    /// The cgroup v2 hierarchy.
    V2(PathBuf),
    /// The user's systemd can make a group for the launcher, and hand it over.
    Systemd,
    /// It cannot be used.
    Missing(Missing),
}

/// Why a controller cannot be used, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Why.
    pub(crate) reason: String,
    /// What to do.
    pub(crate) hint: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)
    }
}

const ROOT: &str = "leave the limit out, or run as root";
const DELEGATE: &str = "leave the limit out, or run the tests in a group of your own: `systemd-run --user --scope -p Delegate=yes …`";
const HOST: &str = "this is a container whose control groups are read-only; start it with `--privileged`, or leave the limit out";
const KERNEL: &str = "leave the limit out, or boot with the controller enabled";

impl Missing {
    pub(super) fn new(reason: impl Into<String>, hint: &'static str) -> Self {
        Self { reason: reason.into(), hint }
    }

    /// The kernel offers no such thing.
    pub(super) fn kernel(reason: impl Into<String>) -> Self {
        Self::new(reason, KERNEL)
    }
}

/// What is known of the process and the machine.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// `/proc/self/mountinfo`.
    pub(super) mounts: String,
    /// `/proc/self/cgroup`.
    pub(super) own: String,
    /// Whether the process is root.
    pub(super) root: bool,
    /// Whether the user's systemd can be asked.
    pub(super) systemd: bool,
}

impl Surroundings {
    pub(super) fn here() -> Self {
        Self {
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
            own: fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
            root: rustix::process::geteuid().is_root(),
            systemd: super::delegate::bus().is_some(),
        }
    }

    /// The place of one controller.
    pub(super) fn place(&self, controller: &str) -> Place {
        self.v1(controller).unwrap_or_else(|| self.v2(controller))
    }

    /// Its place in a hierarchy of version 1, if it is in one.
    pub(super) fn v1(&self, controller: &str) -> Option<Place> {
        let has = |options: &str| options.split(',').any(|option| option == controller);
        let mount = mounts(&self.mounts).find(|mount| mount.kind == "cgroup" && has(mount.options))?;
        Some(match self.writable(mount.place(&own_path(&self.own, has))) {
            Ok(base) => Place::V1(base),
            Err(missing) => Place::Missing(missing),
        })
    }

    /// Its place in the hierarchy of version 2.
    pub(super) fn v2(&self, controller: &str) -> Place {
        let Some(mount) = mounts(&self.mounts).find(|mount| mount.kind == "cgroup2") else {
            return Place::Missing(Missing::kernel("no hierarchy of control groups is mounted"));
        };
        // Root starts at the top, where no group above it has to hand controllers down.
        let own = mount.place(&own_path(&self.own, str::is_empty));
        let base = if self.root { mount.point() } else { super::delegate::above_leaf(&own) };
        let name = v2_name(controller);
        let offered = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
        let ours = self.writable(base.clone());
        if !offered.split_ascii_whitespace().any(|there| Some(there) == name) && name.is_some() {
            let reason = format!("controller `{controller}` is not available in {}", base.display());
            return self.ask_systemd(&mount, name, Missing::kernel(reason));
        }
        match ours {
            // The hierarchy's real root alone has no type; of every other group the rule holds: "no internal
            // processes" (cgroups(7)). What is in a group of one's own can be moved into a leaf of it.
            Ok(_) if !self.root && !super::delegate::is_delegated(&base) => {
                self.ask_systemd_or(&mount, name, Place::V2(base))
            }
            Ok(base) => Place::V2(base),
            Err(missing) => self.ask_systemd(&mount, name, missing),
        }
    }

    /// The user's systemd, if it can be asked and has the controller itself.
    fn ask_systemd(&self, mount: &MountLine<'_>, name: Option<&str>, missing: Missing) -> Place {
        self.ask_systemd_or(mount, name, Place::Missing(missing))
    }

    fn ask_systemd_or(&self, mount: &MountLine<'_>, name: Option<&str>, otherwise: Place) -> Place {
        if self.root || !self.systemd {
            return otherwise;
        }
        let uid = rustix::process::geteuid().as_raw();
        let manager = mount.point().join(format!("user.slice/user-{uid}.slice/user@{uid}.service"));
        let offered = fs::read_to_string(manager.join("cgroup.controllers")).unwrap_or_default();
        match name {
            Some(name) if !offered.split_ascii_whitespace().any(|there| there == name) => match otherwise {
                Place::Missing(missing) if manager.is_dir() => Place::Missing(Missing {
                    reason: format!("{}, and systemd does not hand it to users", missing.reason),
                    hint: "leave the limit out, or let systemd hand it down: `Delegate=yes` in user@.service, see docs/errors/limit-unsupported.md",
                }),
                other => other,
            },
            _ => Place::Systemd,
        }
    }

    fn writable(&self, base: PathBuf) -> Result<PathBuf, Missing> {
        match rustix::fs::access(&base, rustix::fs::Access::WRITE_OK) {
            Ok(()) => Ok(base),
            Err(error @ rustix::io::Errno::ROFS) => {
                Err(Missing::new(format!("{} is not writable: {error}", base.display()), HOST))
            }
            Err(error) => {
                let hint = if self.root {
                    HOST
                } else if self.v2_alone() {
                    DELEGATE
                } else {
                    ROOT
                };
                Err(Missing::new(format!("{} is not writable for this user: {error}", base.display()), hint))
            }
        }
    }

    /// Whether there is v2 and no v1: only v2 can be handed to an ordinary user.
    fn v2_alone(&self) -> bool {
        mounts(&self.mounts).all(|mount| mount.kind != "cgroup")
    }
}

/// What v2 calls a controller; `None` if it is there without one.
pub(super) fn v2_name(controller: &str) -> Option<&str> {
    match controller {
        "blkio" => Some("io"),
        // Every group counts processor time, takes rules for devices and can be frozen.
        CPUACCT | DEVICES | FREEZER => None,
        other => Some(other),
    }
}

/// A line of `/proc/self/mountinfo`, proc_pid_mountinfo(5).
#[derive(Debug)]
pub(super) struct MountLine<'a> {
    root: &'a str,
    point: &'a str,
    pub(super) kind: &'a str,
    pub(super) options: &'a str,
}

impl MountLine<'_> {
    pub(super) fn point(&self) -> PathBuf {
        self.point.into()
    }

    /// The last part of where it is mounted.
    pub(super) fn name(&self) -> &str {
        self.point.rsplit('/').next().unwrap_or_default()
    }

    /// Where the group `path` is, or the mount point itself where only another part of the hierarchy is mounted.
    pub(super) fn place(&self, path: &str) -> PathBuf {
        let below = match self.root {
            "/" => Some(path),
            root => path.strip_prefix(root),
        };
        let found = below.map(|below| match below.trim_start_matches('/') {
            "" => self.point(),
            below => Path::new(self.point).join(below),
        });
        found.filter(|found| found.is_dir()).unwrap_or_else(|| self.point())
    }
}

/// The mounts of control groups.
pub(super) fn mounts(text: &str) -> impl Iterator<Item = MountLine<'_>> {
    text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split_ascii_whitespace().skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split_ascii_whitespace();
        let (kind, options) = (after.next()?, after.nth(1)?);
        kind.starts_with("cgroup").then_some(MountLine { root, point, kind, options })
    })
}

/// The path of the own group in the hierarchy whose controllers are wanted.
pub(super) fn own_path(own: &str, wanted: impl Fn(&str) -> bool) -> String {
    let mut lines = own.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.len() == 3 && wanted(fields[1]));
    found.map_or_else(|| "/".to_owned(), |fields| fields[2].to_owned())
}

/// Whether the directory belongs to this user.
pub(super) fn is_own(directory: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    fs::metadata(directory).is_ok_and(|found| found.uid() == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "30 29 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        31 29 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    fn found(text: &str) -> Vec<(&str, &str, &str)> {
        mounts(text).map(|mount| (mount.point, mount.kind, mount.options)).collect()
    }

    /// On a machine with both versions, each controller is found where it is.
    #[test]
    fn hierarchies_are_found_on_hybrid_hosts() {
        let v1 = ("/sys/fs/cgroup/memory", "cgroup", "rw,memory");
        assert_eq!(found(HYBRID), [v1, ("/sys/fs/cgroup/unified", "cgroup2", "rw")]);
        assert_eq!(own_path("4:memory:/a\n0::/b\n", |c| c == "memory"), "/a");
        assert_eq!(own_path("4:memory:/a\n0::/b\n", str::is_empty), "/b");
    }

    /// In a container that shares the host's control groups, `/proc/self/cgroup` has the host's paths, and the mount
    /// shows a part of the tree only.
    #[test]
    fn the_own_group_is_found_below_a_mounted_part() {
        let machine = tempfile::tempdir().unwrap();
        fs::create_dir_all(machine.path().join("inner")).unwrap();
        let mount =
            |root| MountLine { root, point: machine.path().to_str().unwrap(), kind: "cgroup", options: "" };
        assert_eq!(mount("/").place("/inner"), machine.path().join("inner"));
        assert_eq!(mount("/docker/1f").place("/docker/1f/inner"), machine.path().join("inner"));
        assert_eq!(mount("/docker/1f").place("/elsewhere"), machine.path());
        assert_eq!(mount("/").place("/gone"), machine.path());
    }

    /// A limit that cannot be set says which directory is in the way and what to do.
    #[test]
    fn a_missing_controller_is_told_with_its_directory() {
        let machine = tempfile::tempdir().unwrap();
        let point = machine.path().to_str().unwrap();
        fs::write(machine.path().join("cgroup.controllers"), "pids\n").unwrap();
        let mounts = format!("31 29 0:27 / {point} rw,relatime - cgroup2 cgroup2 rw\n");
        let here = Surroundings { mounts, own: "0::/\n".into(), root: true, systemd: false };
        let Place::Missing(missing) = here.place("memory") else { panic!("there is no memory controller") };
        assert_eq!(missing.reason, format!("controller `memory` is not available in {point}"));
        assert_eq!(here.place("pids"), Place::V2(machine.path().to_owned()));
        assert_eq!(here.place(CPUACCT), Place::V2(machine.path().to_owned()), "it needs no controller");
    }
}
