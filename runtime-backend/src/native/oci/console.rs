//! A container's terminal: made in the container's own `/dev/pts`, its master sent to who asked for it.

use crate::native::launch::mounts::resolve;
use crate::native::launch::{Trouble, Trying};
use crate::native::sys::{self, Called};
use oci_spec::runtime::Box as Size;
use rustix::fs::OFlags;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Connects to the socket that waits for the master.
pub(super) fn connect(path: &Path) -> Result<OwnedFd, Trouble> {
    let doing = || "connect to the console socket".to_owned();
    let kind = SocketType::STREAM;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .call(|| "socket(AF_UNIX)".to_owned())
        .trying(doing)?;
    let address =
        rustix::net::SocketAddrUnix::new(path).call(|| format!("sun_path = {path:?}")).trying(doing)?;
    rustix::net::connect(&socket, &address).call(|| format!("connect({path:?})")).trying(doing)?;
    Ok(socket)
}

/// Makes a terminal in the file system `root`, sends its master away and gives its slave.
pub(super) fn make(root: BorrowedFd<'_>, to: &OwnedFd, size: Option<&Size>) -> Result<OwnedFd, Trouble> {
    let doing = || "make the container's terminal".to_owned();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = resolve(root, Path::new("/dev/pts/ptmx"), flags)
        .call(|| "openat2(\"/dev/pts/ptmx\")".to_owned())
        .trying(doing)?;
    rustix::pty::unlockpt(&master).call(|| "ioctl(TIOCSPTLCK)".to_owned()).trying(doing)?;
    // By ioctl on the master: a path in the container's /dev/pts could have been exchanged (CVE-2025-52565).
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC,
    )
    .call(|| "ioctl(TIOCGPTPEER)".to_owned())
    .trying(doing)?;
    if let Some(size) = size {
        let word = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        let size = rustix::termios::Winsize {
            ws_row: word(size.height()),
            ws_col: word(size.width()),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).call(|| "ioctl(TIOCSWINSZ)".to_owned()).trying(doing)?;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let name = [IoSlice::new(b"/dev/ptmx")];
    rustix::net::sendmsg(to, &name, &mut ancillary, SendFlags::NOSIGNAL)
        .call(|| "sendmsg(console socket)".to_owned())
        .trying(doing)?;
    Ok(slave)
}

/// Makes the terminal this process's own, and its standard streams; it belongs to the user who is to work at it.
pub(super) fn take(slave: &OwnedFd, user: Option<u32>) -> Result<(), Trouble> {
    let doing = || "connect the container's terminal".to_owned();
    // Without a mapping for the user it stays root's.
    let _ = rustix::fs::fchown(slave, user.map(rustix::process::Uid::from_raw), None);
    rustix::process::ioctl_tiocsctty(slave).call(|| "ioctl(TIOCSCTTY)".to_owned()).trying(doing)?;
    rustix::stdio::dup2_stdin(slave).call(|| "dup2(slave, 0)".to_owned()).trying(doing)?;
    rustix::stdio::dup2_stdout(slave).call(|| "dup2(slave, 1)".to_owned()).trying(doing)?;
    rustix::stdio::dup2_stderr(slave).call(|| "dup2(slave, 2)".to_owned()).trying(doing)
}

/// Marks all descriptors but the standard ones, and those that the caller wants kept, to be closed.
pub(super) fn close_others(kept: u32) -> Result<(), Trouble> {
    sys::close_all_from(3 + kept)
        .call(|| "close_range(3, ~0, CLOSE_RANGE_CLOEXEC)".to_owned())
        .trying(|| "connect the container's input and output".to_owned())
}
