//! System calls that no safe wrapper covers, and the one place of this crate where `unsafe` may stand.
//!
//! Everything here takes and returns owned or borrowed descriptors, and fails as `strace` would print the call.

#![expect(unsafe_code, reason = "this module is the crate's only access to raw system calls")]

mod clone;
mod init;
mod device;
mod memory;
mod process;

pub(crate) use clone::{Clone, Stack, clone_vfork, exit, fork_namespaces, fork_sibling};
pub(crate) use device::{DeviceRule, attach_device_rules};
pub(crate) use init::{block_signals, fork, forward_and_reap};
pub(crate) use memory::overwrite_arguments;
pub(crate) use process::{
    close_all_from, close_from_other_than, close_other_than, exec, install_filter, is_open, mount_change,
    mount_map_ids, mount_set_attributes, own_descriptor, personality, reset_signals, rlimit_refused,
    send_signal, set_rlimit, unshare_cgroup, unshare_mounts, unshare_network, watch,
};

use rustix::io::Errno;
use std::fmt;

/// A system call that failed, as `strace` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallError {
    /// The call with its arguments.
    pub(crate) call: String,
    /// What it answered.
    pub(crate) errno: Errno,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.call, errno_name(self.errno))
    }
}

/// Gives the result of a system call its text, made only when the call failed.
pub(crate) trait Called<T> {
    /// Names the call, with its arguments.
    fn call(self, text: impl FnOnce() -> String) -> Result<T, CallError>;
}

impl<T> Called<T> for Result<T, Errno> {
    fn call(self, text: impl FnOnce() -> String) -> Result<T, CallError> {
        self.map_err(|errno| CallError { call: text(), errno })
    }
}

/// The symbolic name of an error number, such as `EPERM`.
pub(crate) fn errno_name(errno: Errno) -> String {
    let raw = errno.raw_os_error();
    match format!("{:?}", nix::errno::Errno::from_raw(raw)).as_str() {
        "UnknownErrno" => format!("errno {raw}"),
        name => name.to_owned(),
    }
}

/// The result of a raw call in the form rustix uses.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result >= 0 { Ok(result) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failed call reads as strace prints it, which is what people search the web for.
    #[test]
    fn errors_read_as_strace_prints_them() {
        let error = Err::<(), _>(Errno::PERM).call(|| "setns(3, CLONE_NEWNET)".to_owned()).unwrap_err();
        assert_eq!(error.to_string(), "setns(3, CLONE_NEWNET) = EPERM");
    }
}
