//! Patterns of `.dockerignore` and `--exclude`, as moby's `patternmatcher` reads them.

/// Patterns in order; a later one overrides an earlier one.
#[derive(Debug, Default)]
pub(crate) struct Patterns(Vec<Pattern>);

#[derive(Debug)]
struct Pattern {
    /// What follows `!`: what is taken all the same.
    exception: bool,
    tokens: Vec<Token>,
    /// `**` and then plain characters: moby looks only whether the path ends so.
    suffix: Option<String>,
}

#[derive(Debug, PartialEq)]
enum Token {
    Is(char),
    /// `?`: anything but `/`.
    One,
    /// `*`: any number of anything but `/`.
    Any,
    /// `**` in the middle: any number of directories.
    Directories,
    /// `**` at the end.
    Rest,
    /// `[a-z]`
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// The lines of a `.dockerignore` that say something.
pub(crate) fn lines(text: &str) -> Vec<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::trim);
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

impl Patterns {
    /// Reads patterns, one a line. The error names the wrong one.
    pub(crate) fn new(lines: &[String]) -> Result<Self, String> {
        let read = |line: &String| Pattern::read(line.trim()).map_err(|why| format!("`{line}`: {why}"));
        let said = lines.iter().filter(|line| !line.trim().is_empty());
        said.map(read).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether something in a directory that is left out may be taken.
    pub(crate) fn has_exceptions(&self) -> bool {
        self.0.iter().any(|pattern| pattern.exception)
    }

    /// Whether the path, or a directory it is in, is left out. Paths are relative and have `/` between their parts.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let mut out = false;
        for pattern in &self.0 {
            if pattern.exception == out && and_above(path).any(|path| pattern.matches(path)) {
                out = !pattern.exception;
            }
        }
        out
    }
}

/// The path and the directories it is in.
fn and_above(path: &str) -> impl Iterator<Item = &str> {
    let above = path.match_indices('/').map(|(at, _)| &path[..at]);
    above.chain(std::iter::once(path))
}

impl Pattern {
    fn read(line: &str) -> Result<Self, String> {
        let (exception, text) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        if text.is_empty() {
            return Err("it excepts nothing".to_owned());
        }
        let clean = super::path::absolute("/", text);
        let clean = clean.trim_start_matches('/');
        let tokens = tokens(clean)?;
        let plain = clean.strip_prefix("**").filter(|rest| !rest.contains(['*', '?', '[', ']', '\\']));
        Ok(Self { exception, tokens, suffix: plain.map(str::to_owned) })
    }

