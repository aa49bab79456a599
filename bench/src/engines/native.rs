//! Shakedown as a test uses it: `start()` of the public API, on the driver that the environment names.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use shakedown::modules::{Postgres, Redis};
use shakedown::prelude::*;
use shakedown::{Failure, NetworkMode};

use super::{AT_ONCE, Engine};
use crate::answer::Protocol;
use crate::bundle::TRUE;
use crate::load;
use crate::worker::Orders;

/// The images; the session is made by the first start.
pub(crate) struct Shakedown {
    images: PathBuf,
    /// Whether what is measured through a port is in the host's network instead.
    on_host: bool,
    /// The server behind the port, from the first measurement through it on.
    server: Option<Running<GenericContainer>>,
}

/// Where the server in the host's network listens.
const HOST_PORT: u16 = 7369;
const REDIS: u16 = 6379;

impl Shakedown {
    pub(super) fn new(orders: &Orders, on_host: bool) -> Self {
        Self { images: orders.images.clone(), on_host, server: None }
    }

    /// How long each of many containers takes that are started at the same moment.
    async fn run_at_once(&self) -> Result<Duration> {
        let started = Instant::now();
        futures_util::future::try_join_all((0..AT_ONCE).map(|_| self.run_true())).await?;
        Ok(started.elapsed() / AT_ONCE)
    }

    /// A piece of work with Redis, through its port.
    async fn through_port(&mut self, work: &str) -> Result<Duration> {
        if self.server.is_none() {
            let port = if self.on_host { HOST_PORT } else { REDIS };
            let server = GenericContainer::new(self.image("redis"))
                .command([
                    "redis-server",
                    "--save",
                    "",
                    "--protected-mode",
                    "no",
                    "--port",
                    &port.to_string(),
                ])
                .port(port)
                .wait(Wait::log("Ready to accept connections"));
            let on_host = self.on_host;
            let server = server.with(|declared| {
                if on_host {
                    declared.network_mode = NetworkMode::Host;
                }
            });
            self.server = Some(server.start().await.map_err(in_one_line)?);
        }
        let server = self.server.as_ref().ok_or_else(|| anyhow!("the server is gone"))?;
        let port = if self.on_host { HOST_PORT } else { server.port(REDIS).map_err(in_one_line)? };
        load::measure(work, (server.host(), port)).await
    }

    fn image(&self, name: &str) -> String {
        format!("oci:{}", self.images.join(name).display())
    }

    /// From the declaration to nothing left: create, start, exit, remove.
    async fn run_true(&self) -> Result<Duration> {
        let container = GenericContainer::new(self.image("busybox")).command([TRUE]).wait(Wait::exit_code(0));
        let started = Instant::now();
        let running = container.start().await.map_err(in_one_line)?;
        drop(running);
        Ok(started.elapsed())
    }
}

/// Starts one container and takes it away: what a process of its own does for `cold`.
pub(crate) async fn once(image: &str) -> Result<()> {
    let container = GenericContainer::new(image).command([TRUE]).wait(Wait::exit_code(0));
    let running = container.start().await.map_err(in_one_line)?;
    drop(running);
    Ok(())
}

/// A failure has lines of facts and logs.
fn in_one_line(failure: Failure) -> anyhow::Error {
    anyhow!("{}", failure.to_string().replace('\n', " | "))
}

impl Engine for Shakedown {
    async fn measure(&mut self, work: &str) -> Result<Duration> {
        match work {
            "true" => return self.run_true().await,
            "at-once" => return self.run_at_once().await,
            _ if work.starts_with("port-") => return self.through_port(work).await,
            _ => {}
        }
        let (protocol, _) = Protocol::of(work)?;
        let image = self.image(work);
        // The guard outlives the measured part, which ends with the first answer.
        match work {
            "redis" => {
                let started = Instant::now();
                let redis = Redis::new().image(image).start().await.map_err(in_one_line)?;
                protocol.answered(redis.host(), redis.port()).await?;
                Ok(started.elapsed())
            }
            "postgres" => {
                let started = Instant::now();
                let postgres = Postgres::new().image(image).start().await.map_err(in_one_line)?;
                protocol.answered(postgres.host(), postgres.port()).await?;
                Ok(started.elapsed())
            }
            other => bail!("`{other}` is not measured"),
        }
    }

    async fn close(self) -> Result<()> {
        Ok(())
    }
}
