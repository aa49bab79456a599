//! A container's terminal: made in the container's own `/dev/pts`, its master sent to who asked for it.

use crate::native::launch::mounts::resolve;
use crate::native::launch::terminal::Terminal;
use crate::native::launch::{Trouble, Trying, terminal_size};
use crate::native::sys::{self, Called};
use oci_spec::runtime::Process;
use rustix::fs::OFlags;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::Uid;
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

/// Makes a terminal in the file system `root`, sends its master away and gives its slave, which belongs to the user who is to
/// work at it.
pub(super) fn make(root: BorrowedFd<'_>, to: &OwnedFd, process: &Process) -> Result<OwnedFd, Trouble> {
    let doing = || "make the container's terminal".to_owned();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = resolve(root, Path::new("/dev/pts"), flags)
        .call(|| "openat2(\"/dev/pts\")".to_owned())
        .trying(doing)?;
    let owner = Uid::from_raw(process.user().uid());
    let Terminal { master, slave } = Terminal::make_in(&directory, owner, terminal_size(process))?;
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

/// Makes the terminal this process's own, and its standard streams.
pub(super) fn take(slave: &OwnedFd) -> Result<(), Trouble> {
    let doing = || "connect the container's terminal".to_owned();
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
