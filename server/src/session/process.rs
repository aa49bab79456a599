//! Telling a process from a later one with the same id.

use rustix::process::{Pid, PidfdFlags, getpid, getppid, pidfd_open};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// A process: its id and its start time. The kernel reuses ids; the pair is unique until the machine restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The process id.
    pub pid: u32,
    /// Start time in clock ticks since the machine started, field 22 of `/proc/<pid>/stat`.
    pub started: u64,
}

impl ProcessIdentity {
    /// The process that runs the tests: the parent of this one (cargo, cargo-nextest, a shell).
    ///
    /// It is this process itself where the parent cannot be seen: the first process of a container has parent 0.
    #[must_use]
    pub fn runner() -> Self {
        let parent = getppid().and_then(|pid| Self::of(pid.as_raw_nonzero().get().unsigned_abs()));
        parent.unwrap_or_else(Self::this)
    }

    /// This process.
    #[must_use]
    pub fn this() -> Self {
        let pid = getpid().as_raw_nonzero().get().unsigned_abs();
        Self { pid, started: start_time(pid).unwrap_or_default() }
    }

    /// The process that has this id now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        start_time(pid).map(|started| Self { pid, started })
    }

    /// A descriptor that becomes readable when the process ends; `None` if it has ended.
    ///
    /// The start time is compared after the descriptor is open: from then on the id cannot change its meaning.
    pub(crate) fn watch(self) -> Option<OwnedFd> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        (start_time(self.pid) == Some(self.started)).then_some(descriptor)
    }
}

fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The second field, the name in parentheses, may itself hold spaces and parentheses: count from the last `)`.
fn parse_start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program named `a) b (c` does not shift the fields.
    #[test]
    fn the_start_time_is_field_22() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 2 3";
        assert_eq!(parse_start_time(stat), Some(987_654));
    }

    /// A process id that was given to somebody else is not watched as if it were the runner.
    #[test]
    fn a_reused_process_id_is_another_process() {
        let this = ProcessIdentity::this();
        assert!(this.watch().is_some());
        assert!(ProcessIdentity { started: this.started + 1, ..this }.watch().is_none());
    }
}
