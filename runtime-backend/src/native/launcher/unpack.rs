//! Layers unpacked inside the launcher's namespaces, where the ids of an image exist.

use super::{Handle, Job};
use crate::native::image::{Blob, Owners, UnpackError, UnpackOptions, Unpacked, Unpacker};
use async_trait::async_trait;
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
            options: Box::new(options),
        };
        let outcome: Result<Result<Unpacked, UnpackError>, _> =
            self.launcher.work(job, blob.file.as_fd()).await;
        outcome.map_err(|trouble| {
            UnpackError::system("unpack in the user's namespace", io::Error::other(trouble.to_string()))
        })?
    }

    async fn remove(&self, tree: &Path) -> io::Result<()> {
        let nothing = std::fs::File::open("/dev/null")?;
        let job = Job::RemoveTree { path: tree.to_owned() };
        self.launcher
            .work(job, nothing.as_fd())
            .await
            .map_err(|trouble| io::Error::other(trouble.to_string()))
    }
}
