//! What `create` and the container's first process say to each other, over a pair of `SOCK_SEQPACKET` sockets.

use crate::native::launch::{Trouble, Trying};
use crate::native::sys::Called;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The largest message.
const LARGEST: usize = 64 << 10;

/// From the first process (or the stage before it).
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// The stage has made the first process, with this id.
    Born { pid: i32 },
    /// It is in its namespaces: map ids, put it into its control groups, run the hooks of the runtime's namespace.
    Here,
    /// It waits at its socket.
    Ready,
    /// It cannot go on.
    Trouble(Trouble),
}

/// One end.
#[derive(Debug)]
pub(super) struct Line(OwnedFd);

impl Line {
    /// Both ends.
    pub(super) fn pair() -> Result<(Self, Self), Trouble> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (one, other) = pair
            .call(|| "socketpair(AF_UNIX, SOCK_SEQPACKET)".to_owned())
            .trying(|| "talk to the container's first process".to_owned())?;
        Ok((Self(one), Self(other)))
    }

    /// The socket itself.
    pub(super) fn into_socket(self) -> OwnedFd {
        self.0
    }

    /// What must not be closed.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn say(&self, word: &Word) -> Result<(), Trouble> {
        let doing = || "tell how far the container is".to_owned();
        let text = serde_json::to_vec(word).map_err(|error| Trouble::new(doing(), error.to_string()))?;
        rustix::net::send(&self.0, &text, SendFlags::NOSIGNAL)
            .map(drop)
            .call(|| "send(…)".to_owned())
            .trying(doing)
    }

    /// What the other end says; its end without a word is trouble.
    pub(super) fn hear(&self) -> Result<Word, Trouble> {
        let doing = || "start the container's first process".to_owned();
        let mut buffer = vec![0; LARGEST];
        let read = loop {
            match rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        let (read, _) = read.call(|| "recv(…)".to_owned()).trying(doing)?;
        if read == 0 {
            return Err(Trouble::new(doing(), "it ended without a word"));
        }
        serde_json::from_slice(&buffer[..read]).map_err(|error| Trouble::new(doing(), error.to_string()))
    }

    /// Hands a descriptor over.
    pub(super) fn give(&self, given: BorrowedFd<'_>) -> Result<(), Trouble> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [given];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        rustix::net::sendmsg(&self.0, &[IoSlice::new(b"!")], &mut ancillary, SendFlags::NOSIGNAL)
            .map(drop)
            .call(|| "sendmsg(SCM_RIGHTS)".to_owned())
            .trying(|| "hand a descriptor over".to_owned())
    }

    /// Takes the descriptor that the other end gives.
    pub(super) fn take(&self) -> Result<OwnedFd, Trouble> {
        let doing = || "take a descriptor".to_owned();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let (mut byte, flags) = ([0], RecvFlags::CMSG_CLOEXEC);
        rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)
            .call(|| "recvmsg()".to_owned())
            .trying(doing)?;
        let fds = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        fds.ok_or_else(|| Trouble::new(doing(), "there is none"))
    }

    /// Tells the other end to go on.
    pub(super) fn nod(&self) -> Result<(), Trouble> {
        rustix::net::send(&self.0, b"!", SendFlags::NOSIGNAL)
            .map(drop)
            .call(|| "send(…)".to_owned())
            .trying(|| "tell the container's first process to go on".to_owned())
    }

    /// Waits to be told to go on.
    pub(super) fn wait(&self) -> Result<(), Trouble> {
        let doing = || "wait for the runtime".to_owned();
        let mut byte = [0];
        let read = loop {
            match rustix::net::recv(&self.0, &mut byte[..], RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        match read.call(|| "recv(…)".to_owned()).trying(doing)? {
            (0, _) => Err(Trouble::new(doing(), "it has gone away")),
            _ => Ok(()),
        }
    }
}
