//! The files of an unpacked image, to be compared with those that another tool made of it.

use shakedown_runtime::native::image::Digest;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Paths with type, rights, owner, content, target or device, and attributes.
///
/// Not times: tools set those of directories each in its own way, and those of files are compared elsewhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tree(BTreeMap<PathBuf, String>);

impl Tree {
    /// Reads what is below `root`. The root's own rights are left out: tools differ where no entry names it.
    pub(super) fn read(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut todo = vec![root.to_owned()];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                // overlayfs lists a deletion's mark where nothing is below, and says that it is not there.
                let stat = fs::symlink_metadata(&path).ok();
                let text =
                    stat.as_ref().map_or("listed, but not there".to_owned(), |stat| describe(&path, stat));
                if stat.is_some_and(|stat| stat.is_dir()) {
                    todo.push(path.clone());
                }
                files.insert(path.strip_prefix(root).unwrap().to_owned(), text);
            }
        }
        Self(files)
    }

    /// The first few differences.
    pub(super) fn difference(&self, other: &Self) -> String {
        let paths = self.0.keys().chain(other.0.keys()).collect::<std::collections::BTreeSet<_>>();
        let line = |path: &&PathBuf| {
            let (ours, theirs) = (self.0.get(*path), other.0.get(*path));
            (ours != theirs).then(|| format!("{}: {ours:?}, theirs {theirs:?}", path.display()))
        };
        paths.iter().filter_map(line).take(3).collect::<Vec<_>>().join("; ")
    }
}

fn describe(path: &Path, stat: &fs::Metadata) -> String {
    let kind = stat.file_type();
    let content = if kind.is_file() {
        format!("{} {}", stat.len(), Digest::of(&fs::read(path).unwrap()).hex())
    } else if kind.is_symlink() {
        format!("-> {}", fs::read_link(path).unwrap().as_os_str().as_bytes().escape_ascii())
    } else if kind.is_char_device() || kind.is_block_device() {
        format!("device {:x}", stat.rdev())
    } else {
        String::new()
    };
    let mode = if kind.is_symlink() { stat.mode() & !0o7777 } else { stat.mode() };
    format!("{mode:o} {}:{} {content}{}", stat.uid(), stat.gid(), attributes(path))
}

/// The attributes that images carry. Those of overlayfs are the tool's own.
fn attributes(path: &Path) -> String {
    let (mut names, mut value) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        // rootlesskit's and umoci's book-keeping, and overlayfs's.
        let own = [&b"trusted."[..], b"user.overlay.", b"user.rootlesscontainers", b"user.containers."];
        if name.is_empty() || own.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap_or(0);
        found.push(format!(" {}={}", name.escape_ascii(), value[..length].escape_ascii()));
    }
    found.sort_unstable();
    found.concat()
}
