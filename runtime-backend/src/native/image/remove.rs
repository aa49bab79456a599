//! Removes a tree: never across a mount, never through a symlink, however deep it is.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How many directories are open at once; what lies deeper is moved up first.
const DEEPEST: usize = 64;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes `tree`, whatever it is. A tree that is not there is no error.
///
/// # Errors
///
/// Something in it cannot be removed, or is a mount point.
pub fn remove_tree(tree: &Path) -> io::Result<()> {
    let Some(name) = tree.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the tree has no name"));
    };
    let parent = tree.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = match rustix::fs::open(parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let name = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(name))?;
    Ok(remove_at(parent.as_fd(), &name)?)
}

/// Removes the entry `name` of a directory with everything in it.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // EPERM is what POSIX has for a directory; Linux says EISDIR.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let Some(top) = enter(parent, name)? else {
        return rustix::fs::unlinkat(parent, name, AtFlags::empty());
    };
    let mount = mount_id(top.as_fd())?;
    if mount_id(parent)? != mount {
        return Err(Errno::BUSY);
    }
    let mut moved = 0;
    // Each round may have moved deep directories up to the top; the next one finds them there.
    loop {
        let before = moved;
        empty(top.as_fd(), top.as_fd(), mount, 0, &mut moved)?;
        if moved == before {
            break;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Opens a directory, giving its owner the right to if a layer took it away; `None` if it is none.
pub(crate) fn enter(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let handle =
        rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&handle)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(None);
    }
    if stat.st_mode & 0o700 != 0o700 {
        // `fchmod` refuses O_PATH descriptors (open(2)); the magic link leads to exactly this directory.
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle));
        // Root needs no right, and a directory of someone else fails below with the better error.
        let _ = rustix::fs::chmod(link, Mode::from_raw_mode(0o700));
    }
    rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()).map(Some)
}

fn empty(
    directory: BorrowedFd<'_>,
    top: BorrowedFd<'_>,
    mount: u64,
    depth: usize,
    moved: &mut u64,
) -> Result<(), Errno> {
    // Names are collected first: what is removed while it is read may be skipped (readdir(3), NOTES).
    for (name, kind) in entries(directory)? {
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(directory, &*name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {}
                Err(error) => return Err(error),
            }
        } else if rustix::fs::unlinkat(directory, &*name, AtFlags::REMOVEDIR).is_ok() {
            continue;
        }
        let Some(inner) = enter(directory, &name)? else { return Err(Errno::BUSY) };
        if mount_id(inner.as_fd())? != mount {
            return Err(Errno::BUSY);
        }
        if depth >= DEEPEST {
            *moved += 1;
            move_up(directory, &name, top, *moved)?;
            continue;
        }
        empty(inner.as_fd(), top, mount, depth + 1, moved)?;
        rustix::fs::unlinkat(directory, &*name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

fn move_up(from: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>, number: u64) -> Result<(), Errno> {
    let mut suffix = 0_u64;
    loop {
        let up = format!(".shakedown-{number}-{suffix}");
        match rustix::fs::renameat_with(from, name, top, up, rustix::fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => suffix += 1,
            result => return result,
        }
    }
}

fn entries(directory: BorrowedFd<'_>) -> Result<Vec<(CString, FileType)>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

/// A bind mount has the device number of what it shows, so only the mount's own id tells it apart.
fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    use rustix::fs::StatxFlags;
    match rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID) {
        Ok(stat) if stat.stx_mask & StatxFlags::MNT_ID.bits() != 0 => Ok(stat.stx_mnt_id),
        Ok(_) | Err(Errno::NOSYS | Errno::PERM) => {
            // Before Linux 5.8.
            let info = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
            let info = std::fs::read_to_string(info).map_err(|_no_proc| Errno::NOSYS)?;
            let line = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).ok_or(Errno::NOSYS)?;
            line.trim().parse().map_err(|_no_number| Errno::NOSYS)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What a symlink in the tree points at stays; directories without rights and very deep ones go.
    #[test]
    fn a_tree_is_removed_and_nothing_else() {
        let outer = tempfile::tempdir().unwrap();
        let (tree, kept) = (outer.path().join("tree"), outer.path().join("kept"));
        fs::create_dir_all(tree.join("closed/inner")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "here").unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("link")).unwrap();
        let mut deep = rustix::fs::open(&tree, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&deep, c"d", Mode::from_raw_mode(0o755)).unwrap();
            deep = rustix::fs::openat(&deep, c"d", DIRECTORY, Mode::empty()).unwrap();
        }
        rustix::fs::chmod(tree.join("closed"), Mode::empty()).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "here");
    }

    /// A symlink is removed, not followed.
    #[test]
    fn a_symlink_is_a_tree_of_one() {
        let outer = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", outer.path().join("link")).unwrap();
        remove_tree(&outer.path().join("link")).unwrap();
        assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 0);
    }
}
