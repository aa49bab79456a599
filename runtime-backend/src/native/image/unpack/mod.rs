//! Unpacks one layer into a directory, in the form overlayfs reads.
//!
//! A layer is a stranger's program for writing files. It is run like one: every path is resolved inside of the target
//! ([`root`]), names are checked ([`path`]), headers are read strictly ([`tar`]), everything is bounded ([`limits`]).
//! Deletions become what overlayfs understands: a character device 0:0 in place of a deleted name, an extended
//! attribute on a directory that hides what is below it.

mod apply;
mod error;
mod limits;
mod lower;
mod merge;
mod path;
mod root;
mod stream;
mod sum;
mod tar;

pub use error::UnpackError;
pub use limits::Limits;
pub use root::Resolver;
pub use sum::TreeSum;

pub(crate) use lower::Lower;
pub(crate) use merge::{Files, merge};
pub(crate) use path::EntryPath;
pub(crate) use stream::decompress;
pub(crate) use tar::{Archive, Header, Kind};

pub(crate) use sum::{Contents, sum};

use crate::native::image::digest::Digest;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// How a layer is unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnpackOptions {
    /// Who owns the files.
    pub owners: Owners,
    /// Whether overlayfs is told about deletions in `user.overlay.*` attributes (for a mount with `userxattr`, which a
    /// user namespace needs) instead of `trusted.overlay.*`.
    pub userxattr: bool,
    /// What the layer may ask for.
    pub limits: Limits,
    /// How paths are resolved.
    pub resolver: Resolver,
    /// The layers below, lowest first, if what this layer says depends on them (see [`Unsettled`]).
    pub lower: Option<Vec<PathBuf>>,
}

/// Who owns the unpacked files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owners {
    /// As the layer says; needs root, or a user namespace with all the layer's ids mapped.
    #[default]
    Keep,
    /// Everything belongs to the caller, who has a single id to give.
    Squash,
}

/// An unpacked layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// The digest of the uncompressed archive: the layer's name in the image's configuration.
    pub diff_id: Digest,
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// What the tree adds up to.
    pub sum: TreeSum,
    /// Whether the layer hides everything below it. overlayfs has no sign for that on a layer's root: the layers below
    /// have to be left out.
    pub opaque: bool,
    /// What depends on the layers below.
    pub unsettled: Vec<Unsettled>,
    /// What was left out and why, for people.
    pub notes: Vec<String>,
}

/// Something in a layer that cannot be unpacked rightly without the layers below. Only layers by unusual writers have
/// any; they are unpacked again with [`UnpackOptions::lower`]. Paths are bytes, `/` between components.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unsettled {
    /// A hard link to a file that is not in this layer.
    Link(Vec<u8>),
    /// A directory that has no entry, only content: its mode and owner are those of the layer below.
    Directory(Vec<u8>),
    /// A deletion in this directory. In a directory that no lower layer has, overlayfs would list the deletion's mark
    /// as a file that cannot be found.
    Whiteout(Vec<u8>),
}

/// Unpacks a layer, compressed with gzip or zstd or not at all, into the empty directory `target`.
///
/// Nothing outside of `target` is changed or read, whatever the layer says. After an error `target` is in no useful
/// state; the caller removes it.
///
/// # Errors
///
/// The layer is broken, refused or too big, or the system refuses a call.
pub fn unpack(
    input: impl Read + Send,
    target: BorrowedFd<'_>,
    options: &UnpackOptions,
) -> Result<Unpacked, UnpackError> {
    let (applied, diff_id, bytes) = decompress(input, &options.limits, |plain| {
        apply::apply(tar::Archive::new(plain, options.limits), target, options)
    })?;
    let apply::Applied { entries, opaque, unsettled, notes, contents } = applied;
    let sum = sum(target, options.owners, &contents)
        .map_err(|error| UnpackError::system("add up the unpacked tree", error))?;
    Ok(Unpacked { diff_id, bytes, entries, sum, opaque, unsettled, notes })
}
