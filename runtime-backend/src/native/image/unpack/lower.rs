//! Looks things up in the layers below, as overlayfs would show them.

use super::Unsettled;
use super::error::UnpackError;
use super::path::EntryPath;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// The layers below, topmost first.
pub(crate) struct Lower {
    layers: Vec<OwnedFd>,
    userxattr: bool,
}

/// Something found in a lower layer: its directory there, and what it is.
pub(crate) struct Below {
    pub(crate) parent: OwnedFd,
    pub(crate) stat: Stat,
}

enum Step {
    Found(Below),
    /// This layer says nothing about the path; the next one is asked.
    Silent,
    /// This layer hides whatever is below.
    Hidden,
}

const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Lower {
    pub(crate) fn open(lowest_first: &[PathBuf], userxattr: bool) -> Result<Self, UnpackError> {
        let open = |path: &PathBuf| {
            rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(
                |error| UnpackError::system(format!("open the layer below, `{}`", path.display()), error),
            )
        };
        let layers = lowest_first.iter().rev().map(open).collect::<Result<_, _>>()?;
        Ok(Self { layers, userxattr })
    }

    /// What the merged layers below have at `path`, not following symlinks.
    pub(crate) fn find(&self, path: &EntryPath) -> Result<Option<Below>, Errno> {
        for layer in &self.layers {
            match self.step(layer.as_fd(), path)? {
                Step::Found(below) => return Ok(Some(below)),
                Step::Silent => {}
                Step::Hidden => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Whether the merged layers below have a directory there. What may not be looked at counts as there.
    pub(crate) fn has_directory(&self, path: &EntryPath) -> bool {
        if path.is_root() {
            return !self.layers.is_empty();
        }
        match self.find(path) {
            Ok(found) => found.is_some_and(|below| kind(&below.stat) == FileType::Directory),
            Err(_unreadable) => true,
        }
    }

    /// Whether a layer has to be unpacked again, knowing the layers below.
    pub(crate) fn matters_for(&self, unsettled: &Unsettled) -> bool {
        let at = |path: &[u8]| EntryPath::new(path).is_ok_and(|path| self.has_directory(&path));
        match unsettled {
            Unsettled::Link(_) => true,
            Unsettled::Directory(path) => at(path),
            Unsettled::Whiteout(directory) => !at(directory),
        }
    }

    /// Whether overlayfs hides what lies below this directory.
    pub(crate) fn is_opaque(&self, directory: BorrowedFd<'_>) -> bool {
        is_opaque(directory, self.userxattr)
    }

    fn step(&self, layer: BorrowedFd<'_>, path: &EntryPath) -> Result<Step, Errno> {
        let mut here = rustix::fs::openat(layer, c".", HANDLE, Mode::empty())?;
        let mut opaque = false;
        let mut names = path.components().peekable();
        while let Some(name) = names.next() {
            let stat = match rustix::fs::statat(&here, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(if opaque { Step::Hidden } else { Step::Silent }),
                Err(error) => return Err(error),
            };
            if kind(&stat) == FileType::CharacterDevice && stat.st_rdev == 0 {
                return Ok(Step::Hidden);
            }
            if names.peek().is_none() {
                return Ok(Step::Found(Below { parent: here, stat }));
            }
            if kind(&stat) != FileType::Directory {
                return Ok(Step::Hidden);
            }
            here = rustix::fs::openat(&here, name, HANDLE, Mode::empty())?;
            opaque |= is_opaque(here.as_fd(), self.userxattr);
        }
        Ok(Step::Silent)
    }
}

/// Whether a directory hides what lies below it.
pub(crate) fn is_opaque(directory: BorrowedFd<'_>, userxattr: bool) -> bool {
    // Attribute calls refuse O_PATH descriptors; this opens the same directory by its descriptor.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::openat(directory, c".", flags, Mode::empty()) else { return false };
    let mut value = [0; 1];
    matches!(rustix::fs::fgetxattr(&directory, opaque_name(userxattr), &mut value), Ok(1) if value == *b"y")
}

/// The attribute that hides what lies below a directory.
pub(crate) fn opaque_name(userxattr: bool) -> &'static str {
    if userxattr { "user.overlay.opaque" } else { "trusted.overlay.opaque" }
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
