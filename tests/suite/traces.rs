//! What a container leaves on the machine, looked for without asking who made it.

use serde_json::Value;
use shakedown::Network;
use shakedown_runtime::wait::{Poll, poll};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long traces may stay after a process was killed. Two seconds are promised on a machine that is not overloaded;
/// an engine that is making a container when its client is killed takes as long as it takes.
const LIMIT: Duration = Duration::from_secs(10);

/// A number of seconds to sleep that no other process of the machine sleeps for.
pub(crate) fn marker() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("77{:07}{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A network that is recognised by `marker`.
pub(crate) fn network(marker: &str) -> Network {
    Network::named(format!("{marker}-{}", Network::new().key))
}

/// Everything on this machine that is named after one of `ids`, every process that sleeps for `marker`, and what an
/// engine has of networks with the marker in their name.
pub(crate) fn of(marker: &str, ids: &[String]) -> Vec<String> {
    let named = |text: &str| ids.iter().any(|id| text.contains(id.as_str()));
    let mut found = processes(marker);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| named(line)).map(|line| format!("mount {line}")));
    let mut groups = Vec::new();
    directories("/sys/fs/cgroup", 4, &mut groups);
    found.extend(groups.into_iter().filter(|path| named(path)).map(|path| format!("control group {path}")));
    let engine = names("containers/json?all=1", "Names").into_iter().chain(names("networks", "Name"));
    found.extend(
        engine.filter(|name| named(name) || name.contains(marker)).map(|name| format!("engine {name}")),
    );
    found
}

/// Waits until there are none, and tells how long that took; panics with what is left.
#[track_caller]
pub(crate) fn all_gone(marker: &str, ids: &[String]) -> Duration {
    let begin = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let look = || {
        let found = of(marker, ids);
        std::future::ready(if found.is_empty() { Poll::Ready(()) } else { Poll::NotYet(found.join("\n")) })
    };
    if let Err(left) = runtime.block_on(poll(LIMIT, look)) {
        panic!("still there after {LIMIT:?}:\n{left}");
    }
    begin.elapsed()
}

/// Waits until the traces of a running container are found: while a process executes a program, it has no name.
#[track_caller]
pub(crate) fn are_there(marker: &str, ids: &[String]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let look = || {
        let found = !of(marker, ids).is_empty();
        std::future::ready(if found { Poll::Ready(()) } else { Poll::NotYet("no trace".to_owned()) })
    };
    assert!(runtime.block_on(poll(LIMIT, look)).is_ok(), "no trace of {ids:?} after {LIMIT:?}");
}

fn processes(marker: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let command = |entry: fs::DirEntry| {
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&arguments).replace('\0', " ");
        // The program that starts the containers has the marker among its arguments, too.
        (line.contains(marker) && line.contains("sleep ")).then(|| format!("process {line}"))
    };
    entries.filter_map(command).collect()
}

fn directories(path: &str, depth: u32, found: &mut Vec<String>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path().display().to_string();
            if depth > 1 {
                directories(&path, depth - 1, found);
            }
            found.push(path);
        }
    }
}

/// The names of all `listing` of a Docker-compatible engine, if one can be reached here.
fn names(listing: &str, field: &str) -> Vec<String> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(host.trim_start_matches("unix://"))?;
        stream.write_all(format!("GET /{listing} HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map(|_| answer)
    };
    let answer = ask().unwrap_or_default();
    let text = String::from_utf8_lossy(&answer);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let listed: Value = serde_json::from_str(body).unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let names = |one: &Value| match &one[field] {
        Value::Array(several) => several.iter().filter_map(text).collect(),
        one => Vec::from_iter(text(one)),
    };
    listed.as_array().into_iter().flatten().flat_map(names).collect()
}
