//! Files that are made for one step: heredocs, and what was fetched.

use crate::native::image::{Scratch, Store};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A directory with files for one step. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Written {
    scratch: Option<Scratch>,
    store: Store,
    directory: OwnedFd,
    names: Vec<String>,
}

impl Written {
    /// An empty one.
    pub(super) fn new(store: &Store) -> io::Result<Self> {
        let scratch = store.scratch()?;
        let directory = File::open(scratch.path())?.into();
        Ok(Self { scratch: Some(scratch), store: store.clone(), directory, names: Vec::new() })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.scratch.as_ref().map_or(Path::new("/nonexistent"), Scratch::path)
    }

    /// The names of the files, in the order they were made.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Makes an empty file; the name must be one, without directories.
    pub(super) fn create(&mut self, name: &str, mode: u32) -> io::Result<File> {
        let plain = !matches!(name, "" | "." | "..") && !name.contains('/');
        let scratch = self.scratch.as_ref().filter(|_| plain);
        let scratch = scratch.ok_or_else(|| io::Error::other(format!("`{name}` is no name of a file")))?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(scratch.path().join(name))?;
        // The umask has taken bits away.
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))?;
        self.names.retain(|there| there != name);
        self.names.push(name.to_owned());
        Ok(file)
    }

    /// Makes a file.
    pub(super) fn write(&mut self, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
        self.create(name, mode)?.write_all(content)
    }

    /// Removes it.
    pub(super) async fn close(mut self) -> io::Result<()> {
        match self.scratch.take() {
            Some(scratch) => self.store.discard(scratch).await,
            None => Ok(()),
        }
    }
}

impl AsFd for Written {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let Some(scratch) = self.scratch.take() else { return };
        let store = self.store.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { store.discard(scratch).await });
        }
    }
}
