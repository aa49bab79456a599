//! Ordinary users for tests: what works as root may not work for them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::run;

/// Whether a user has a range of further ids in `/etc/subuid` and `/etc/subgid`: without one, a container of this user
/// has a single id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// As `useradd` makes users.
    With,
    /// As on machines whose users come from a directory service.
    Without,
}

impl Ranges {
    fn user(self) -> &'static str {
        match self {
            Self::With => "shakedown-ranges",
            Self::Without => "shakedown-plain",
        }
    }
}

/// An ordinary user of this machine.
#[derive(Clone, Debug)]
pub(crate) struct User {
    /// The login name.
    pub(crate) name: String,
    /// The home directory.
    pub(crate) home: PathBuf,
}

impl User {
    /// The test user of this kind, made if it is not there. It stays: making users again and again uses up ranges.
    pub(crate) fn ensure(ranges: Ranges) -> Result<Self> {
        let name = ranges.user();
        if find(name)?.is_none() {
            eprintln!("making user {name}");
            run(Command::new("useradd").args(["--create-home", "--user-group", "--shell", "/bin/sh", name]))?;
        }
        set_ranges(name, ranges)?;
        find(name)?.with_context(|| format!("user {name} was made, but is not there"))
    }

    /// A command that becomes `program` of this user: with this user's groups and environment, and nothing of root's.
    pub(crate) fn command(&self, program: &str, variables: &[(String, String)]) -> Command {
        let mut command = Command::new("setpriv");
        // The bounding set as well: what a login of this user has, so that tests see what this user would see.
        command.args(["--reuid", &self.name, "--regid", &self.name, "--init-groups", "--inh-caps=-all"]);
        command.args(["--reset-env", "--", "env"]);
        command.args(variables.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg(program);
        command
    }
}

fn find(name: &str) -> Result<Option<User>> {
    let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    Ok(home_of(&users, name).map(|home| User { name: name.to_owned(), home: home.into() }))
}

fn home_of<'a>(users: &'a str, name: &str) -> Option<&'a str> {
    users
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(4)))?
}

/// Gives or takes the ranges in `/etc/subuid` and `/etc/subgid`.
fn set_ranges(name: &str, ranges: Ranges) -> Result<()> {
    for (file, add, remove) in
        [("/etc/subuid", "--add-subuids", "--del-subuids"), ("/etc/subgid", "--add-subgids", "--del-subgids")]
    {
        let text = fs::read_to_string(file).unwrap_or_default();
        match (ranges, own_range(&text, name)) {
            (Ranges::With, None) => {
                let start = next_free(&text);
                run(Command::new("usermod").arg(add).arg(format!("{start}-{}", start + 65_535)).arg(name))?;
            }
            (Ranges::Without, Some((start, count))) => {
                run(Command::new("usermod")
                    .arg(remove)
                    .arg(format!("{start}-{}", start + count - 1))
                    .arg(name))?;
            }
            _ => continue,
        }
        let now = fs::read_to_string(file).unwrap_or_default();
        if own_range(&now, name).is_some() != (ranges == Ranges::With) {
            bail!("the range of {name} in {file} could not be set");
        }
    }
    Ok(())
}

/// The ranges of a file like `/etc/subuid`: owner, first id, number of ids.
fn ranges_in(text: &str) -> impl Iterator<Item = (&str, u64, u64)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

fn own_range(text: &str, name: &str) -> Option<(u64, u64)> {
    ranges_in(text).find(|(owner, ..)| *owner == name).map(|(_, start, count)| (start, count))
}

/// An id from which on nobody has a range. Where they begin is Debian's `SUB_UID_MIN` (login.defs(5)).
fn next_free(text: &str) -> u64 {
    ranges_in(text).map(|(_, start, count)| start + count).max().unwrap_or(0).max(100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two users never share ids: the containers of one could then write the files of the other's.
    #[test]
    fn a_new_range_is_behind_all_others() {
        let text = "one:100000:65536\ntwo:165536:65536\nbroken\n";
        assert_eq!(next_free(text), 231_072);
        assert_eq!(next_free(""), 100_000);
        assert_eq!(own_range(text, "two"), Some((165_536, 65_536)));
        assert_eq!(own_range(text, "tw"), None);
    }

    /// The user's own home is used, not that of a user whose name begins alike.
    #[test]
    fn homes_are_found_by_the_whole_name() {
        let users =
            "orders-old:x:1000:1000::/old:/bin/sh\norders:x:1001:1001:Orders,,,:/home/orders:/bin/sh\n";
        assert_eq!(home_of(users, "orders"), Some("/home/orders"));
        assert_eq!(home_of(users, "nobody"), None);
    }
}
