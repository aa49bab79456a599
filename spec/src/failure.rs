//! Why something did not work, in the form every failure is shown.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A failure with everything a reader needs: what did not happen, the facts, the log's end, what to do.
///
/// It crosses the REST API as it is. `Display` and `Debug` print the same text, because a test that returns an error
/// is printed with `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure it is, for programs.
    pub kind: FailureKind,
    /// Which service, what did not happen; a fragment without a full stop.
    pub title: String,
    /// The line of the test that asked, `path:line:column`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Facts as label and value, in the order they are shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<(String, String)>,
    /// The ends of the logs that matter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogTail>,
    /// What to do, each produced by code that checked that it applies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

/// The kinds of [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The service was not ready in time.
    NotReady,
    /// The container ended before it was ready.
    ExitedEarly,
    /// The kernel killed the container for its use of memory.
    OutOfMemory,
    /// The image is in no store, source or registry.
    ImageNotFound,
    /// The image is there and cannot be used: a wrong digest, a broken archive, a refused registry.
    ImageUnusable,
    /// No driver works on this machine.
    NoDriver,
    /// The container could not be launched.
    LaunchFailed,
    /// The declaration asks for what this driver or machine cannot do.
    Unsupported,
    /// The declaration contradicts itself.
    Invalid,
    /// A port was asked for that was not declared.
    PortNotDeclared,
    /// A file or directory could not be copied.
    CopyFailed,
    /// A command could not be run in the container.
    ExecFailed,
    /// There is no such container.
    NoSuchContainer,
    /// The session keeper ended or does not answer.
    SessionLost,
    /// Anything else, such as an error of the Docker daemon.
    Other,
}

/// The end of a container's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTail {
    /// The service's name.
    pub name: String,
    /// Its last lines.
    pub lines: Vec<String>,
    /// How many lines the whole log has.
    pub total: usize,
}

impl Failure {
    /// A failure without facts yet.
    pub fn new(kind: FailureKind, title: impl Into<String>) -> Self {
        let title = title.into();
        Self { kind, title, location: None, facts: Vec::new(), logs: Vec::new(), hints: Vec::new() }
    }

    /// Adds a fact.
    #[must_use]
    pub fn fact(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.facts.push((label.into(), value.into()));
        self
    }

    /// Adds a hint: what to do, in a form that can be pasted.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds the end of a log.
    #[must_use]
    pub fn log(mut self, tail: LogTail) -> Self {
        self.logs.push(tail);
        self
    }
}

impl std::error::Error for Failure {}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)?;
        if let Some(location) = &self.location {
            write!(f, "\n  at {location}")?;
        }
        let width = self.facts.iter().map(|(label, _)| label.chars().count() + 1).max().unwrap_or(0);
        for (label, value) in &self.facts {
            let label = format!("{label}:");
            write!(f, "\n  {label:width$} {}", indent_continuation(value, width + 3))?;
        }
        for tail in &self.logs {
            tail.fmt(f)?;
        }
        self.hints.iter().try_for_each(|hint| write!(f, "\nhint: {}", indent_continuation(hint, 6)))
    }
}

/// Second and later lines of a value stand under its first.
fn indent_continuation(value: &str, width: usize) -> String {
    value.trim_end().replace('\n', &format!("\n{:width$}", ""))
}

impl fmt::Display for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, lines, total } = self;
        match (lines.len(), *total) {
            (0, 0) => write!(f, "\n--- {name}: the log is empty"),
            (shown, total) if shown == total => write!(f, "\n--- {name}, all of its log"),
            (shown, total) => write!(f, "\n--- {name}, last {shown} of {total} lines"),
        }?;
        lines.iter().try_for_each(|line| write!(f, "\n| {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form of every failure: line one, the user's line, facts, log, hints.
    #[test]
    fn a_failure_reads_from_what_to_why_to_what_to_do() {
        let mut failure = Failure::new(FailureKind::NotReady, "postgres was not ready after 60 s")
            .fact("waited for", "port 5432 to accept connections")
            .fact("last check", "connection refused")
            .log(LogTail { name: "postgres".into(), lines: vec!["CREATE TABLE".into()], total: 41 })
            .hint("allow more with `.timeout(..)`");
        failure.location = Some("tests/orders.rs:14:66".into());
        insta::assert_snapshot!(failure, @r"
        postgres was not ready after 60 s
          at tests/orders.rs:14:66
          waited for: port 5432 to accept connections
          last check: connection refused
        --- postgres, last 1 of 41 lines
        | CREATE TABLE
        hint: allow more with `.timeout(..)`
        ");
    }
}
