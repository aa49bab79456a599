//! Words as Docker's builder reads them: quotes, escapes and variables, which are like a shell's and not the same.
//!
//! The rules are those of the Dockerfile reference, "Environment replacement"; the corners, such as an unset variable
//! being empty and `$1` being a name, are what BuildKit does.

mod pattern;

use pattern::Pattern;

/// How texts are expanded: the Dockerfile's escape character, and what variables hold.
#[derive(Clone, Copy)]
pub(crate) struct Expander<'a> {
    pub(crate) escape: char,
    pub(crate) lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl Expander<'_> {
    /// One word, whatever blanks come into it.
    pub(crate) fn word(&self, text: &str) -> Result<String, String> {
        Ok(self.scan(text, true)?.whole)
    }

    /// Words, split at blanks that are not quoted: also at those that come out of variables.
    pub(crate) fn words(&self, text: &str) -> Result<Vec<String>, String> {
        Ok(self.scan(text, true)?.finish())
    }

    /// A heredoc: quotes mean nothing in it.
    pub(crate) fn document(&self, text: &str) -> Result<String, String> {
        Ok(self.scan(text, false)?.whole)
    }

    fn scan(&self, text: &str, quotes: bool) -> Result<Out, String> {
        let mut scanner = Scanner { with: *self, quotes, chars: text.chars().collect(), at: 0 };
        scanner.until(None, false)
    }
}

/// What has been expanded so far, as one text and as words.
#[derive(Default)]
struct Out {
    whole: String,
    words: Vec<String>,
    word: String,
    in_word: bool,
}

impl Out {
    /// What blanks split.
    fn open(&mut self, text: &str) {
        self.whole.push_str(text);
        for c in text.chars() {
            if !c.is_whitespace() {
                self.word.push(c);
                self.in_word = true;
            } else if self.in_word && !self.word.is_empty() {
                self.words.push(std::mem::take(&mut self.word));
                self.in_word = false;
            }
        }
    }

    /// What blanks do not split: it was quoted.
    fn closed(&mut self, text: &str) {
        self.whole.push_str(text);
        self.word.push_str(text);
        self.in_word = true;
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        self.words
    }
}

