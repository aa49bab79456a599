//! Limits that the kernel enforces.

use crate::check::{assert_message, can, refused, said, sh};
use shakedown::FailureKind;
use shakedown::prelude::*;

/// Eats memory until it is stopped.
fn glutton() -> GenericContainer {
    sh("echo eating; exec tail /dev/zero").memory(16 << 20).wait(Wait::log("never"))
}

/// A container that takes more memory than it may is killed, and the failure says so.
#[test]
fn memory() {
    if can("memory limit", glutton) {
        let failure = refused(glutton());
        assert_eq!(failure.kind, FailureKind::OutOfMemory, "{failure}");
        assert_message!(failure, @r"
        box was killed for its use of memory
          at tests/suite/limits.rs:LINE
          exit:       killed for its use of memory (code 137)
          waited for: `never` in the log
          last check: not in the log (CHECKS)
          image:      busybox
          limit:      16 MiB
        --- box, all of its log
        | eating
        hint: raise the limit with `.memory(..)`
        ");
    }
}

/// A container that makes more processes than it may is refused the next.
#[test]
fn processes() {
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait; echo all";
    if can("pids limit", || sh(script).pids_limit(5)) {
        let seen = said(&format!("({script}) 2>&1 || true"), |c| c.pids_limit(5).wait(Wait::running()));
        assert!(!seen.contains("all"), "{seen}");
    }
}

/// Half a processor is the most the container gets, however idle the machine is.
#[test]
fn processors() {
    // The second line of `times` is the processor time of the children: of two seconds of a loop that never rests.
    let busy = "timeout 2 sh -c 'while :; do :; done'; times > /times; tail -n 1 /times";
    if can("cpu limit", || sh(busy).cpus(0.5)) {
        let seen = said(busy, |c| c.cpus(0.5));
        let seconds = |time: &str| time.strip_suffix('s')?.split_once('m')?.1.parse::<f64>().ok();
        let used: f64 =
            seen.split_whitespace().map(|time| seconds(time).expect("a time such as 0m1.00s")).sum();
        assert!((0.2..1.4).contains(&used), "{used} s of processor time in 2 s: {seen}");
    }
}
