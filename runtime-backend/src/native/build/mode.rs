//! Permission bits as `--chmod` gives them.

use crate::build::step;
use serde::{Deserialize, Serialize};

/// What is to become of permissions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum ModeChange {
    /// These bits.
    Bits(u32),
    /// One change after the other, as chmod(1) reads them.
    Symbolic(Vec<Clause>),
}

/// One change, such as `go=rX`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Clause {
    /// Whose bits change, of `ugo`.
    who: String,
    /// `+`, `-` or `=`.
    operator: char,
    /// Of `rwxXst`, or one of `ugo`, whose bits are taken.
    what: String,
}

impl ModeChange {
    /// Reads what a step says.
    pub(crate) fn read(mode: &step::Mode) -> Result<Self, String> {
        match mode {
            step::Mode::Bits(bits) => Ok(Self::Bits(*bits)),
            step::Mode::Symbolic(text) => {
                let mut clauses = Vec::new();
                for part in text.split(',') {
                    read_part(part, &mut clauses)
                        .ok_or_else(|| format!("`{part}` changes no permissions"))?;
                }
                Ok(Self::Symbolic(clauses))
            }
        }
    }

    /// The permissions of what has `mode` now.
    pub(crate) fn apply(&self, mode: u32, directory: bool) -> u32 {
        match self {
            Self::Bits(bits) => *bits,
            Self::Symbolic(clauses) => {
                clauses.iter().fold(mode & 0o7777, |mode, clause| clause.apply(mode, directory))
            }
        }
    }
}

fn read_part(part: &str, clauses: &mut Vec<Clause>) -> Option<()> {
    let operators = ['+', '-', '='];
    let at = part.find(operators)?;
    let (who, mut rest) = part.split_at(at);
    let all = who.is_empty() || who.contains('a');
    let who = if all { "ugo".to_owned() } else { who.to_owned() };
    if !who.chars().all(|c| "ugo".contains(c)) {
        return None;
    }
    while let Some(operator) = rest.chars().next() {
        let end = rest[1..].find(operators).map_or(rest.len(), |end| end + 1);
        let what = &rest[1..end];
        let copied = matches!(what, "u" | "g" | "o");
        if !copied && !what.chars().all(|c| "rwxXst".contains(c)) {
            return None;
        }
        clauses.push(Clause { who: who.clone(), operator, what: what.to_owned() });
        rest = &rest[end..];
    }
    Some(())
}

impl Clause {
    fn apply(&self, mode: u32, directory: bool) -> u32 {
        let shift = |who: char| match who {
            'u' => 6,
            'g' => 3,
            _ => 0,
        };
        let mut bits = 0;
        for what in self.what.chars() {
            bits |= match what {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                'X' if directory || mode & 0o111 != 0 => 1,
                'u' | 'g' | 'o' => mode >> shift(what) & 7,
                _ => 0,
            };
        }
        let (mut set, mut covered) = (0, 0);
        for who in self.who.chars() {
            set |= bits << shift(who);
            covered |= 7 << shift(who);
            let special = match who {
                'u' => 0o4000,
                'g' => 0o2000,
                _ => 0,
            };
            if self.what.contains('s') {
                set |= special;
            }
            // A directory keeps these bits unless they are named (chmod(1)).
            covered |= if directory { 0 } else { special };
        }
        if self.what.contains('t') && self.who == "ugo" {
            set |= 0o1000;
        }
        match self.operator {
            '+' => mode | set,
            '-' => mode & !set,
            _ => mode & !covered | set,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, before: u32, directory: bool, after: u32) {
        let change = ModeChange::read(&step::Mode::Symbolic(text.to_owned())).unwrap();
        let found = change.apply(before, directory);
        assert_eq!(found, after, "{text}: {found:o}, not {after:o}");
    }

    /// `--chmod=u=rwX,go=rX` does what chmod(1) does.
    #[test]
    fn symbolic_modes_are_those_of_chmod() {
        check("u=rwX,go=rX", 0o600, false, 0o644);
        check("u=rwX,go=rX", 0o700, false, 0o755);
        check("u=rwX,go=rX", 0o700, true, 0o755);
        check("+x", 0o644, false, 0o755);
        check("a-w", 0o666, false, 0o444);
        check("u+s,g-r", 0o755, false, 0o4715);
        check("+t", 0o755, true, 0o1755);
        check("g=u", 0o640, false, 0o660);
        check("u=rw+x", 0o400, false, 0o700);
        for wrong in ["z+x", "u", "u+q", ""] {
            assert!(ModeChange::read(&step::Mode::Symbolic(wrong.to_owned())).is_err(), "{wrong}");
        }
    }
}
