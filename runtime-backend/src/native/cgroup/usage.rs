//! What the processes of a group have used.

use super::Cgroup;
use crate::driver::Usage;
use std::fs;
use std::path::Path;

impl Cgroup {
    /// What the group's files say; what no file says is `None`.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for group in &self.directories {
            read(&group.path, &mut usage);
        }
        usage
    }
}

fn read(group: &Path, usage: &mut Usage) {
    let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(group.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
    };
    // As `docker stats` counts: without the part of the page cache that can be had back at once.
    let v1 = || {
        Some(number("memory.usage_in_bytes")?.saturating_sub(field("memory.stat", "total_inactive_file")?))
    };
    let v2 = || Some(number("memory.current")?.saturating_sub(field("memory.stat", "inactive_file")?));
    // Without a limit, v1 says the largest number of pages, v2 `max`.
    let limit = || {
        number("memory.limit_in_bytes")
            .filter(|limit| *limit < u64::MAX >> 2)
            .or_else(|| number("memory.max"))
    };
    usage.memory = usage.memory.or_else(v1).or_else(v2);
    usage.memory_limit = usage.memory_limit.or_else(limit);
    let nanoseconds = || number("cpuacct.usage").or_else(|| Some(field("cpu.stat", "usage_usec")? * 1000));
    usage.cpu_ns = usage.cpu_ns.or_else(nanoseconds);
    usage.pids = usage.pids.or_else(|| number("pids.current"));
    usage.pids_limit = usage.pids_limit.or_else(|| number("pids.max"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(files: &[(&str, &str)]) -> Usage {
        let group = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(group.path().join(name), text).unwrap();
        }
        let mut usage = Usage::default();
        read(group.path(), &mut usage);
        usage
    }

    /// Both versions of control groups give the numbers that `docker stats` shows.
    #[test]
    fn usage_is_read_from_both_versions() {
        let v2 = usage(&[
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 5\ninactive_file 400\n"),
            ("memory.max", "max\n"),
            ("cpu.stat", "usage_usec 7\nuser_usec 3\n"),
            ("pids.current", "3\n"),
            ("pids.max", "10\n"),
        ]);
        let expected = Usage {
            memory: Some(600),
            memory_limit: None,
            cpu_ns: Some(7000),
            pids: Some(3),
            pids_limit: Some(10),
        };
        assert_eq!(v2, expected);
        let v1 = usage(&[
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 400\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("cpuacct.usage", "7000\n"),
        ]);
        assert_eq!(v1, Usage { pids: None, pids_limit: None, ..expected });
    }
}
