//! Names on networks: who is where, and the name server that says so in each container's own network.
//!
//! ```text
//! program ──query──► 127.0.0.11:53, in the container's namespace ──► keeper ──► name of its networks? ──► answer
//!                                                                            └► else the host's name servers, or
//!                                                                               those that were declared
//! ```
//!
//! The launcher makes the two sockets in the namespace and hands them over. What changes in the directory is true for
//! the next query: no file of a running container has to be written.

mod answer;
mod directory;
mod message;
mod server;

pub(crate) use directory::{Directory, Member};
pub(crate) use server::{Asker, Upstream, serve};
