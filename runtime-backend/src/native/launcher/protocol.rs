//! What keeper and launcher say to each other, over a `SOCK_SEQPACKET` socket pair.
//!
//! ```text
//! keeper                                launcher
//!   Hello ──────────────────────────────► (namespaces are ready, ids are mapped)
//!   ◄────────────────────────── Reply::Done
//!   Request {seq} + descriptors ────────►
//!   ◄───────────── Reply {seq} + descriptors
//!   ◄──────────────────── Exited {child}   at any time after the child's Reply::Started
//! ```
//!
//! Messages are JSON; descriptors travel beside them. A request is answered once, in order.

use super::Shift;
use crate::native::build::{CaptureOptions, Placing, Selection};
use crate::native::image::UnpackOptions;
use crate::native::launch::Trouble;
use crate::native::network::addresses::{Address, Plan};
use crate::native::seccomp::Filter;
use crate::native::stacked::Stacking;
use oci_spec::runtime::{Process, Spec};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// The largest message; larger declarations are refused by the sender.
pub(super) const LARGEST: usize = 200 << 10;
/// The most descriptors beside one message.
pub(crate) const MOST_DESCRIPTORS: usize = 24;

/// From the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope {
    pub(super) seq: u64,
    pub(super) request: Request,
}

/// What the keeper asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Ids are mapped; get ready. `scratch` is a directory to mount on where a kernel needs a path. Descriptor: the
    /// host's network namespace.
    Hello { scratch: PathBuf },
    /// Try whether what leaves a network namespace can be diverted to the keeper here.
    TryExit,
    /// Mount the root file system and make the network of a container, and read `paths` of it. What is written goes to
    /// the empty directory `upper`, if there is one and its file system can do it. With `shift`, its users are others of
    /// the host's, and `upper` is of no use. Without `otherwise` it fails where the kernel's overlayfs is refused. Answered
    /// by `Prepared`.
    Prepare {
        id: String,
        layers: Vec<PathBuf>,
        upper: Option<PathBuf>,
        shift: Option<Shift>,
        connection: Connection,
        paths: Vec<PathBuf>,
        otherwise: bool,
    },
    /// Read a file of a container, at most 48 KiB. Answered by `Text`, empty if there is no such file.
    Read { id: String, paths: Vec<PathBuf> },
    /// Write files of a container.
    Write { id: String, files: Vec<WrittenFile> },
    /// Write `files` and start the first process. A bind mount whose target is in `parts` shows a part of another
    /// container's root; a namespace whose path is `host` or `container:ID` is shared. Descriptors: stdin, stdout,
    /// stderr, then control groups to join. A process with a terminal has a socket in place of stdin, to which the
    /// terminal's master is sent.
    Start {
        id: String,
        spec: Box<Spec>,
        filter: Filter,
        /// Whether device nodes in the container's own files work.
        live_nodes: bool,
        files: Vec<WrittenFile>,
        parts: Vec<Part>,
        /// Whether process 1 is an init in front of the program.
        init: bool,
    },
    /// Start a further process. Descriptors as for `Start`.
    Exec { id: String, process: Box<Process>, filter: Filter },
    /// Send a signal to a child, named by its number in `Started`.
    Signal { child: u64, signal: i32 },
    /// Kill the container if it runs, unmount and forget it. Answered when its processes are gone.
    Remove { id: String },
    /// Make TCP sockets in the container's network. Answered with descriptors.
    Sockets { id: String, count: usize },
    /// Make a UDP socket in the container's network. Answered with the descriptor.
    DatagramSocket { id: String },
    /// Make a network. Answered by `Done`, also if it is there.
    CreateNetwork { key: String, internal: bool, plan: Plan },
    /// Connect a container, which may run, with a network. Answered by `Prepared`, with the sockets beside it that are
    /// asked for names, if they are wanted.
    JoinNetwork { id: String, joining: Joining, outbound: bool, resolver: bool },
    /// Take a container, which may run, from a network.
    LeaveNetwork { id: String, key: String, outbound: bool },
    /// Divert what leaves the networks, over IPv6 or over IPv4. Answered by `Done`, the first time with the sockets beside
    /// it to which it comes.
    OpenExit { v6: bool },
    /// Remove a network; one that is not there is no error.
    RemoveNetwork { key: String },
    /// The launcher has been moved into another control group: what was made ahead is not in it. Answered by `Done`.
    Renew,
    /// Do a piece of work with files in a process of its own. Descriptors: the data's pipe or file, then a pipe to
    /// which the outcome is written as JSON (`Result<(), Trouble>` or the job's own result).
    Work { job: Job },
}

