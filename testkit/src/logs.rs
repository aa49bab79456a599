//! What a container has written.

use crate::Stream;
use std::borrow::Cow;
use std::time::SystemTime;

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
        self.lines.iter().filter(|line| wanted(line)).fold(String::new(), |mut text, line| {
            text.push_str(&line.text());
            text.push('\n');
            text
        })
    }

    /// Everything as it was written, for the file that keeps the evidence.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|line| line.bytes.iter().copied().chain([b'\n'])).collect()
    }
}
