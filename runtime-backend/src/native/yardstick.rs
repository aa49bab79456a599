//! What the kernel takes at least for a container: the yardstick of the benchmark.

use super::reap;
use super::sys::{self, Stack};
use std::ffi::CString;
use std::io;

/// Runs `program` in new namespaces of all kinds that a container has, with nothing set up in them, to its end.
///
/// Must be called in a process with one thread.
///
/// # Errors
///
/// The namespaces cannot be made, or the program cannot be executed.
pub fn bare_clone(program: &str) -> io::Result<()> {
    let path = CString::new(program)?;
    let stack = Stack::new()?;
    let flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let mut failed = None;
    let child = sys::clone_vfork(flags, &stack, || {
        failed = Some(sys::exec(&path, std::slice::from_ref(&path), &[]));
        127
    })?;
    reap::collect(&child.pidfd);
    failed.map_or(Ok(()), |errno| Err(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A yardstick that measures a failure is too short.
    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        assert!(bare_clone("/no/such/program").is_err());
    }
}
