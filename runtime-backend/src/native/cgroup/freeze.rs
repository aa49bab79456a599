//! The kernel's freezer: what halts all processes of a container, so that none of them can notice.
//!
//! A container has a group for it from its first pause on, if it is not in one already for its limits. On a machine with
//! both versions of control groups the unified hierarchy is preferred: what is frozen there can still be killed.

use super::group::{remove_group, remove_session};
use super::place::{FREEZER, MountLine, Place, Surroundings, mounts, own_path};
use super::{Layout, group_name};
use crate::wait::{Poll, poll};
use rustix::fs::{Access, Mode, OFlags, access};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the kernel may take to halt the processes: one in a system call that cannot be interrupted is waited for.
const HALTING: Duration = Duration::from_secs(10);

impl Surroundings {
    /// Where processes can be halted.
    pub(super) fn freezer(&self) -> Place {
        let unified = self.v2(FREEZER);
        match (&unified, self.v1(FREEZER)) {
            // Processes are moved there from groups beside or above, so the files of the base have to be this user's too.
            (Place::V2(base), _) if access(base.join("cgroup.procs"), Access::WRITE_OK).is_ok() => unified,
            (_, Some(version1)) => version1,
            (_, None) => unified,
        }
    }
}

impl Layout {
    /// The group by which the container of process `pid` is halted: the one it is in already, else one that is made for
    /// it. [`open`](Self::open) comes before.
    pub(crate) fn freezing(&self, session: &str, id: &str, pid: Option<i32>) -> io::Result<Freezing> {
        let name = Path::new(&group_name(session)).join(id);
        if let Some(group) = pid.and_then(|pid| Freezing::of_process(pid, &name)) {
            return Ok(group);
        }
        let unsupported = |reason: String| Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        let (base, unified) = match self.base(FREEZER) {
            Ok(found) => found,
            Err(missing) => return unsupported(missing.reason),
        };
        let group = Freezing { directory: base.join(name), unified, ours: true };
        fs::create_dir_all(&group.directory)?;
        Ok(group)
    }
}

/// What halts one container. A group that was made for that is removed when dropped, which has to be after the last process
/// has ended.
#[derive(Debug)]
pub(crate) struct Freezing {
    directory: PathBuf,
    unified: bool,
    /// Whether it was made for this.
    ours: bool,
}

impl Freezing {
    /// The group of this name that a process is in, if it has a freezer: the one of the container's limits or devices. From
    /// there the process must not be moved, and need not.
    fn of_process(pid: i32, name: &Path) -> Option<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        mounts(&table).find_map(|mount| Self::in_hierarchy(&mount, &groups, name))
    }

    fn in_hierarchy(mount: &MountLine<'_>, groups: &str, name: &Path) -> Option<Self> {
        let unified = mount.kind == "cgroup2";
        let has_freezer = |list: &str| list.split(',').any(|controller| controller == FREEZER);
        let path = match unified {
            true => own_path(groups, str::is_empty),
            false if has_freezer(mount.options) => own_path(groups, has_freezer),
            false => return None,
        };
        let directory = mount.place(&path);
        let file = if unified { "cgroup.freeze" } else { "freezer.state" };
        (directory.ends_with(name) && directory.join(file).exists()).then_some(Self {
            directory,
            unified,
            ours: false,
        })
    }

    /// Whether processes have to be moved into it; those of a group with limits are in it from their beginning.
    pub(crate) fn gathers(&self) -> bool {
        self.ours
    }

    /// The file that takes the ids of processes.
    pub(crate) fn joining(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(self.directory.join("cgroup.procs"), flags, Mode::empty())?)
    }

    /// Halts what is in the group, and what comes into it; does not wait.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        self.write(if self.unified { "1" } else { "FROZEN" })
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        self.write(if self.unified { "0" } else { "THAWED" })
    }

    fn write(&self, text: &str) -> io::Result<()> {
        fs::write(self.directory.join(if self.unified { "cgroup.freeze" } else { "freezer.state" }), text)
    }

    /// Returns when all that is in the group stands still.
    pub(crate) async fn frozen(&self) -> Result<(), String> {
        let file = self.directory.join(if self.unified { "cgroup.events" } else { "freezer.state" });
        let word = if self.unified { "frozen 1" } else { "FROZEN" };
        let halted = poll(HALTING, || async {
            match fs::read_to_string(&file) {
                Ok(text) if text.lines().any(|line| line == word) => Poll::Ready(()),
                Ok(_) => Poll::NotYet("a process does not stand still".to_owned()),
                Err(error) => Poll::Never(format!("{}: {error}", file.display())),
            }
        });
        halted.await.map_err(|missed| missed.to_string())
    }
}

impl Drop for Freezing {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        // What cannot be removed yet is removed by the sweep of the next session.
        let _ = remove_group(&self.directory);
        remove_session(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with both versions, of which this user may use some.
    fn machine(root: &Path, usable: &[&str]) -> Surroundings {
        for name in ["freezer", "unified"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in usable {
            fs::write(root.join(name).join("cgroup.procs"), "").unwrap();
        }
        let at = root.display();
        let mounts = format!(
            "30 29 0:26 / {at}/freezer rw,relatime - cgroup cgroup rw,freezer\n\
            31 29 0:27 / {at}/unified rw,relatime - cgroup2 cgroup2 rw\n"
        );
        Surroundings { mounts, own: "4:freezer:/\n0::/\n".into(), root: true, systemd: false }
    }

    /// Where both versions are, the one is used in which a frozen container can still be killed.
    #[test]
    fn the_unified_hierarchy_is_preferred() {
        let root = tempfile::tempdir().unwrap();
        let only_v1 = machine(root.path(), &["freezer"]).freezer();
        assert_eq!(only_v1, Place::V1(root.path().join("freezer")));
        let both = machine(root.path(), &["freezer", "unified"]).freezer();
        assert_eq!(both, Place::V2(root.path().join("unified")));
        let none = Surroundings { mounts: String::new(), own: String::new(), root: true, systemd: false };
        assert!(matches!(none.freezer(), Place::Missing(_)));
    }

    /// A container that has a group already is halted there: moved out of it, it would lose its limits.
    #[test]
    fn the_group_of_limits_is_found() {
        let root = tempfile::tempdir().unwrap();
        let here = machine(root.path(), &[]);
        let name = Path::new("shakedown-run-1/redis");
        let group = root.path().join("unified").join(name);
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.freeze"), "0").unwrap();
        let found = |groups: &str| {
            let mut found =
                mounts(&here.mounts).filter_map(|mount| Freezing::in_hierarchy(&mount, groups, name));
            found.next().map(|found| (found.directory.clone(), found.unified, found.ours))
        };
        assert_eq!(found("4:freezer:/\n0::/shakedown-run-1/redis\n"), Some((group, true, false)));
        assert_eq!(found("4:freezer:/\n0::/shakedown-run-1\n"), None);
        assert_eq!(found("4:freezer:/shakedown-run-1/redis\n0::/\n"), None, "no such group in version 1");
    }
}
