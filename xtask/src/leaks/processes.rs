//! Processes: the keeper and its family by their names, containers by their control groups.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Found;

/// The names of our processes begin so, in `argv[0]` and in the short name that `ps` shows.
const NAME: &str = "shakedown: ";
/// The variable that makes a program of ours a keeper.
const ROLE: &str = "SHAKEDOWN_ROLE=";

/// What `/proc` says about a process.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// The short name, `/proc/<pid>/comm`.
    pub(super) comm: String,
    /// Its arguments, separated by zero bytes.
    cmdline: String,
    /// Its variables as they were at its start, separated by zero bytes.
    environ: String,
    /// Whether this user may not see its variables.
    hidden: bool,
    /// Its control groups, one hierarchy a line.
    cgroup: String,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let text = |name: &str| {
            fs::read(format!("/proc/{pid}/{name}")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let stat = text("stat").ok()?;
        // A zombie holds nothing but its number, and only its parent can end that.
        if state(&stat) == Some("Z") {
            return None;
        }
        let environ = text("environ");
        Some(Self {
            pid,
            comm: text("comm").ok()?.trim_end().to_owned(),
            cmdline: text("cmdline").unwrap_or_default(),
            // A thread of the kernel, or a process that ends just now, has none: other errors.
            hidden: environ.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied),
            environ: environ.unwrap_or_default(),
            cgroup: text("cgroup").unwrap_or_default(),
        })
    }

    /// Why this process is ours, if it is.
    fn reason(&self) -> Option<String> {
        let name = self.cmdline.split('\0').next().unwrap_or_default();
        if name.starts_with(NAME) {
            return Some(name.trim_end().to_owned());
        }
        if self.comm.starts_with(NAME) {
            return Some(format!("{} ({name})", self.comm));
        }
        if let Some(role) = self.environ.split('\0').find(|variable| variable.starts_with(ROLE)) {
            return Some(format!("{name}, with {role} in its environment"));
        }
        let group = self.cgroup.lines().find(|line| line.contains("/shakedown-"))?;
        Some(format!("{name}, in control group {}", group.splitn(3, ':').last().unwrap_or_default()))
    }
}

/// The third field. The second, the name in parentheses, may itself hold parentheses.
fn state(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().next()
}

/// All processes that this user sees; those that end meanwhile are left out.
pub(super) fn all() -> Result<Vec<Process>> {
    let entries = fs::read_dir("/proc").context("cannot list processes")?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(Process::read).collect())
}

pub(super) fn look(processes: &[Process], found: &mut Found) {
    let hidden = processes.iter().filter(|process| process.hidden).count();
    if hidden > 0 {
        found
            .unseen(format!("the environment of {hidden} processes of other users (look as root for these)"));
    }
    for process in processes {
        if let Some(reason) = process.reason() {
            found.add("process", process.pid.to_string(), reason);
        }
    }
}

/// Returns when one of the processes has ended, or after `limit`.
pub(super) fn wait_for_one(processes: &BTreeSet<u32>, limit: Duration) -> Result<()> {
    let open = |pid: &u32| pidfd_open(Pid::from_raw(i32::try_from(*pid).ok()?)?, PidfdFlags::empty()).ok();
    let descriptors: Vec<_> = processes.iter().filter_map(open).collect();
    if descriptors.len() < processes.len() {
        return Ok(());
    }
    let mut polled: Vec<_> = descriptors.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let limit = Timespec::try_from(limit).context("the time limit is too long")?;
    poll(&mut polled, Some(&limit)).context("cannot wait for processes")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(process: Process, expected: Option<&str>) {
        assert_eq!(process.reason().as_deref(), expected);
    }

    fn process(comm: &str, cmdline: &str, environ: &str, cgroup: &str) -> Process {
        let [comm, cmdline, environ, cgroup] = [comm, cmdline, environ, cgroup].map(str::to_owned);
        Process { pid: 1, comm, cmdline, environ, hidden: false, cgroup }
    }

    /// A keeper is found by any of its marks, and a container even if its program has renamed itself.
    #[test]
    fn processes_of_ours_are_recognised() {
        check(process("orders-1f", "shakedown: keeper\0", "", ""), Some("shakedown: keeper"));
        check(process("shakedown: init", "/orders\0", "", ""), Some("shakedown: init (/orders)"));
        check(
            process("orders", "/orders\0--nocapture\0", "HOME=/\0SHAKEDOWN_ROLE=keeper\0", ""),
            Some("/orders, with SHAKEDOWN_ROLE=keeper in its environment"),
        );
        check(
            process("postgres", "postgres\0", "", "4:memory:/\n3:pids:/shakedown-run-1/db\n"),
            Some("postgres, in control group /shakedown-run-1/db"),
        );
    }

    /// The project's own directory is called shakedown as well.
    #[test]
    fn other_processes_are_not() {
        check(process("cargo", "cargo\0test\0", "PWD=/home/me/shakedown\0", "0::/user.slice\n"), None);
        check(process("shakedown-bench", "shakedown-bench\0", "", ""), None);
    }

    /// A name with a parenthesis and a letter does not make a zombie.
    #[test]
    fn the_state_is_the_third_field() {
        assert_eq!(state("7 (a) Z (b) S 1 7"), Some("S"));
    }
}