/// Whose network a container has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Connection {
    /// Its own, on these networks, with a way out of them or not, and with a place to ask for names or not.
    Own { networks: Vec<Joining>, outbound: bool, resolver: bool },
    /// The session's, which leads nowhere: for a root file system in which nothing is run.
    Unused,
    /// The host's.
    Host,
    /// Another container's.
    Of(String),
}

/// The membership of a container in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joining {
    /// The network.
    pub(crate) key: String,
    /// The address that it asks for.
    pub(crate) ip: Option<Ipv4Addr>,
}

/// A file written into a container's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WrittenFile {
    pub(crate) path: PathBuf,
    pub(crate) content: String,
}

/// A part of a container's root, to be mounted in another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// The target of the mount.
    pub(crate) target: PathBuf,
    /// Whose root it is a part of.
    pub(crate) id: String,
    /// Where it is in that root.
    pub(crate) path: PathBuf,
    /// Of what kind it is.
    pub(crate) kind: PartKind,
}

/// What is at the place of a [`Part`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PartKind {
    /// A file or directory of the root, which is there.
    Found,
    /// A directory of the root, made if it is missing.
    Made,
    /// What the running container has mounted there.
    Mounted,
}

/// A piece of work with files, done inside the launcher's namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Unpack a tar stream at a directory of the container.
    CopyIn { id: String, path: PathBuf },
    /// Write a tar stream with one entry, the file or directory at `path` of the container.
    CopyOut { id: String, path: PathBuf },
    /// Unpack an image layer into a new directory of the store.
    /// The descriptor is the blob, of which `length` bytes from `offset` on are the layer. A blob that is still being
    /// written comes with a pipe that says when there is more of it.
    Unpack { target: PathBuf, offset: u64, length: u64, growing: bool, options: Box<UnpackOptions> },
    /// Remove a directory tree of the store.
    RemoveTree { path: PathBuf },
    /// Put unpacked layers on top of each other in one directory.
    MergeTrees { trees: Vec<PathBuf>, target: PathBuf },
    /// The digest of files of the container, or, without one, of the directory that is the descriptor. Its outcome is a
    /// `Result<Digest, NotSelected>`.
    Digest { from: Option<String>, selection: Box<Selection> },
    /// Copy files of the container `from`, or of the directory that is the descriptor. Its outcome is a `Placed`.
    Place { to: Target, from: Option<String>, placing: Box<Placing> },
    /// Make a directory of the container, for an owner.
    MakeDirectory { id: String, path: PathBuf, owner: Option<(u32, u32)> },
    /// Make a directory of the store, for an owner.
    MakeCache { path: PathBuf, owner: (u32, u32), mode: u32 },
    /// Write a tar stream, the image layer that was written to the container so far. Its outcome is a `Captured`.
    Capture { id: String, options: Box<CaptureOptions> },
    /// Move all processes of the container into the control group whose `cgroup.procs` is the descriptor, until none is
    /// outside.
    Gather { id: String },
    /// Copy trees of the store on top of each other into the root of a container, which is empty.
    Fill { id: String, trees: Vec<PathBuf> },
    /// Add up a directory tree of the store.
    SumTree { path: PathBuf },
}

impl Job {
    /// The container whose files it changes or reads as its root would.
    pub(super) fn container(&self) -> Option<&str> {
        match self {
            Self::CopyIn { id, .. } | Self::CopyOut { id, .. } | Self::MakeDirectory { id, .. } => Some(id),
            _ => None,
        }
    }
}

/// What files are copied into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Target {
    /// The root of a container.
    Container(String),
    /// A directory of the store.
    Directory(PathBuf),
}

/// From the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    Reply { seq: u64, reply: Reply },
    Exited { child: u64, code: i32, signal: Option<i32> },
}

/// What takes the place of the kernel's overlayfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instead {
    /// What it is. The files of a copy are not there yet.
    pub(crate) stacking: Stacking,
    /// Why.
    pub(crate) reason: String,
}

/// The answer to a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    /// With the sockets beside it to which its way out leads, if it begins in the container's own namespace; else with
    /// those that are asked for names, if it has a place for that.
    Prepared {
        addresses: Vec<Address>,
        texts: Vec<String>,
        /// By what the layers are stacked, if not by the kernel's overlayfs.
        instead: Option<Instead>,
    },
    Text(Vec<String>),
    /// With the process's pidfd beside it.
    Started {
        child: u64,
    },
    /// With the sockets beside it.
    Sockets,
    Trouble(Trouble),
}
