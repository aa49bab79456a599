//! A first process whose users are others than the launcher's.
//!
//! Its namespaces have to belong to the user namespace, which whoever makes them has to be in, and the launcher could not
//! leave again. So a process between them enters it, makes the first process as its own sibling, the launcher's child,
//! and ends.

use super::{Launched, Trouble, Trying, mounts};
use crate::native::launcher::{become_root, receive_message, send_message};
use crate::native::reap::collect;
use crate::native::sys::{self, Called};
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::DumpableBehavior;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Runs `child` in a new process in new namespaces, which belong to `users` if there are any.
pub(super) fn fork(
    namespaces: i32,
    users: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> Result<Launched, Trouble> {
    let doing = || "make the container's namespaces".to_owned();
    let text = || format!("clone3({namespaces:#x})");
    let Some(users) = users else {
        return sys::fork_namespaces(namespaces, child).call(text).trying(doing);
    };
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (report, tell) = pair.call(|| "socketpair()".to_owned()).trying(doing)?;
    let between = sys::fork_namespaces(0, || {
        let made = become_root(users).trying(doing).and_then(|()| {
            // Its own entries of /proc would be those of the launcher's user, else. There is nobody yet to trace it.
            let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable);
            sys::fork_sibling(namespaces, child).call(text).trying(doing)
        });
        let beside: Vec<BorrowedFd<'_>> = made.iter().map(|made| made.pidfd.as_fd()).collect();
        let told = serde_json::to_vec(&made.as_ref().map(drop)).unwrap_or_default();
        i32::from(send_message(tell.as_fd(), &told, &beside).is_err())
    });
    let between = between.call(|| "clone3(0)".to_owned()).trying(doing)?;
    collect(&between.pidfd);
    drop(tell);
    let mut told = vec![0; 4096];
    let received = receive_message(report.as_fd(), &mut told);
    let (length, beside) = received.call(|| "recvmsg()".to_owned()).trying(doing)?;
    let lost = || Trouble::new(doing(), "how far it got is not known");
    let made: Result<(), Trouble> = serde_json::from_slice(&told[..length]).unwrap_or_else(|_| Err(lost()));
    made?;
    let pidfd = beside.into_iter().next().ok_or_else(lost)?;
    let pid = number(&pidfd).ok_or_else(lost)?;
    Ok(Launched { pid, pidfd })
}

/// The id of a process as this process counts. Who made it may have been in another pid namespace.
fn number(pidfd: &OwnedFd) -> Option<i32> {
    let path = format!("self/fdinfo/{}", pidfd.as_raw_fd());
    let proc = mounts::private_proc().ok()?;
    let file = mounts::resolve(proc.as_fd(), Path::new(&path), OFlags::RDONLY | OFlags::CLOEXEC).ok()?;
    let text = std::io::read_to_string(File::from(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}
