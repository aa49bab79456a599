//! Which driver to use, and the message when none works.

use crate::driver::{Driver, Result};
use serde::{Deserialize, Serialize};
use shakedown_spec::{Failure, FailureKind};
use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;

/// What `SHAKEDOWN_DRIVER` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverChoice {
    /// The native driver where it works, else Docker.
    #[default]
    Auto,
    /// The native driver or nothing.
    Native,
    /// Docker or nothing.
    Docker,
}

impl fmt::Display for DriverChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Docker => "docker",
        })
    }
}

impl FromStr for DriverChoice {
    type Err = Failure;

    /// Reads `auto`, `native` or `docker`; an empty text is `auto`.
    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "" | "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "docker" | "podman" => Ok(Self::Docker),
            _ => Err(Failure::new(FailureKind::Invalid, format!("`{text}` is not a driver"))
                .hint("SHAKEDOWN_DRIVER is `auto`, `native` or `docker`")),
        }
    }
}

/// Why a driver does not work here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `native` or `docker`.
    pub driver: String,
    /// What is in the way; several lines if several ways were tried.
    pub reason: String,
    /// What to do about it, each checked to apply.
    pub hints: Vec<String>,
}

impl Refusal {
    /// A refusal without hints yet.
    pub fn new(driver: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { driver: driver.into(), reason: reason.into(), hints: Vec::new() }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

/// Tries the drivers that the choice allows, native first; an attempt that is not needed is not made.
///
/// # Errors
///
/// None works: [`FailureKind::NoDriver`] with each one's reason.
pub async fn choose(
    choice: DriverChoice,
    native: impl Future<Output = std::result::Result<Arc<dyn Driver>, Refusal>>,
    docker: impl Future<Output = std::result::Result<Arc<dyn Driver>, Refusal>>,
) -> Result<Arc<dyn Driver>> {
    let mut refusals = Vec::new();
    if choice != DriverChoice::Docker {
        match native.await {
            Ok(driver) => return Ok(driver),
            Err(refusal) => refusals.push(refusal),
        }
    }
    if choice != DriverChoice::Native {
        match docker.await {
            Ok(driver) => return Ok(driver),
            Err(refusal) => refusals.push(refusal),
        }
    }
    Err(no_driver(&refusals))
}

/// The failure that lists why each driver does not work.
#[must_use]
pub fn no_driver(refusals: &[Refusal]) -> Failure {
    let mut failure = Failure::new(FailureKind::NoDriver, "no way to run containers here");
    for refusal in refusals {
        failure = failure.fact(&refusal.driver, &refusal.reason);
    }
    for hint in refusals.iter().flat_map(|refusal| &refusal.hints) {
        failure = failure.hint(hint);
    }
    failure.hint("`shakedown doctor` checks every requirement")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn native() -> Refusal {
        Refusal::new("native", "user namespaces are off (kernel.apparmor_restrict_unprivileged_userns = 1)")
            .hint("`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`")
    }

    fn docker() -> Refusal {
        Refusal::new("docker", "/var/run/docker.sock: permission denied\nci:2375: connection refused")
    }

    /// The first thing a user sees on a machine where nothing works yet.
    #[test]
    fn the_message_has_every_reason_and_what_to_do() {
        insta::assert_snapshot!(no_driver(&[native(), docker()]), @r"
        no way to run containers here
          native: user namespaces are off (kernel.apparmor_restrict_unprivileged_userns = 1)
          docker: /var/run/docker.sock: permission denied
                  ci:2375: connection refused
        hint: `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`
        hint: `shakedown doctor` checks every requirement
        ");
    }

    /// A forced driver is the only one tried; `auto` prefers native.
    #[tokio::test]
    async fn only_what_is_allowed_is_tried() {
        for (choice, expected) in [
            (DriverChoice::Native, vec!["native"]),
            (DriverChoice::Docker, vec!["docker"]),
            (DriverChoice::Auto, vec!["native", "docker"]),
        ] {
            let failure = choose(choice, async { Err(native()) }, async { Err(docker()) }).await.unwrap_err();
            let labels: Vec<_> = failure.facts.iter().map(|(label, _)| label.as_str()).collect();
            assert_eq!(labels, expected);
        }
    }

    /// A misspelt variable is told.
    #[test]
    fn the_variable_is_checked() {
        assert_eq!("Docker".parse::<DriverChoice>(), Ok(DriverChoice::Docker));
        insta::assert_snapshot!("dokcer".parse::<DriverChoice>().unwrap_err(), @r"
        `dokcer` is not a driver
        hint: SHAKEDOWN_DRIVER is `auto`, `native` or `docker`
        ");
    }
}