struct Scanner<'a> {
    with: Expander<'a>,
    quotes: bool,
    chars: Vec<char>,
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    /// Up to `stop`, which is taken, or to the end. `raw` keeps escape characters: patterns need them.
    fn until(&mut self, stop: Option<char>, raw: bool) -> Result<Out, String> {
        let mut out = Out::default();
        while let Some(c) = self.next() {
            match c {
                _ if Some(c) == stop => return Ok(out),
                '$' => out.open(&self.variable()?),
                '\'' if self.quotes => out.closed(&self.single_quoted()?),
                '"' if self.quotes => out.closed(&self.double_quoted(raw)?),
                _ if c == self.with.escape => {
                    if raw {
                        out.closed(&c.to_string());
                    }
                    // The escape character at the very end stands for nothing.
                    if let Some(escaped) = self.next() {
                        out.closed(&escaped.to_string());
                    }
                }
                _ => out.open(c.encode_utf8(&mut [0; 4])),
            }
        }
        match stop {
            Some('}') => Err("a `${` has no `}`".to_owned()),
            Some(stop) => Err(format!("a `${{` has no `{stop}`")),
            None => Ok(out),
        }
    }

    fn single_quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.next() {
                Some('\'') => return Ok(text),
                Some(c) => text.push(c),
                None => return Err("a `'` has no second one".to_owned()),
            }
        }
    }

    fn double_quoted(&mut self, raw: bool) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(text),
                Some('$') => text.push_str(&self.variable()?),
                Some(c) if c == self.with.escape => {
                    if raw {
                        text.push(c);
                    }
                    match self.peek() {
                        Some(next) if next == '"' || next == '$' || next == self.with.escape => {
                            self.at += 1;
                            text.push(next);
                        }
                        Some(_) => text.push(c),
                        None => {}
                    }
                }
                Some(c) => text.push(c),
                None => return Err("a `\"` has no second one".to_owned()),
            }
        }
    }

    /// After a `$`.
    fn variable(&mut self) -> Result<String, String> {
        if self.peek() != Some('{') {
            let name = self.name();
            return Ok(if name.is_empty() { "$".to_owned() } else { self.value(&name).unwrap_or_default() });
        }
        self.at += 1;
        if let None | Some('{' | '}' | ':') = self.peek() {
            return Err("a `${` has no name".to_owned());
        }
        let name = self.name();
        match self.next() {
            None => Err("a `${` has no `}`".to_owned()),
            Some('}') => Ok(self.value(&name).unwrap_or_default()),
            Some('/') => self.replaced(&name),
            Some(':') => {
                let modifier = self.next();
                self.modified(&name, modifier, true)
            }
            modifier => self.modified(&name, modifier, false),
        }
    }

    /// After `${name` and its modifier.
    fn modified(
        &mut self,
        name: &str,
        modifier: Option<char>,
        empty_is_unset: bool,
    ) -> Result<String, String> {
        let Some(modifier @ ('+' | '-' | '?' | '#' | '%')) = modifier else {
            let written = modifier.map_or_else(String::new, String::from);
            let colon = if empty_is_unset { ":" } else { "" };
            return Err(format!("`${{{name}{colon}{written}…}}` is not a form that there is"));
        };
        let argument = self.until(Some('}'), matches!(modifier, '#' | '%'))?.whole;
        let value = self.value(name);
        let there = value.clone().filter(|value| !empty_is_unset || !value.is_empty());
        match modifier {
            '-' => Ok(there.unwrap_or(argument)),
            '+' => Ok(there.map_or_else(String::new, |_| argument)),
            '?' => there.ok_or_else(|| match (argument.is_empty(), value) {
                (false, _) => format!("`{name}`: {argument}"),
                (true, None) => format!("`{name}` has to be set"),
                (true, Some(_)) => format!("`{name}` may not be empty"),
            }),
            _ => {
                let (longest, argument) = match argument.strip_prefix(modifier) {
                    Some(rest) => (true, rest),
                    None => (false, argument.as_str()),
                };
                let (pattern, value) = (Pattern::read(argument)?, value.unwrap_or_default());
                Ok(if modifier == '#' {
                    pattern.without_prefix(&value, longest)
                } else {
                    pattern.without_suffix(&value, longest)
                })
            }
        }
    }

    /// After `${name/`.
    fn replaced(&mut self, name: &str) -> Result<String, String> {
        let all = self.peek() == Some('/');
        self.at += usize::from(all);
        let pattern = Pattern::read(&self.until(Some('/'), true)?.whole)?;
        let replacement = self.until(Some('}'), true)?.whole;
        Ok(pattern.replace(&self.value(name).unwrap_or_default(), &replacement, all))
    }

    /// Letters, digits and `_`; digits alone; or one of the characters that are parameters in a shell.
    fn name(&mut self) -> String {
        let begin = self.at;
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while self.peek().is_some_and(char::is_numeric) {
                    self.at += 1;
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => self.at += 1,
            _ => {
                while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    self.at += 1;
                }
            }
        }
        self.chars[begin..self.at].iter().collect()
    }

    fn value(&self, name: &str) -> Option<String> {
        (self.with.lookup)(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(text: &str, read: impl Fn(&Expander<'_>, &str) -> T) -> T {
        let lookup = |name: &str| match name {
            "x" => Some("value".to_owned()),
            "empty" => Some(String::new()),
            "blank" => Some("a  b".to_owned()),
            "path" => Some("/usr/share/orders.tar.gz".to_owned()),
            "stars" => Some("a*b*c".to_owned()),
            _ => None,
        };
        read(&Expander { escape: '\\', lookup: &lookup }, text)
    }

    #[track_caller]
    fn expands(text: &str, expected: &str) {
        assert_eq!(with(text, |with, text| with.word(text)).as_deref(), Ok(expected), "{text}");
    }

    #[track_caller]
    fn refuses(text: &str, reason: &str) {
        assert_eq!(with(text, |with, text| with.word(text)), Err(reason.to_owned()), "{text}");
    }

    /// Variables are replaced where Docker replaces them.
    #[test]
    fn variables_are_replaced() {
        expands("$x ${x}y $x-y $xy", "value valuey value-y ");
        expands("a$", "a$");
        expands("$. $1 ${10} $$", "$.   ");
        expands("héllo $x", "héllo value");
    }

    /// Quotes and escapes keep variables as they are, and are taken off.
    #[test]
    fn quotes_and_escapes_protect() {
        expands(r#"'$x' "$x" \$x "\$x" '\$x'"#, r"$x value $x $x \$x");
        expands(r#""a'b" 'a"b' a\ b \\ "\a" \"#, r#"a'b a"b a b \ \a "#);
        refuses("'a", "a `'` has no second one");
        refuses("\"a", "a `\"` has no second one");
    }

    /// Defaults, alternatives and demands work on unset and on empty variables.
    #[test]
    fn defaults_alternatives_and_demands() {
        expands("${x:-d} ${no:-d} ${empty:-d} ${empty-d} ${no-d} ${no}", "value d d  d ");
        expands("${x:+a} ${no:+a} ${empty:+a} ${empty+a} ${no+a}", "a   a ");
        expands("${no:-${x}} ${no:-'}'} ${no:-$path}", "value } /usr/share/orders.tar.gz");
        expands("${x?} ${x:?} ${empty?}", "value value ");
        refuses("${no?}", "`no` has to be set");
        refuses("${empty:?}", "`empty` may not be empty");
        refuses("${no:?give a version}", "`no`: give a version");
    }

    /// Parts of a value are cut off as a shell cuts them.
    #[test]
    fn patterns_cut() {
        expands("${path#*/} ${path##*/}", "usr/share/orders.tar.gz orders.tar.gz");
        expands("${path%.*} ${path%%.*}", "/usr/share/orders.tar /usr/share/orders");
        expands("${path#x} ${path#/???/} ${no#x}", "/usr/share/orders.tar.gz share/orders.tar.gz ");
        expands(r"${stars#a\*} ${stars%\**}", "b*c a*b");
        expands("${path/r/R} ${path//r/R}", "/usR/share/orders.tar.gz /usR/shaRe/oRdeRs.taR.gz");
        expands(
            r"${path//\//_} ${path/o*s/x} ${path/zz/x}",
            "_usr_share_orders.tar.gz /usr/share/x.tar.gz /usr/share/orders.tar.gz",
        );
        refuses(r"${path#\a}", r"`\a` may not stand in a pattern");
    }

    /// A substitution that Docker does not know is told.
    #[test]
    fn wrong_substitutions_are_told() {
        refuses("${", "a `${` has no name");
        refuses("${}", "a `${` has no name");
        refuses("${:x}", "a `${` has no name");
        refuses("${x", "a `${` has no `}`");
        refuses("${x:-d", "a `${` has no `}`");
        refuses("${x/a}", "a `${` has no `/`");
        refuses("${x^^}", "`${x^…}` is not a form that there is");
        refuses("${x:=d}", "`${x:=…}` is not a form that there is");
    }

    /// `EXPOSE $PORTS` with two ports is two words; a quoted blank is not a border.
    #[test]
    fn words_are_split_after_replacement() {
        let words = |text: &str| with(text, |with, text| with.words(text)).unwrap();
        assert_eq!(words("$blank c"), ["a", "b", "c"]);
        assert_eq!(words("\"$blank\" c\\ d ''"), ["a  b", "c d"]);
        assert_eq!(words(""), [""; 0]);
    }

    /// A heredoc of a `COPY` keeps its quotes.
    #[test]
    fn documents_keep_quotes() {
        let document = with("say \"$x\" it's \\$x\n", |with, text| with.document(text));
        assert_eq!(document.unwrap(), "say \"value\" it's $x\n");
    }
}
