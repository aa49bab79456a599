//! Why a layer could not be unpacked.

use crate::native::image::failures::plain;
use serde::{Deserialize, Serialize};
use std::io;

/// Why a layer could not be unpacked. It crosses a process boundary where the unpacking runs in a user namespace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UnpackError {
    /// The stream cannot be decompressed.
    #[error("the layer cannot be decompressed: {reason}")]
    Compression {
        /// What the decompressor said.
        reason: String,
    },
    /// The stream is not a tar archive, or a broken one.
    #[error("the layer is a broken tar archive: {reason} (byte {offset} of the uncompressed stream)")]
    Broken {
        /// What is wrong.
        reason: String,
        /// Where.
        offset: u64,
    },
    /// An entry asks for something that no honest image needs.
    #[error("entry `{path}` of the layer is refused: {reason}")]
    Refused {
        /// The entry's name, escaped.
        path: String,
        /// Why.
        reason: String,
    },
    /// A limit was exceeded.
    #[error("the layer has more than {limit} {what}")]
    Limit {
        /// Bytes, entries, ….
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The system refused a call.
    #[error("{action}: {reason}")]
    System {
        /// What was tried, as a call.
        action: String,
        /// The error's text.
        reason: String,
        /// The error's number.
        errno: Option<i32>,
    },
}

impl UnpackError {
    pub(crate) fn system(action: impl Into<String>, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let errno = error.raw_os_error();
        let reason = plain(&error);
        Self::System { action: action.into(), reason, errno }
    }

    pub(crate) fn refused(path: &[u8], reason: impl Into<String>) -> Self {
        Self::Refused { path: shown(path), reason: reason.into() }
    }

    pub(crate) fn limit(what: &str, limit: u64) -> Self {
        Self::Limit { what: what.to_owned(), limit }
    }

    /// The number of the system's error, if it was one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::System { errno, .. } => *errno,
            _ => None,
        }
    }

    /// Whether the disk (or the user's quota) is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let full = [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT];
        full.iter().any(|errno| self.errno() == Some(errno.raw_os_error()))
    }
}

/// A path as a message can show it: escaped, and not longer than a line or two.
pub(crate) fn shown(path: &[u8]) -> String {
    const LONGEST: usize = 160;
    let text = path.escape_ascii().to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
