//! Resolve: images the daemon has, pulls, or is given.

use super::{DockerDriver, daemon_failure};
use crate::driver::{Image, ImageConfig, Progress, Result};
use crate::image_files::digest::Digest;
use crate::image_files::failures::{not_found, unusable};
use crate::image_files::write::Outgoing;
use crate::image_files::{ArchiveForm, read, write};
use crate::pipe::ChannelWriter;
use crate::wanted::Wanted;
use bollard::models::{HealthConfig, ImageInspect};
use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptionsBuilder};
use futures_util::{StreamExt, TryStreamExt};
use shakedown_spec::{Failure, FailureKind, Healthcheck, ImageReference, ImageSource, Platform, PullPolicy};
use std::io::{self, Write};
use std::pin::Pin;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

impl DockerDriver {
    pub(super) async fn obtain_image(&self, wanted: &Wanted, progress: Progress) -> Result<Image> {
        let (source, policy) = (&wanted.source, wanted.policy);
        let inspected = match source {
            ImageSource::Build(build) => return self.resolve_build(build.as_ref().clone()).await,
            ImageSource::Registry(reference) => self.pulled(reference, wanted, &progress).await?,
            ImageSource::DockerDaemon(reference) => self.known(source, &reference.to_string()).await?,
            ImageSource::Id(id) => self.known(source, id).await?,
            ImageSource::Debian(_) if wanted.offline => self.packages_here(source).await?,
            ImageSource::Debian(debian) => self.of_packages(source, debian, policy, &progress).await?,
            ImageSource::OciLayout { .. }
            | ImageSource::OciArchive { .. }
            | ImageSource::DockerArchive { .. } => self.loaded(source, &progress).await?,
        };
        let id = inspected.id.clone().unwrap_or_default();
        Ok(Image { id, reference: wanted.source.to_string(), config: config_of(inspected) })
    }

    async fn pulled(
        &self,
        reference: &ImageReference,
        wanted: &Wanted,
        progress: &Progress,
    ) -> Result<ImageInspect> {
        if let Some(found) = self.usable(reference, wanted).await? {
            return Ok(found);
        }
        if wanted.offline {
            return Err(offline(reference));
        }
        if wanted.policy == PullPolicy::Never {
            let title = format!("image {} is not in the daemon's store", reference.familiar());
            return Err(Failure::new(FailureKind::ImageNotFound, title)
                .hint(format!("`docker pull {}`, or choose another pull policy", reference.familiar())));
        }
        let name = reference.to_string();
        let mut options = CreateImageOptionsBuilder::new().from_image(&name);
        if let Some(platform) = &wanted.platform {
            options = options.platform(&platform.to_string());
        }
        let credentials = super::transfer::credentials(reference).await;
        let mut pull = Box::pin(self.inner.docker.create_image(Some(options.build()), None, credentials));
        while let Some(step) = pull.next().await {
            let step = step.map_err(|error| not_pulled(reference, &error))?;
            let (done, total) = step.progress_detail.map_or((0, 0), |detail| {
                (detail.current.unwrap_or(0).unsigned_abs(), detail.total.unwrap_or(0).unsigned_abs())
            });
            progress(step.id.as_deref().unwrap_or(&name), done, total);
        }
        if reference.digest.is_none() {
            self.asked(reference).await;
        }
        self.here(reference).await?.ok_or_else(|| {
            let title = format!("image {} was pulled and is not there", reference.familiar());
            Failure::new(FailureKind::ImageUnusable, title)
        })
    }

    /// What the daemon has and cannot be asked for elsewhere.
    async fn known(&self, source: &ImageSource, name: &str) -> Result<ImageInspect> {
        self.find(name).await?.ok_or_else(|| {
            not_found(source)
                .fact("engine", self.inner.endpoint.to_string())
                .hint("`docker images` lists what the engine has")
        })
    }

