//! What a failed test leaves to read: the end of each container's log in its output, the whole log in a file.
//!
//! The files stand under `target/shakedown/<test>/`; a container's file is removed when the same test starts it again.

use crate::guard::{self, Alive};
use crate::logs::Logs;
use crate::{LogTail, background};
use shakedown_server::api::LogQuery;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use std::{fs, io};

/// How many lines of a log a failure shows.
const TAIL: usize = 20;
/// How long a failing test waits for a log.
const LIMIT: Duration = Duration::from_secs(5);

/// The test that runs on this thread: libtest names the thread after it. Elsewhere, what nextest says, or the binary.
pub(crate) fn current_test() -> String {
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main").map(str::to_owned);
    test.or_else(|| std::env::var("NEXTEST_TEST_NAME").ok()).unwrap_or_else(binary)
}

/// This program's name, without the hash that cargo adds.
pub(crate) fn binary() -> String {
    let exe = std::env::current_exe().unwrap_or_default();
    let name = exe.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match name.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            name.to_owned()
        }
        _ => name,
    }
}

/// Cargo's target directory, which it marks with a file, if this program stands in one.
fn target() -> Option<&'static Path> {
    static TARGET: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let exe = std::env::current_exe().ok()?;
        exe.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file()).map(Path::to_owned)
    };
    TARGET.get_or_init(find).as_deref()
}

/// Where the whole log of a container is kept.
fn path(alive: &Alive) -> Option<PathBuf> {
    let plain = |name: &str| name.replace("::", ".").replace(['/', '\0'], "-");
    let file = format!("{}.log", plain(&alive.file));
    Some(target()?.join("shakedown").join(plain(&alive.test)).join(file))
}

/// The path as it is shown: from the directory that the target directory stands in, usually the workspace.
fn shown(path: &Path) -> String {
    let workspace = target().and_then(Path::parent);
    workspace.and_then(|top| path.strip_prefix(top).ok()).unwrap_or(path).display().to_string()
}

/// Removes what an earlier run of the test left.
pub(crate) fn forget(alive: &Alive) {
    if let Some(path) = path(alive) {
        // Usually there is none; one that cannot be removed is overwritten when the test fails, or its time tells.
        drop(fs::remove_file(path));
    }
}

/// Reads the log of a container, keeps it, and tells its end and its file. A container that is gone has none.
pub(crate) async fn tail_of(alive: &Alive) -> Option<(LogTail, Option<String>)> {
    let logs = alive.share.logs(&alive.id, &LogQuery::default()).await.ok()?;
    let kept = path(alive).and_then(|path| write(&path, &logs).ok().map(|()| shown(&path)));
    Some((tail(&alive.name, &logs), kept))
}

/// The same for several containers at once, from a thread that may block.
fn keep(containers: Vec<Alive>) -> Vec<(LogTail, Option<String>)> {
    let read = containers.into_iter().map(|alive| async move { tail_of(&alive).await });
    let read = background::finish(LIMIT, futures::future::join_all(read)).unwrap_or_default();
    read.into_iter().flatten().collect()
}

fn write(path: &Path, logs: &Logs) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, logs.bytes())
}

fn tail(name: &str, logs: &Logs) -> LogTail {
    let all = logs.lines();
    let lines = all[all.len().saturating_sub(TAIL)..].iter().map(|line| printable(&line.text())).collect();
    LogTail { name: name.to_owned(), lines, total: all.len() }
}

/// Escape sequences and other control characters of a service would garble the report.
fn printable(line: &str) -> String {
    line.trim_end_matches('\r')
        .chars()
        .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

/// The ends of the logs of this test's containers, for an error it returns; their files become facts.
pub(crate) fn of_this_test(facts: &mut Vec<(String, String)>) -> Vec<LogTail> {
    let containers = guard::alive_in(&current_test());
    if containers.is_empty() {
        return Vec::new();
    }
    let mut tails = Vec::new();
    for (tail, kept) in keep(containers) {
        facts.extend(kept.map(|path| ("full log".to_owned(), path)));
        tails.push(tail);
    }
    tails
}

/// Shows the end of a container's log in the output of a test that panics.
#[expect(
    clippy::print_stderr,
    reason = "the output of the test is where a reader looks; libtest captures it"
)]
pub(crate) fn show(alive: &Alive) {
    for (tail, kept) in keep(vec![alive.clone()]) {
        eprintln!("{}", tail.to_string().trim_start());
        if let Some(path) = kept {
            eprintln!("full log: {path}");
        }
    }
}
