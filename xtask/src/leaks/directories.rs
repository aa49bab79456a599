//! Run directories: one directory per session, of a keeper that lives or of one that died.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Found;

/// Held by the keeper for its life; in the session's directory.
const LIFE_LOCK: &str = "lock";

pub(super) fn look(found: &mut Found) {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    for directory in run_directories() {
        look_in(&directory, &locks, found);
    }
}

/// Every place where a keeper of any user puts its sessions.
fn run_directories() -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::from([PathBuf::from("/run/shakedown")]);
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    all.extend(variable("SHAKEDOWN_RUN_DIR"));
    all.extend(variable("XDG_RUNTIME_DIR").map(|directory| directory.join("shakedown")));
    all.extend(below("/run/user").map(|directory| directory.join("shakedown")));
    let of_user = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        let user = name.and_then(|name| name.strip_prefix("shakedown-"));
        user.is_some_and(|user| !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_digit()))
    };
    all.extend(below("/tmp").filter(|path| of_user(path)));
    all
}

fn below(directory: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn look_in(directory: &Path, locks: &str, found: &mut Found) {
    match fs::read_dir(directory) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => return found.unseen(format!("{}: {error}", directory.display())),
    }
    for path in below(directory.join("sessions")) {
        let lock = fs::metadata(path.join(LIFE_LOCK));
        let lives = lock.is_ok_and(|lock| is_locked(locks, lock.dev(), lock.ino()));
        let detail = if lives { "session, its keeper lives" } else { "session, its keeper is gone" };
        found.add("directory", path.to_string_lossy(), detail);
    }
    for path in below(directory).filter(|path| path.file_name().is_some_and(|name| name != "sessions")) {
        let empty = fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
        if !empty {
            found.add("directory", path.to_string_lossy(), "in a run directory");
        }
    }
}

/// Whether somebody holds a lock on this file. Taking the lock to find out would keep a keeper from starting.
pub(super) fn is_locked(locks: &str, device: u64, inode: u64) -> bool {
    // proc_locks(5): `1: FLOCK  ADVISORY  WRITE 5433 08:01:7864448 0 EOF`, the device in hexadecimal digits.
    // A line with an arrow is of a process that waits for the lock.
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().any(|line| !line.contains("->") && line.split_ascii_whitespace().nth(5) == Some(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session whose keeper lives is told from one that is left over, without touching its lock.
    #[test]
    fn a_held_lock_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let session = directory.path().join("sessions/run-1");
        fs::create_dir_all(&session).unwrap();
        let lock = fs::File::create(session.join(LIFE_LOCK)).unwrap();
        let look = || {
            let mut found = Found::default();
            look_in(directory.path(), &fs::read_to_string("/proc/locks").unwrap(), &mut found);
            found.leaks.iter().map(|leak| leak.detail.clone()).collect::<Vec<_>>()
        };
        assert_eq!(look(), ["session, its keeper is gone"]);
        lock.lock().unwrap();
        assert_eq!(look(), ["session, its keeper lives"]);
        drop(lock);
        fs::remove_file(session.join(LIFE_LOCK)).unwrap();
        fs::remove_dir(&session).unwrap();
        assert!(look().is_empty());
    }

    /// A process that waits for the lock does not hold it.
    #[test]
    fn a_waiting_process_holds_nothing() {
        let device = (8 << 8) | 1;
        assert!(is_locked("1: FLOCK  ADVISORY  WRITE 5433 08:01:7864448 0 EOF", device, 7_864_448));
        assert!(!is_locked("1: -> FLOCK  ADVISORY  WRITE 5433 08:01:7864448 0 EOF", device, 7_864_448));
    }
}
