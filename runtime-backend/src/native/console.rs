//! The keeper's end of a container's terminal.

use super::launch::terminal::set_size;
use super::launcher::receive_message;
use super::sys::{self, CallError, Called};
use crate::driver::{Resize, TerminalSize};
use futures_util::FutureExt;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use shakedown_spec::{Failure, FailureKind};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A terminal that a process is about to make, in a container whose devpts this process cannot see.
#[derive(Debug)]
pub(crate) struct Console {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Console {
    /// Makes the socket over which the terminal's master comes.
    pub(crate) fn new() -> Result<Self, CallError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .call(|| "socketpair()".to_owned())?;
        Ok(Self { ours, theirs })
    }

    /// The process's end, in place of its streams.
    pub(crate) fn theirs(&self) -> [BorrowedFd<'_>; 3] {
        [self.theirs.as_fd(); 3]
    }

    /// The master. To be called when the process runs its program: it was sent before.
    pub(crate) fn master(self) -> Result<Master, CallError> {
        let Self { ours, theirs } = self;
        drop(theirs);
        let (_, descriptors) =
            receive_message(ours.as_fd(), &mut [0; 1]).call(|| "recvmsg(terminal)".to_owned())?;
        let master = descriptors
            .into_iter()
            .next()
            .ok_or_else(|| CallError { call: "recvmsg(terminal)".to_owned(), errno: Errno::BADMSG })?;
        rustix::io::ioctl_fionbio(&master, true).call(|| "ioctl(FIONBIO)".to_owned())?;
        let watched = sys::watch(master).map_err(|_| Errno::IO).call(|| "epoll_ctl(terminal)".to_owned())?;
        Ok(Master { fd: Arc::new(watched) })
    }
}

/// A terminal as who looks at it has it: what is read was written by the programs in it, and the other way round.
#[derive(Clone, Debug)]
pub(crate) struct Master {
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl Master {
    /// Sets its size. Does not keep the terminal open.
    pub(crate) fn resize(&self) -> Resize {
        let terminal = Arc::downgrade(&self.fd);
        Arc::new(move |TerminalSize { rows, columns }| {
            let set = terminal.upgrade().map(|fd| set_size(fd.get_ref().as_fd(), rows, columns));
            let answer = match set {
                Some(Err(errno)) => {
                    let title = "the size of the terminal could not be set";
                    let reason = format!("ioctl(TIOCSWINSZ) = {}", sys::errno_name(errno));
                    Err(Failure::new(FailureKind::ExecFailed, title).fact("reason", reason))
                }
                // A terminal that is closed has no size.
                _ => Ok(()),
            };
            std::future::ready(answer).boxed()
        })
    }
}

/// Reads what was written in the terminal. That nobody has the other end open any more is told as `EIO`, but also while the
/// last that was written is still on its way: the kernel fetches it, looks whether there is any, and only then whether the
/// other end is closed (`n_tty_read`). So what was written and closed in between is there for a second read.
fn read_to_the_end(master: &OwnedFd, space: &mut [u8]) -> Result<usize, Errno> {
    match rustix::io::read(master, &mut *space) {
        Err(Errno::IO) => rustix::io::read(master, space),
        first => first,
    }
}

impl AsyncRead for Master {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.fd.poll_read_ready(cx))?;
            let space = buffer.initialize_unfilled();
            match ready.try_io(|fd| Ok(read_to_the_end(fd.get_ref(), &mut *space)?)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // How the kernel tells that nobody has the other end open any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Master {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.fd.poll_write_ready(cx))?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal has no end of input; a program is told by the character for it, `^D`.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
