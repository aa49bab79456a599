//! The Docker Engine's own API: create, start, wait, remove.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptions, ImportImageOptions, RemoveContainerOptions, RemoveImageOptions,
    StartContainerOptions, WaitContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;

use super::Engine;
use crate::bundle::{Image, TRUE};
use crate::worker::Orders;

const IMAGE: &str = "sdbench/busybox:measured";
/// As many as a daemon on a small machine starts at once before its answers take minutes.
const AT_ONCE: u32 = 20;
/// bollard's limit for the start of an answer.
const SECONDS: u64 = 120;

/// A daemon that has the image.
pub(crate) struct DockerEngine {
    docker: Docker,
}

/// Connects to the daemon that the worker was told.
pub(super) async fn connect(orders: &Orders) -> Result<Docker> {
    let path = orders.docker.strip_prefix("unix://").context("only unix:// addresses are measured")?;
    let docker = Docker::connect_with_unix(path, SECONDS, API_DEFAULT_VERSION)?;
    docker.negotiate_version().await.with_context(|| format!("Docker at {path} does not answer"))
}

/// Gives the daemon an image under this reference.
pub(super) async fn load(docker: &Docker, image: &Image, reference: &str) -> Result<()> {
    let archive = image.docker_archive(reference)?;
    let body = bollard::body_full(archive.into());
    let mut progress = docker.import_image(ImportImageOptions::default(), body, None);
    while let Some(step) = progress.next().await {
        step.with_context(|| format!("the daemon does not load {reference}"))?;
    }
    Ok(())
}

/// Takes it away again.
pub(super) async fn unload(docker: &Docker, reference: &str) -> Result<()> {
    docker.remove_image(reference, None::<RemoveImageOptions>, None).await?;
    Ok(())
}

impl DockerEngine {
    pub(super) async fn open(orders: &Orders) -> Result<Self> {
        let docker = connect(orders).await?;
        load(&docker, &Image::read(&orders.images.join("busybox"))?, IMAGE).await?;
        Ok(Self { docker })
    }
}

impl Engine for DockerEngine {
    async fn measure(&mut self, work: &str) -> Result<Duration> {
        match work {
            "true" => self.run_true().await,
            "at-once" => {
                let started = Instant::now();
                try_join_all((0..AT_ONCE).map(|_| self.run_true())).await?;
                Ok(started.elapsed() / AT_ONCE)
            }
            other => bail!("`{other}` is not measured with the daemon's API"),
        }
    }

    async fn close(self) -> Result<()> {
        unload(&self.docker, IMAGE).await
    }
}

impl DockerEngine {
    async fn run_true(&self) -> Result<Duration> {
        let body = ContainerCreateBody {
            image: Some(IMAGE.to_owned()),
            cmd: Some(vec![TRUE.to_owned()]),
            ..ContainerCreateBody::default()
        };
        let started = Instant::now();
        let id = self.docker.create_container(None::<CreateContainerOptions>, body).await?.id;
        self.docker.start_container(&id, None::<StartContainerOptions>).await?;
        let mut exit = self.docker.wait_container(&id, None::<WaitContainerOptions>);
        let code =
            exit.next().await.context("the daemon does not tell how it ended")?.map(|exit| exit.status_code);
        self.docker.remove_container(&id, None::<RemoveContainerOptions>).await?;
        let took = started.elapsed();
        match code {
            Ok(0) => Ok(took),
            Ok(code) => bail!("{TRUE} ended with code {code}"),
            Err(error) => Err(error.into()),
        }
    }
}
