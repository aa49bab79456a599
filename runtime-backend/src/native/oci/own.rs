//! Before a process of this program comes near a container: the program is executed once more, from where nobody can
//! change it. What a container finds at `/proc/PID/exe` is then not the file on the host (CVE-2019-5736).

use super::talk::Line;
use super::{Result, invalid};
use crate::native::launch::mounts::open_single_bind;
use crate::native::sys;
use rustix::fs::{MemfdFlags, SealFlags, StatVfsMountFlags};
use rustix::mount::MountAttrFlags;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

const SELF: &str = "/proc/self/exe";

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
        None => copied().map_err(|error| failed(error.to_string()))?,
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
    let this = fs::metadata(SELF).ok()?;
    let path = fs::read_link(SELF).ok()?;
    let open = || {
        let mounted = open_single_bind(&path).ok()?;
        let found = rustix::fs::fstat(&mounted).ok()?;
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into();
        sys::mount_set_attributes(mounted.as_fd(), read_only, false).ok()?;
        ((found.st_dev, found.st_ino) == (this.dev(), this.ino())).then_some(mounted)
    };
    if let Some(mounted) = open() {
        return Some(mounted);
    }
    let (ours, theirs) = Line::pair().ok()?;
    let helper = sys::fork_namespaces(libc::CLONE_NEWUSER | libc::CLONE_NEWNS, || {
        i32::from(open().and_then(|mounted| theirs.give(mounted.as_fd()).ok()).is_none())
    });
    drop(theirs);
    let given = ours.take().ok();
    crate::native::reap::collect(&helper.ok()?.pidfd);
    given
}

/// A copy in memory that nobody can change.
fn copied() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("shakedown", flags)?);
    io::copy(&mut File::open(SELF)?, &mut copy)?;
    copy.set_permissions(Permissions::from_mode(0o555))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}
