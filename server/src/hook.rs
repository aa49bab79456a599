//! The hook that turns a test binary into a keeper before `main`.
//!
//! The dynamic linker (or the C library's start code, in a static binary) calls every function in `.init_array` before
//! `main`. A process started with `SHAKEDOWN_ROLE=keeper` becomes the keeper there and never returns; in every other
//! process the hook looks at one variable and does nothing. The native driver's launcher is made in the same way. No file has to be installed next to the test binary, and
//! the keeper begins while the process has one thread, which the native driver needs to `clone` from.

use shakedown_runtime::native::launcher_main;
use std::panic::catch_unwind;

/// Says what a process is, if it is not what its `main` makes of it.
pub const ROLE_VARIABLE: &str = "SHAKEDOWN_ROLE";
/// The role of a session keeper.
pub const KEEPER: &str = "keeper";
/// The role of the native driver's launcher.
pub const LAUNCHER: &str = "launcher";

// `#[used]` keeps the static in this object file; rustc makes the linker take the object file out of the rlib even if
// nothing else in it is referenced (tests/it/start.rs checks that a test binary has the hook).
#[used]
// SAFETY: `.init_array` holds pointers to functions that the start code calls before `main`, one after the other, in
// the C calling convention; glibc passes three arguments, musl none, and ignoring arguments is sound in both. std is
// usable there: it needs no initialisation but what `become_keeper` makes up for.
#[unsafe(link_section = ".init_array")]
static HOOK: extern "C" fn() = {
    extern "C" fn look_at_role() {
        match std::env::var(ROLE_VARIABLE).as_deref() {
            Ok(KEEPER) => become_keeper(),
            // Unwinding out of an `extern "C"` function aborts, without the message in the log.
            Ok(LAUNCHER) => std::process::exit(catch_unwind(launcher_main).unwrap_or(101)),
            _ => {}
        }
    }
    look_at_role
};

fn become_keeper() -> ! {
    ignore_broken_pipes();
    close_inherited();
    // Unwinding out of an `extern "C"` function aborts, without the message in the log.
    let code = catch_unwind(crate::keeper::main).unwrap_or(101);
    std::process::exit(code)
}

/// What std does before `main`: a client that goes away must be an error of `write`, not the keeper's death.
fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is a valid disposition, and no other thread exists that could install another.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Closes what the test's process left open without `O_CLOEXEC`: a pipe of the runner held open by the keeper would make
/// its reader wait for the keeper. Before Linux 5.9 the call fails and the descriptors stay.
fn close_inherited() {
    // SAFETY: this process has one thread and has opened nothing yet: no owner of a descriptor above 2 exists in it.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}
