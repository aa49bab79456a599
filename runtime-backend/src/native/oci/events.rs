//! `events`: what a container uses, every now and then, and when it runs out of memory.

use super::state::{Place, Status};
use super::{Result, failed, invalid};
use crate::native::launch::Trouble;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use serde::Serialize;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One line; the order of its fields is runc's, which programs may rely on.
#[derive(Debug, Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

/// `events`: tells of a container until it ends, a line of JSON for each event; without an interval, of what it uses now.
///
/// # Errors
///
/// There is no such container, or it does not run; or `tell` fails.
pub fn events(
    root: &Path,
    id: &str,
    interval: Option<Duration>,
    tell: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<()> {
    let place = Place::new(root, id)?;
    let record = place.read()?;
    let process = record.process().filter(|_| place.status(&record) != Status::Stopped);
    let Some(process) = process else {
        return Err(invalid(format!("container not running: `{id}` has ended")));
    };
    let mut event = |kind: &'static str, data: Option<Value>| {
        let line = serde_json::to_string(&Event { kind, id, data });
        tell(&line.map_err(|error| place.broken(&error.into()))?)
    };
    let Some(interval) = interval else { return event("stats", Some(usage(&record.groups))) };
    let not_told = |error: io::Error| failed(id, "watched", &Trouble::new("wait", error.to_string()));
    let mut memory = Shortage::watch(&record.groups);
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|error| not_told(io::Error::other(error)))?;
        let mut set = vec![PollFd::new(&process, PollFlags::IN)];
        set.extend(memory.as_ref().map(Shortage::polled));
        match poll(&mut set, Some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled.map_err(|errno| not_told(errno.into()))?,
        };
        let ended = !set[0].revents().is_empty();
        let short = set.get(1).is_some_and(|one| !one.revents().is_empty());
        if short && memory.as_mut().is_some_and(Shortage::has_come) {
            event("oom", None)?;
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            event("stats", Some(usage(&record.groups)))?;
            next += interval;
        }
    }
}

/// What the kernel tells of memory that has run out.
enum Shortage {
    /// A counter that the group of version 1 adds to (cgroup-v1/memcg_test in the kernel's documentation, "OOM"), and
    /// also once it is removed.
    Version1 { counter: OwnedFd, group: PathBuf },
    /// `memory.events`, which can be polled, and how many processes had been killed.
    Version2 { events: File, killed: u64 },
}

impl Shortage {
    fn watch(groups: &[PathBuf]) -> Option<Self> {
        if let Some(group) = groups.iter().find(|group| group.join("memory.oom_control").exists()) {
            let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
            let control = File::open(group.join("memory.oom_control")).ok()?;
            let words = format!("{} {}", counter.as_raw_fd(), control.as_raw_fd());
            fs::write(group.join("cgroup.event_control"), words).ok()?;
            return Some(Self::Version1 { counter, group: group.clone() });
        }
        let file = groups.iter().map(|group| group.join("memory.events")).find(|file| file.exists())?;
        let mut events = File::open(file).ok()?;
        let killed = killed(&mut events);
        Some(Self::Version2 { events, killed })
    }

    fn polled(&self) -> PollFd<'_> {
        let (descriptor, what): (BorrowedFd<'_>, _) = match self {
            Self::Version1 { counter, .. } => (counter.as_fd(), PollFlags::IN),
            Self::Version2 { events, .. } => (events.as_fd(), PollFlags::PRI),
        };
        PollFd::from_borrowed_fd(descriptor, what)
    }

    /// Whether what was polled means a shortage; asked, it is over.
    fn has_come(&mut self) -> bool {
        match self {
            Self::Version1 { counter, group } => {
                rustix::io::read(&*counter, &mut [0_u8; 8]).is_ok() && group.exists()
            }
            Self::Version2 { events, killed: before } => {
                let now = killed(events);
                std::mem::replace(before, now) < now
            }
        }
    }
}

fn killed(events: &mut File) -> u64 {
    let mut text = String::new();
    let read = events.seek(SeekFrom::Start(0)).and_then(|_| events.read_to_string(&mut text));
    if read.is_ok() { entry(&text, "oom_kill") } else { 0 }
}

