//! Who is asked about calls that the seccomp filter does not decide (OCI runtime specification, "Seccomp", `listenerPath`).

use crate::native::launch::{Trouble, Trying};
use crate::native::sys::Called;
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde_json::{Value, json};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A connection to the agent, made while its socket is within reach.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    proc: OwnedFd,
    metadata: Option<String>,
    state: Value,
}

impl Listener {
    /// Connects, if the filter has an agent.
    pub(super) fn connect(spec: &Spec, state: Value) -> Result<Option<Self>, Trouble> {
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let Some(path) = seccomp.and_then(|seccomp| seccomp.listener_path().as_ref()) else {
            return Ok(None);
        };
        let doing = || format!("reach the seccomp agent at {}", path.display());
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .call(|| "socket(AF_UNIX)".to_owned())
                .trying(doing)?;
        let address = rustix::net::SocketAddrUnix::new(path).call(|| "sun_path".to_owned()).trying(doing)?;
        rustix::net::connect(&socket, &address).call(|| format!("connect({path:?})")).trying(doing)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::openat(CWD, "/proc", flags, Mode::empty())
            .call(|| "open(\"/proc\", O_PATH)".to_owned())
            .trying(doing)?;
        let metadata = seccomp.and_then(|seccomp| seccomp.listener_metadata().clone());
        Ok(Some(Self { socket, proc, metadata, state }))
    }

    /// What must not be closed.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.socket.as_fd(), self.proc.as_fd()]
    }

    /// Hands the listener's descriptor to the agent, with the state of the container.
    pub(super) fn tell(&self, listener: BorrowedFd<'_>) -> Result<(), Trouble> {
        let doing = || "hand the listener to the seccomp agent".to_owned();
        // By the host's procfs: the number that the agent knows this process by.
        let pid = rustix::fs::readlinkat(&self.proc, "self", Vec::new())
            .call(|| "readlinkat(/proc, \"self\")".to_owned())
            .trying(doing)?;
        let pid: i32 = pid.to_string_lossy().parse().unwrap_or(0);
        let mut state = self.state.clone();
        if state["pid"].as_i64().unwrap_or(0) == 0 {
            state["pid"] = pid.into();
        }
        let text = json!({
            // The version of this message, of which there is one.
            "ociVersion": "0.2.0", "fds": ["seccompFd"], "pid": pid, "metadata": self.metadata, "state": state,
        });
        let text = text.to_string();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [listener];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let data = [IoSlice::new(text.as_bytes())];
        rustix::net::sendmsg(&self.socket, &data, &mut ancillary, SendFlags::NOSIGNAL)
            .map(drop)
            .call(|| "sendmsg(seccomp agent)".to_owned())
            .trying(doing)
    }
}
