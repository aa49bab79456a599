//! From the lines of a file to the lines that are meant: directives read, comments gone, continuations joined, heredocs
//! gathered.

use super::ast::{Heredoc, Span};
use super::problem::Problem;
use super::words;

/// A file's instructions, each on one line.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) escape: char,
    pub(super) logical: Vec<Logical>,
}

/// One instruction.
#[derive(Debug)]
pub(super) struct Logical {
    pub(super) lines: Span,
    pub(super) text: String,
    pub(super) heredocs: Vec<Heredoc>,
}

/// A file with a longer line is none that was written.
const LONGEST_LINE: usize = 1024 * 1024;

pub(super) fn read(text: &str) -> Result<Lines, Problem> {
    // Editors of other systems begin files with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let physical: Vec<&str> = text.split_inclusive('\n').collect();
    if let Some(long) = physical.iter().position(|line| line.len() > LONGEST_LINE) {
        return Err(Problem::at(long + 1, "the line is longer than 1 MiB"));
    }
    if let Some(zero) = physical.iter().position(|line| line.contains('\0')) {
        return Err(Problem::at(zero + 1, "the line has a zero byte"));
    }
    let escape = directives(&physical)?;
    let mut reader = Reader { physical, at: 0, escape };
    let mut logical = Vec::new();
    while let Some(line) = reader.logical()? {
        logical.push(line);
    }
    Ok(Lines { escape, logical })
}

/// `# name=value` at the top of the file, up to the first line that is none. Gives the escape character.
fn directives(physical: &[&str]) -> Result<char, Problem> {
    let (mut escape, mut seen) = ('\\', Vec::new());
    for (index, line) in physical.iter().enumerate() {
        let Some((name, value)) = directive(line) else { break };
        let number = index + 1;
        if seen.contains(&name) {
            return Err(Problem::at(number, format!("the directive `{name}` is given twice")));
        }
        if name == "escape" {
            escape = match value {
                "\\" => '\\',
                "`" => '`',
                other => {
                    let message = format!("`{other}` cannot be the escape character: it is \\ or `");
                    return Err(Problem::about(Span { first: number, last: number }, other, message));
                }
            };
        }
        seen.push(name);
    }
    Ok(escape)
}

/// Names in lower case; a name that there is not makes the line a comment like any other.
fn directive(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.trim().strip_prefix('#')?.split_once('=')?;
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    (matches!(name.as_str(), "syntax" | "escape" | "check") && !value.is_empty()).then_some((name, value))
}

struct Reader<'a> {
    /// With their line ends.
    physical: Vec<&'a str>,
    at: usize,
    escape: char,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let line = self.physical.get(self.at)?;
        self.at += 1;
        Some(line.trim_end_matches(['\n', '\r']))
    }

    fn logical(&mut self) -> Result<Option<Logical>, Problem> {
        let (first, mut text, mut more) = loop {
            let Some(line) = self.next() else { return Ok(None) };
            let line = line.trim_start();
            if !line.is_empty() && !is_comment(line) {
                let (text, more) = self.continued(line);
                break (self.at, text.to_owned(), more);
            }
        };
        // Comments and empty lines may stand between continued lines.
        while more {
            let Some(line) = self.next() else { break };
            if !line.trim().is_empty() && !is_comment(line) {
                let (part, again) = self.continued(line);
                text.push_str(part);
                more = again;
            }
        }
        let heredocs = self.heredocs(&text, first)?;
        let text = text.trim().to_owned();
        // Only a lone escape character: nothing is left of it.
        if text.is_empty() {
            return self.logical();
        }
        Ok(Some(Logical { lines: Span { first, last: self.at }, text, heredocs }))
    }

    /// The line without the escape character at its end, and whether there was one. Two of them are an escaped one.
    fn continued<'l>(&self, line: &'l str) -> (&'l str, bool) {
        let body = line.trim_end_matches([' ', '\t']).strip_suffix(self.escape);
        match body {
            Some(body) if !body.ends_with(self.escape) => (body, true),
            _ => (line, false),
        }
    }

    fn heredocs(&mut self, text: &str, first: usize) -> Result<Vec<Heredoc>, Problem> {
        let (name, mut rest) = words::first(text);
        let mut name = name.to_ascii_uppercase();
        if name == "ONBUILD" {
            let (inner, after) = words::first(rest);
            (name, rest) = (inner.to_ascii_uppercase(), after);
        }
        let takes = matches!(name.as_str(), "RUN" | "COPY" | "ADD");
        let span = Span { first, last: self.at };
        let arguments = rest.trim_start();
        if !takes || !text.contains("<<") || words::json(arguments, span).is_ok_and(|list| list.is_some()) {
            return Ok(Vec::new());
        }
        let begun = words::split(rest, self.escape).into_iter().filter_map(|word| words::heredoc(&word));
        begun.map(|heredoc| self.body(heredoc, span)).collect()
    }

    /// The lines up to the one that is the heredoc's name.
    fn body(&mut self, mut heredoc: Heredoc, span: Span) -> Result<Heredoc, Problem> {
        while let Some(line) = self.physical.get(self.at) {
            self.at += 1;
            let content = line.trim_end_matches(['\n', '\r']);
            let content = if heredoc.strip_tabs { content.trim_start_matches('\t') } else { content };
            if content == heredoc.name {
                return Ok(heredoc);
            }
            heredoc.data.push_str(line);
        }
        let message = format!("the heredoc `{}` has no end", heredoc.name);
        Err(Problem::about(span, &heredoc.name, message)
            .hint(format!("put a line after it that is `{}` and nothing else", heredoc.name)))
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}
