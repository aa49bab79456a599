//! A terminal for a process of a container: made in the container's own `/dev/pts`, its master handed to who asked.
//!
//! The process makes it itself, when the container's root is its own. What is at `/dev/pts` is checked before it is
//! used: a container may have put something else there.

use super::{Trouble, Trying};
use crate::native::sys::Called;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Uid;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The type of a devpts, as statfs(2) names it.
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// Both ends of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// For who looks at it.
    pub(crate) master: OwnedFd,
    /// For the program in it.
    pub(crate) slave: OwnedFd,
}

impl Terminal {
    /// Makes a terminal in the devpts of this process's root.
    pub(crate) fn make(owner: Uid, size: (u16, u16)) -> Result<Self, Trouble> {
        let directory = openat2(
            rustix::fs::CWD,
            "/dev/pts",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        );
        let directory = directory
            .call(|| "openat2(\"/dev/pts\")".to_owned())
            .trying(|| "make the container's terminal".to_owned())?;
        Self::make_in(&directory, owner, size)
    }

    /// Makes a terminal in what is at the container's `/dev/pts`.
    pub(crate) fn make_in(
        directory: &OwnedFd,
        owner: Uid,
        (rows, columns): (u16, u16),
    ) -> Result<Self, Trouble> {
        let doing = || "make the container's terminal".to_owned();
        let kind = rustix::fs::fstatfs(directory).call(|| "fstatfs(/dev/pts)".to_owned()).trying(doing)?;
        if u64::try_from(kind.f_type) != Ok(DEVPTS_SUPER_MAGIC) {
            return Err(Trouble::new(doing(), "/dev/pts of the container is not a devpts"));
        }
        // Without crossing a mount: `ptmx` is then the devpts's own, whatever was mounted on it. (CVE-2025-52565 is of
        // this kind.)
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let master = openat2(directory, "ptmx", flags, Mode::empty(), beneath)
            .call(|| "openat2(/dev/pts, \"ptmx\")".to_owned())
            .trying(doing)?;
        rustix::pty::unlockpt(&master).call(|| "ioctl(TIOCSPTLCK)".to_owned()).trying(doing)?;
        // By the master, for a path could have been exchanged meanwhile.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)
            .call(|| "ioctl(TIOCGPTPEER)".to_owned())
            .trying(doing)?;
        // Where there is one id only, it is the owner already.
        let _ = rustix::fs::fchown(&slave, Some(owner), None);
        set_size(master.as_fd(), rows, columns).call(|| "ioctl(TIOCSWINSZ)".to_owned()).trying(doing)?;
        Ok(Self { master, slave })
    }

    /// Sends the master over a socket and makes the slave the standard streams.
    pub(crate) fn connect(self, socket: BorrowedFd<'_>) -> Result<(), Trouble> {
        let doing = || "connect the container's terminal".to_owned();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let master = [self.master.as_fd()];
        if !beside.push(SendAncillaryMessage::ScmRights(&master)) {
            return Err(Trouble::new(doing(), "there is no room for a descriptor"));
        }
        rustix::net::sendmsg(socket, &[IoSlice::new(b"t")], &mut beside, SendFlags::NOSIGNAL)
            .call(|| "sendmsg(terminal)".to_owned())
            .trying(doing)?;
        rustix::stdio::dup2_stdin(&self.slave).call(|| "dup2(terminal, 0)".to_owned()).trying(doing)?;
        rustix::stdio::dup2_stdout(&self.slave).call(|| "dup2(terminal, 1)".to_owned()).trying(doing)?;
        rustix::stdio::dup2_stderr(&self.slave).call(|| "dup2(terminal, 2)".to_owned()).trying(doing)
    }
}

/// Makes the terminal on standard input that of this process's session, which has to be its own.
pub(super) fn control() -> Result<(), Trouble> {
    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
        .call(|| "ioctl(TIOCSCTTY)".to_owned())
        .trying(|| "connect the container's terminal".to_owned())
}

/// Sets the size of a terminal; the kernel tells the programs in it.
pub(crate) fn set_size(master: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<(), Errno> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size)
}
