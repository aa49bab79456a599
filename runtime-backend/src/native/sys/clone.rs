//! New processes: the two forms of `clone` the runtime uses.

use super::{check, last_errno};
use rustix::io::Errno;
use std::os::fd::{FromRawFd, OwnedFd};

/// A process made by this module.
#[derive(Debug)]
pub(crate) struct Clone {
    /// Its id in the caller's pid namespace.
    pub(crate) pid: i32,
    /// Refers to it for as long as it is open, whatever happens to the id.
    pub(crate) pidfd: OwnedFd,
}

/// The stack of a process that shares its parent's memory until it executes a program.
#[derive(Debug)]
pub(crate) struct Stack {
    base: *mut libc::c_void,
}

impl Stack {
    /// Deep enough for the launch code with its path buffers; the kernel provides pages when they are touched.
    const SIZE: usize = 1 << 20;

    /// Maps a stack with an inaccessible page below it.
    pub(crate) fn new() -> Result<Self, Errno> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
            libc::mmap(std::ptr::null_mut(), Self::SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let stack = Self { base };
        // SAFETY: the first page lies within the mapping just made, and nothing refers to it yet.
        check(unsafe { libc::mprotect(base, 4096, libc::PROT_NONE) }.into())?;
        Ok(stack)
    }

    fn top(&self) -> *mut libc::c_void {
        // SAFETY: one past the end of the mapping is a valid address to compute; a stack grows down from there.
        unsafe { self.base.add(Self::SIZE) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: `base` and `SIZE` are the mapping made in `new`; no process runs on it any more, because
        // `clone_vfork` returns only after its child has executed a program or ended.
        unsafe { libc::munmap(self.base, Self::SIZE) };
    }
}

/// Runs `child` in a new process that shares this process's memory, while this process stands still, until the child
/// executes a program or ends (`CLONE_VM | CLONE_VFORK`). The cost does not depend on the size of this process.
///
/// What `child` writes to captured variables is seen here afterwards: that is how it reports why it failed. It returns
/// its exit code, and only if it did not execute a program.
///
/// Must be called in a process with one thread: the child runs ordinary code that may allocate, which is sound only
/// because nobody else runs meanwhile. `flags` are further `CLONE_*` flags.
pub(crate) fn clone_vfork<F: FnMut() -> i32>(
    flags: i32,
    stack: &Stack,
    mut child: F,
) -> Result<Clone, Errno> {
    extern "C" fn enter<F: FnMut() -> i32>(argument: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `argument` is the `child` below, which outlives this call since the parent is suspended, and to
        // which nobody else has access meanwhile. A panic cannot leave an `extern "C"` function: it aborts.
        let child = unsafe { &mut *argument.cast::<F>() };
        child()
    }
    let mut pidfd: libc::c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | flags | libc::SIGCHLD;
    // SAFETY: the child runs on `stack`, which nobody else uses and which outlives it here; it shares this memory, but
    // this process, which has one thread, is suspended until the child no longer uses it (clone(2), CLONE_VFORK).
    let pid = unsafe { libc::clone(enter::<F>, stack.top(), flags, (&raw mut child).cast(), &raw mut pidfd) };
    if pid < 0 {
        return Err(last_errno());
    }
    // SAFETY: with CLONE_PIDFD the kernel has stored a new descriptor there that nobody else owns.
    Ok(Clone { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Forks this process, the child being in new namespaces, and runs `child` there; it never returns.
///
/// Must be called while this process has one thread, because the child continues with a copy of its memory: a lock
/// held by another thread would stay locked for ever.
pub(crate) fn fork_namespaces(flags: i32, child: impl FnOnce() -> i32) -> Result<Clone, Errno> {
    fork(flags, libc::SIGCHLD, child)
}

/// As [`fork_namespaces`], but the new process is a child of this process's parent.
pub(crate) fn fork_sibling(flags: i32, child: impl FnOnce() -> i32) -> Result<Clone, Errno> {
    // With CLONE_PARENT the end is signalled as the parent has chosen for this process (clone(2)).
    fork(flags | libc::CLONE_PARENT, 0, child)
}

fn fork(flags: i32, exit_signal: i32, child: impl FnOnce() -> i32) -> Result<Clone, Errno> {
    let mut pidfd: libc::c_int = -1;
    let mut arguments = libc::clone_args {
        flags: u64::from((flags | libc::CLONE_PIDFD) as u32),
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: exit_signal as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: without CLONE_VM and with no stack given this is a fork: the child returns here on a copy of this stack
    // and memory. The caller has one thread, so no lock of the copy is held by a thread that does not exist there.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut arguments, std::mem::size_of::<libc::clone_args>())
    })?;
    if pid == 0 {
        // A panic would unwind into the caller's frames, which belong to the parent's copy of the program.
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
        exit(code)
    }
    // SAFETY: with CLONE_PIDFD the kernel has stored a new descriptor there that nobody else owns.
    Ok(Clone { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Ends this process, a fork, without running its parent's exit handlers a second time, and without dropping anything.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: the call does not return, and needs nothing of the process.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;

    /// The launch code reports its errors through shared memory; its exit code arrives as well.
    ///
    /// The test runner has threads. The child here does nothing that takes a lock.
    #[test]
    fn a_vforked_child_writes_to_its_parents_memory() {
        let stack = Stack::new().unwrap();
        let mut seen = 0;
        let child = clone_vfork(0, &stack, || {
            seen = 42;
            7
        })
        .unwrap();
        assert_eq!(seen, 42);
        let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(7));
    }
}
