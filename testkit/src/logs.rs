//! What a container has written.

use crate::{Pending, Stream};
use futures::stream::{BoxStream, StreamExt};
use shakedown_server::api::LogQuery;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::Mutex;

/// The log of a container up to the moment it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logs {
    pub(crate) lines: Vec<LogLine>,
}

/// One line of a log, without its line feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The stream it was written to.
    pub stream: Stream,
    /// When its first byte was read.
    pub time: SystemTime,
    /// Whether no line feed came after it: a piece of a line of more than 64 KiB, or the end of the output.
    pub partial: bool,
    /// The line as it was written.
    pub bytes: Vec<u8>,
}

impl LogLine {
    /// The line as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

impl Logs {
    /// The lines in the order they were read.
    #[must_use]
    pub fn lines(&self) -> &[LogLine] {
        &self.lines
    }

    /// Both streams as one text.
    #[must_use]
    pub fn text(&self) -> String {
        self.of(|_| true)
    }

    /// What was written to standard output.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.of(|line| line.stream == Stream::Stdout)
    }

    /// What was written to standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.of(|line| line.stream == Stream::Stderr)
    }

    fn of(&self, wanted: impl Fn(&LogLine) -> bool) -> String {
        let mut text = self.lines.iter().filter(|line| wanted(line)).fold(String::new(), |mut text, line| {
            text.push_str(&line.text());
            text.extend((!line.partial).then_some('\n'));
            text
        });
        // The end of the output, whether it ends a line or not.
        text.extend((!text.is_empty() && !text.ends_with('\n')).then_some('\n'));
        text
    }

    /// Everything as it was written, for the file that keeps the evidence.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let line_feed = |line: &LogLine| (!line.partial).then_some(b'\n');
        self.lines.iter().flat_map(|line| line.bytes.iter().copied().chain(line_feed(line))).collect()
    }
}

/// Which lines of a log are wanted; all of them, if nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub(crate) query: LogQuery,
}

impl LogOptions {
    /// Every line of both streams.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Of the lines that are there already, only the last `count`.
    #[must_use]
    pub fn tail(mut self, count: usize) -> Self {
        self.query.tail = Some(count);
        self
    }

    /// Only lines that began at this time or later.
    #[must_use]
    pub fn since(mut self, time: SystemTime) -> Self {
        self.query.since_us = Some(microseconds(time));
        self
    }

    /// Only lines that began before this time.
    #[must_use]
    pub fn until(mut self, time: SystemTime) -> Self {
        self.query.until_us = Some(microseconds(time));
        self
    }

    /// Only standard output.
    #[must_use]
    pub fn stdout(mut self) -> Self {
        self.query.stream = Some(Stream::Stdout);
        self
    }

    /// Only standard error.
    #[must_use]
    pub fn stderr(mut self) -> Self {
        self.query.stream = Some(Stream::Stderr);
        self
    }
}

fn microseconds(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}

/// The lines of a container as they are written. Dropping it ends the following.
pub struct LogLines {
    lines: Arc<Mutex<BoxStream<'static, Result<LogLine, crate::Failure>>>>,
}

impl LogLines {
    pub(crate) fn new(lines: BoxStream<'static, Result<LogLine, crate::Failure>>) -> Self {
        Self { lines: Arc::new(Mutex::new(lines)) }
    }

    /// The next line; `None` when the output has ended.
    ///
    /// # Errors
    ///
    /// The session keeper has ended meanwhile.
    #[track_caller]
    pub fn next_line(&mut self) -> Pending<Option<LogLine>> {
        let lines = Arc::clone(&self.lines);
        Pending::spawn(async move { lines.lock().await.next().await.transpose() })
    }
}

impl fmt::Debug for LogLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogLines").finish_non_exhaustive()
    }
}
