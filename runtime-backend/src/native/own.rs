//! The program of this process, held in a way that nobody can change: for the processes that go near containers, where it
//! can be reached at `/proc/PID/exe` (CVE-2019-5736).

use super::launch::mounts::open_bind;
use super::sys;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mount::MountAttrFlags;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// The program's file, until it is executed again.
pub(super) const SELF: &str = "/proc/self/exe";

/// A read-only mount of the file this process executes; `None` if its name leads elsewhere by now, as after a new build,
/// or without the right to mount.
pub(super) fn mounted() -> Option<OwnedFd> {
    let this = std::fs::metadata(SELF).ok()?;
    // By its name: the link itself may lead to a mount in a namespace that this process has left.
    let mounted = open_bind(&std::fs::read_link(SELF).ok()?).ok()?;
    let found = rustix::fs::fstat(&mounted).ok()?;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into();
    sys::mount_set_attributes(mounted.as_fd(), read_only, false).ok()?;
    ((found.st_dev, found.st_ino) == (this.dev(), this.ino())).then_some(mounted)
}

/// A copy in memory, sealed.
pub(super) fn copied() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("shakedown", flags)?);
    io::copy(&mut File::open(SELF)?, &mut copy)?;
    copy.set_permissions(Permissions::from_mode(0o555))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}