/// What a container uses, by the names that runc gives it. What the kernel does not tell is 0.
fn usage(groups: &[PathBuf]) -> Value {
    let text = |name: &str| {
        groups.iter().find_map(|group| fs::read_to_string(group.join(name)).ok()).unwrap_or_default()
    };
    let number = |names: [&str; 2]| names.iter().find_map(|name| value(&text(name))).unwrap_or(0);
    let (cpu, memory) = (text("cpu.stat"), text("memory.stat"));
    let of_version1 = text("cpuacct.usage");
    let microseconds = |name: &str| entry(&cpu, name).saturating_mul(1000);
    let (total, kernel, user) = match value(&of_version1) {
        Some(total) => (
            total,
            value(&text("cpuacct.usage_sys")).unwrap_or(0),
            value(&text("cpuacct.usage_user")).unwrap_or(0),
        ),
        None => (microseconds("usage_usec"), microseconds("system_usec"), microseconds("user_usec")),
    };
    let throttled_time = match entry(&cpu, "throttled_usec") {
        0 => entry(&cpu, "throttled_time"),
        microseconds => microseconds.saturating_mul(1000),
    };
    let raw: serde_json::Map<String, Value> = memory
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, number)| Some((name.to_owned(), number.parse::<u64>().ok()?.into())))
        .collect();
    json!({
        "cpu": {
            "usage": { "total": total, "kernel": kernel, "user": user },
            "throttling": {
                "periods": entry(&cpu, "nr_periods"), "throttledPeriods": entry(&cpu, "nr_throttled"),
                "throttledTime": throttled_time,
            },
        },
        "memory": {
            "cache": entry(&memory, "cache").max(entry(&memory, "file")),
            "usage": {
                "limit": number(["memory.limit_in_bytes", "memory.max"]),
                "usage": number(["memory.usage_in_bytes", "memory.current"]),
                "max": number(["memory.max_usage_in_bytes", "memory.peak"]),
                "failcnt": number(["memory.failcnt", "memory.failcnt"]),
            },
            "swap": {
                "limit": number(["memory.memsw.limit_in_bytes", "memory.swap.max"]),
                "usage": number(["memory.memsw.usage_in_bytes", "memory.swap.current"]),
                "max": number(["memory.memsw.max_usage_in_bytes", "memory.swap.peak"]),
                "failcnt": number(["memory.memsw.failcnt", "memory.memsw.failcnt"]),
            },
            "raw": raw,
        },
        "pids": {
            "current": number(["pids.current", "pids.current"]), "limit": number(["pids.max", "pids.max"]),
        },
    })
}

/// A number by itself; `max` is none, and written as 0 by runc.
fn value(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number behind a name, in a file of such lines.
fn entry(text: &str, name: &str) -> u64 {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs that read these lines find the same figures under the same names on both versions.
    #[test]
    fn both_versions_are_told_alike() {
        let check = |files: &[(&str, &str)]| {
            let group = tempfile::tempdir().unwrap();
            for (name, text) in files {
                fs::write(group.path().join(name), text).unwrap();
            }
            let told = usage(&[group.path().to_owned()]);
            let pointers = ["/cpu/usage/total", "/cpu/usage/user", "/memory/usage/usage", "/memory/cache"];
            let numbers = pointers.map(|pointer| told.pointer(pointer).and_then(Value::as_u64));
            assert_eq!(numbers, [Some(5000), Some(3000), Some(4096), Some(7)]);
            assert_eq!(told["memory"]["usage"]["limit"], 0);
        };
        check(&[
            ("cpuacct.usage", "5000\n"),
            ("cpuacct.usage_user", "3000\n"),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.stat", "cache 7\nrss 1\n"),
        ]);
        check(&[
            ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 1\nfile 7\n"),
        ]);
    }

    /// A longer name that begins alike is another one.
    #[test]
    fn entries_are_found_by_their_whole_name() {
        assert_eq!(entry("oom 1\noom_kill 3\noom_group_kill 0\n", "oom_kill"), 3);
        assert_eq!(entry("oom_kill_x 3\n", "oom_kill"), 0);
    }
}
