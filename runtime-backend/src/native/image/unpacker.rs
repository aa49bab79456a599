//! Who unpacks and removes trees: this process, or one in the user's namespace.
//!
//! As an ordinary user, files belong to ids that only a process in the user's namespace may give and take. The store
//! therefore never touches a tree itself.

use super::remove::remove_tree;
use super::unpack::{
    Contents, Files, Owners, TreeSum, UnpackError, UnpackOptions, Unpacked, merge, sum, unpack,
};
pub use crate::image_files::{Blob, BlobReader};
use async_trait::async_trait;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

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

    /// Puts the unpacked layers `trees`, lowest first, on top of each other in the directory `target` of the same file
    /// system. The trees stay what they were.
    async fn merge(&self, trees: &[PathBuf], target: &Path) -> io::Result<()>;

    /// What the tree adds up to now. All of its content is read.
    async fn sum(&self, tree: &Path) -> io::Result<TreeSum>;
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

    async fn merge(&self, trees: &[PathBuf], target: &Path) -> io::Result<()> {
        let (trees, target, userxattr) = (trees.to_owned(), target.to_owned(), self.options.userxattr);
        let work = tokio::task::spawn_blocking(move || merge_trees(&trees, &target, userxattr));
        work.await.map_err(io::Error::other)?
    }

    async fn sum(&self, tree: &Path) -> io::Result<TreeSum> {
        let (tree, owners) = (tree.to_owned(), self.options.owners);
        tokio::task::spawn_blocking(move || sum_tree(&tree, owners)).await.map_err(io::Error::other)?
    }
}

fn open_tree(tree: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(tree, flags, Mode::empty())?)
}

/// What a tree adds up to: the body of every [`Unpacker::sum`].
pub(crate) fn sum_tree(tree: &Path, owners: Owners) -> io::Result<TreeSum> {
    sum(open_tree(tree)?.as_fd(), owners, &Contents::new())
}

/// The body of every [`Unpacker::merge`].
pub(crate) fn merge_trees(trees: &[PathBuf], target: &Path, userxattr: bool) -> io::Result<()> {
    let target = open_tree(target)?;
    let merged = |tree: &PathBuf| merge(open_tree(tree)?.as_fd(), target.as_fd(), userxattr, Files::Linked);
    trees.iter().try_for_each(merged)
}

/// Copies trees on top of each other into an empty directory.
pub(crate) fn copy_trees(trees: &[PathBuf], target: BorrowedFd<'_>, userxattr: bool) -> io::Result<()> {
    let copied = |tree: &PathBuf| merge(open_tree(tree)?.as_fd(), target, userxattr, Files::Copied);
    trees.iter().try_for_each(copied)
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
