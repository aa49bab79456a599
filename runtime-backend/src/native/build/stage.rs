//! A stage under construction, and how a step adds its layer to it: from the store if it was made before.

use super::Builder;
use super::capture::{CaptureOptions, Captured};
use super::key::Key;
use super::sandbox::Sandbox;
use crate::build::config::State;
use crate::driver::Result;
use crate::native::image::{Digest, StepRecord, StoredImage};
use crate::native::launch::Trouble;
use crate::native::launcher::Job;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

/// A stage: what its configuration is, and what its files are.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) index: usize,
    pub(super) state: State,
    pub(super) files: Files,
}

/// The files of a stage or an image.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    /// Where its layers are unpacked, lowest first.
    pub(super) trees: Vec<PathBuf>,
    /// The digests of all its layers, lowest first.
    pub(super) diff_ids: Vec<Digest>,
    /// The image it begins with; held so that nobody removes it.
    pub(super) base: Option<Arc<StoredImage>>,
    /// The layers that were made on top of that.
    pub(super) made: Vec<StepRecord>,
}

impl Files {
    /// A key that depends on these files.
    pub(super) fn key(&self, kind: &str) -> Key {
        Key::of(kind).with_all(self.diff_ids.iter().map(Digest::hex))
    }
}

/// What a step made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) record: StepRecord,
    /// Whether it is what the step's key names, so that other builds may have it.
    pub(super) lasting: bool,
}

impl From<StepRecord> for Made {
    fn from(record: StepRecord) -> Self {
        Self { record, lasting: true }
    }
}

impl Builder<'_> {
    /// Adds the layer of a step: the one that was made under one of `keys` before, else the one that `make` makes. The
    /// last key names all that the step depends on; those before it are found out faster.
    pub(super) async fn layer(
        &self,
        files: &mut Files,
        keys: &[Digest],
        make: impl Future<Output = Result<impl Into<Made>>>,
    ) -> Result<()> {
        if let Some(record) = self.known(keys) {
            return self.add(files, record).await;
        }
        let whole = keys.last().copied().unwrap_or_else(|| Key::of("nothing").finish());
        // Another process that builds the same does the step once, and this one finds what it made.
        let turn = self.driver.store.lock_step(whole).await.map_err(|error| self.storing(&error))?;
        if let Some(record) = self.known(keys) {
            return self.add(files, record).await;
        }
        let made: Made = make.await?.into();
        if made.lasting {
            self.remember(keys, &made.record)?;
        }
        drop(turn);
        self.add(files, made.record).await
    }

    /// What the step of one of these keys made before.
    pub(super) fn known(&self, keys: &[Digest]) -> Option<StepRecord> {
        let found =
            keys.iter().filter(|_| !self.request.no_cache).find_map(|key| self.driver.store.step(*key));
        if found.is_some() {
            (self.progress)(crate::build::BuildEvent::Cached);
        }
        found
    }

    /// Notes what the step of these keys made.
    pub(super) fn remember(&self, keys: &[Digest], made: &StepRecord) -> Result<()> {
        let mut keys = keys.iter();
        keys.try_for_each(|key| self.driver.store.remember_step(*key, made))
            .map_err(|error| self.storing(&error))
    }

    pub(super) async fn add(&self, files: &mut Files, record: StepRecord) -> Result<()> {
        self.ingest.layer(&record.layer, record.diff_id(), &mut files.trees).await?;
        files.diff_ids.push(record.diff_id());
        files.made.push(record);
        Ok(())
    }

    /// What was written to a sandbox over `lower`, as a layer in the store.
    pub(super) async fn captured(
        &self,
        sandbox: &Sandbox,
        lower: &[PathBuf],
        left_out: Vec<PathBuf>,
    ) -> Result<StepRecord> {
        let options = CaptureOptions {
            lower: lower.to_owned(),
            userxattr: self.driver.launcher.identity().user_namespace(),
            left_out,
            latest: self.epoch,
            shift: None,
        };
        let job = Job::Capture { id: sandbox.id().to_owned(), options: Box::new(options) };
        let (mut read, write) = io::pipe().map_err(|error| self.storing(&error))?;
        let mut blob = self.ingest.blob().map_err(|error| self.storing(&error))?;
        let writing = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; 256 << 10];
            loop {
                match io::Read::read(&mut read, &mut buffer)? {
                    0 => return Ok(blob),
                    length => io::Write::write_all(&mut blob, &buffer[..length])?,
                }
            }
        });
        let captured = self.driver.launcher.work::<Captured>(job, write.as_fd()).await;
        // While this end is open, the pipe has no end.
        drop(write);
        let written = writing.await.map_err(io::Error::other).and_then(|result| result);
        let blob = written.map_err(|error| self.storing(&error))?;
        captured.map_err(|trouble: Trouble| self.failed(&trouble))?;
        let (layer, _) = blob.finish_layer_tar().map_err(|error| self.storing(&error))?;
        Ok(StepRecord { layer, created: self.now() })
    }
}
