//! Reap stage of the native driver: processes collected, control groups and directories removed.

use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::os::fd::{AsFd, OwnedFd};

/// Waits for a child of this process that is ending, so that no zombie is left.
pub(crate) fn collect(pidfd: &OwnedFd) {
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {}
}
