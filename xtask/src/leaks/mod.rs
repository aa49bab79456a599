//! `cargo xtask leaks`: what of Shakedown is on this machine now, and whose it is.
//!
//! It looks at the machine and not at a record of what was made: a record would forget exactly what leaks. Each place
//! is a module with one function that adds to [`Found`]; none of them changes anything.
//!
//! While tests run, their containers are listed as well: that is no leak, but it is what is there.

mod cgroups;
mod directories;
mod docker;
mod interfaces;
mod mounts;
mod processes;
mod store;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// One thing of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leak {
    /// What it is: `process`, `mount`, …
    pub(crate) kind: &'static str,
    /// What the system calls it: an id, a path, a name.
    pub(crate) name: String,
    /// What it belongs to, or why it counts as ours.
    pub(crate) detail: String,
}

/// Everything of ours, and the places that could not be looked at.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What is there.
    pub(crate) leaks: Vec<Leak>,
    /// What was not looked at, with the reason.
    pub(crate) unseen: Vec<String>,
}

impl Found {
    fn add(&mut self, kind: &'static str, name: impl Into<String>, detail: impl Into<String>) {
        self.leaks.push(Leak { kind, name: name.into(), detail: detail.into() });
    }

    fn unseen(&mut self, reason: impl Into<String>) {
        self.unseen.push(reason.into());
    }

    /// Leaves out what was there at an earlier look.
    pub(crate) fn without(mut self, earlier: &Self) -> Self {
        self.leaks.retain(|leak| !earlier.leaks.contains(leak));
        self
    }

    /// The list for a person: aligned columns, then what was not seen.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let width = |field: fn(&Leak) -> usize| self.leaks.iter().map(field).max().unwrap_or(0);
        let (kinds, names) = (width(|leak| leak.kind.len()), width(|leak| leak.name.len()).min(60));
        for Leak { kind, name, detail } in &self.leaks {
            text.push_str(format!("{kind:<kinds$}  {name:<names$}  {detail}").trim_end());
            text.push('\n');
        }
        for reason in &self.unseen {
            text.push_str(&format!("not looked at: {reason}\n"));
        }
        match self.leaks.len() {
            0 => text.push_str("clean: nothing of Shakedown is on this machine"),
            1 => text.push_str("1 thing of Shakedown is on this machine"),
            n => text.push_str(&format!("{n} things of Shakedown are on this machine")),
        }
        text
    }

    fn json(&self) -> Value {
        let leak = |leak: &Leak| json!({ "kind": leak.kind, "name": leak.name, "detail": leak.detail });
        json!({ "leaks": self.leaks.iter().map(leak).collect::<Vec<Value>>(), "not_looked_at": self.unseen })
    }
}

/// The task.
pub(crate) fn run(_root: &Path, args: &[String]) -> Result<()> {
    let (mut as_json, mut within) = (false, Duration::ZERO);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => as_json = true,
            "--within" => {
                let seconds = args.next().and_then(|seconds| seconds.parse().ok());
                within = Duration::from_secs_f64(seconds.context("`--within` takes a number of seconds")?);
            }
            other => bail!("`cargo xtask leaks [--json] [--within SECONDS]` has no argument `{other}`"),
        }
    }
    let found = look_within(within, None)?;
    if as_json {
        println!("{:#}", found.json());
    } else {
        println!("{}", found.text());
    }
    if found.leaks.is_empty() { Ok(()) } else { Err(crate::Silent.into()) }
}

/// Looks once more whenever a process of ours has ended, until nothing is there, no process is, or the time is over.
///
/// What outlives the processes stays, so there is nothing to wait for once they are gone. `docker` is the address of a
/// daemon to ask besides those that the environment names.
pub(crate) fn look_within(limit: Duration, docker: Option<&str>) -> Result<Found> {
    let end = Instant::now() + limit;
    loop {
        let found = look(docker)?;
        let processes: BTreeSet<u32> = found
            .leaks
            .iter()
            .filter(|leak| leak.kind == "process")
            .filter_map(|leak| leak.name.parse().ok())
            .collect();
        let left = end.saturating_duration_since(Instant::now());
        if processes.is_empty() || left.is_zero() {
            return Ok(found);
        }
        processes::wait_for_one(&processes, left)?;
    }
}

/// Looks everywhere, once.
pub(crate) fn look(docker: Option<&str>) -> Result<Found> {
    let mut found = Found::default();
    let processes = processes::all()?;
    processes::look(&processes, &mut found);
    mounts::look(&processes, &mut found);
    cgroups::look(Path::new("/sys/fs/cgroup"), &mut found);
    interfaces::look(&processes, &mut found);
    directories::look(&mut found);
    store::look(&mut found);
    docker::look(docker, &mut found);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list can be read at a glance, and says what it does not know.
    #[test]
    fn the_list_is_aligned() {
        let mut found = Found::default();
        found.add("process", "4711", "shakedown: keeper");
        found.add("cgroup", "/sys/fs/cgroup/pids/shakedown-run-1", "");
        found.unseen("Docker: nothing listens");
        assert_eq!(
            found.text(),
            "process  4711                                 shakedown: keeper\n\
             cgroup   /sys/fs/cgroup/pids/shakedown-run-1\n\
             not looked at: Docker: nothing listens\n\
             2 things of Shakedown are on this machine"
        );
    }
}
