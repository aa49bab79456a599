//! When a container counts as ready.

use crate::serial;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A condition that has to hold before a container counts as ready.
///
/// Conditions compose with [`and`](Wait::and) and [`or`](Wait::or). The exit of the container ends every wait at
/// once, except [`Wait::exit`], which waits for it. There is no condition that sleeps.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// What has to hold.
    pub condition: WaitKind,
    /// How long this condition may take; the container's own time limit applies too.
    #[serde(
        default,
        rename = "timeout_ms",
        with = "serial::millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<Duration>,
    /// How often in a row it has to hold; once when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successes: Option<u32>,
}

/// What a [`Wait`] asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitKind {
    /// The first process runs.
    Running,
    /// Something listens on this TCP port, asked inside the container's network.
    Port(u16),
    /// The log contains the pattern this many times.
    Log {
        /// What to look for.
        pattern: Pattern,
        /// How many matches.
        times: u32,
        /// Only this stream; both when unset.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stream: Option<Stream>,
    },
    /// An HTTP request is answered as expected.
    Http(HttpCheck),
    /// A command run in the container ends with this exit code.
    Command {
        /// The argument vector; the first is looked up in the container's `PATH`.
        argv: Vec<String>,
        /// The expected exit code.
        exit_code: i32,
        /// What its standard output has to contain.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Pattern>,
    },
    /// The container has ended by itself, with this exit code if one is given.
    Exit {
        /// The expected exit code; any when unset.
        code: Option<i32>,
    },
    /// The health check says healthy.
    Healthy,
    /// The service answers a first message of its own protocol.
    Probe {
        /// The protocol.
        protocol: ProbeProtocol,
        /// The TCP port in the container.
        port: u16,
    },
    /// All of these hold, checked in order.
    All(Vec<Wait>),
    /// One of these holds.
    Any(Vec<Wait>),
}

/// The protocols a [`WaitKind::Probe`] speaks. No client library or tool in the image is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeProtocol {
    /// PostgreSQL: a start-up message is answered by a request to authenticate, not by "starting up".
    Postgres,
    /// Redis and its kin: `PING` is answered, and not by `LOADING`.
    Redis,
}

/// A stream of a container's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A text or a regular expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// This text, anywhere.
    Text(String),
    /// A regular expression in the syntax of the `regex` crate, `^` and `$` matching at lines.
    Regex(String),
}

/// An HTTP request and the answer that means ready.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpCheck {
    /// The TCP port in the container; the first declared one when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The path with its query.
    pub path: String,
    /// The method.
    pub method: String,
    /// Request headers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Request body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Accepted status codes; 200 to 399 when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<u16>,
    /// What the answer's body has to contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Pattern>,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            port: None,
            path: "/".to_owned(),
            method: "GET".to_owned(),
            headers: BTreeMap::new(),
            body: None,
            status: Vec::new(),
            response: None,
        }
    }
}

impl From<WaitKind> for Wait {
    fn from(condition: WaitKind) -> Self {
        Self { condition, timeout: None, successes: None }
    }
}

impl From<HttpCheck> for Wait {
    fn from(check: HttpCheck) -> Self {
        WaitKind::Http(check).into()
    }
}

impl Wait {
    /// The first process runs, nothing more.
    #[must_use]
    pub fn running() -> Self {
        WaitKind::Running.into()
    }

    /// Something listens on TCP port `port` inside the container's network.
    #[must_use]
    pub fn port(port: u16) -> Self {
        WaitKind::Port(port).into()
    }

    /// The log contains `text`.
    pub fn log(text: impl Into<String>) -> Self {
        WaitKind::Log { pattern: Pattern::Text(text.into()), times: 1, stream: None }.into()
    }

    /// The log matches `regex`.
    pub fn log_regex(regex: impl Into<String>) -> Self {
        WaitKind::Log { pattern: Pattern::Regex(regex.into()), times: 1, stream: None }.into()
    }

    /// `GET path` on TCP port `port` is answered with a status from 200 to 399.
    pub fn http(port: u16, path: impl Into<String>) -> Self {
        HttpCheck { port: Some(port), path: path.into(), ..HttpCheck::default() }.into()
    }

