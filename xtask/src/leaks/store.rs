//! The image store: images stay, for the next run; what an interrupted unpacking left does not.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Found;
use super::directories::is_locked;

/// The directory in a store where work is in progress: `NAME`, and `NAME.lock`, which the process at work holds.
const UNFINISHED: &str = "tmp";

pub(super) fn look(found: &mut Found) {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    for store in stores() {
        look_in(&store, &locks, found);
    }
}

/// The stores of all users: where the native driver puts them.
fn stores() -> BTreeSet<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut all = BTreeSet::from([PathBuf::from("/var/lib/shakedown")]);
    all.extend(variable("SHAKEDOWN_STORE"));
    all.extend(variable("XDG_DATA_HOME").map(|directory| directory.join("shakedown")));
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let homes = users.lines().filter_map(|line| line.split(':').nth(5)).map(PathBuf::from);
    all.extend(homes.chain(variable("HOME")).map(|home| home.join(".local/share/shakedown")));
    let temporary = fs::read_dir("/var/tmp").into_iter().flatten().flatten();
    all.extend(
        temporary
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("shakedown-"))
            .map(|e| e.path()),
    );
    all
}

fn look_in(store: &Path, locks: &str, found: &mut Found) {
    let Ok(entries) = fs::read_dir(store.join(UNFINISHED)) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "lock") && path.with_extension("").exists() {
            continue;
        }
        // Of a directory, the lock beside it; of a lock whose directory is not there, itself.
        let lock = fs::metadata(path.with_extension("lock"));
        if !lock.is_ok_and(|lock| is_locked(locks, lock.dev(), lock.ino())) {
            found.add("unfinished", path.to_string_lossy(), "in the image store, and its process is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An unpacking under way is none of the leaks; one whose process was killed is.
    #[test]
    fn work_of_dead_processes_is_found() {
        let store = tempfile::tempdir().unwrap();
        let work = store.path().join("tmp/17-1f-0");
        fs::create_dir_all(&work).unwrap();
        let lock = fs::File::create(store.path().join("tmp/17-1f-0.lock")).unwrap();
        let look = || {
            let mut found = Found::default();
            look_in(store.path(), &fs::read_to_string("/proc/locks").unwrap(), &mut found);
            found.leaks.into_iter().map(|leak| leak.name).collect::<Vec<_>>()
        };
        lock.lock().unwrap();
        assert!(look().is_empty());
        drop(lock);
        assert_eq!(look(), [work.to_string_lossy()]);
        fs::remove_dir(&work).unwrap();
        assert_eq!(look(), [format!("{}.lock", work.display())]);
    }
}
