//! `--name=value` in front of an instruction's arguments.

use super::ast::Span;
use super::problem::Problem;

/// What flags an instruction has.
pub(super) struct Flags {
    lines: Span,
    given: Vec<(String, Option<String>)>,
}

impl Flags {
    /// Takes the flags off the arguments; `known` are the names that the instruction has, `repeated` those that may
    /// come more than once.
    pub(super) fn take<'t>(
        text: &'t str,
        lines: Span,
        instruction: &str,
        known: &[&str],
        repeated: &[&str],
    ) -> Result<(Self, &'t str), Problem> {
        let (mut given, mut rest) = (Vec::<(String, Option<String>)>::new(), text.trim());
        while rest.starts_with("--") {
            let (word, after) = word(rest);
            rest = after.trim_start();
            let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else { break };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let mark = format!("--{name}");
            if !known.contains(&name) && !repeated.contains(&name) {
                return Err(unknown(lines, instruction, name, &[known, repeated].concat()));
            }
            if !repeated.contains(&name) && given.iter().any(|(before, _)| before == name) {
                return Err(Problem::about(lines, &mark, format!("`{mark}` is given twice")));
            }
            given.push((name.to_owned(), value));
        }
        Ok((Self { lines, given }, rest))
    }

    /// The value of a flag that has to have one; an empty one is as if it was not there.
    pub(super) fn value(&self, name: &str) -> Result<Option<String>, Problem> {
        Ok(self.values(name)?.pop().filter(|value| !value.is_empty()))
    }

    /// The values of a flag that may come more than once.
    pub(super) fn values(&self, name: &str) -> Result<Vec<String>, Problem> {
        let these = self.given.iter().filter(|(given, _)| given == name);
        let value = |(_, value): &(String, Option<String>)| {
            value.clone().ok_or_else(|| {
                let mark = format!("--{name}");
                Problem::about(self.lines, &mark, format!("`{mark}` needs a value: `{mark}=…`"))
            })
        };
        these.map(value).collect()
    }

    /// A flag that is there or not: `--link`, `--link=true`, `--link=false`.
    pub(super) fn switch(&self, name: &str) -> Result<Option<bool>, Problem> {
        let Some((_, value)) = self.given.iter().find(|(given, _)| given == name) else { return Ok(None) };
        match value.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None | Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => {
                let message = format!("`--{name}` is `true` or `false`, not `{other}`");
                Err(Problem::about(self.lines, other, message))
            }
        }
    }
}

fn unknown(lines: Span, instruction: &str, name: &str, known: &[&str]) -> Problem {
    let mark = format!("--{name}");
    let problem = Problem::about(lines, &mark, format!("`{instruction}` has no flag `{mark}`"));
    match near(name, known.iter().copied()) {
        Some(near) => problem.hint(format!("did you mean `--{near}`?")),
        None => problem,
    }
}

/// One word, with its quotes and escapes taken off: the escape character of flags is always `\`.
fn word(text: &str) -> (String, &str) {
    let (mut word, mut quote) = (String::new(), None);
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, &text[at..]),
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ if c == '\\' && quote != Some('\'') => word.extend(chars.next().map(|(_, c)| c)),
            _ => word.push(c),
        }
    }
    (word, "")
}

/// The name that was probably meant: at most a third of it is different.
pub(crate) fn near<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let measured = names.map(|candidate| (distance(name, candidate), candidate));
    let (changes, nearest) = measured.min_by_key(|(changes, _)| *changes)?;
    let few = (nearest.len().max(name.len()) / 3).max(1);
    (changes <= few && changes < nearest.len()).then_some(nearest)
}

/// How many letters have to be added, taken away, changed, or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
