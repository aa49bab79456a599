//! The `testcontainers` crate on Docker, with the same images, and waiting for what its own modules wait for.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bollard::Docker;
use testcontainers::core::{IntoContainerPort as _, WaitFor};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerRequest, GenericImage, ImageExt as _};

use super::Engine;
use super::engine::{connect, load, unload};
use crate::answer::Protocol;
use crate::bundle::Image;
use crate::worker::Orders;

const NAME: &str = "sdbench";
const SERVICES: [&str; 2] = ["redis", "postgres"];

/// A daemon that has the images.
pub(crate) struct Testcontainers {
    docker: Docker,
}

impl Testcontainers {
    pub(super) async fn open(orders: &Orders) -> Result<Self> {
        let docker = connect(orders).await?;
        for service in SERVICES {
            load(&docker, &Image::read(&orders.images.join(service))?, &reference(service)).await?;
        }
        Ok(Self { docker })
    }
}

fn reference(service: &str) -> String {
    format!("{NAME}/{service}:measured")
}

/// The request as `testcontainers-modules` 0.15 makes it.
fn request(service: &str) -> ContainerRequest<GenericImage> {
    let image = GenericImage::new(format!("{NAME}/{service}"), "measured".to_owned());
    if service == "redis" {
        let ready = WaitFor::message_on_stdout("Ready to accept connections");
        return image.with_exposed_port(6379.tcp()).with_wait_for(ready).into();
    }
    // The first is of the temporary server, whose log the entry point shows; the second of the real one.
    let ready = "database system is ready to accept connections";
    let waits = [WaitFor::message_on_stderr(ready), WaitFor::message_on_stdout(ready)];
    let [first, second] = waits;
    image
        .with_exposed_port(5432.tcp())
        .with_wait_for(first)
        .with_wait_for(second)
        .with_env_var("POSTGRES_DB", "postgres")
        .with_env_var("POSTGRES_USER", "postgres")
        .with_env_var("POSTGRES_PASSWORD", "postgres")
        .with_cmd(["-c", "fsync=off"])
}

impl Engine for Testcontainers {
    async fn measure(&mut self, work: &str) -> Result<Duration> {
        let (protocol, port) = Protocol::of(work)?;
        let request = request(work);
        let started = Instant::now();
        let container = request.start().await.context("start() failed")?;
        let port = container.get_host_port_ipv4(port).await?;
        let host = container.get_host().await?.to_string();
        protocol.answered(&host, port).await?;
        let took = started.elapsed();
        container.rm().await.context("the container could not be removed")?;
        Ok(took)
    }

    async fn close(self) -> Result<()> {
        for service in SERVICES {
            unload(&self.docker, &reference(service)).await?;
        }
        Ok(())
    }
}
