//! Shakedown as a test uses it: `start()` of the public API, on the driver that the environment names.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use shakedown::Failure;
use shakedown::modules::{Postgres, Redis};
use shakedown::prelude::*;

use super::Engine;
use crate::answer::Protocol;
use crate::bundle::TRUE;
use crate::worker::Orders;

/// The images; the session is made by the first start.
pub(crate) struct Shakedown {
    images: PathBuf,
}

impl Shakedown {
    pub(super) fn new(orders: &Orders) -> Self {
        Self { images: orders.images.clone() }
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
        if work == "true" {
            return self.run_true().await;
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
