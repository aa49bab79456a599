//! Starting a keeper: the own binary once more, in another role.
//!
//! ```text
//! starter                                   keeper
//!   flock(start) ── inherited as stdin ──────►  holds it too: a starter that is killed here does not let a second begin
//!   pipe         ── inherited as stdout ─────►  writes "ready" or a Failure, then closes it
//!   keeper.log   ── inherited as stderr ─────►  panics of the first instant are in the log as well
//!   reads the pipe to its end ◄──────────────   its death ends the pipe too: nobody waits for a time
//! ```

use super::{Place, ProcessIdentity, SessionLock, lock};
use crate::config::{DriverChoice, Overrides};
use crate::hook::{KEEPER, ROLE_VARIABLE};
use serde::{Deserialize, Serialize};
use shakedown_spec::{Failure, FailureKind, LogTail};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Carries the [`Orders`] to the keeper, as JSON.
pub(crate) const ORDERS_VARIABLE: &str = "SHAKEDOWN_KEEPER";
/// What a keeper writes to its standard output when it can be connected to.
pub(crate) const READY: &str = "ready";
/// How the keeper looks in `ps`. The spaces are room that a later title may use.
const TITLE: &str = "shakedown: keeper                                        ";

/// What a keeper is told by its starter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// The session's name.
    pub session: String,
    /// The session's directory.
    pub directory: PathBuf,
    /// The process with which the session ends.
    pub runner: Option<ProcessIdentity>,
    /// Which driver to use.
    pub driver: DriverChoice,
    /// What the command line says about images.
    #[serde(default)]
    pub overrides: Overrides,
}

impl Orders {
    /// Orders for the session at `place`, which ends with `runner`.
    #[must_use]
    pub fn new(place: &Place, runner: Option<ProcessIdentity>, driver: DriverChoice) -> Self {
        let (session, directory) = (place.name.clone(), place.directory.clone());
        Self { session, directory, runner, driver, overrides: Overrides::default() }
    }

    pub(crate) fn place(&self) -> Place {
        Place { name: self.session.clone(), directory: self.directory.clone() }
    }
}

/// Makes sure that the session has a keeper that listens. Blocks until it does.
///
/// # Errors
///
/// The keeper could not be started, or said why it cannot work.
pub fn start(orders: &Orders) -> Result<(), Failure> {
    let place = orders.place();
    let failed = |error: io::Error| could_not_start(&place, &error.to_string());
    let start_lock = lock(&place, SessionLock::Start).map_err(failed)?;
    if UnixStream::connect(place.socket()).is_ok() {
        // Another process of the run was faster.
        return Ok(());
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(place.log()).map_err(failed)?;
    let (mut answer, child_end) = io::pipe().map_err(failed)?;
    let mut keeper = command(orders, start_lock, child_end.into(), log).spawn().map_err(failed)?;
    let mut said = String::new();
    answer.read_to_string(&mut said).map_err(failed)?;
    if said.trim_end() == READY {
        return Ok(());
    }
    let status = keeper.wait().map_err(failed)?;
    Err(serde_json::from_str(&said)
        .unwrap_or_else(|_| could_not_start(&place, &format!("it ended: {status}"))))
}

/// The keeper's command line. It shares no stdin, stdout or stderr with the test: nextest reports a test whose output
/// is still open when it has ended. The command is dropped by the caller, and with it this side of the pipe.
fn command(orders: &Orders, start_lock: File, ready: Stdio, log: File) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(TITLE)
        .env(ROLE_VARIABLE, KEEPER)
        .env(ORDERS_VARIABLE, serde_json::to_string(orders).unwrap_or_default())
        .current_dir("/")
        .stdin(start_lock)
        .stdout(ready)
        .stderr(log);
    command
}

fn could_not_start(place: &Place, reason: &str) -> Failure {
    let failure = Failure::new(FailureKind::SessionLost, "the session keeper could not be started")
        .fact("reason", reason)
        .fact("log", place.log().display().to_string());
    match log_tail(&place.log()) {
        Some(tail) => failure.log(tail),
        None => failure,
    }
}

/// The end of a keeper's log; `None` if there is nothing to read.
pub(crate) fn log_tail(path: &std::path::Path) -> Option<LogTail> {
    const SHOWN: usize = 20;
    let text = String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned();
    let all: Vec<&str> = text.lines().collect();
    let lines = all[all.len().saturating_sub(SHOWN)..].iter().map(|line| (*line).to_owned()).collect();
    (!all.is_empty()).then(|| LogTail { name: "session keeper".to_owned(), lines, total: all.len() })
}
