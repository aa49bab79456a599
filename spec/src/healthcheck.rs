//! The command that tells whether a container is healthy, with Docker's names and defaults.

use crate::serial;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A health check, as `HEALTHCHECK` in a Dockerfile declares it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Healthcheck {
    /// Docker's form: `["CMD", argv…]`, `["CMD-SHELL", line]`, or `["NONE"]` to switch the image's own check off.
    pub test: Vec<String>,
    /// Time between two checks; 30 s when unset.
    #[serde(rename = "interval_ms", with = "serial::millis", skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// Time one check may take; 30 s when unset.
    #[serde(rename = "timeout_ms", with = "serial::millis", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// How long failures do not count after the start; 0 when unset.
    #[serde(rename = "start_period_ms", with = "serial::millis", skip_serializing_if = "Option::is_none")]
    pub start_period: Option<Duration>,
    /// Time between two checks while failures do not count; 5 s when unset.
    #[serde(rename = "start_interval_ms", with = "serial::millis", skip_serializing_if = "Option::is_none")]
    pub start_interval: Option<Duration>,
    /// Failures in a row until the container counts as unhealthy; 3 when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

impl Healthcheck {
    /// A check that runs `argv` in the container; exit code 0 means healthy.
    pub fn command<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        let test = std::iter::once("CMD".to_owned()).chain(argv.into_iter().map(Into::into)).collect();
        Self { test, ..Self::default() }
    }

    /// A check that runs `line` with the container's shell.
    pub fn shell(line: impl Into<String>) -> Self {
        Self { test: vec!["CMD-SHELL".to_owned(), line.into()], ..Self::default() }
    }

    /// Time between two checks.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval);
        self
    }

    /// Time one check may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Failures in a row until the container counts as unhealthy.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = Some(retries);
        self
    }

    /// How long failures do not count after the start.
    #[must_use]
    pub fn start_period(mut self, period: Duration) -> Self {
        self.start_period = Some(period);
        self
    }

    /// Time between two checks while failures do not count.
    #[must_use]
    pub fn start_interval(mut self, interval: Duration) -> Self {
        self.start_interval = Some(interval);
        self
    }

    /// No check: switches off the image's own one.
    #[must_use]
    pub fn none() -> Self {
        Self { test: vec!["NONE".to_owned()], ..Self::default() }
    }

    /// The argument vector to run in the container, or `None` if the check is switched off.
    #[must_use]
    pub fn argv(&self) -> Option<Vec<String>> {
        match self.test.split_first() {
            Some((kind, rest)) if kind == "CMD" && !rest.is_empty() => Some(rest.to_vec()),
            Some((kind, rest)) if kind == "CMD-SHELL" && !rest.is_empty() => {
                Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.join(" ")])
            }
            _ => None,
        }
    }
}
