//! Commands run in a container.

use crate::{Exit, Failure, FailureKind};
use shakedown_runtime::{ExecRequest, TerminalSize};
use std::borrow::Cow;
use std::fmt;

/// A command to run in a container.
///
/// An array of words is one already; options are for the rest.
///
/// ```
/// use shakedown::Exec;
///
/// let export = Exec::new(["psql", "--csv", "-f", "-"]).user("postgres").input("SELECT * FROM orders");
/// # drop(export);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    pub(crate) request: ExecRequest,
    pub(crate) input: Vec<u8>,
}

impl Exec {
    /// The command `argv`; its first word is looked up in the container's `PATH`. No shell is involved.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { request: ExecRequest::of(argv), input: Vec::new() }
    }

    /// Sets an environment variable, on top of the container's.
    #[must_use]
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.env.insert(key.into(), value.into());
        self
    }

    /// Runs it as this `user`, `uid`, `user:group` or `uid:gid`.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.request.user = Some(user.into());
        self
    }

    /// Runs it in this directory.
    #[must_use]
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.request.workdir = Some(path.into());
        self
    }

    /// Gives it a terminal: programs then write as they do for a person, and its output is one stream. It reads what the
    /// terminal is sent; a terminal has no end of input, so end the input with `\x04`, or let the command end otherwise.
    #[must_use]
    pub fn tty(mut self, tty: bool) -> Self {
        self.request.tty = tty;
        self
    }

    /// The size of its terminal.
    #[must_use]
    pub fn size(mut self, rows: u16, columns: u16) -> Self {
        self.request.size = Some(TerminalSize { rows, columns });
        self
    }

    /// What it reads from its standard input; nothing when unset.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }
}

impl<S: Into<String>, I: IntoIterator<Item = S>> From<I> for Exec {
    fn from(argv: I) -> Self {
        Self::new(argv)
    }
}

/// A command that has ended, with whatever exit code.
#[derive(Clone, PartialEq, Eq)]
pub struct ExecOutput {
    pub(crate) argv: Vec<String>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: Exit,
}

impl ExecOutput {
    /// Its standard output as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn stdout(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Its standard error as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn stderr(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }

    /// Its standard output as it was written.
    #[must_use]
    pub fn stdout_bytes(&self) -> &[u8] {
        &self.stdout
    }

    /// Its standard error as it was written.
    #[must_use]
    pub fn stderr_bytes(&self) -> &[u8] {
        &self.stderr
    }

    /// How it ended.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Its exit code; 128 plus the signal's number if a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.exit.code
    }

    /// This output, if the command ended with exit code 0.
    ///
    /// # Errors
    ///
    /// Any other end, with what the command wrote.
    #[track_caller]
    pub fn success(self) -> Result<Self, Failure> {
        if self.code() == 0 {
            return Ok(self);
        }
        let mut failure = Failure::new(
            FailureKind::ExecFailed,
            format!("`{}` failed: {}", self.argv.join(" "), self.exit()),
        );
        crate::error::locate(&mut failure, std::panic::Location::caller());
        for (label, text) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
            if !text.trim().is_empty() {
                failure = failure.fact(label, text.trim_end());
            }
        }
        Err(failure)
    }
}

impl fmt::Debug for ExecOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecOutput")
            .field("argv", &self.argv)
            .field("exit", &self.exit())
            .field("stdout", &self.stdout())
            .field("stderr", &self.stderr())
            .finish()
    }
}
