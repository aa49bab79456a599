//! As whom the launcher runs, and how the ids of containers map to those of the host.

use super::super::sys;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// As whom containers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Root of the host, with the right to mount: no user namespace.
    Root,
    /// An ordinary user with a range of ids of their own (`/etc/subuid`): all ids of an image exist.
    Ranges,
    /// An ordinary user with their own id alone: one id exists in a container.
    Single,
}

/// Why ids could not be mapped.
#[derive(Debug)]
pub(crate) struct NotMapped(pub(crate) String);

impl Identity {
    /// What this process can be.
    pub(crate) fn detect() -> Self {
        let root = rustix::process::geteuid().is_root() && is_first_namespace();
        let may_mount = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        if root && may_mount {
            Self::Root
        } else if Ranges::find().is_some() {
            Self::Ranges
        } else {
            Self::Single
        }
    }

    /// Its name in the first message to the launcher: four bytes.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Ranges => "many",
            Self::Single => "self",
        }
    }

    /// The identity of this name.
    pub(super) fn named(name: &[u8]) -> Option<Self> {
        [Self::Root, Self::Ranges, Self::Single]
            .into_iter()
            .find(|identity| identity.name().as_bytes() == name)
    }

    /// Whether containers live in a user namespace.
    pub(crate) fn user_namespace(self) -> bool {
        self != Self::Root
    }

    /// The namespaces of the launcher, as `CLONE_*` flags.
    pub(super) fn namespaces(self) -> i32 {
        let all = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC;
        if self.user_namespace() { all | libc::CLONE_NEWUSER } else { all }
    }

    /// Maps ids into the user namespace of process `pid`; returns what it could map.
    ///
    /// Ranges need the set-user-id programs `newuidmap` and `newgidmap`; where they are refused, the own id is mapped.
    pub(super) fn map(self, pid: i32) -> Result<Self, NotMapped> {
        if self == Self::Root {
            return Ok(Self::Root);
        }
        if self == Self::Ranges
            && let Some(ranges) = Ranges::find()
            && ranges.map(pid)
        {
            return Ok(Self::Ranges);
        }
        let write = |file: &str, text: String| {
            let path = format!("/proc/{pid}/{file}");
            fs::write(&path, &text).map_err(|error| NotMapped(format!("writing `{text}` to {path}: {error}")))
        };
        write("uid_map", format!("0 {} 1", rustix::process::geteuid().as_raw()))?;
        // Without this, a process could give up a group that denies it something (user_namespaces(7)).
        write("setgroups", "deny".to_owned())?;
        write("gid_map", format!("0 {} 1", rustix::process::getegid().as_raw()))?;
        Ok(Self::Single)
    }
}

/// The ranges of ids given to this user.
struct Ranges {
    uid: (u32, u32),
    gid: (u32, u32),
}

impl Ranges {
    fn find() -> Option<Self> {
        let id = rustix::process::geteuid().as_raw().to_string();
        let name = user_name(&id);
        let read = |file: &str| {
            let text = fs::read_to_string(file).ok()?;
            range(&text, &id, name.as_deref())
        };
        let programs = ["newuidmap", "newgidmap"].iter().all(|program| in_path(program));
        Some(Self { uid: read("/etc/subuid")?, gid: read("/etc/subgid")? }).filter(|_| programs)
    }

    fn map(&self, pid: i32) -> bool {
        let run = |program: &str, own: u32, (first, count): (u32, u32)| {
            let arguments = [pid as u32, 0, own, 1, 1, first, count].map(|number| number.to_string());
            Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
        };
        run("newuidmap", rustix::process::geteuid().as_raw(), self.uid)
            && run("newgidmap", rustix::process::getegid().as_raw(), self.gid)
    }
}

/// The first further user and group id of this user, and how many there are of each.
pub(crate) fn further_ids() -> Option<[(u32, u32); 2]> {
    Ranges::find().map(|Ranges { uid, gid }| [uid, gid])
}

/// Whether this is the host's own user namespace: in another one, root is an ordinary user with a new name.
fn is_first_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn user_name(id: &str) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.get(2) == Some(&id)).map(|fields| fields[0].to_owned())
}

/// The first range of at least 65,534 ids for this user, by name or by number (subuid(5)).
fn range(text: &str, id: &str, name: Option<&str>) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let [user, first, count] = line.trim().split(':').collect::<Vec<_>>().try_into().ok()?;
        let (first, count) = (first.parse().ok()?, count.parse().ok()?);
        (count >= 65_534 && (user == id || Some(user) == name)).then_some((first, count))
    })
}

/// Whether the kernel lets an ordinary user make user namespaces, and if not, why and what to do.
pub(super) fn namespaces_forbidden(call: &sys::CallError) -> (String, Vec<String>) {
    let parameter = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let switches = [
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("user.max_user_namespaces", "0", "15000"),
    ];
    for (name, off, on) in switches {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        if Path::new(&path).exists() && parameter(&path).as_deref() == Some(off) {
            let reason = format!("user namespaces are off ({name} = {off})");
            return (reason, vec![format!("`sudo sysctl {name}={on}`")]);
        }
    }
    // Every kernel on which the launcher works has the call. Docker's default filter answers so for it.
    if call.errno == Errno::NOSYS {
        let reason =
            format!("namespaces cannot be made: {call}: the seccomp filter of a container forbids it");
        let hint = "start the outer container with `--security-opt seccomp=unconfined \
            --security-opt systempaths=unconfined`, as root also with `--cap-add SYS_ADMIN --cap-add NET_ADMIN`";
        return (reason, vec![hint.to_owned()]);
    }
    (format!("namespaces cannot be made: {call}"), Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a container with Docker's default filter, the reason is the filter and not the kernel's age.
    #[test]
    fn a_filter_is_told_as_such() {
        let call = sys::CallError { call: "clone3(0x78020000)".to_owned(), errno: Errno::NOSYS };
        let (reason, hints) = namespaces_forbidden(&call);
        // On a machine where a switch is off, that is the reason.
        if !reason.starts_with("user namespaces are off") {
            assert!(reason.contains("seccomp filter of a container"), "{reason}");
            assert!(hints[0].contains("seccomp=unconfined"), "{hints:?}");
        }
    }

    /// A range is found by name or number, and only if an image's ids fit into it.
    #[test]
    fn ranges_are_read_as_shadow_writes_them() {
        let text = "alice:100000:65536\n1001:300000:65536\nbob:500000:1000\n";
        assert_eq!(range(text, "1000", Some("alice")), Some((100_000, 65_536)));
        assert_eq!(range(text, "1001", None), Some((300_000, 65_536)));
        assert_eq!(range(text, "1002", Some("bob")), None);
    }
}
