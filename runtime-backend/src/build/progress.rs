//! What is heard of a build while it runs, and what is said when it fails.

use super::dockerfile::ast::{Dockerfile, Span};
use serde::{Deserialize, Serialize};
use shakedown_spec::{Failure, FailureKind, LogTail};
use std::collections::VecDeque;
use std::sync::Arc;

/// Called with each event of a build.
pub type BuildProgress = Arc<dyn Fn(BuildEvent) + Send + Sync>;

/// Something that happened in a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum BuildEvent {
    /// A step begins.
    Step {
        /// Which, from 1.
        number: usize,
        /// Of how many.
        total: usize,
        /// The instruction.
        text: String,
        /// The instruction's line in the Dockerfile.
        line: usize,
    },
    /// The step that began last did not have to be done: it was before.
    Cached,
    /// A line that the step wrote.
    Output {
        /// Without its line feed.
        line: String,
    },
    /// Something of an image that is being fetched: layer, bytes done, bytes in all.
    Pull {
        /// Layer or blob.
        what: String,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// The end of what a step wrote.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    lines: VecDeque<String>,
    total: usize,
}

/// How many lines a failure shows.
const SHOWN: usize = 20;

impl Tail {
    /// Takes one line.
    pub fn push(&mut self, line: impl Into<String>) {
        self.total += 1;
        self.lines.push_back(line.into());
        if self.lines.len() > SHOWN {
            self.lines.pop_front();
        }
    }
}

/// A step that failed: its line, why, and the end of what it wrote.
#[must_use]
pub fn step_failed(dockerfile: &Dockerfile, lines: Span, text: &str, reason: &str, tail: &Tail) -> Failure {
    let name = text.split_whitespace().next().unwrap_or("a step").to_ascii_uppercase();
    let title = format!("{} could not be built: {name} failed", dockerfile.name);
    let quoted = dockerfile.source.get(lines.first - 1).map_or(text, String::as_str);
    let failure = Failure::new(FailureKind::ImageUnusable, title)
        .fact("at", format!("{}:{}", dockerfile.name, lines.first))
        .fact("line", quoted.replace('\t', " "))
        .fact("reason", reason);
    if tail.total == 0 {
        return failure;
    }
    let lines = tail.lines.iter().cloned().collect();
    failure.log(LogTail { name, lines, total: tail.total })
}
