//! Globs of `COPY` and `ADD`, as Go's `path/filepath.Match` reads them, one part of a path at a time.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// Whether a pattern stands for anything but itself.
pub(super) fn has_wildcard(pattern: &str) -> bool {
    let mut escaped = false;
    pattern.chars().any(|c| {
        let wild = !escaped && matches!(c, '*' | '?' | '[');
        escaped = !escaped && c == '\\';
        wild
    })
}

/// What a pattern without wildcards stands for.
pub(super) fn unescape(pattern: &str) -> String {
    let mut plain = Vec::with_capacity(pattern.len());
    let mut bytes = pattern.bytes();
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
    }
    OsString::from_vec(plain).to_string_lossy().into_owned()
}

/// Whether `name`, one part of a path, is meant by `pattern`: as Go's `path/filepath.Match`.
pub(super) fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|skipped| glob(rest, &name[skipped..])),
        (Some(_), None) => false,
        (Some((b'?', rest)), Some((first, after))) => {
            // A character may have several bytes.
            let more = if *first >= 0xc0 {
                after.iter().take_while(|byte| **byte & 0xc0 == 0x80).count()
            } else {
                0
            };
            glob(rest, &after[more..])
        }
        (Some((b'[', rest)), Some((first, after))) => {
            class(rest, *first).is_some_and(|(matched, rest)| matched && glob(rest, after))
        }
        (Some((b'\\', rest)), Some((first, after))) if !rest.is_empty() => {
            rest[0] == *first && glob(&rest[1..], after)
        }
        (Some((wanted, rest)), Some((first, after))) => wanted == first && glob(rest, after),
    }
}

/// Whether a class such as `[^a-z]`, of which `pattern` is what follows the bracket, has this byte; and what follows it.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let negated = pattern.first() == Some(&b'^');
    let mut rest = if negated { &pattern[1..] } else { pattern };
    let mut matched = false;
    loop {
        let (low, after) = class_byte(rest)?;
        let (high, after) = match after.split_first() {
            Some((b'-', after)) => class_byte(after)?,
            _ => (low, after),
        };
        matched |= (low..=high).contains(&byte);
        rest = after;
        if let Some((b']', after)) = rest.split_first() {
            return Some((matched != negated, after));
        }
    }
}

fn class_byte(pattern: &[u8]) -> Option<(u8, &[u8])> {
    match pattern.split_first()? {
        (b'\\', rest) => rest.split_first().map(|(byte, rest)| (*byte, rest)),
        (b']' | b'-', _) => None,
        (byte, rest) => Some((*byte, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Globs mean what they mean to Docker.
    #[test]
    fn globs_match_as_in_go() {
        for (pattern, name) in [
            ("*", "anything"),
            ("a*b", "ab"),
            ("a?c", "aéc"),
            ("[a-c]x", "bx"),
            ("[^a-c]x", "dx"),
            ("\\*", "*"),
            ("*.t?t", "a.txt"),
        ] {
            assert!(glob(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in
            [("a", "ab"), ("[a-c]x", "dx"), ("?", ""), ("\\*", "x"), ("[", "["), ("*.md", "a.mdx")]
        {
            assert!(!glob(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }
}
