//! From the fork to the launcher: the program is executed once more, from a mount of it that cannot be changed.
//!
//! A program in a container can reach the file that its process executed before, through `/proc/self/exe`, and change
//! its mode, its owner or, on some kernels, its content (CVE-2019-5736). That file is the user's own test binary. Through
//! a read-only mount there is nothing to change.

use super::Identity;
use super::protocol::{Message, Reply};
use super::serve::{self, receive_message, send_message};
use crate::native::launch::{Trouble, Trying};
use crate::native::own;
use crate::native::sys::{self, Called};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Tells the launcher its socket's number and its identity.
const ORDERS_VARIABLE: &str = "SHAKEDOWN_LAUNCHER";

/// The forked process: waits until its ids are mapped, and executes this program as the launcher. Returns the exit code
/// if it cannot.
pub(super) fn enter(socket: &OwnedFd, role: (&str, &str)) -> i32 {
    // The keeper's end must not be held here, or its closing would never be seen; nor its locks and pipes.
    sys::close_other_than(&[socket.as_fd()]);
    let Some(identity) = told_identity(socket) else { return 1 };
    let Err(trouble) = execute_again(socket, identity, role);
    let told = Message::Reply { seq: 0, reply: Reply::Trouble(trouble) };
    let text = serde_json::to_vec(&told).unwrap_or_default();
    let _ = send_message(socket.as_fd(), &text, &[]);
    1
}

/// The launcher's `main`, in the process that the keeper forked: to be called before the program's own `main`, while the
/// process has one thread. Returns the exit code.
#[must_use]
pub fn launcher_main() -> i32 {
    let orders = std::env::var(ORDERS_VARIABLE).unwrap_or_default();
    let Some((socket, identity)) = orders.split_once(':') else { return 1 };
    let identity = Identity::named(identity.as_bytes());
    let socket = socket.parse().ok().and_then(sys::own_descriptor);
    match (socket, identity) {
        (Some(socket), Some(identity)) => serve::run(socket, identity),
        _ => 1,
    }
}

/// The identity the keeper has given this launcher, sent before anything else, when ids are mapped.
fn told_identity(socket: &OwnedFd) -> Option<Identity> {
    let mut bytes = [0; 4];
    let (length, _) = receive_message(socket.as_fd(), &mut bytes).ok()?;
    Identity::named(&bytes[..length])
}

fn execute_again(
    socket: &OwnedFd,
    identity: Identity,
    (variable, role): (&str, &str),
) -> Result<std::convert::Infallible, Trouble> {
    let doing = || "start the launcher".to_owned();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty());
    let null = null.call(|| "open(\"/dev/null\")".to_owned()).trying(doing)?;
    rustix::stdio::dup2_stdin(&null).call(|| "dup2(/dev/null, 0)".to_owned()).trying(doing)?;
    rustix::stdio::dup2_stdout(&null).call(|| "dup2(/dev/null, 1)".to_owned()).trying(doing)?;
    let program = match own::mounted() {
        Some(mounted) => mounted,
        None => {
            own::copied().map_err(|error| Trouble::new(doing(), format!("copying this program: {error}")))?
        }
    };
    rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())
        .call(|| "fcntl(F_SETFD)".to_owned())
        .trying(doing)?;
    let orders = format!("{}:{}", socket.as_raw_fd(), identity.name());
    let error = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        // Padded, so that there is room for the name of what it becomes.
        .arg0(format!("{:<48}", "shakedown: launcher"))
        .env(variable, role)
        .env(ORDERS_VARIABLE, orders)
        .current_dir("/")
        .exec();
    Err(Trouble::new(doing(), format!("executing this program again: {error}")))
}
