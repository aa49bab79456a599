//! Words of an instruction, with their quotes still on.

use super::ast::{Command, Heredoc, Span};
use super::problem::Problem;

/// Splits at blanks that are neither quoted nor escaped.
pub(super) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut quoted) = (String::new(), None, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if quoted || !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            quoted = false;
            continue;
        }
        match quote {
            None if c == '\'' || c == '"' => (quote, quoted) = (Some(c), true),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        // Nothing is escaped in single quotes, and the escape character at the very end is dropped.
        if c == escape && quote != Some('\'') {
            let Some(escaped) = chars.next() else { break };
            word.extend([c, escaped]);
            continue;
        }
        word.push(c);
    }
    if quoted || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Splits at blanks, whatever is quoted.
pub(super) fn blanks(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The first word and the rest.
pub(super) fn first(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(char::is_whitespace).map_or((text, ""), |(first, rest)| (first, rest.trim_start()))
}

/// A list of strings in JSON. What is no JSON is `None`, as Docker takes it for the other form; a list with something
/// else in it is an error there, too.
pub(super) fn json(text: &str, lines: Span) -> Result<Option<Vec<String>>, Problem> {
    if !text.trim_start().starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return Ok(None) };
    let string = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => Ok(text),
        other => {
            let other = other.to_string();
            let message = format!("`{other}` is not a string, and a JSON list has to be of strings only");
            Err(Problem::about(lines, &other, message))
        }
    };
    values.into_iter().map(string).collect::<Result<_, _>>().map(Some)
}

/// A command in either form.
pub(super) fn command(text: &str, lines: Span) -> Result<Command, Problem> {
    Ok(json(text, lines)?.map_or_else(|| Command::Shell(text.to_owned()), Command::Exec))
}

/// Whether the line is a heredoc and nothing else.
pub(crate) fn is_heredoc(line: &str, escape: char) -> bool {
    matches!(split(line, escape).as_slice(), [word] if heredoc(word).is_some())
}

/// The heredoc that this word begins, still without its lines: `<<EOF`, `<<-EOF`, `3<<"EOF"`.
pub(super) fn heredoc(word: &str) -> Option<Heredoc> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (strip_tabs, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let mut name = String::new();
    let (mut chars, mut quote) = (rest.chars(), None);
    while let Some(c) = chars.next() {
        match quote {
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            Some('\'') => name.push(c),
            _ if c == '\\' => name.extend(chars.next()),
            _ => name.push(c),
        }
    }
    let expand = name == rest;
    (!name.is_empty()).then_some(Heredoc { name, data: String::new(), expand, strip_tabs })
}
