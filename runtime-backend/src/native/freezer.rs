//! The kernel's freezer: what halts all processes of a container, so that none of them can notice.
//!
//! A container has a group for it from its first pause on. On a machine with both versions of control groups the
//! unified hierarchy is preferred: what is frozen there can still be killed.

use super::sys::Called;
use crate::wait::{Poll, poll};
use rustix::fs::{Access, Mode, OFlags, access};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the kernel may take to halt the processes: one in a system call that cannot be interrupted is waited for.
const HALTING: Duration = Duration::from_secs(10);

/// Where groups for freezing can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Freezer {
    /// Below this group of the unified hierarchy.
    Unified(PathBuf),
    /// Below this group of version 1's hierarchy of that name.
    Version1(PathBuf),
    /// Nowhere, for this reason.
    Missing(String),
}

impl Freezer {
    /// Looks for one that this user may use.
    pub(crate) fn detect() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::find(&mounts, &own, |path| access(path, Access::WRITE_OK).is_ok())
    }

    fn find(mounts: &str, own: &str, writable: impl Fn(&Path) -> bool) -> Self {
        let unified = place(mounts, own, "cgroup2", |_| true, str::is_empty);
        let named = |list: &str| list.split(',').any(|name| name == "freezer");
        let version1 = place(mounts, own, "cgroup", named, named);
        // Processes are moved there from this process's own group, so that one has to be this user's as well.
        let usable = |path: &PathBuf| writable(path) && writable(&path.join("cgroup.procs"));
        match (unified, version1) {
            (Some(path), _) if usable(&path) => Self::Unified(path),
            (_, Some(path)) if usable(&path) => Self::Version1(path),
            (Some(path), _) | (None, Some(path)) => {
                Self::Missing(format!("the control group {} is not this user's", path.display()))
            }
            (None, None) => {
                Self::Missing("no hierarchy of control groups with a freezer is mounted".to_owned())
            }
        }
    }

    /// Why nothing can be frozen here, or `None` if it can.
    pub(crate) fn missing(&self) -> Option<&str> {
        match self {
            Self::Missing(reason) => Some(reason),
            _ => None,
        }
    }

    /// Makes the group of a container.
    pub(crate) fn group(&self, session: &str, id: &str) -> io::Result<Group> {
        let (base, unified) = match self {
            Self::Unified(base) => (base, true),
            Self::Version1(base) => (base, false),
            Self::Missing(reason) => return Err(io::Error::new(io::ErrorKind::Unsupported, reason.clone())),
        };
        let group = Group { directory: base.join(top(session)).join(id), unified, ours: true };
        fs::create_dir_all(&group.directory)?;
        Ok(group)
    }

    /// The group of the unified hierarchy that the container of process `pid` has for its limits, if it has one: from
    /// there it must not be moved, and need not.
    pub(crate) fn of_limits(pid: i32, session: &str, id: &str) -> Option<Group> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
        let directory = place(&mounts, &groups, "cgroup2", |_| true, str::is_empty)?;
        let own = Path::new(path).ends_with(Path::new(&top(session)).join(id));
        (own && directory.join("cgroup.freeze").exists()).then_some(Group {
            directory,
            unified: true,
            ours: false,
        })
    }

    /// Removes the groups that a dead session left. Fails with `EBUSY` while a process in one of them is still ending.
    pub(crate) fn sweep(&self, session: &str) -> io::Result<()> {
        let (Self::Unified(base) | Self::Version1(base)) = self else { return Ok(()) };
        let top = base.join(top(session));
        for entry in fs::read_dir(&top).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // A frozen process of version 1 does not end before it goes on.
                let _ = fs::write(entry.path().join("freezer.state"), "THAWED");
                gone(fs::remove_dir(entry.path()))?;
            }
        }
        gone(fs::remove_dir(&top))
    }
}

fn top(session: &str) -> String {
    format!("shakedown-{session}")
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// This process's own group in a hierarchy; the mount point where only a part of the hierarchy is mounted.
fn place(
    mounts: &str,
    own: &str,
    kind: &str,
    options: impl Fn(&str) -> bool,
    controllers: impl Fn(&str) -> bool,
) -> Option<PathBuf> {
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split_ascii_whitespace();
        (after.next()? == kind && options(after.nth(1)?)).then(|| before.split_ascii_whitespace().nth(4))?
    })?;
    let mut lines = own.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
    let own =
        lines.find(|fields| fields.len() == 3 && controllers(fields[1])).map_or("/", |fields| fields[2]);
    let path = Path::new(mount).join(own.trim_start_matches('/'));
    Some(if path.is_dir() { path } else { mount.into() })
}

/// The group of one container; one that was made for pausing is removed when dropped, which has to be after the last
/// process has ended.
#[derive(Debug)]
pub(crate) struct Group {
    directory: PathBuf,
    unified: bool,
    /// Whether it was made for this.
    ours: bool,
}

impl Group {
    /// Whether processes have to be moved into it; those of a group with limits are in it from their beginning.
    pub(crate) fn gathers(&self) -> bool {
        self.ours
    }

    /// The file that takes the ids of processes.
    pub(crate) fn joining(&self) -> Result<OwnedFd, super::sys::CallError> {
        let path = self.directory.join("cgroup.procs");
        rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .call(|| format!("open({path:?})"))
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

impl Drop for Group {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        // What cannot be removed yet is removed by the sweep of the next session.
        let _ = fs::remove_dir(&self.directory);
        let _ = self.directory.parent().map(fs::remove_dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "30 29 0:26 / /x/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer\n\
        31 29 0:27 / /x/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    /// Where both versions are, the one is used in which a frozen container can still be killed.
    #[test]
    fn the_unified_hierarchy_is_preferred() {
        let own = "4:freezer:/\n0::/\n";
        let unified = Freezer::Unified("/x/cgroup/unified".into());
        assert_eq!(Freezer::find(MOUNTS, own, |_| true), unified);
        let only_v1 = Freezer::find(MOUNTS, own, |path| path.starts_with("/x/cgroup/freezer"));
        assert_eq!(only_v1, Freezer::Version1("/x/cgroup/freezer".into()));
        let foreign = Freezer::find(MOUNTS, own, |_| false);
        assert_eq!(foreign.missing(), Some("the control group /x/cgroup/unified is not this user's"));
        assert!(Freezer::find("", own, |_| true).missing().is_some());
    }
}
