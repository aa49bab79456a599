//! Resolve: images the daemon has, pulls, or is given.

use super::archive::Packed;
use super::files::ChannelWriter;
use super::{DockerDriver, daemon_failure};
use crate::driver::{Image, ImageConfig, Progress, Result};
use bollard::models::{HealthConfig, ImageInspect};
use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptionsBuilder};
use futures_util::StreamExt;
use shakedown_spec::{Failure, FailureKind, Healthcheck, ImageReference, ImageSource, PullPolicy};
use std::sync::Arc;
use std::time::Duration;

impl DockerDriver {
    pub(crate) async fn resolve_image(
        &self,
        source: &ImageSource,
        policy: PullPolicy,
        progress: Progress,
    ) -> Result<Image> {
        let inspected = match source {
            ImageSource::Registry(reference) => self.pulled(reference, policy, &progress).await?,
            archive => self.loaded(archive, &progress).await?,
        };
        let id = inspected.id.clone().unwrap_or_default();
        Ok(Image { id, reference: source.to_string(), config: config_of(inspected) })
    }

    async fn pulled(
        &self,
        reference: &ImageReference,
        policy: PullPolicy,
        progress: &Progress,
    ) -> Result<ImageInspect> {
        let name = reference.to_string();
        if policy != PullPolicy::Always
            && let Some(found) = self.find(&name).await?
        {
            return Ok(found);
        }
        if policy == PullPolicy::Never {
            let title = format!("image {} is not in the daemon's store", reference.familiar());
            return Err(Failure::new(FailureKind::ImageNotFound, title)
                .hint(format!("`docker pull {}`, or choose another pull policy", reference.familiar())));
        }
        let options = CreateImageOptionsBuilder::new().from_image(&name).build();
        let mut pull = Box::pin(self.inner.docker.create_image(Some(options), None, None));
        while let Some(step) = pull.next().await {
            let step = step.map_err(|error| not_pulled(reference, &error))?;
            let (done, total) = step.progress_detail.map_or((0, 0), |detail| {
                (detail.current.unwrap_or(0).unsigned_abs(), detail.total.unwrap_or(0).unsigned_abs())
            });
            progress(step.id.as_deref().unwrap_or(&name), done, total);
        }
        self.find(&name).await?.ok_or_else(|| {
            let title = format!("image {} was pulled and is not there", reference.familiar());
            Failure::new(FailureKind::ImageUnusable, title)
        })
    }

    async fn find(&self, name: &str) -> Result<Option<ImageInspect>> {
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

    /// Gives the daemon an image that lies in files, unless it has it.
    async fn loaded(&self, source: &ImageSource, progress: &Progress) -> Result<ImageInspect> {
        let source = source.clone();
        let label = source.to_string();
        let packed = tokio::task::spawn_blocking(move || Packed::open(&source)).await;
        let packed = Arc::new(packed.map_err(|error| unusable(&label, &error.to_string()))??);
        // The id finds an image however it came. Where the daemon counts by manifests (containerd's store), the tag
        // with the id in it finds what was uploaded from here.
        let tag = format!("shakedown-import:{}", packed.id.trim_start_matches("sha256:"));
        let _one_at_a_time = self.inner.uploads.lock().await;
        for name in [&packed.id, &tag] {
            if let Some(found) = self.find(name).await? {
                return Ok(found);
            }
        }
        self.upload_image(packed, &label, &tag, progress.clone()).await?;
        self.find(&tag).await?.ok_or_else(|| unusable(&label, "the daemon took it and does not know it"))
    }

    async fn upload_image(
        &self,
        packed: Arc<Packed>,
        label: &str,
        tag: &str,
        progress: Progress,
    ) -> Result<()> {
        let (writer, chunks) = ChannelWriter::new();
        let name = tag.to_owned();
        let reading = tokio::task::spawn_blocking(move || {
            let written = packed.write(&name, writer.clone(), &*progress);
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
            (Ok(Err(error)), _) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(unusable(label, &error.to_string()))
            }
            (_, Some(error)) => Err(unusable(label, &super::failures::words(&error))),
            _ => Ok(()),
        }
    }
}

fn unusable(source: &str, reason: &str) -> Failure {
    Failure::new(FailureKind::ImageUnusable, format!("image {source} cannot be used")).fact("reason", reason)
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

fn config_of(inspected: ImageInspect) -> ImageConfig {
    let config = inspected.config.unwrap_or_default();
    ImageConfig {
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
        retries: config
            .retries
            .filter(|retries| *retries > 0)
            .and_then(|retries| u32::try_from(retries).ok()),
    }
}
