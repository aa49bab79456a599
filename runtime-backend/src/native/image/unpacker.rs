//! Who unpacks and removes trees: this process, or one in the user's namespace.
//!
//! As an ordinary user, files belong to ids that only a process in the user's namespace may give and take. The store
//! therefore never touches a tree itself.

use super::remove::remove_tree;
use super::unpack::{Owners, UnpackError, UnpackOptions, Unpacked, unpack};
use async_trait::async_trait;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The bytes of a blob: a file, or a part of one such as a member of an archive.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The file, open for reading. Its position means nothing; it may be shared.
    pub file: Arc<File>,
    /// Where in the file the blob begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// Reads a [`Blob`] from its beginning, without moving the file's position.
#[derive(Debug)]
pub struct BlobReader {
    blob: Blob,
    done: u64,
}

impl Blob {
    /// All of `file`.
    ///
    /// # Errors
    ///
    /// The file's size cannot be found out.
    pub fn whole(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), offset: 0, length })
    }

    /// A reader from the beginning.
    #[must_use]
    pub fn reader(&self) -> BlobReader {
        BlobReader { blob: self.clone(), done: 0 }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.blob.length - self.done).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let read = self.blob.file.read_at(&mut buffer[..wanted], self.blob.offset + self.done)?;
        self.done += read as u64;
        Ok(read)
    }
}

/// Makes and removes unpacked trees.
#[async_trait]
pub trait Unpacker: Send + Sync + std::fmt::Debug {
    /// How this unpacker's trees differ from another's: who owns them, which attributes they carry. Trees of different
    /// forms are kept apart, in directories of this name.
    fn form(&self) -> &str;

    /// Whether its trees speak to overlayfs in `user.overlay.*` attributes.
    fn userxattr(&self) -> bool;

    /// Unpacks the layer `blob` into `target`, which does not exist yet; its parent does. `lower` is what
    /// [`UnpackOptions::lower`] is. After an error the caller removes what is at `target`.
    async fn unpack(
        &self,
        blob: Blob,
        target: &Path,
        lower: Option<Vec<PathBuf>>,
    ) -> Result<Unpacked, UnpackError>;

    /// Removes the tree; one that is not there is no error.
    async fn remove(&self, tree: &Path) -> io::Result<()>;
}

/// Unpacks in this process, with this process's rights.
#[derive(Clone, Debug)]
pub struct LocalUnpacker {
    options: UnpackOptions,
    form: &'static str,
}

impl LocalUnpacker {
    /// An unpacker with these options; [`UnpackOptions::lower`] is ignored.
    #[must_use]
    pub fn new(options: UnpackOptions) -> Self {
        let form = match (options.owners, options.userxattr) {
            (Owners::Keep, false) => "root",
            (Owners::Keep, true) => "mapped",
            (Owners::Squash, false) => "squashed",
            (Owners::Squash, true) => "squashed-user",
        };
        Self { options, form }
    }

    /// What this process can do: keep owners as root, else own everything itself.
    #[must_use]
    pub fn of_this_process() -> Self {
        let root = rustix::process::geteuid().is_root();
        let owners = if root { Owners::Keep } else { Owners::Squash };
        Self::new(UnpackOptions { owners, userxattr: !root, ..UnpackOptions::default() })
    }
}

#[async_trait]
impl Unpacker for LocalUnpacker {
    fn form(&self) -> &str {
        self.form
    }

    fn userxattr(&self) -> bool {
        self.options.userxattr
    }

    async fn unpack(
        &self,
        blob: Blob,
        target: &Path,
        lower: Option<Vec<PathBuf>>,
    ) -> Result<Unpacked, UnpackError> {
        let (target, options) = (target.to_owned(), UnpackOptions { lower, ..self.options.clone() });
        let work = tokio::task::spawn_blocking(move || unpack_into(&blob, &target, &options));
        work.await.map_err(|error| UnpackError::system("unpack", io::Error::other(error)))?
    }

    async fn remove(&self, tree: &Path) -> io::Result<()> {
        let tree = tree.to_owned();
        tokio::task::spawn_blocking(move || remove_tree(&tree)).await.map_err(io::Error::other)?
    }
}

/// Makes the directory `target` and unpacks `blob` into it: the body of every [`Unpacker::unpack`].
///
/// # Errors
///
/// As [`unpack`]; or the directory cannot be made.
pub fn unpack_into(blob: &Blob, target: &Path, options: &UnpackOptions) -> Result<Unpacked, UnpackError> {
    use rustix::fs::{Mode, OFlags};
    let failed = |error| UnpackError::system(format!("make the directory `{}`", target.display()), error);
    rustix::fs::mkdir(target, Mode::from_raw_mode(0o700)).map_err(failed)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(target, flags, Mode::empty()).map_err(failed)?;
    unpack(blob.reader(), directory.as_fd(), options)
}
