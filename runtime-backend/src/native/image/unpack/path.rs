//! The names of entries, taken apart once.

use super::error::{UnpackError, shown};
use std::fmt;

/// A path inside of the target: its components, none of them empty, `.` or `..`. The target itself has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryPath {
    bytes: Vec<u8>,
}

impl EntryPath {
    /// Leading slashes and `.` are dropped: `./etc/`, `/etc` and `etc` are one. `..` is refused: no image needs it, and
    /// every reader that resolves it by text is wrong behind a symlink.
    pub(crate) fn new(name: &[u8]) -> Result<Self, UnpackError> {
        if name.contains(&0) {
            return Err(UnpackError::refused(name, "its name contains a NUL byte"));
        }
        let mut bytes = Vec::with_capacity(name.len());
        for part in name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")) {
            if part == b".." {
                return Err(UnpackError::refused(name, "its name contains `..`"));
            }
            if part.len() > 255 {
                return Err(UnpackError::refused(name, "a part of its name is longer than 255 bytes"));
            }
            if !bytes.is_empty() {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(part);
        }
        Ok(Self { bytes })
    }

    pub(crate) fn is_root(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The directory's path and the last component; both empty for the target itself.
    pub(crate) fn split(&self) -> (&[u8], &[u8]) {
        match self.bytes.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.bytes[..slash], &self.bytes[slash + 1..]),
            None => (b"", &self.bytes),
        }
    }

    /// The path in the same directory with another last component.
    pub(crate) fn sibling(&self, name: &[u8]) -> Self {
        let (directory, _) = self.split();
        let bytes = if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() };
        Self { bytes }
    }

    /// The containing directory.
    pub(crate) fn directory(&self) -> Self {
        Self { bytes: self.split().0.to_vec() }
    }

    pub(crate) fn child(&self, name: &[u8]) -> Self {
        Self { bytes: if self.is_root() { name.to_vec() } else { [&self.bytes, &b"/"[..], name].concat() } }
    }

    /// This path and the directories above it, up to the target.
    pub(crate) fn and_above(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self.clone()), |path| (!path.is_root()).then(|| path.directory()))
    }

    pub(crate) fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    pub(crate) fn depth(&self) -> usize {
        self.components().count()
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str("/") } else { f.write_str(&shown(&self.bytes)) }
    }
}
