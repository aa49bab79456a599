//! Before a process of this program comes near a container: the program is executed once more, from where nobody can
//! change it.

use super::talk::Line;
use super::{Result, invalid};
use crate::native::own::{self, SELF};
use crate::native::sys;
use rustix::fs::{SealFlags, StatVfsMountFlags};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes sure that this process's program is one that cannot be changed. Must be called first, while there is one thread.
///
/// # Errors
///
/// The program can be neither mounted read-only nor copied.
pub fn protect_program() -> Result<()> {
    if is_protected() {
        return Ok(());
    }
    let failed = |reason: String| {
        invalid("this program could not be protected from the container").fact("reason", reason)
    };
    let program = match mounted() {
        Some(mounted) => mounted,
        None => own::copied().map_err(|error| failed(error.to_string()))?,
    };
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "shakedown".into());
    let path = format!("/proc/self/fd/{}", program.as_raw_fd());
    Err(failed(Command::new(path).arg0(name).args(arguments).exec().to_string()))
}

fn is_protected() -> bool {
    let read_only = rustix::fs::statvfs(SELF).is_ok_and(|on| on.f_flag.contains(StatVfsMountFlags::RDONLY));
    let sealed = || {
        let program = File::open(SELF).ok()?;
        rustix::fs::fcntl_get_seals(&program).ok().map(|seals| seals.contains(SealFlags::WRITE))
    };
    read_only || sealed().unwrap_or(false)
}

/// A read-only mount of the program: made here, or for want of the right, in a user namespace for just that.
fn mounted() -> Option<OwnedFd> {
    if let Some(mounted) = own::mounted() {
        return Some(mounted);
    }
    let (ours, theirs) = Line::pair().ok()?;
    let helper = sys::fork_namespaces(libc::CLONE_NEWUSER | libc::CLONE_NEWNS, || {
        i32::from(own::mounted().and_then(|mounted| theirs.give(mounted.as_fd()).ok()).is_none())
    });
    drop(theirs);
    let given = ours.take().ok();
    crate::native::reap::collect(&helper.ok()?.pidfd);
    given
}
