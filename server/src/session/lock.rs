//! Locks on files that others may remove.
//!
//! A lock file may be removed only by a process that holds it. A process that waited for the lock may thus hold a lock
//! on a file that nobody else can find any more; it notices because the path leads to another file, or to none, and
//! begins again.

use super::Place;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Which lock of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionLock {
    /// Held while a keeper is being started: by the starter and by the keeper, until the keeper is ready or has ended.
    Start,
    /// Held by the keeper for its life.
    Life,
}

impl SessionLock {
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Life => "lock",
        }
    }
}

/// Takes the lock, waiting for it; makes the session's directory if it is not there.
pub(crate) fn lock(place: &Place, which: SessionLock) -> io::Result<File> {
    loop {
        make_directory(&place.directory)?;
        let path = place.directory.join(which.file_name());
        let Some(file) = open(&path)? else { continue };
        while let Err(error) = file.lock() {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        if is_still_at(&file, &path) {
            return Ok(file);
        }
    }
}

/// Takes the lock if nobody holds it and the session's directory exists.
pub(crate) fn try_lock(place: &Place, which: SessionLock) -> io::Result<Option<File>> {
    let path = place.directory.join(which.file_name());
    let Some(file) = open(&path)? else { return Ok(None) };
    match file.try_lock() {
        Ok(()) => Ok(is_still_at(&file, &path).then_some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether this lock is the session's yet: its file may have been removed by somebody, and another made.
pub(crate) fn is_held(file: &File, place: &Place, which: SessionLock) -> bool {
    is_still_at(file, &place.directory.join(which.file_name()))
}

/// Opens the lock file, making it; `None` if the directory has just gone.
fn open(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(path)
}

fn is_still_at(file: &File, path: &Path) -> bool {
    let (Ok(held), Ok(found)) = (file.metadata(), std::fs::symlink_metadata(path)) else { return false };
    (held.dev(), held.ino()) == (found.dev(), found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A starter that waited while the last keeper removed the session's directory does not hold a lock on nothing.
    #[test]
    fn a_lock_file_that_was_removed_meanwhile_does_not_count() {
        let outer = tempfile::tempdir().unwrap();
        let place = Place { name: "orders".into(), directory: outer.path().join("orders") };
        let held = lock(&place, SessionLock::Start).unwrap();
        assert!(try_lock(&place, SessionLock::Start).unwrap().is_none());
        let waiting = std::thread::spawn({
            let place = place.clone();
            move || lock(&place, SessionLock::Start).unwrap()
        });
        std::fs::remove_file(place.directory.join("start")).unwrap();
        std::fs::remove_dir(&place.directory).unwrap();
        drop(held);
        let got = waiting.join().unwrap();
        assert!(is_still_at(&got, &place.directory.join("start")));
    }
}
