//! The launcher: the one process of a session that makes containers, and whose end ends them all.
//!
//! ```text
//! keeper ──fork──► launcher (pid 1 of the session's pid namespace; own mount, network, ipc namespaces;
//!    │               │          as an ordinary user also a user namespace)
//!    │  seqpacket    ├──clone──► container: init, …
//!    │◄─────────────►├──clone──► container: init, …
//!    │               ├──fork───► worker: unpacks a layer, copies files, and ends
//!    │               └──fork───► maker: makes the next container's network, and its first process as its own sibling
//! ```
//!
//! It has one thread and little memory, so clones of it are cheap and sound. It ends when its socket to the keeper
//! reports the keeper's end, however that came about; the kernel then kills everything in its pid namespace, and with
//! the last process its mounts, networks and tmpfs file systems go as well.

mod extract;
mod files;
mod gather;
mod handle;
mod identity;
mod protocol;
mod remap;
mod serve;
mod share;
mod start;
mod unpack;
mod worker;

pub(crate) use extract::{Extraction, extract};
pub use handle::Launcher;
pub(crate) use handle::{Child, Handle, Pending, receiving_pipe, sending_pipe};
pub(crate) use identity::{Identity, further_ids};
pub(crate) use protocol::{
    Connection, Instead, Job, Joining, MOST_DESCRIPTORS, Part, PartKind, Reply, Request, Target, WrittenFile,
};
pub(crate) use remap::{Shift, Users, become_root};
pub(crate) use serve::{receive_message, send_message};
pub use start::launcher_main;
pub(crate) use unpack::MappedUnpacker;
