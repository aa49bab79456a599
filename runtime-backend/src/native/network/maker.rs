//! Makes network namespaces and first processes ahead of time, and lets go of the mounts of containers that have ended or
//! are removed, in a process of its own beside the launcher.
//!
//! To make a namespace with its rules takes the kernel about a millisecond, as long as the rest of the launcher's work for
//! a container; to unmount what was a container's takes two thirds of that, most of it waiting. So both are done while the
//! launcher does that rest, and on another processor.
//!
//! ```text
//! launcher ── a byte: what kind, the form if it is another ──► maker
//! launcher ◄── the namespace, the process in it, its sockets ── maker
//! launcher ── a byte: let go, the descriptors ──► maker
//! ```

use super::namespace::{Kind, Prepared, enter, new_namespace};
use crate::native::launch::{Ahead, Form, Trouble, Trying};
use crate::native::launcher::{receive_message, send_message};
use crate::native::sys::{self, Called};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// Asks for nothing but that what comes beside is closed.
const LET_GO: u8 = u8::MAX;
/// With the kind: without a process in it.
const ALONE: u8 = 0x40;
/// The longest message with a form. One that is longer has no process made ahead.
const LONGEST: usize = 64 << 10;
/// The length of an answer: the kind, then the id of the process in the namespace, or 0.
const ANSWER: usize = 5;

/// The process, as the launcher has it. It is in the launcher's pid namespace, so it never outlives it.
#[derive(Debug)]
pub(super) struct Maker {
    socket: OwnedFd,
    pidfd: OwnedFd,
    /// What it was asked for and has not been taken yet.
    asked: Option<Kind>,
    /// Whether with a process.
    with_process: bool,
    /// The form of the processes it makes.
    form: Option<Rc<Form>>,
}

impl Maker {
    /// Starts it, from the network namespace to which it returns after each.
    pub(super) fn start(home: BorrowedFd<'_>, devices: Option<BorrowedFd<'_>>) -> Result<Self, Trouble> {
        let doing = || "start the maker".to_owned();
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .call(|| "socketpair(AF_UNIX, SOCK_SEQPACKET)".to_owned())
                .trying(doing)?;
        let process = sys::fork_namespaces(0, || {
            // Else it would keep the files and networks of containers alive.
            let kept = [theirs.as_fd(), home].into_iter().chain(devices);
            sys::close_other_than(&kept.collect::<Vec<_>>());
            run(theirs.as_fd(), home, devices)
        });
        let process = process.call(|| "clone3(0)".to_owned()).trying(doing)?;
        Ok(Self { socket, pidfd: process.pidfd, asked: None, with_process: false, form: None })
    }

    /// Asks for a namespace of this kind, with a process of this form in it if one is given, unless it makes one already.
    /// Fails when it is gone.
    pub(super) fn ask(&mut self, kind: Kind, form: Option<&Rc<Form>>) -> Result<(), Errno> {
        if self.asked.is_some() {
            return Ok(());
        }
        self.with_process = form.is_some();
        let mut message = vec![if self.with_process { kind.number() } else { kind.number() | ALONE }];
        if let Some(form) = form.filter(|form| self.form.as_ref() != Some(*form)) {
            let text = serde_json::to_vec(&**form).unwrap_or_default();
            if text.len() < LONGEST {
                message.extend(text);
                self.form = Some(Rc::clone(form));
            }
        }
        send_message(self.socket.as_fd(), &message, &[])?;
        self.asked = Some(kind);
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
        let mut answer = [0; ANSWER];
        let (length, descriptors) = receive_message(self.socket.as_fd(), &mut answer)?;
        if length != ANSWER {
            return Err(Errno::PIPE);
        }
        self.asked = None;
        let mut descriptors = descriptors.into_iter();
        // None if it could not be made: who needs it makes it, and tells why that fails.
        let Some(namespace) = descriptors.next() else { return Ok(None) };
        let [_, pid @ ..] = answer;
        let mut ahead = None;
        if let pid @ 1.. = i32::from_ne_bytes(pid) {
            let parts = (descriptors.next(), descriptors.next(), descriptors.next());
            let (Some(pidfd), Some(socket), Some(report)) = parts else { return Err(Errno::BADMSG) };
            ahead = Some(Ahead::of_parts(pid, [pidfd, socket, report]));
        }
        let form = self.form.clone().filter(|_| self.with_process);
        let sockets = descriptors.collect();
        Ok(Some(Prepared { namespace, kind, ahead, form, sockets }))
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        crate::native::reap::collect(&self.pidfd);
    }
}

/// Makes what is asked for until nobody is there to ask; returns the exit code.
fn run(socket: BorrowedFd<'_>, home: BorrowedFd<'_>, devices: Option<BorrowedFd<'_>>) -> i32 {
    if rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_err() {
        return 1;
    }
    sys::overwrite_arguments("shakedown: maker");
    let mut message = vec![0; LONGEST];
    // Whether this process has a small mount namespace, once it was tried.
    let (mut form, mut small) = (None, None);
    loop {
        let (kind, text) = match receive_message(socket, &mut message) {
            Ok((0, _)) => return 0,
            // The descriptors that came beside are closed here.
            Ok(_) if message[0] == LET_GO => continue,
            Ok((length, _)) => (message[0], &message[1..length]),
            Err(_) => return 1,
        };
        if !text.is_empty() {
            form = serde_json::from_slice(text).ok();
        }
        if let Some(form) = form.as_ref().filter(|_| small.is_none()) {
            small = Some(Ahead::leave_mounts(form, devices).is_ok());
        }
        let form = form.as_ref().filter(|_| small == Some(true) && kind & ALONE == 0);
        let made = Kind::from_number(kind & !ALONE).and_then(|kind| new_namespace(home, kind, None).ok());
        let ahead = made.as_ref().zip(form).and_then(|(made, form)| make_ahead(made, form, home));
        let parts = ahead.as_ref().and_then(Ahead::parts);
        let (pid, parts) = parts.map_or((0, Vec::new()), |(pid, parts)| (pid, parts.to_vec()));
        let mut beside: Vec<BorrowedFd<'_>> = made.iter().map(|made| made.namespace.as_fd()).collect();
        beside.extend(parts);
        beside.extend(made.iter().flat_map(|made| &made.sockets).map(AsFd::as_fd));
        let [a, b, c, d] = pid.to_ne_bytes();
        if send_message(socket, &[kind, a, b, c, d], &beside).is_err() {
            return 1;
        }
        drop(beside);
        if let Some(ahead) = ahead {
            ahead.hand_over();
        }
    }
}

/// A process that waits in a container's namespace; none where it could not be made.
fn make_ahead(made: &Prepared, form: &Form, home: BorrowedFd<'_>) -> Option<Ahead> {
    enter(made.namespace.as_fd()).ok()?;
    let ahead = Ahead::make(form).ok();
    // A maker that cannot go back would make everything else in there: better none.
    if enter(home).is_err() {
        std::process::abort();
    }
    ahead
}
