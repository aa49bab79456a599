//! Images of the store as a whole: saved, imported; and what was written to a container, as an image.

use super::NativeDriver;
use super::image::{Content, Descriptor, Digest, Ingest, Store, StoredImage};
use crate::build::document::{Config, Document, Empty, Health};
use crate::changes::{self, Layer};
use crate::driver::{Image, Progress, Result};
use crate::image_files::ArchiveForm;
use crate::image_files::failures::{plain, unusable};
use crate::image_files::spool::inflate;
use crate::image_files::write::{self, Outgoing, OutgoingLayer};
use crate::pipe::written;
use crate::transfer::{ByteStream, NewImage, SavedImage};
use shakedown_spec::{Container, Failure, Healthcheck, ImageReference, ImageSource, PullPolicy};
use std::io::{self, Read, Seek};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::io::SyncIoBridge;

impl Store {
    /// Writes the images to one archive, each layer once.
    ///
    /// # Errors
    ///
    /// A layer is not at hand any more. What cannot be read later breaks the archive off.
    pub async fn save(
        &self,
        images: &[(StoredImage, Option<ImageReference>)],
        form: ArchiveForm,
    ) -> Result<ByteStream> {
        let mut outgoing = Vec::new();
        for (image, name) in images {
            outgoing.push(going(self.content(image).await?, name.clone()));
        }
        let in_use: Vec<_> = images.iter().map(|(image, _)| image.in_use.clone()).collect();
        Ok(written(move |out| {
            let result = write::archive(&outgoing, form, out, &|_, _, _| {});
            drop(in_use);
            result
        }))
    }

    /// Writes the images into an OCI layout; images that it has already stay.
    ///
    /// # Errors
    ///
    /// As [`save`](Self::save); or the directory cannot be written to.
    pub async fn save_layout(
        &self,
        images: &[(StoredImage, Option<ImageReference>)],
        directory: &std::path::Path,
    ) -> Result<()> {
        let mut outgoing = Vec::new();
        for (image, name) in images {
            outgoing.push(going(self.content(image).await?, name.clone()));
        }
        let source = ImageSource::OciLayout { path: directory.to_owned(), tag: None };
        let directory = directory.to_owned();
        let work = tokio::task::spawn_blocking(move || write::layout(&outgoing, &directory, &|_, _, _| {}));
        let result = work.await.map_err(io::Error::other).and_then(|result| result);
        result.map_err(|error| unusable(&source, "could not be written").fact("reason", plain(&error)))
    }

    /// Makes an image of a root file system: a tar archive, compressed or not.
    ///
    /// # Errors
    ///
    /// The archive is broken, a change is none, or the store cannot be written to.
    pub async fn import(&self, tar: ByteStream, new: &NewImage) -> Result<StoredImage> {
        let names: Vec<_> = new.reference()?.into_iter().collect();
        changes::check(&new.changes)?;
        let source = named(new, "import");
        // Whole before the store is locked: nobody can say how long an upload takes.
        let mut spooled = self.spool(&source, tar, &quiet()).await?;
        let rewound = spooled.rewind();
        rewound.map_err(|error| unusable(&source, "could not be read").fact("reason", error.to_string()))?;
        let ingest = self.ingest(&source, quiet()).await?;
        let (layer, diff_id) = keep(&ingest, &source, spooled).await?;
        let document = changes::apply(&changes::empty(), &new.changes, said(new, diff_id, "import"))?;
        ingest.finish(&bytes(&source, &document)?, &[layer], &names).await
    }
}

impl NativeDriver {
    pub(super) async fn save_images(&self, images: &[SavedImage], form: ArchiveForm) -> Result<ByteStream> {
        let mut stored = Vec::new();
        for SavedImage { image, name } in images {
            stored.push((self.in_store(image).await?, name.clone()));
        }
        self.store.save(&stored, form).await
    }

    /// The image, found again: what was resolved may have been used up since.
    pub(super) async fn in_store(&self, image: &Image) -> Result<StoredImage> {
        self.store.resolve(&ImageSource::Id(image.id.clone()), PullPolicy::Never, quiet()).await
    }

    pub(super) async fn commit_container(&self, id: &str, new: &NewImage) -> Result<StoredImage> {
        let names: Vec<_> = new.reference()?.into_iter().collect();
        changes::check(&new.changes)?;
        let instance = self.instance(id)?;
        let container = &instance.create.container;
        let source = named(new, &container.display_name());
        let ingest = self.store.ingest(&source, quiet()).await?;
        let base = self.store.content(&instance.image).await?;
        let mut layers = Vec::new();
        for layer in &base.layers {
            layers.push(ingest.take(&layer.descriptor, &layer.blob).await?);
        }
        let (layer, diff_id) = keep(&ingest, &source, SyncIoBridge::new(self.capture(id)?)).await?;
        layers.push(layer);
        let as_declared = declared(&source, &base.config, container)?;
        let document = changes::apply(&as_declared, &new.changes, said(new, diff_id, "commit"))?;
        ingest.finish(&bytes(&source, &document)?, &layers, &names).await
    }
}

