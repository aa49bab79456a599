//! Images that come neither from a registry nor from a file that is named: by id, from an engine, of packages.
//!
//! ```text
//! sha256:…        ──► what is there
//! docker-daemon:  ──► the engine's id of it ──► there already, or exported ──► load
//! debian:         ──► there already, or built ──► one layer
//! ```

use super::digest::Digest;
use super::failures::{not_found, unusable};
use super::files::{self, Files};
use super::ingest::Ingest;
use super::store::{Question, Store, StoredImage};
use crate::debian;
use crate::docker::{DockerDriver, candidates, connect_first};
use crate::driver::Progress;
use crate::image_files::spool::unnamed;
use crate::image_files::write::Outgoing;
use shakedown_spec::{DebianSource, Failure, FailureKind, ImageReference, ImageSource, PullPolicy};
use std::fs::File;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The type of a layer of packages.
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl Store {
    /// The image of a source of these kinds; `None` if the source is another one's to find.
    ///
    /// # Errors
    ///
    /// It is not there, or cannot be made.
    pub(super) async fn made(
        &self,
        source: &ImageSource,
        policy: PullPolicy,
        progress: &Progress,
    ) -> Result<Option<StoredImage>, Failure> {
        match source {
            ImageSource::Id(id) => self.with_id(source, id, progress).await.map(Some),
            ImageSource::DockerDaemon(name) => self.taken_from_daemon(source, name, progress).await.map(Some),
            ImageSource::Debian(debian) => self.of_packages(source, debian, policy, progress).await.map(Some),
            ImageSource::Build(_) => {
                let title = format!("image {source} cannot be built by the store alone");
                Err(Failure::new(FailureKind::Unsupported, title))
            }
            ImageSource::Registry(_)
            | ImageSource::OciLayout { .. }
            | ImageSource::OciArchive { .. }
            | ImageSource::DockerArchive { .. } => Ok(None),
        }
    }

    async fn with_id(
        &self,
        source: &ImageSource,
        id: &str,
        progress: &Progress,
    ) -> Result<StoredImage, Failure> {
        let question = Question::new(source, Arc::clone(progress))?;
        let digest = id.parse().map_err(|reason: String| not_found(source).fact("reason", reason))?;
        self.shared.open_image(&question, digest).await.ok_or_else(|| {
            not_found(source)
                .fact("store", self.shared.disk.root().display().to_string())
                .fact("reason", "the local store has no image of this id")
        })
    }

    /// Asks the engine each time: what a name means there changes with each build.
    async fn taken_from_daemon(
        &self,
        source: &ImageSource,
        name: &ImageReference,
        progress: &Progress,
    ) -> Result<StoredImage, Failure> {
        let docker = engine(source).await?;
        let mut question = Question::new(source, Arc::clone(progress))?;
        question.fingerprint = docker.image_id(&name.to_string()).await?.ok_or_else(|| {
            not_found(source).fact("engine", docker.endpoint().to_string()).hint(format!(
                "`docker images` lists what the engine has; without `docker-daemon:` the image is pulled from {}",
                name.registry
            ))
        })?;
        if let Some(found) = self.shared.find(&question, None).await {
            return Ok(found);
        }
        let storing = |error: io::Error| self.shared.storing(source, &error);
        let lock = format!("source-{}", Digest::of(question.text.as_bytes()).hex());
        let _one_process = self.shared.disk.lock(&lock).await.map_err(storing)?;
        if let Some(found) = self.shared.find(&question, None).await {
            return Ok(found);
        }
        let ingest = self.ingest(source, Arc::clone(progress)).await?;
        // An engine that names images by their configuration may have one that is here under another name.
        let here = match question.fingerprint.parse() {
            Ok(id) => self.shared.open_image(&question, id).await,
            Err(_) => None,
        };
        let image = match here {
            Some(image) => image,
            None => {
                let export = docker.export(&[name.to_string()]);
                let spooled = self.spool(source, export, progress).await?;
                let loaded = self.take_all(&ingest, source, spooled, false).await?;
                let only = loaded.into_iter().next().map(|(image, _)| image);
                only.ok_or_else(|| unusable(source, "could not be exported: the engine sent no image"))?
            }
        };
        ingest.answers(source, &question.fingerprint, &image)?;
        Ok(image)
    }

    async fn of_packages(
        &self,
        source: &ImageSource,
        debian: &DebianSource,
        policy: PullPolicy,
        progress: &Progress,
    ) -> Result<StoredImage, Failure> {
        let question = Question::new(source, Arc::clone(progress))?;
        let fresh = policy != PullPolicy::Always;
        if let Some(found) = self.shared.find(&question, None).await.filter(|_| fresh) {
            return Ok(found);
        }
        let storing = |error: io::Error| self.shared.storing(source, &error);
        let lock = format!("source-{}", Digest::of(question.text.as_bytes()).hex());
        let _one_process = self.shared.disk.lock(&lock).await.map_err(storing)?;
        if let Some(found) = self.shared.find(&question, None).await.filter(|_| fresh) {
            return Ok(found);
        }
        let ingest = self.ingest(source, Arc::clone(progress)).await?;
        let blob = ingest.blob().map_err(storing)?;
        progress("mmdebstrap", 0, 0);
        let (packages, failed) = (debian.clone(), source.clone());
        let work = tokio::task::spawn_blocking(move || {
            let (blob, diff_id) = debian::build(&packages, blob)?;
            let stored = blob.finish(GZIP);
            stored
                .map(|layer| (layer, diff_id))
                .map_err(|error| unusable(&failed, "could not be stored").fact("reason", error.to_string()))
        });
        let (layer, diff_id) = work.await.map_err(|error| storing(io::Error::other(error)))??;
        let config = debian::configuration(debian, diff_id).map_err(|error| storing(error.into()))?;
        let image = ingest.finish(&config, &[layer], &[]).await?;
        ingest.answers(source, "", &image)?;
        Ok(image)
    }

    /// Takes every image of an archive of either kind, compressed or not, into the store, with the names it has there.
    ///
    /// # Errors
    ///
    /// The archive cannot be read, has no image, or one is broken.
    pub async fn load(
        &self,
        archive: impl AsyncRead + Send + Unpin,
        progress: Progress,
    ) -> Result<Vec<(StoredImage, Vec<ImageReference>)>, Failure> {
        let source = ImageSource::DockerArchive { path: "-".into(), reference: None };
        // Whole before the store is locked: nobody can say how long an upload takes.
        let spooled = self.spool(&source, archive, &progress).await?;
        let ingest = self.ingest(&source, progress).await?;
        self.take_all(&ingest, &source, spooled, true).await
    }

    /// A stream in a file, so that its parts can be read in any order.
    pub(crate) async fn spool(
        &self,
        source: &ImageSource,
        mut stream: impl AsyncRead + Send + Unpin,
        progress: &Progress,
    ) -> Result<File, Failure> {
        let storing = |error: io::Error| self.shared.storing(source, &error);
        let file = unnamed(&self.shared.disk.spool()).map_err(storing)?;
        let mut into = tokio::fs::File::from_std(file);
        let (mut buffer, mut received) = (vec![0; 256 << 10], 0);
        loop {
            let read = stream.read(&mut buffer).await.map_err(|error| {
                unusable(source, "could not be read").fact("reason", super::failures::plain(&error))
            })?;
            if read == 0 {
                break;
            }
            tokio::io::AsyncWriteExt::write_all(&mut into, &buffer[..read]).await.map_err(storing)?;
            received += read as u64;
            progress("receive", received, 0);
        }
        tokio::io::AsyncWriteExt::flush(&mut into).await.map_err(storing)?;
        Ok(into.into_std().await)
    }

    async fn take_all(
        &self,
        ingest: &Ingest,
        source: &ImageSource,
        archive: File,
        named: bool,
    ) -> Result<Vec<(StoredImage, Vec<ImageReference>)>, Failure> {
        let (place, spool) = (source.clone(), self.shared.disk.spool());
        let work = tokio::task::spawn_blocking(move || {
            let files = crate::image_files::spool::seekable(archive, &spool).and_then(Files::archive);
            let files = files.map_err(|error| {
                unusable(&place, "could not be read").fact("reason", super::failures::plain(&error))
            })?;
            let outgoing = |(found, names)| files::outgoing(&files, &place, found, names);
            files::find_all(&files, &place)?.into_iter().map(outgoing).collect::<Result<Vec<_>, _>>()
        });
        let images = work.await.map_err(|error| self.shared.storing(source, &io::Error::other(error)))??;
        if images.is_empty() {
            return Err(unusable(source, "cannot be used: there is no image in it"));
        }
        let mut taken = Vec::new();
        for image in images {
            taken.push(self.take(ingest, image, named).await?);
        }
        Ok(taken)
    }

    async fn take(
        &self,
        ingest: &Ingest,
        image: Outgoing,
        named: bool,
    ) -> Result<(StoredImage, Vec<ImageReference>), Failure> {
        let mut layers = Vec::new();
        for layer in &image.layers {
            layers.push(ingest.take(&layer.descriptor, &layer.blob).await?);
        }
        let names = if named { &image.names[..] } else { &[] };
        let stored = ingest.finish(&image.config, &layers, names).await?;
        Ok((stored, image.names))
    }
}

/// The engine that `docker` would talk to.
async fn engine(source: &ImageSource) -> Result<DockerDriver, Failure> {
    let found = connect_first(candidates(|name| std::env::var(name).ok()), "").await;
    found.map_err(|refusal| {
        let failure = not_found(source).fact("docker", refusal.reason);
        refusal.hints.into_iter().fold(failure, Failure::hint)
    })
}