    fn matches(&self, path: &str) -> bool {
        match &self.suffix {
            Some(suffix) => path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path),
            None => fits(&self.tokens, &path.chars().collect::<Vec<_>>()),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(c) = chars.get(at) {
        at += 1;
        tokens.push(match c {
            '*' if chars.get(at) == Some(&'*') => {
                at += 1;
                at += usize::from(chars.get(at) == Some(&'/'));
                if at == chars.len() { Token::Rest } else { Token::Directories }
            }
            '*' => Token::Any,
            '?' => Token::One,
            '[' => class(&chars, &mut at)?,
            '\\' => {
                let escaped = chars.get(at).ok_or("nothing follows the `\\`")?;
                at += 1;
                Token::Is(*escaped)
            }
            c => Token::Is(*c),
        });
    }
    Ok(tokens)
}

/// After the `[`.
fn class(chars: &[char], at: &mut usize) -> Result<Token, String> {
    let negated = chars.get(*at) == Some(&'^');
    *at += usize::from(negated);
    let mut ranges = Vec::new();
    loop {
        match chars.get(*at) {
            Some(']') if !ranges.is_empty() => {
                *at += 1;
                return Ok(Token::Class { negated, ranges });
            }
            _ => {
                let low = member(chars, at)?;
                let high = if chars.get(*at) == Some(&'-') {
                    *at += 1;
                    member(chars, at)?
                } else {
                    low
                };
                ranges.push((low, high));
            }
        }
    }
}

fn member(chars: &[char], at: &mut usize) -> Result<char, String> {
    let wrong = || "a `[` has no end, or something odd in it".to_owned();
    let mut c = *chars.get(*at).ok_or_else(wrong)?;
    if matches!(c, ']' | '-') {
        return Err(wrong());
    }
    if c == '\\' {
        *at += 1;
        c = *chars.get(*at).ok_or_else(wrong)?;
    }
    *at += 1;
    Ok(c)
}

/// Whether the tokens are the whole of `path`: for each token the places where what came before may have ended, so that
/// no pattern takes longer than its length times the path's.
fn fits(tokens: &[Token], path: &[char]) -> bool {
    let mut ends = vec![false; path.len() + 1];
    ends[0] = true;
    for token in tokens {
        let mut next = vec![false; path.len() + 1];
        // Whether the token may have begun here or before.
        let mut begun = false;
        for at in 0..=path.len() {
            let c = path.get(at);
            begun |= ends[at];
            match token {
                Token::Any | Token::Rest => {
                    next[at] = begun;
                    begun &= *token == Token::Rest || c != Some(&'/');
                }
                Token::Directories => {
                    next[at] |= ends[at];
                    if begun && c == Some(&'/') {
                        next[at + 1] = true;
                    }
                }
                single => {
                    if ends[at] && c.is_some_and(|c| single.is(*c)) {
                        next[at + 1] = true;
                    }
                }
            }
        }
        ends = next;
    }
    ends[path.len()]
}

impl Token {
    fn is(&self, c: char) -> bool {
        match self {
            Self::Is(wanted) => *wanted == c,
            Self::One => c != '/',
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
            Self::Any | Self::Directories | Self::Rest => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(patterns: &[&str], out: &[&str], kept: &[&str]) {
        let read: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let read = Patterns::new(&read).unwrap();
        let wrong: Vec<&str> = out.iter().filter(|path| !read.matches(path)).copied().collect();
        assert_eq!(wrong, [""; 0], "{patterns:?} should leave out");
        let wrong: Vec<&str> = kept.iter().filter(|path| read.matches(path)).copied().collect();
        assert_eq!(wrong, [""; 0], "{patterns:?} should keep");
    }

    /// What a `.dockerignore` leaves out is what Docker leaves out.
    #[test]
    fn patterns_mean_what_they_mean_to_docker() {
        check(&["target"], &["target", "target/a/b"], &["a/target", "targets", "src"]);
        check(&["/target/"], &["target", "target/a"], &["a/target"]);
        check(&["*.md"], &["a.md", "a.md/x"], &["a/b.md", "a.mdx"]);
        check(&["*/*.md"], &["a/b.md"], &["b.md", "a/b/c.md"]);
        check(&["**/*.md"], &["b.md", "a/b.md", "a/b/c.md"], &["a/b.mdx"]);
        check(&["**/node_modules"], &["node_modules", "a/b/node_modules/c"], &["a/node_modules_x"]);
        check(&["a/**/z"], &["a/z", "a/b/z", "a/b/c/z/y"], &["a/b", "z"]);
        check(&["a/**"], &["a/b", "a/b/c"], &["a", "b/a"]);
        check(&["**"], &["a", "a/b"], &[]);
        check(&["a?c", "[x-z]1", "[^a]2"], &["abc", "y1", "b2"], &["a/c", "w1", "a2"]);
        check(&["a\\*b", "./c", "d/../e"], &["a*b", "c", "e"], &["axb", "d"]);
        check(&["**foo"], &["foo", "a/foo", "a/barfoo", "barfoo"], &["a/foox"]);
        check(&["foo**bar"], &["foobar", "foox/bar"], &["fooxbar"]);
        check(&["*"], &["a", ".git", "a/b"], &[]);
    }

    /// `!` takes back what an earlier line left out, and a later line may leave it out again.
    #[test]
    fn exceptions_take_back() {
        check(&["*.md", "!README.md"], &["a.md"], &["README.md"]);
        check(&["*", "!src", "src/*.tmp"], &["a", "src/x.tmp"], &["src", "src/a.rs", "src/deep/x.tmp"]);
        check(&["!a", "a"], &["a"], &[]);
        check(&["a", "! a/b"], &["a", "a/c"], &["a/b", "a/b/d"]);
        check(&["**", "!**/*.go"], &["a", "a/b.rs"], &["a.go", "a/b.go"]);
    }

    /// Comments and blank lines say nothing, and a wrong pattern is named.
    #[test]
    fn lines_are_read() {
        assert_eq!(lines("\u{feff}# no\n a \n\n !b\r\n  # yes"), ["a", "!b", "# yes"]);
        let wrong = |text: &str| Patterns::new(&[text.to_owned()]).unwrap_err();
        assert_eq!(wrong("!"), "`!`: it excepts nothing");
        assert_eq!(wrong("a[b"), "`a[b`: a `[` has no end, or something odd in it");
        assert_eq!(wrong("a\\"), "`a\\`: nothing follows the `\\`");
    }

    /// A pattern full of stars does not stop a build.
    #[test]
    fn stars_take_no_time() {
        check(&[&"*a".repeat(50)], &[], &[&format!("{}b", "a".repeat(4000))]);
    }
}
