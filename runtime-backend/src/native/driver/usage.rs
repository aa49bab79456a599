//! What a container uses: as its control groups count, and as its processes do where there is no group.

use super::NativeDriver;
use crate::driver::{Result, Usage};
use std::fs;
use std::path::Path;

impl NativeDriver {
    pub(super) fn used(&self, id: &str) -> Result<Usage> {
        let (_, running) = self.running(id)?;
        let counted = running.cgroup.as_ref().map(crate::native::cgroup::Cgroup::usage).unwrap_or_default();
        if counted.memory.is_some() && counted.cpu_ns.is_some() && counted.pids.is_some() {
            return Ok(counted);
        }
        let summed = running.pid().map(|init| summed(Path::new("/proc"), init)).unwrap_or_default();
        Ok(Usage {
            memory: counted.memory.or(summed.memory),
            cpu_ns: counted.cpu_ns.or(summed.cpu_ns),
            pids: counted.pids.or(summed.pids),
            ..counted
        })
    }
}

/// The sum over the processes that are in the pid namespace of the process `init`. Memory is the proportional set size:
/// what several processes share is counted once.
fn summed(proc: &Path, init: i32) -> Usage {
    let namespace = |process: &str| fs::read_link(proc.join(process).join("ns/pid")).ok();
    let Some(wanted) = namespace(&init.to_string()) else { return Usage::default() };
    let names = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let members = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let mut usage = Usage::default();
    for process in members.filter(|process| namespace(process).as_ref() == Some(&wanted)) {
        let text = |file: &str| fs::read_to_string(proc.join(&process).join(file)).unwrap_or_default();
        let (cpu_ns, threads) = times(&text("stat"));
        usage.pids = Some(usage.pids.unwrap_or(0) + threads);
        usage.cpu_ns = Some(usage.cpu_ns.unwrap_or(0) + cpu_ns);
        usage.memory = Some(usage.memory.unwrap_or(0) + proportional(&text("smaps_rollup")));
    }
    usage
}

/// A tick of the times in `/proc`: `USER_HZ`, which is 100 on every architecture but Alpha.
const TICK_NS: u64 = 10_000_000;

/// Processor time in nanoseconds, that of children that have ended included, and the number of threads:
/// proc_pid_stat(5), fields 14 to 17 and 20.
fn times(stat: &str) -> (u64, u64) {
    // The second field is the program's name, which may have spaces and parentheses.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let field = |number: usize| {
        after.split_ascii_whitespace().nth(number - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
    };
    let ticks: u64 = (14..=17).map(field).sum();
    (ticks * TICK_NS, field(20))
}

fn proportional(rollup: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program whose name looks like more fields does not shift them.
    #[test]
    fn times_are_read_after_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 2 3 4 100 50 7 3 20 0 5 0 99 1 1";
        assert_eq!(times(stat), (1_600_000_000, 5));
        assert_eq!(times(""), (0, 0));
        assert_eq!(proportional("00400000-7fff ---p\nRss:  10 kB\nPss:     4 kB\n"), 4096);
    }
}
