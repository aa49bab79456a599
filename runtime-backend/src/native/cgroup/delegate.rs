//! Groups of cgroup v2 that an ordinary user, or root in a container, may have.
//!
//! A group that has processes cannot hand controllers to its children (cgroups(7), "no internal processes"). So what is
//! in it moves into a leaf first. Where the own group is not the user's to change, which is so after a login by ssh, the
//! user's systemd makes a scope for the launcher and hands it over.

use super::place::{self, Missing};
use crate::wait::{Poll, poll};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// The leaf into which the processes of a group move; others who do this give it the same name.
const LEAF: &str = "init";

/// How long systemd may take to make a scope.
const SCOPE: Duration = Duration::from_secs(10);

/// How often a group is emptied: its processes may make others meanwhile.
const ROUNDS: usize = 16;

/// The directory of the user's systemd and its bus, if there is one.
pub(super) fn bus() -> Option<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(format!("/run/user/{}", rustix::process::geteuid().as_raw())));
    let there = runtime.join("systemd/private").exists() && runtime.join("bus").exists();
    let tool = ["/usr/bin/busctl", "/bin/busctl"].iter().any(|path| Path::new(path).exists());
    (there && tool).then_some(runtime)
}

/// Whether systemd has handed this group over to the user (systemd.resource-control(5), `Delegate=`).
pub(super) fn is_delegated(group: &Path) -> bool {
    let mut value = [0_u8; 8];
    let marked = rustix::fs::getxattr(group, "user.delegate", &mut value);
    marked.is_ok_and(|length| value[..length] == *b"1")
}

/// The group itself, or the one above it if this is the leaf that another session has made there.
pub(super) fn above_leaf(own: &Path) -> PathBuf {
    let above = own.parent().filter(|parent| {
        own.file_name().is_some_and(|name| name == LEAF)
            && place::is_own(parent)
            && processes(parent).is_empty()
    });
    above.unwrap_or(own).to_owned()
}

fn processes(group: &Path) -> Vec<String> {
    let list = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    list.lines().map(str::to_owned).collect()
}

/// Moves the processes of a group into its leaf, so that it can have groups with limits. The hierarchy's real root, which
/// alone has no type, needs none of this.
pub(super) fn make_room(group: &Path) -> io::Result<()> {
    if !group.join("cgroup.type").exists() || processes(group).is_empty() {
        return Ok(());
    }
    let leaf = group.join(LEAF);
    fs::create_dir_all(&leaf)?;
    for _ in 0..ROUNDS {
        let all = processes(group);
        if all.is_empty() {
            return Ok(());
        }
        for process in all {
            match fs::write(leaf.join("cgroup.procs"), &process) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
    }
    Err(io::Error::other("its processes make others faster than they can be moved"))
}

/// Lets the user's systemd make a scope with the process `launcher` in it; returns its directory.
pub(super) async fn scope(session: &str, launcher: i32) -> Result<PathBuf, Missing> {
    let refused = |reason: String| {
        let hint = "leave the limit out; `systemctl --user status` says whether the user's systemd works";
        Missing::new(reason, hint)
    };
    let runtime = bus().ok_or_else(|| refused("the user's systemd has gone".to_owned()))?;
    let unit = format!("shakedown-{session}.scope");
    let launcher_text = launcher.to_string();
    let target =
        ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];
    let call = ["StartTransientUnit", "ssa(sv)a(sa(sv))", &unit, "fail", "2"];
    let properties = ["Delegate", "b", "true", "PIDs", "au", "1", &launcher_text, "0"];
    let asked = Command::new("busctl")
        .args(["--user", "call"])
        .args(target)
        .args(call)
        .args(properties)
        .env("XDG_RUNTIME_DIR", runtime)
        .output()
        .await
        .map_err(|error| refused(format!("busctl could not be run: {error}")))?;
    if !asked.status.success() {
        let words = String::from_utf8_lossy(&asked.stderr).trim().to_owned();
        return Err(refused(format!("systemd made no scope: {words}")));
    }
    let moved = poll(SCOPE, || async { arrived(launcher, &unit) }).await;
    moved.map_err(|missed| refused(format!("systemd made no scope: {}", missed.status)))
}

/// Where the process is, once that is in the scope. systemd answers before it has moved the process.
fn arrived(process: i32, unit: &str) -> Poll<PathBuf> {
    let own = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    let path = place::own_path(&own, str::is_empty);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Some(mount) = place::mounts(&mounts).find(|mount| mount.kind == "cgroup2") else {
        return Poll::Never("no cgroup2 is mounted".to_owned());
    };
    match path.split_once(unit) {
        Some((before, _)) => {
            Poll::Ready(mount.point().join(format!("{before}{unit}").trim_start_matches('/')))
        }
        None => Poll::NotYet(format!("the launcher is still in {path}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second session in a group finds the first one's leaf, and uses the group above it.
    #[test]
    fn a_leaf_is_not_parted_further() {
        let group = tempfile::tempdir().unwrap();
        let leaf = group.path().join(LEAF);
        fs::create_dir(&leaf).unwrap();
        fs::write(group.path().join("cgroup.procs"), "").unwrap();
        assert_eq!(above_leaf(&leaf), group.path());
        fs::write(group.path().join("cgroup.procs"), "17\n").unwrap();
        assert_eq!(above_leaf(&leaf), leaf, "processes above: that group is in use otherwise");
        assert_eq!(above_leaf(group.path()), group.path());
    }

    /// The real root needs no leaf: moving its processes would move the whole machine's.
    #[test]
    fn nothing_moves_out_of_the_real_root() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.procs"), "1\n").unwrap();
        make_room(root.path()).unwrap();
        assert!(!root.path().join(LEAF).exists());
    }
}
