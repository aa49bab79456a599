//! The OCI runtime command line: `shakedown oci create`, `start`, `state`, `kill`, `delete`, `run`, `exec`, `list`.
//!
//! ```text
//! create ──fork──► stage: joins the namespaces that exist already
//!    ▲                └─clone, as create's own child──► first process: mounts ► root ► waits at its socket
//!    │◄── ids? hooks? ready, or trouble ────────────────┘                          │
//! start ──connects to the socket───────────────────────────────────────────────────► privileges ► exec
//! ```
//! It is the same launch code as the native driver's, fed from a `config.json` instead of a declaration, so that the
//! launch code can be judged by the test suites of others, and can serve Docker and Podman as their runtime.
//!
//! A container's state is a directory below `--root`: `status`, `config.json`, and `start.sock` until it is started.

mod checks;
mod commands;
mod console;
mod create;
mod events;
mod exec;
mod filter;
mod first;
mod groups;
mod home;
mod hooks;
mod ids;
mod label;
mod listener;
mod mounts;
mod nodes;
mod notify;
mod own;
mod state;
mod talk;
mod terminal;

pub use commands::{
    Create, Delete, Exec, Kill, Listed, create, delete, delete_matching, execute, features, kill, list,
    pause, processes, resume, run, specification, start, state, update,
};
pub use events::events;
pub use own::protect_program;

use super::launch::Trouble;
use shakedown_spec::{Failure, FailureKind};

type Result<T> = std::result::Result<T, Failure>;

/// A failure of one command on one container.
fn failed(id: &str, not_done: &str, trouble: &Trouble) -> Failure {
    let title = format!("container `{id}` could not be {not_done}: cannot {}", trouble.doing);
    let mut failure = Failure::new(FailureKind::LaunchFailed, title);
    if let Some(call) = &trouble.call {
        failure = failure.fact("call", call.clone());
        // In these words engines look for what happened, and choose an exit code by it.
        let words = match call.strip_prefix("execve").and_then(|call| call.rsplit_once(" = ")) {
            Some((_, "ENOENT")) => Some("no such file or directory"),
            Some((_, "EACCES")) => Some("permission denied"),
            _ => None,
        };
        failure = words.map_or(failure.clone(), |words| failure.fact("error", words));
    }
    if let Some(reason) = &trouble.reason {
        failure = failure.fact("reason", reason.clone());
    }
    failure
}

/// A failure because of what is asked for.
fn invalid(title: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Invalid, title)
}