fn going(content: Content, name: Option<ImageReference>) -> Outgoing {
    let layer = |layer: super::image::ContentLayer| OutgoingLayer {
        diff_id: layer.diff_id,
        descriptor: layer.descriptor,
        blob: layer.blob,
    };
    let layers = content.layers.into_iter().map(layer).collect();
    Outgoing { config: content.config, manifest: content.manifest, layers, names: name.into_iter().collect() }
}

/// A plain layer from a stream, compressed or not.
async fn keep(
    ingest: &Ingest,
    source: &ImageSource,
    tar: impl Read + Send + 'static,
) -> Result<(Descriptor, Digest)> {
    let failed = |error: io::Error| unusable(source, "could not be read").fact("reason", plain(&error));
    let mut blob = ingest.blob().map_err(failed)?;
    let work = tokio::task::spawn_blocking(move || {
        inflate(tar, &mut blob)?;
        blob.finish_layer_tar()
    });
    work.await.map_err(io::Error::other).and_then(|result| result).map_err(failed)
}

/// The image's configuration as the container's declaration changes it: `docker commit` does the same.
fn declared(source: &ImageSource, base: &[u8], container: &Container) -> Result<Vec<u8>> {
    let mut document: Document = serde_json::from_slice(base)
        .map_err(|error| unusable(source, "could not be read").fact("reason", error.to_string()))?;
    let Config { env, entrypoint, cmd, labels, working_dir, user, exposed_ports, .. } = &mut document.config;
    for (name, value) in &container.env {
        let start = format!("{name}=");
        env.retain(|known| !known.starts_with(&start));
        env.push(format!("{start}{value}"));
    }
    if let Some(declared) = &container.entrypoint {
        // Another entry point has no use for the image's command.
        (*entrypoint, *cmd) = (Some(declared.clone()).filter(|argv| !argv.is_empty()), None);
    }
    if let Some(declared) = &container.command {
        *cmd = Some(declared.clone());
    }
    labels.extend(container.labels.clone());
    if let Some(declared) = &container.workdir {
        working_dir.clone_from(declared);
    }
    if let Some(declared) = &container.user {
        user.clone_from(declared);
    }
    exposed_ports.extend(
        container.ports.iter().map(|port| (format!("{}/{}", port.container, port.protocol), Empty {})),
    );
    if let Some(declared) = &container.stop_signal {
        document.config.stop_signal = Some(declared.clone());
    }
    if let Some(declared) = &container.healthcheck {
        document.config.healthcheck = Some(health(declared));
    }
    bytes(source, &document)
}

fn health(declared: &Healthcheck) -> Health {
    let nanos =
        |time: Option<Duration>| time.map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
    Health {
        test: declared.test.clone(),
        interval: nanos(declared.interval),
        timeout: nanos(declared.timeout),
        start_period: nanos(declared.start_period),
        start_interval: nanos(declared.start_interval),
        retries: declared.retries.map_or(0, i64::from),
    }
}

fn said<'a>(new: &'a NewImage, diff_id: Digest, created_by: &'a str) -> Layer<'a> {
    let (message, author) = (new.message.as_deref(), new.author.as_deref());
    Layer { diff_id: diff_id.to_string(), created_by, message, author }
}

/// What the image is called in messages: its name, else what it is made of.
fn named(new: &NewImage, otherwise: &str) -> ImageSource {
    let reference = new.name.as_deref().and_then(|name| name.parse().ok());
    reference.map_or_else(|| ImageSource::Id(otherwise.to_owned()), ImageSource::Registry)
}

fn bytes(source: &ImageSource, document: &Document) -> Result<Vec<u8>> {
    serde_json::to_vec(document)
        .map_err(|error| unusable(source, "could not be described").fact("reason", error.to_string()))
}

pub(super) fn quiet() -> Progress {
    Arc::new(|_, _, _| {})
}

/// The image as the driver's callers know it.
pub(super) fn known(stored: &StoredImage, new: &NewImage) -> Image {
    let reference = match &new.name {
        Some(_) => stored.image.reference.clone(),
        None => stored.image.id.clone(),
    };
    Image { reference, ..stored.image.clone() }
}

/// What a removal or a tag names: a reference or an id, never a file.
pub(super) fn there(image: &ImageSource) -> Result<String> {
    match image {
        ImageSource::Registry(_) | ImageSource::Id(_) => Ok(image.to_string()),
        other => {
            Err(Failure::new(shakedown_spec::FailureKind::Invalid, format!("{other} is no name of an image"))
                .hint("name it as `shakedown images ls` does"))
        }
    }
}
