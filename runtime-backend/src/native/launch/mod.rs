//! Launch stage: an OCI runtime spec and a root file system become a process in its own world.
//!
//! ```text
//! launch(spec, world) ──clone──► init: join groups ► map ids ► make mounts private ► attach root ► mounts ► masks
//!                                       ► pivot ► names, parameters, limits ► privileges ► exec
//! launch with an init ──fork───► the same, then fork ► exec; process 1 forwards signals and reaps
//! ahead(form) ──────────fork───► the mounts that most have, wait for the start of one that has them ► the same
//! join(program, init) ──fork───► enter namespaces ► join groups ► privileges ► exec
//! ```
//!
//! The first process shares the launcher's memory until it executes the container's program, so it reports trouble by
//! writing it down where the launcher reads it afterwards. A further process is among hostile ones from its beginning:
//! it is a fork, and reports over a pipe.

mod ahead;
mod init;
mod join;
pub(crate) mod mounts;
mod profile;
mod program;
mod reaper;
mod remapped;
pub(crate) mod terminal;

pub(crate) use ahead::{Ahead, Form, Furniture, has_own_files_only};
pub(crate) use init::{Init, launch};
pub(crate) use join::{Joined, Joining, join};
pub(crate) use program::{Program, terminal_size};

use super::sys::{CallError, Clone};
use oci_spec::runtime::LinuxNamespaceType;
use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// What a container's first process needs besides its spec.
#[derive(Debug)]
pub(crate) struct World<'a> {
    /// A detached mount that becomes the container's `/`.
    pub(crate) root: BorrowedFd<'a>,
    /// Its network namespace; a new, empty one if the spec asks for one and none is given.
    pub(crate) network: Option<BorrowedFd<'a>>,
    /// The launcher's own network namespace.
    pub(crate) home: BorrowedFd<'a>,
    /// Sources of the spec's bind mounts as detached trees, in the spec's order.
    pub(crate) binds: Vec<OwnedFd>,
    /// `cgroup.procs` (or v1 `tasks`) files to join, open for writing.
    pub(crate) cgroups: Vec<OwnedFd>,
    /// A directory with the default devices, of which the container sees its own mounts; the host's where there is none.
    pub(crate) devices: Option<&'a Path>,
    /// Whether device nodes in the container's own files are dead: a node of an image, or one made with `CAP_MKNOD`,
    /// would reach the host's devices.
    pub(crate) dead_nodes: bool,
    /// Namespaces of others that it joins.
    pub(crate) joins: Vec<Join>,
    /// Standard input, output and error. For a process with a terminal, the first is the socket that takes its master.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// Whether process 1 is the launch code's own init, with the program as its child.
    pub(crate) reaper: bool,
    /// What was mounted ahead, in this mount namespace.
    pub(crate) furniture: Option<&'a Furniture>,
    /// Where it hears that its files are complete, if they are written meanwhile.
    pub(crate) complete: Option<BorrowedFd<'a>>,
}

/// A namespace that a container shares: it is entered for the launch, and left again.
#[derive(Debug)]
pub(crate) struct Join {
    /// The namespace.
    pub(crate) namespace: OwnedFd,
    /// The launcher's own of that kind.
    pub(crate) home: OwnedFd,
    /// The kind.
    pub(crate) kind: LinkNameSpaceType,
}

/// The flag of clone(2) for a new namespace of this kind.
pub(crate) fn clone_flag(kind: LinuxNamespaceType) -> i32 {
    match kind {
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        // CLONE_NEWTIME of linux/sched.h.
        LinuxNamespaceType::Time => 0x80,
    }
}

/// A launched process.
pub(crate) type Launched = Clone;

/// Why a process could not be launched.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    /// Completes "could not be launched: cannot …".
    pub(crate) doing: String,
    /// The system call, as strace prints it.
    pub(crate) call: Option<String>,
    /// Why the call failed, found out afterwards.
    pub(crate) reason: Option<String>,
    /// Which step of how many, if it failed in the new process.
    pub(crate) step: Option<(usize, usize)>,
}

impl Trouble {
    /// Trouble without a system call.
    pub(crate) fn new(doing: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { doing: doing.into(), call: None, reason: Some(reason.into()), step: None }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot {}", self.doing)?;
        let parts = [self.call.as_ref(), self.reason.as_ref()];
        parts.into_iter().flatten().try_for_each(|part| write!(f, ": {part}"))
    }
}

/// Says what was being tried when a call failed.
pub(crate) trait Trying<T> {
    /// `doing` completes "cannot …".
    fn trying(self, doing: impl FnOnce() -> String) -> Result<T, Trouble>;
}

impl<T> Trying<T> for Result<T, CallError> {
    fn trying(self, doing: impl FnOnce() -> String) -> Result<T, Trouble> {
        self.map_err(|error| Trouble {
            doing: doing(),
            call: Some(error.to_string()),
            reason: None,
            step: None,
        })
    }
}
