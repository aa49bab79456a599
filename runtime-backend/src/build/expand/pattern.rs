//! The patterns of `${x#pattern}` and its siblings: `*` and `?`, and no brackets.

/// A pattern, ready to be matched.
#[derive(Debug)]
pub(super) struct Pattern(Vec<Token>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token {
    /// `*`
    Any,
    /// `?`
    One,
    Is(char),
}

impl Pattern {
    /// `\` escapes `*`, `?`, itself, and the `/` and `}` that would have ended the pattern; nothing else.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Any,
                '?' => Token::One,
                '\\' => match chars.next() {
                    Some(escaped @ ('*' | '?' | '\\' | '/' | '}')) => Token::Is(escaped),
                    other => {
                        let written = other.map_or_else(String::new, String::from);
                        return Err(format!("`\\{written}` may not stand in a pattern"));
                    }
                },
                c => Token::Is(c),
            });
        }
        Ok(Self(tokens))
    }

    pub(super) fn without_prefix(&self, value: &str, longest: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        let end = pick(0..=chars.len(), longest, |end| self.matches(&chars[..end]));
        chars[end.unwrap_or(0)..].iter().collect()
    }

    pub(super) fn without_suffix(&self, value: &str, longest: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        // The longest suffix is the one that begins first.
        let begin = pick(0..=chars.len(), !longest, |begin| self.matches(&chars[begin..]));
        chars[..begin.unwrap_or(chars.len())].iter().collect()
    }

    /// The first match, which is as long as can be, or all of them.
    pub(super) fn replace(&self, value: &str, replacement: &str, all: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        let (mut out, mut at) = (String::new(), 0);
        while at < chars.len() {
            match pick(at + 1..=chars.len(), true, |end| self.matches(&chars[at..end])) {
                Some(end) => {
                    out.push_str(replacement);
                    at = end;
                    if !all {
                        break;
                    }
                }
                None => {
                    out.push(chars[at]);
                    at += 1;
                }
            }
        }
        out.extend(&chars[at..]);
        out
    }

    /// Whether the pattern is all of `chars`. After a mismatch the last `*` takes one character more.
    fn matches(&self, chars: &[char]) -> bool {
        let (mut token, mut at) = (0, 0);
        let mut star = None;
        while at < chars.len() {
            match self.0.get(token) {
                Some(Token::Any) => {
                    star = Some((token, at));
                    token += 1;
                    continue;
                }
                Some(Token::One) => {}
                Some(Token::Is(c)) if *c == chars[at] => {}
                _ => {
                    let Some((back, from)) = star else { return false };
                    star = Some((back, from + 1));
                    (token, at) = (back + 1, from + 1);
                    continue;
                }
            }
            (token, at) = (token + 1, at + 1);
        }
        self.0[token..].iter().all(|token| *token == Token::Any)
    }
}

/// The last or the first of `range` that fits.
fn pick(
    mut range: std::ops::RangeInclusive<usize>,
    last: bool,
    fits: impl Fn(usize) -> bool,
) -> Option<usize> {
    if last { range.rev().find(|at| fits(*at)) } else { range.find(|at| fits(*at)) }
}