    pub(super) async fn find(&self, name: &str) -> Result<Option<ImageInspect>> {
        match self.inner.docker.inspect_image(name).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if super::failures::status(&error) == Some(404) => Ok(None),
            Err(error) => Err(daemon_failure(
                FailureKind::Other,
                format!("the daemon does not tell about image {name}"),
                &error,
            )),
        }
    }

    /// The daemon's id of the image it knows by this name.
    ///
    /// # Errors
    ///
    /// The daemon does not answer.
    pub(crate) async fn image_id(&self, name: &str) -> Result<Option<String>> {
        Ok(self.find(name).await?.and_then(|found| found.id))
    }

    /// What `docker save` writes.
    pub(crate) fn export(&self, names: &[String]) -> Pin<Box<dyn AsyncRead + Send>> {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let chunks = self.inner.docker.export_images(&names);
        Box::pin(StreamReader::new(chunks.map_err(|error| io::Error::other(super::failures::words(&error)))))
    }

    /// Gives the daemon an image that lies in files, unless it has it.
    pub(super) async fn loaded(&self, source: &ImageSource, progress: &Progress) -> Result<ImageInspect> {
        let place = source.clone();
        let read = tokio::task::spawn_blocking(move || {
            let files = read::open(&place, &std::env::temp_dir())?;
            let found = read::find(&files, &place, &Platform::here())?;
            read::outgoing(&files, &place, found, Vec::new())
        });
        let image = read.await.map_err(|error| broken(source, &error.to_string()))??;
        self.given(source, image, progress).await
    }

    /// Gives the daemon this image, unless it has it.
    pub(crate) async fn given(
        &self,
        source: &ImageSource,
        mut image: Outgoing,
        progress: &Progress,
    ) -> Result<ImageInspect> {
        let id = Digest::of(&image.config);
        // The id finds an image however it came. Where the daemon counts by manifests (containerd's store), the tag
        // with the id in it finds what was uploaded from here.
        let tag = format!("shakedown-import:{}", id.hex());
        let _one_at_a_time = self.inner.uploads.lock().await;
        for name in [&id.to_string(), &tag] {
            if let Some(found) = self.find(name).await? {
                return Ok(found);
            }
        }
        image.names = tag.parse().into_iter().collect();
        self.upload_images(source, vec![image], progress.clone()).await?;
        self.find(&tag).await?.ok_or_else(|| broken(source, "the daemon took it and does not know it"))
    }

    /// Sends images as `docker load` does.
    pub(super) async fn upload_images(
        &self,
        source: &ImageSource,
        images: Vec<Outgoing>,
        progress: Progress,
    ) -> Result<()> {
        let (writer, chunks) = ChannelWriter::new();
        let reading = tokio::task::spawn_blocking(move || {
            let mut buffered = io::BufWriter::with_capacity(256 << 10, writer.clone());
            let written = write::archive(&images, ArchiveForm::Docker, &mut buffered, &*progress)
                .and_then(|()| buffered.flush());
            if let Err(error) = &written {
                writer.abort(error);
            }
            written
        });
        let options = ImportImageOptionsBuilder::new().quiet(true).build();
        let mut load =
            Box::pin(self.inner.docker.import_image(options, bollard::body_try_stream(chunks), None));
        let mut refused = None;
        while let Some(step) = load.next().await {
            refused = refused.or(step.err());
        }
        // The reader's reason comes first: the daemon only sees that the upload broke off.
        drop(load);
        match (reading.await, refused) {
            (Ok(Err(error)), _) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(broken(source, &error.to_string()))
            }
            (_, Some(error)) => Err(broken(source, &super::failures::words(&error))),
            _ => Ok(()),
        }
    }
}

fn broken(source: &ImageSource, reason: &str) -> Failure {
    unusable(source, "cannot be used").fact("reason", reason)
}

fn offline(reference: &ImageReference) -> Failure {
    Failure::new(FailureKind::ImageNotFound, format!("image {} was not found", reference.familiar()))
        .fact("reason", "it is not in the daemon's store, and nothing is pulled offline")
        .hint("bring it with `shakedown bundle import FILE`, or run once without `offline`")
}

fn not_pulled(reference: &ImageReference, error: &bollard::errors::Error) -> Failure {
    let words = super::failures::words(error);
    let missing = super::failures::status(error) == Some(404)
        || ["not found", "manifest unknown", "does not exist"].iter().any(|hint| words.contains(hint));
    // A registry that cannot be reached has not said that there is no such image; for the test it is the same.
    let unreachable = ["no such host", "connection refused", "i/o timeout", "dial tcp"]
        .iter()
        .any(|hint| words.contains(hint));
    let kind = if missing || unreachable { FailureKind::ImageNotFound } else { FailureKind::ImageUnusable };
    let failure = Failure::new(kind, format!("image {} was not found", reference.familiar()))
        .fact("registry", reference.registry.clone())
        .fact("reason", words);
    if unreachable {
        failure.hint("the daemon does not reach the registry; load the image with `docker load`, or name files: `oci:DIR`")
    } else {
        failure
    }
}

pub(super) fn config_of(inspected: ImageInspect) -> ImageConfig {
    let platform = super::policy::platform_of(&inspected);
    let config = inspected.config.unwrap_or_default();
    ImageConfig {
        platform,
        env: config.env.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        command: config.cmd.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        workdir: config.working_dir.unwrap_or_default(),
        exposed: sorted(config.exposed_ports.unwrap_or_default()),
        volumes: sorted(config.volumes.unwrap_or_default()),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        stop_signal: config.stop_signal,
        healthcheck: config.healthcheck.map(healthcheck_of),
    }
}

/// The daemon's answer is a JSON object, whose order is chance.
fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}

fn healthcheck_of(config: HealthConfig) -> Healthcheck {
    let duration = |nanos: Option<i64>| {
        nanos.filter(|nanos| *nanos > 0).map(|nanos| Duration::from_nanos(nanos.unsigned_abs()))
    };
    Healthcheck {
        test: config.test.unwrap_or_default(),
        interval: duration(config.interval),
        timeout: duration(config.timeout),
        start_period: duration(config.start_period),
        start_interval: duration(config.start_interval),
        retries: config
            .retries
            .filter(|retries| *retries > 0)
            .and_then(|retries| u32::try_from(retries).ok()),
    }
}