    /// `argv`, run in the container, ends with exit code 0.
    pub fn command<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        let argv = argv.into_iter().map(Into::into).collect();
        WaitKind::Command { argv, exit_code: 0, output: None }.into()
    }

    /// The container has ended with exit code 0: for containers that do a job.
    #[must_use]
    pub fn exit() -> Self {
        WaitKind::Exit { code: Some(0) }.into()
    }

    /// The container has ended with exit code `code`.
    #[must_use]
    pub fn exit_code(code: i32) -> Self {
        WaitKind::Exit { code: Some(code) }.into()
    }

    /// The health check says healthy.
    #[must_use]
    pub fn healthy() -> Self {
        WaitKind::Healthy.into()
    }

    /// The service on TCP port `port` answers a first message of its protocol.
    #[must_use]
    pub fn probe(protocol: ProbeProtocol, port: u16) -> Self {
        WaitKind::Probe { protocol, port }.into()
    }

    /// This condition, then `other`.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match self {
            Self { condition: WaitKind::All(mut list), timeout: None, successes: None } => {
                list.push(other);
                WaitKind::All(list).into()
            }
            one => WaitKind::All(vec![one, other]).into(),
        }
    }

    /// This condition or `other`, whichever holds first.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match self {
            Self { condition: WaitKind::Any(mut list), timeout: None, successes: None } => {
                list.push(other);
                WaitKind::Any(list).into()
            }
            one => WaitKind::Any(vec![one, other]).into(),
        }
    }

    /// For a log: this many matches. For every other condition: this many successes in a row.
    #[must_use]
    pub fn times(mut self, n: u32) -> Self {
        match &mut self.condition {
            WaitKind::Log { times, .. } => *times = n,
            _ => self.successes = Some(n),
        }
        self
    }

    /// For a log: only this stream. No effect on other conditions.
    #[must_use]
    pub fn stream(mut self, only: Stream) -> Self {
        if let WaitKind::Log { stream, .. } = &mut self.condition {
            *stream = Some(only);
        }
        self
    }

    /// How long this condition may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "`{text}`"),
            Self::Regex(regex) => write!(f, "/{regex}/"),
        }
    }
}

impl fmt::Display for Wait {
    /// Completes the sentence "waited for …".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.condition.fmt(f)?;
        match self.successes {
            Some(n) if n > 1 => write!(f, ", {n} times in a row"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for WaitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join =
            |waits: &[Wait], word: &str| waits.iter().map(ToString::to_string).collect::<Vec<_>>().join(word);
        match self {
            Self::Running => f.write_str("the container to run"),
            Self::Port(port) => write!(f, "port {port} to accept connections"),
            Self::Log { pattern, times: 1, stream: None } => write!(f, "{pattern} in the log"),
            Self::Log { pattern, times, stream } => {
                write!(f, "{pattern} in the log")?;
                if let Some(stream) = stream {
                    write!(f, " ({})", if *stream == Stream::Stdout { "stdout" } else { "stderr" })?;
                }
                if *times > 1 { write!(f, ", {times} times") } else { Ok(()) }
            }
            Self::Http(check) => {
                write!(f, "{} {}", check.method, check.path)?;
                check.port.map_or(Ok(()), |port| write!(f, " on port {port}"))
            }
            Self::Command { argv, exit_code, .. } => {
                write!(f, "`{}` to exit with code {exit_code}", argv.join(" "))
            }
            Self::Exit { code: Some(code) } => write!(f, "the container to exit with code {code}"),
            Self::Exit { code: None } => f.write_str("the container to exit"),
            Self::Healthy => f.write_str("the health check to say healthy"),
            Self::Probe { protocol: ProbeProtocol::Postgres, port } => {
                write!(f, "PostgreSQL to answer on port {port}")
            }
            Self::Probe { protocol: ProbeProtocol::Redis, port } => {
                write!(f, "Redis to answer on port {port}")
            }
            Self::All(waits) => f.write_str(&join(waits, ", then ")),
            Self::Any(waits) => f.write_str(&join(waits, ", or ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sentence a user reads after "waited for:".
    #[test]
    fn conditions_read_as_a_sentence() {
        let wait =
            Wait::port(5432).and(Wait::log("ready").times(2)).and(Wait::http(80, "/health").or(Wait::exit()));
        insta::assert_snapshot!(wait, @"port 5432 to accept connections, then `ready` in the log, 2 times, then GET /health on port 80, or the container to exit with code 0");
    }

    /// The REST schema of a wait.
    #[test]
    fn a_wait_is_json_a_person_can_write() {
        let wait: Wait = serde_json::from_str(r#"{"condition":{"port":6379},"timeout_ms":500}"#).unwrap();
        assert_eq!(wait, Wait::port(6379).timeout(Duration::from_millis(500)));
        let text = r#"{"condition":{"log":{"pattern":{"text":"Ready"},"times":1}}}"#;
        assert_eq!(serde_json::to_string(&Wait::log("Ready")).unwrap(), text);
    }
}
