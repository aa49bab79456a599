//! What happens when a container's first process has ended, with Docker's names.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// When a container is started again after its first process has ended.
///
/// A container that was stopped on request stays so, whatever its policy. In JSON it is Docker's text:
/// `no`, `on-failure`, `on-failure:3`, `always` or `unless-stopped`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When it ended with another exit code than 0.
    OnFailure {
        /// How often at most; without limit when unset.
        retries: Option<u32>,
    },
    /// However it ended.
    Always,
    /// However it ended. The same as [`Always`](Self::Always): a container does not outlive its session.
    UnlessStopped,
}

impl RestartPolicy {
    /// After a failure, without limit.
    #[must_use]
    pub fn on_failure() -> Self {
        Self::OnFailure { retries: None }
    }

    /// After a failure, so many times at most.
    #[must_use]
    pub fn on_failure_at_most(retries: u32) -> Self {
        Self::OnFailure { retries: Some(retries) }
    }

    /// Whether a container is started again that ended with this code and was started again so often before.
    #[must_use]
    pub fn applies(&self, code: i32, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure { retries } => code != 0 && retries.is_none_or(|most| restarts < most),
            Self::Always | Self::UnlessStopped => true,
        }
    }

    pub(crate) fn is_no(&self) -> bool {
        *self == Self::No
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure { retries: None } => f.write_str("on-failure"),
            Self::OnFailure { retries: Some(most) } => write!(f, "on-failure:{most}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown =
            || format!("`{text}` is no restart policy: `no`, `on-failure[:N]`, `always` or `unless-stopped`");
        match text.split_once(':') {
            Some(("on-failure", most)) => most.parse().map(Self::on_failure_at_most).map_err(|_| unknown()),
            Some(_) => Err(unknown()),
            None => match text {
                "no" => Ok(Self::No),
                "on-failure" => Ok(Self::on_failure()),
                "always" => Ok(Self::Always),
                "unless-stopped" => Ok(Self::UnlessStopped),
                _ => Err(unknown()),
            },
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts are those of `docker run --restart`.
    #[test]
    fn policies_are_written_as_docker_writes_them() {
        for text in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for wrong in ["", "never", "on-failure:", "on-failure:x", "always:3"] {
            assert!(wrong.parse::<RestartPolicy>().is_err(), "{wrong}");
        }
    }

    /// A service that fails for good is given up after the declared number of times.
    #[test]
    fn failures_are_counted() {
        let policy = RestartPolicy::on_failure_at_most(2);
        let seen = [(1, 0), (1, 1), (1, 2), (0, 0)].map(|(code, restarts)| policy.applies(code, restarts));
        assert_eq!(seen, [true, true, false, false]);
        assert!(RestartPolicy::Always.applies(0, 99) && !RestartPolicy::No.applies(1, 0));
    }
}
