//! Layers unpacked inside the launcher's namespaces, where the ids of an image exist.

use super::{Handle, Job};
use crate::native::image::{Blob, Owners, TreeSum, UnpackError, UnpackOptions, Unpacked, Unpacker};
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Unpacks in a worker of the launcher, with all the ids that are mapped there.
#[derive(Debug)]
pub(crate) struct MappedUnpacker {
    launcher: Handle,
}

impl MappedUnpacker {
    /// An unpacker in the namespaces of this launcher.
    pub(crate) fn new(launcher: Handle) -> Self {
        Self { launcher }
    }

    async fn without_data<T: DeserializeOwned>(&self, job: Job) -> io::Result<T> {
        let nothing = std::fs::File::open("/dev/null")?;
        let outcome = self.launcher.work(job, nothing.as_fd()).await;
        outcome.map_err(|trouble| io::Error::other(trouble.to_string()))
    }
}

#[async_trait]
impl Unpacker for MappedUnpacker {
    fn form(&self) -> &str {
        "mapped"
    }

    fn userxattr(&self) -> bool {
        true
    }

    async fn unpack(
        &self,
        blob: Blob,
        target: &Path,
        lower: Option<Vec<PathBuf>>,
    ) -> Result<Unpacked, UnpackError> {
        let options =
            UnpackOptions { owners: Owners::Keep, userxattr: true, lower, ..UnpackOptions::default() };
        let job = Job::Unpack {
            target: target.to_owned(),
            offset: blob.offset,
            length: blob.length,
            growing: blob.ticks().is_some(),
            options: Box::new(options),
        };
        let descriptors: Vec<_> = std::iter::once(blob.file.as_fd()).chain(blob.ticks()).collect();
        let outcome: Result<Result<Unpacked, UnpackError>, _> =
            self.launcher.work_on(job, &descriptors).await;
        outcome.map_err(|trouble| {
            UnpackError::system("unpack in the user's namespace", io::Error::other(trouble.to_string()))
        })?
    }

    async fn remove(&self, tree: &Path) -> io::Result<()> {
        self.without_data(Job::RemoveTree { path: tree.to_owned() }).await
    }

    async fn merge(&self, trees: &[PathBuf], target: &Path) -> io::Result<()> {
        self.without_data(Job::MergeTrees { trees: trees.to_owned(), target: target.to_owned() }).await
    }

    async fn sum(&self, tree: &Path) -> io::Result<TreeSum> {
        self.without_data(Job::SumTree { path: tree.to_owned() }).await
    }
}
