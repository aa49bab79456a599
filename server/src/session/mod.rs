//! Where a session lives: its name, its directory, its locks, and how its keeper is found or started.
//!
//! ```text
//! <run directory>/sessions/<name>/start         locked while somebody starts the keeper (and by the keeper until ready)
//!                                /lock          locked by the keeper for its life: free means dead
//!                                /keeper.sock   the REST API
//!                                /keeper.log    what the keeper wrote to standard error
//!                                /meta.json     what a later session has to know to sweep
//! ```
//!
//! Both locks are `flock(2)`: the kernel gives them back when the last process that holds them ends, however it ends.
//! Nothing is ever concluded from a process id in a file.

mod lock;
mod meta;
mod place;
mod process;
mod start;
mod sweep;

pub use place::{Place, RunDirectory};
pub use process::ProcessIdentity;
pub use start::{Orders, start};

pub(crate) use lock::{SessionLock, is_held, lock, try_lock};
pub(crate) use meta::Meta;
pub(crate) use start::{ORDERS_VARIABLE, READY, log_tail};
pub(crate) use sweep::{remove_directory, sweep};

/// Names the socket of a running server to use, instead of a session of one's own.
pub const SOCKET_VARIABLE: &str = "SHAKEDOWN_SOCKET";
/// Names the run directory.
pub const RUN_DIRECTORY_VARIABLE: &str = "SHAKEDOWN_RUN_DIR";
