//! When a registry is asked for an image.

use crate::{Failure, FailureKind};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// When to ask the registry for an image.
///
/// As text, in JSON and in configuration: `missing`, `always`, `never`, or `older-than:12h` (`s`, `m`, `h`, `d`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PullPolicy {
    /// Only when the image is not in the local store.
    #[default]
    Missing,
    /// At every start, so that a moved tag is noticed.
    Always,
    /// Not at all: an image that is not in the local store is an error.
    Never,
    /// When the registry was last asked for it longer ago than this, or it is not in the local store.
    OlderThan(Duration),
}

/// The units of [`PullPolicy::OlderThan`] in seconds, largest first.
const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

impl fmt::Display for PullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Always => f.write_str("always"),
            Self::Never => f.write_str("never"),
            Self::OlderThan(age) => {
                let seconds = age.as_secs();
                let exact = |(_, unit): &&(char, u64)| seconds >= *unit && seconds.is_multiple_of(*unit);
                let (letter, unit) = UNITS.iter().find(exact).unwrap_or(&('s', 1));
                write!(f, "older-than:{}{letter}", seconds / unit)
            }
        }
    }
}

impl FromStr for PullPolicy {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        match text {
            "missing" => Ok(Self::Missing),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            other => other.strip_prefix("older-than:").and_then(age).map(Self::OlderThan).ok_or_else(|| {
                Failure::new(FailureKind::Invalid, format!("`{text}` is not a pull policy"))
                    .hint("use `missing`, `always`, `never`, or an age such as `older-than:12h`")
            }),
        }
    }
}

fn age(text: &str) -> Option<Duration> {
    let (unit_letter, digits) = (text.chars().next_back()?, text.get(..text.len().checked_sub(1)?)?);
    let (_, unit) = UNITS.iter().find(|(letter, _)| *letter == unit_letter)?;
    digits.parse::<u64>().ok()?.checked_mul(*unit).map(Duration::from_secs)
}

impl TryFrom<String> for PullPolicy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|failure: Failure| [failure.title, failure.hints.concat()].join("; "))
    }
}

impl From<PullPolicy> for String {
    fn from(policy: PullPolicy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy is written the same way in Rust's JSON, in `shakedown.toml` and in the environment.
    #[test]
    fn policies_are_written_as_they_are_read() {
        for text in ["missing", "always", "never", "older-than:12h", "older-than:7d", "older-than:90s"] {
            assert_eq!(text.parse::<PullPolicy>().unwrap().to_string(), text);
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(serde_json::from_str::<PullPolicy>(&json).unwrap().to_string(), text);
        }
        assert_eq!("older-than:48h".parse::<PullPolicy>().unwrap().to_string(), "older-than:2d");
        for wrong in [
            "",
            "sometimes",
            "older-than:",
            "older-than:h",
            "older-than:5",
            "older-than:5µ",
            "older-than:-1h",
        ] {
            assert!(wrong.parse::<PullPolicy>().is_err(), "{wrong}");
        }
    }

    /// A misspelt policy is answered with those that there are.
    #[test]
    fn a_wrong_policy_is_told() {
        insta::assert_snapshot!("daily".parse::<PullPolicy>().unwrap_err(), @r"
        `daily` is not a pull policy
        hint: use `missing`, `always`, `never`, or an age such as `older-than:12h`
        ");
    }
}
