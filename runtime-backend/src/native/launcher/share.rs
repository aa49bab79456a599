//! What a container shares with another one, or with the host: namespaces, and what is mounted in them.

use crate::native::launch::{Trouble, Trying};
use crate::native::sys::{self, Called};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A kind of namespace that can be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// System V objects and POSIX message queues.
    Ipc,
    /// Processes.
    Pid,
}

impl Kind {
    /// As setns(2) names it.
    pub(super) fn link(self) -> LinkNameSpaceType {
        match self {
            Self::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Self::Pid => LinkNameSpaceType::ProcessID,
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Ipc => "ns/ipc",
            Self::Pid => "ns/pid",
        }
    }
}

/// The shared namespaces of a spec, and whose they are: `host` or `container:ID`.
pub(super) fn shared(spec: &Spec) -> impl Iterator<Item = (Kind, &str)> {
    let list = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    list.iter().filter_map(|namespace| {
        let kind = match namespace.typ() {
            LinuxNamespaceType::Ipc => Kind::Ipc,
            LinuxNamespaceType::Pid => Kind::Pid,
            _ => return None,
        };
        Some((kind, namespace.path().as_ref()?.to_str()?))
    })
}

/// Whether the container's processes are among those of another one.
pub(super) fn has_others_pids(spec: &Spec) -> bool {
    shared(spec).any(|(kind, _)| kind == Kind::Pid)
}

/// A namespace of the process `pid` of this pid namespace.
pub(super) fn namespace(proc: &OwnedFd, pid: i32, kind: Kind) -> Result<OwnedFd, Trouble> {
    open(proc, &format!("{pid}/{}", kind.file()))
}

/// The launcher's own.
pub(super) fn own_namespace(proc: &OwnedFd, kind: Kind) -> Result<OwnedFd, Trouble> {
    open(proc, &format!("self/{}", kind.file()))
}

/// That of the keeper, which has never left the host's. The procfs at `/proc` counts processes as the host does.
pub(super) fn hosts_namespace(kind: Kind) -> Result<OwnedFd, Trouble> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap_or("0").trim();
    let path = format!("/proc/{parent}/{}", kind.file());
    rustix::fs::open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open({path:?})"))
        .trying(|| "share a namespace of the host".to_owned())
}

fn open(proc: &OwnedFd, path: &str) -> Result<OwnedFd, Trouble> {
    rustix::fs::openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("openat(proc, {path:?})"))
        .trying(|| "share a namespace".to_owned())
}

/// A second mount of what the container of this process has mounted at `path`.
///
/// A mount is copied in its own namespace only. A process that shares the table of descriptors enters that, and puts the
/// copy in the place of a descriptor that is there already.
pub(super) fn mounted(process: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Trouble> {
    let doing = || format!("share {} of another container", path.display());
    let mut slot = process.try_clone_to_owned().map_err(|error| Trouble::new(doing(), error.to_string()))?;
    let copier = sys::fork_namespaces(libc::CLONE_FILES, || {
        let entered = rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::MOUNT);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let copied = entered
            .and_then(|()| rustix::mount::open_tree(CWD, path, flags))
            .and_then(|copy| rustix::io::dup3(&copy, &mut slot, rustix::io::DupFlags::CLOEXEC));
        i32::from(copied.is_err())
    });
    let copier = copier.call(|| "clone3(CLONE_FILES)".to_owned()).trying(doing)?;
    crate::native::reap::collect(&copier.pidfd);
    if identity(&slot) == identity(process) {
        return Err(Trouble::new(doing(), "nothing is mounted there"));
    }
    Ok(slot)
}

/// What tells the mount namespace of a process from others.
pub(super) fn mount_namespace(proc: &OwnedFd, pid: i32) -> Option<(u64, u64)> {
    let stat = rustix::fs::statat(proc, format!("{pid}/ns/mnt"), rustix::fs::AtFlags::empty()).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// What tells an open file, such as a namespace, from others.
pub(super) fn identity(file: impl AsFd) -> Option<(u64, u64)> {
    let stat = rustix::fs::fstat(file).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// Kills every process in this mount namespace, until there is none: what a container leaves among the processes of
/// another one.
pub(super) fn kill_all(proc: &OwnedFd, namespace: (u64, u64)) {
    /// More rounds than a container that forks as it is killed can win.
    const MOST: usize = 1000;
    for _ in 0..MOST {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(proc, ".", flags, Mode::empty());
        let Ok(directory) = opened.and_then(rustix::fs::Dir::new) else { return };
        let pids = directory.flatten().filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok());
        let strays: Vec<i32> = pids.filter(|pid| mount_namespace(proc, *pid) == Some(namespace)).collect();
        if strays.is_empty() {
            return;
        }
        for pid in strays {
            let process =
                Pid::from_raw(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
            // Between the look and the opening, the number may have become another's.
            let process = process.filter(|_| mount_namespace(proc, pid) == Some(namespace));
            if let Some(process) = process {
                let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
            }
        }
    }
}
