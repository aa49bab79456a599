//! Makes network namespaces ahead of time and lets go of the mounts of containers that have ended or are removed, in a
//! process of its own beside the launcher.
//!
//! To make a namespace with its rules takes the kernel about a millisecond, as long as the rest of the launcher's work for
//! a container; to unmount what was a container's takes two thirds of that, most of it waiting. So both are done while the
//! launcher does that rest, and on another processor.
//!
//! ```text
//! launcher ── a byte: what kind ──► maker
//! launcher ◄── the namespace, its sockets ── maker
//! launcher ── a byte: let go, the descriptors ──► maker
//! ```

use super::namespace::{Kind, Prepared, new_namespace};
use crate::native::launch::{Trouble, Trying};
use crate::native::launcher::{receive_message, send_message};
use crate::native::sys::{self, Called};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Asks for nothing but that what comes beside is closed.
const LET_GO: u8 = u8::MAX;

/// The process, as the launcher has it. It is in the launcher's pid namespace, so it never outlives it.
#[derive(Debug)]
pub(super) struct Maker {
    socket: OwnedFd,
    pidfd: OwnedFd,
    /// What it was asked for and has not been taken yet.
    asked: Option<Kind>,
}

impl Maker {
    /// Starts it, from the network namespace to which it returns after each.
    pub(super) fn start(home: BorrowedFd<'_>) -> Result<Self, Trouble> {
        let doing = || "start the maker of network namespaces".to_owned();
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .call(|| "socketpair(AF_UNIX, SOCK_SEQPACKET)".to_owned())
                .trying(doing)?;
        let process = sys::fork_namespaces(0, || {
            // Else it would keep the files and networks of containers alive.
            sys::close_other_than(&[theirs.as_fd(), home]);
            run(theirs.as_fd(), home)
        });
        let process = process.call(|| "clone3(0)".to_owned()).trying(doing)?;
        Ok(Self { socket, pidfd: process.pidfd, asked: None })
    }

    /// Asks for a namespace of this kind, unless it makes one already. Fails when it is gone.
    pub(super) fn ask(&mut self, kind: Kind) -> Result<(), Errno> {
        if self.asked.is_none() {
            send_message(self.socket.as_fd(), &[kind.number()], &[])?;
            self.asked = Some(kind);
        }
        Ok(())
    }

    /// Has what is not needed any more closed. Fails when it is gone.
    pub(super) fn let_go(&self, descriptors: &[OwnedFd]) -> Result<(), Errno> {
        let beside: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        send_message(self.socket.as_fd(), &[LET_GO], &beside)
    }

    /// The namespace that was asked for, if it is finished. Fails when the process is gone.
    pub(super) fn take(&mut self) -> Result<Option<Prepared>, Errno> {
        let Some(kind) = self.asked else { return Ok(None) };
        let mut set = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut set, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
            return Ok(None);
        }
        let (length, descriptors) = receive_message(self.socket.as_fd(), &mut [0])?;
        if length == 0 {
            return Err(Errno::PIPE);
        }
        self.asked = None;
        let mut descriptors = descriptors.into_iter();
        // None if it could not be made: who needs it makes it, and tells why that fails.
        Ok(descriptors.next().map(|namespace| Prepared { namespace, kind, sockets: descriptors.collect() }))
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        crate::native::reap::collect(&self.pidfd);
    }
}

/// Makes what is asked for until nobody is there to ask; returns the exit code.
fn run(socket: BorrowedFd<'_>, home: BorrowedFd<'_>) -> i32 {
    if rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_err() {
        return 1;
    }
    sys::overwrite_arguments("shakedown: networks");
    let mut asked = [0];
    loop {
        match receive_message(socket, &mut asked) {
            Ok((0, _)) => return 0,
            // The descriptors that came beside are closed here.
            Ok(_) if asked[0] == LET_GO => continue,
            Ok(_) => {}
            Err(_) => return 1,
        }
        let made = Kind::from_number(asked[0]).and_then(|kind| new_namespace(home, kind, None).ok());
        let beside: Vec<BorrowedFd<'_>> = made.iter().flat_map(Prepared::descriptors).collect();
        if send_message(socket, &asked, &beside).is_err() {
            return 1;
        }
    }
}
