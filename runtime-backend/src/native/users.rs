//! Names of users and groups, resolved in the container's own `/etc/passwd` and `/etc/group`, as Docker resolves them.

use std::path::PathBuf;

/// Whom a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Home directory, `/` if unknown.
    pub(crate) home: String,
}

/// The container's files that name users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    /// `/etc/passwd`.
    pub(crate) passwd: String,
    /// `/etc/group`.
    pub(crate) group: String,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Accounts {
    /// The files to read, in the order [`read`](Self::read) takes them.
    pub(crate) fn paths() -> Vec<PathBuf> {
        ["/etc/passwd", "/etc/group"].map(PathBuf::from).into()
    }

    /// From the texts of the files.
    pub(crate) fn read(texts: Vec<String>) -> Self {
        let mut texts = texts.into_iter();
        Self { passwd: texts.next().unwrap_or_default(), group: texts.next().unwrap_or_default() }
    }

    /// Resolves `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    ///
    /// A number needs no entry; a name does. `0001` is 1, and what is neither a name nor a number is an error: an id
    /// that could not be read must never become root (CVE-2026-30892).
    pub(crate) fn resolve(&self, text: &str) -> Result<User, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let entry = self.users().find(|entry| entry.name == user);
        let entry =
            entry.or_else(|| number(user).and_then(|uid| self.users().find(|entry| entry.uid == uid)));
        let uid = match (&entry, number(user)) {
            (Some(entry), _) => entry.uid,
            (None, Some(uid)) => uid,
            (None, None) => return Err(format!("there is no user `{user}` in the container's /etc/passwd")),
        };
        let (gid, groups) = match group {
            Some(group) => (self.group_id(group)?, Vec::new()),
            None => {
                let gid = entry.as_ref().map_or(0, |entry| entry.gid);
                (gid, entry.as_ref().map_or_else(Vec::new, |entry| self.groups_of(entry.name)))
            }
        };
        let home = entry.map_or("/", |entry| entry.home).to_owned();
        Ok(User { uid, gid, groups, home })
    }

    fn users(&self) -> impl Iterator<Item = PasswdEntry<'_>> {
        self.passwd.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, ..] = fields[..] else { return None };
            let home = fields.get(5).copied().filter(|home| !home.is_empty()).unwrap_or("/");
            Some(PasswdEntry { name, uid: number(uid)?, gid: number(gid)?, home })
        })
    }

    /// The id of a group, by its name or its number.
    pub(crate) fn group(&self, group: &str) -> Result<u32, String> {
        self.group_id(group)
    }

    fn group_id(&self, group: &str) -> Result<u32, String> {
        let named = self.group.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            if fields.first() == Some(&group) { number(fields.get(2)?) } else { None }
        });
        named
            .or_else(|| number(group))
            .ok_or_else(|| format!("there is no group `{group}` in the container's /etc/group"))
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let member = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let listed = fields.get(3)?.split(',').any(|name| name == user);
            if listed { number(fields.get(2)?) } else { None }
        };
        self.group.lines().filter_map(member).collect()
    }
}

/// An id the kernel takes: -1, all bits set, means "unchanged" there, and `+5` is no number here.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\npostgres:x:999:998::/var/lib/postgresql:\n".to_owned(),
            group: "root:x:0:\nssl-cert:x:101:postgres,other\npostgres:x:998:\n".to_owned(),
        }
    }

    #[track_caller]
    fn resolves(text: &str, uid: u32, gid: u32, groups: &[u32]) {
        let user = accounts().resolve(text).unwrap();
        assert_eq!((user.uid, user.gid, &user.groups[..]), (uid, gid, groups), "{text}");
    }

    /// `USER` means the same as under Docker, and nothing unreadable becomes root.
    #[test]
    fn users_are_resolved_as_docker_resolves_them() {
        resolves("", 0, 0, &[]);
        resolves("postgres", 999, 998, &[101]);
        resolves("999", 999, 998, &[101]);
        resolves("postgres:ssl-cert", 999, 101, &[]);
        resolves("1234", 1234, 0, &[]);
        resolves("1234:5678", 1234, 5678, &[]);
        resolves(":101", 0, 101, &[]);
        resolves("0001", 1, 0, &[]);
        for wrong in ["nobody", "-1", "4294967295", "1x", "postgres:nogroup", "+1"] {
            assert!(accounts().resolve(wrong).is_err(), "{wrong}");
        }
        assert_eq!(accounts().resolve("postgres").unwrap().home, "/var/lib/postgresql");
    }
}
