//! What is wrong with a Dockerfile, where, and how it is shown.

use super::ast::Span;
use shakedown_spec::{Failure, FailureKind};

/// Something wrong with some lines.
#[derive(Debug)]
pub(crate) struct Problem {
    lines: Span,
    /// The text to underline, if it is found in these lines.
    mark: String,
    message: String,
    hint: Option<String>,
}

impl Problem {
    pub(super) fn at(line: usize, message: impl Into<String>) -> Self {
        Self::about(Span { first: line, last: line }, "", message)
    }

    pub(super) fn about(lines: Span, mark: &str, message: impl Into<String>) -> Self {
        Self { lines, mark: mark.to_owned(), message: message.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn failure(self, name: &str, source: &[String]) -> Failure {
        let (number, column) = self.place(source);
        let title = format!("{name} cannot be built: {}", self.message);
        let mut failure = Failure::new(FailureKind::Invalid, title);
        if let Some(line) = source.get(number - 1) {
            let place = column.map_or_else(String::new, |(column, _)| format!(":{}", column + 1));
            let quoted = match column {
                Some((column, width)) => format!("{line}\n{}{}", " ".repeat(column), "^".repeat(width)),
                None => line.clone(),
            };
            // Tabs would put the caret elsewhere.
            failure =
                failure.fact("at", format!("{name}:{number}{place}")).fact("line", quoted.replace('\t', " "));
        }
        match self.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// The line to quote, and where the mark is in it: column from 0 and width, in characters.
    fn place(&self, source: &[String]) -> (usize, Option<(usize, usize)>) {
        if !self.mark.is_empty() {
            for number in self.lines.first..=self.lines.last {
                let Some(line) = source.get(number.wrapping_sub(1)) else { continue };
                if let Some(byte) = find(line, &self.mark) {
                    let column = line[..byte].chars().count();
                    return (number, Some((column, self.mark.chars().count())));
                }
            }
        }
        (self.lines.first.max(1), None)
    }
}

/// As a word of its own if it is one somewhere, else as a part of one.
fn find(line: &str, mark: &str) -> Option<usize> {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let alone = line
        .match_indices(mark)
        .map(|(at, _)| at)
        .find(|at| !part(line[..*at].chars().next_back()) && !part(line[at + mark.len()..].chars().next()));
    alone.or_else(|| line.find(mark))
}
