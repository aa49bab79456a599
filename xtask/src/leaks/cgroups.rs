//! Control groups: directories named `shakedown-…` in any hierarchy. The kernel does not remove these by itself.

use std::fs;
use std::path::Path;

use super::Found;

/// Deeper than any manager of services nests its groups.
const DEPTH: usize = 12;

pub(super) fn look(root: &Path, found: &mut Found) {
    if fs::read_dir(root).is_err() {
        found.unseen(format!("control groups: {} cannot be read", root.display()));
        return;
    }
    look_below(root, DEPTH, found);
}

fn look_below(directory: &Path, depth: usize, found: &mut Found) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    // `file_type` does not follow links: `cpu` is a link to `cpu,cpuacct` on some machines.
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for entry in directories {
        if entry.file_name().to_string_lossy().starts_with("shakedown-") {
            let processes = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
            let detail = format!("{} processes in it", processes.lines().count());
            found.add("cgroup", entry.path().to_string_lossy(), detail);
        }
        if depth > 0 {
            look_below(&entry.path(), depth - 1, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups are found below those of other owners: an ordinary user's are within the user's slice.
    #[test]
    fn groups_are_found_at_any_depth() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("pids/user.slice/shakedown-run-1");
        fs::create_dir_all(&group).unwrap();
        fs::create_dir_all(root.path().join("pids/docker/1f")).unwrap();
        fs::write(group.join("cgroup.procs"), "17\n18\n").unwrap();
        let mut found = Found::default();
        look(root.path(), &mut found);
        assert_eq!(found.leaks.len(), 1);
        assert_eq!(found.leaks[0].name, group.to_string_lossy());
        assert_eq!(found.leaks[0].detail, "2 processes in it");
    }
}
