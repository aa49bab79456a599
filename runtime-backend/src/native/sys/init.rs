//! What process 1 of a container does when it is not the program itself.

use super::check;
use rustix::io::Errno;

/// Blocks all signals of this process; those that come wait until they are taken.
pub(crate) fn block_signals() {
    // SAFETY: a set that is filled first is valid to read, and no old mask is asked for.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

/// Forks this process, which must have one thread, and runs `child` there. Unlike `clone3`, which filters of system calls
/// refuse because they cannot see its flags, `fork` is allowed everywhere.
pub(crate) fn fork(child: impl FnOnce() -> i32) -> Result<i32, Errno> {
    // SAFETY: the caller has one thread, so no lock of the copy is held by a thread that does not exist there.
    let pid = check(unsafe { libc::fork() }.into())?;
    if pid == 0 {
        // A panic would unwind into the caller's frames, which belong to the parent's copy of the program.
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
        super::exit(code)
    }
    Ok(pid as i32)
}

/// Passes every signal on to `child` and collects every process that ends, until `child` has: its exit code, or 128 and
/// the number of the signal that ended it. All signals have to be [blocked](block_signals).
///
/// A signal without a handler does not reach process 1 (pid_namespaces(7)), unless it is blocked: then it is kept.
pub(crate) fn forward_and_reap(child: i32) -> i32 {
    loop {
        if let Some(code) = reap(child) {
            return code;
        }
        let signal = next_signal();
        if signal > 0 && signal != libc::SIGCHLD {
            // SAFETY: `child` has not been waited for, so that the id is still its own.
            unsafe { libc::kill(child, signal) };
        }
    }
}

/// The next signal, waiting for it.
fn next_signal() -> i32 {
    // SAFETY: a set that is filled first is valid to read, and no information on the signal is asked for.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigwaitinfo(&raw const all, std::ptr::null_mut())
    }
}

/// Collects all that have ended. The exit code of `child`, if it is one of them.
fn reap(child: i32) -> Option<i32> {
    let mut code = None;
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid to write.
        match check(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }.into()) {
            Ok(0) => return code,
            Ok(pid) if pid == i64::from(child) => {
                code = Some(if libc::WIFSIGNALED(status) {
                    128 + libc::WTERMSIG(status)
                } else {
                    libc::WEXITSTATUS(status)
                });
            }
            Ok(_) | Err(Errno::INTR) => {}
            // Nobody is left; a program that was never there counts as killed.
            Err(_) => return Some(code.unwrap_or(137)),
        }
    }
}
