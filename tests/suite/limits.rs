//! Limits that the kernel enforces.

use crate::check::{assert_message, can, missing, refused, said, say, sh};
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
        // How little it gets on a busy machine says nothing.
        assert!((0.01..1.4).contains(&used), "{used} s of processor time in 2 s: {seen}");
    }
}

/// What a file of the container's control group says: the first of the paths that is there.
fn group_file(paths: &[&str], declare: impl FnOnce(GenericContainer) -> GenericContainer) -> String {
    let tries: Vec<String> =
        paths.iter().map(|path| format!("cat /sys/fs/cgroup/{path} 2>/dev/null")).collect();
    said(&tries.join(" || "), declare).trim().to_owned()
}

/// A container with the processors of a list sees so many.
#[test]
fn processors_by_number() {
    if can("cpuset", || sh("nproc").cpuset_cpus("0")) {
        assert_eq!(said("nproc", |c| c.cpuset_cpus("0")).trim(), "1");
    }
}

/// Processors that the machine does not have are an error, not a container with others.
#[test]
fn processors_that_are_not_there() {
    if missing("cpuset").is_none() {
        let failure = refused(sh("nproc").cpuset_cpus("4095"));
        assert!(failure.to_string().to_lowercase().contains("cpus"), "{failure}");
    }
}

/// Shares are a weight against other containers.
#[test]
fn shares() {
    if can("cpu limit", || sh("true").cpu_shares(512)) {
        // How shares become a weight of version 2 differs between runtimes; half the shares are a smaller weight.
        let weight =
            group_file(&["cpu/cpu.shares", "cpu,cpuacct/cpu.shares", "cpu.weight"], |c| c.cpu_shares(512));
        assert!(weight == "512" || weight.parse::<u64>().is_ok_and(|weight| weight < 100), "{weight}");
    }
}

/// The value of the memory limit means no swap.
#[test]
fn swap() {
    const LIMIT: u64 = 32 << 20;
    if can("swap limit", || sh("true").memory(LIMIT).memory_swap(LIMIT)) {
        let files = ["memory/memory.memsw.limit_in_bytes", "memory.swap.max"];
        let both = group_file(&files, |c| c.memory(LIMIT).memory_swap(LIMIT));
        assert!(both == LIMIT.to_string() || both == "0", "{both}");
    }
}

/// A reservation is kept as declared.
#[test]
fn reservation() {
    const KEPT: u64 = 8 << 20;
    if can("memory limit", || sh("true").memory_reservation(KEPT)) {
        let files = ["memory/memory.soft_limit_in_bytes", "memory.low"];
        assert_eq!(group_file(&files, |c| c.memory_reservation(KEPT)), KEPT.to_string());
    }
}

/// Weights of disks are set, or refused where no scheduler has them.
#[test]
fn disk_weight() {
    if can("blkio weight", || sh("true").blkio_weight(100)) {
        said("echo started", |c| c.blkio_weight(100));
    }
}

/// What a container uses can be asked while it runs, with limits or without.
#[test]
fn usage() -> shakedown::Result {
    let script = "sleep 3600 & i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo busy; exec sleep 3600";
    let plain = sh(script).wait(Wait::log("busy")).start().blocking()?;
    let used = plain.stats().blocking()?;
    assert!(used.memory.is_some_and(|bytes| (1 << 12..1 << 30).contains(&bytes)), "{used:?}");
    assert!(used.cpu_ns.is_some_and(|ns| ns > 0), "{used:?}");
    assert_eq!(used.pids, Some(2), "{used:?}");
    if missing("memory limit").is_none() && missing("pids limit").is_none() {
        let limited = sh(script).memory(64 << 20).pids_limit(10).wait(Wait::log("busy"));
        let used = limited.start().blocking()?.stats().blocking()?;
        assert_eq!((used.memory_limit, used.pids_limit, used.pids), (Some(64 << 20), Some(10), Some(2)));
        assert!(used.memory.is_some_and(|bytes| (1..64 << 20).contains(&bytes)), "{used:?}");
    }
    Ok(())
}

/// A container with limits sees its own control groups, and not those of the machine.
#[test]
fn only_its_own_groups_are_seen() {
    if can("memory limit", || sh("true").memory(64 << 20)) {
        let seen = group_file(&["memory/memory.limit_in_bytes", "memory.max"], |c| c.memory(64 << 20));
        assert_eq!(seen, (64_u64 << 20).to_string());
        let groups = said(
            "find /sys/fs/cgroup/ -mindepth 2 -name cgroup.procs | grep -v '^/sys/fs/cgroup/[^/]*/cgroup.procs' || true",
            |c| c.memory(64 << 20),
        );
        assert_eq!(groups, "", "groups below its own");
    }
}

/// Limits, rules for devices and a pause do not put each other out of force, though a process is in one group only where
/// one hierarchy serves all of them.
#[test]
fn they_hold_beside_rules_for_devices_and_a_pause() -> shakedown::Result {
    for needed in ["pids limit", "pause"] {
        if let Some(reason) = missing(needed) {
            say(&format!("cannot run here: no {needed}: {reason}"));
            return Ok(());
        }
    }
    // With it come the rules for devices, where there are any.
    let rules = missing("device permissions").is_none().then_some("SYS_ADMIN");
    let script = "sleep 3600 & echo ready; exec sleep 3600";
    let limited = sh(script).pids_limit(10).wait(Wait::log("ready"));
    let container = rules.into_iter().fold(limited, GenericContainer::cap_add).start().blocking()?;
    let counted = || container.stats().blocking().map(|used| used.pids);
    assert_eq!(counted()?, Some(2));
    container.pause().blocking()?;
    container.unpause().blocking()?;
    assert_eq!(counted()?, Some(2), "its processes are elsewhere now");
    let script = "mkdir /m && mount -t tmpfs none /m 2>/dev/null || exit 0; mknod /m/n c 10 237 && : < /m/n";
    let opened = container.exec(["sh", "-c", script]).blocking()?;
    assert!(opened.stderr().is_empty() || opened.stderr().contains("not permitted"), "{opened:?}");
    let forks = "for n in $(seq 20); do sleep 60 > /dev/null 2>&1 & done";
    assert!(!container.exec(["sh", "-c", forks]).blocking()?.stderr().is_empty(), "nothing limits them");
    Ok(())
}
