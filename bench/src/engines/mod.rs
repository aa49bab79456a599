//! The engines: one file each, with the same two operations.

mod bare;
mod engine;
mod native;
mod oci;
mod puller;
mod testcontainers;

pub(crate) use self::bare::serve as bare;
pub(crate) use self::native::once;

use std::time::Duration;

use anyhow::{Result, bail};

use self::puller::Program;
use crate::worker::Orders;

/// How many containers are started at once.
pub(crate) const AT_ONCE: u32 = 200;

/// What a worker measures.
pub(crate) enum AnyEngine {
    Shakedown(Box<native::Shakedown>),
    Oci(oci::Oci),
    DockerEngine(engine::DockerEngine),
    Testcontainers(testcontainers::Testcontainers),
    Puller(puller::Puller),
}

/// An engine that is ready to be measured.
pub(crate) trait Engine {
    /// Does the work once, from nothing to nothing. How long the measured part took.
    async fn measure(&mut self, work: &str) -> Result<Duration>;

    /// Takes away what was made for all measurements together.
    async fn close(self) -> Result<()>;
}

/// Opens the engine of this name.
pub(crate) async fn open(name: &str, orders: &Orders) -> Result<AnyEngine> {
    Ok(match name {
        // The variable that chooses the driver is set by whoever starts the worker.
        "native" | "docker" => AnyEngine::Shakedown(Box::new(native::Shakedown::new(orders, false))),
        "loopback" => AnyEngine::Shakedown(Box::new(native::Shakedown::new(orders, true))),
        "crun" | "runc" => AnyEngine::Oci(oci::Oci::new(name, orders)),
        "engine" => AnyEngine::DockerEngine(engine::DockerEngine::open(orders).await?),
        "testcontainers" => AnyEngine::Testcontainers(testcontainers::Testcontainers::open(orders).await?),
        "pull" => AnyEngine::Puller(puller::Puller::new(Program::Shakedown, orders)),
        "docker-pull" => AnyEngine::Puller(puller::Puller::new(Program::Docker, orders)),
        "podman-pull" => AnyEngine::Puller(puller::Puller::new(Program::Podman, orders)),
        "skopeo-umoci" => AnyEngine::Puller(puller::Puller::new(Program::Skopeo, orders)),
        other => bail!("there is no engine `{other}`"),
    })
}

impl Engine for AnyEngine {
    async fn measure(&mut self, work: &str) -> Result<Duration> {
        match self {
            Self::Shakedown(engine) => engine.measure(work).await,
            Self::Oci(engine) => engine.measure(work).await,
            Self::DockerEngine(engine) => engine.measure(work).await,
            Self::Testcontainers(engine) => engine.measure(work).await,
            Self::Puller(engine) => engine.measure(work).await,
        }
    }

    async fn close(self) -> Result<()> {
        match self {
            Self::Shakedown(engine) => engine.close().await,
            Self::Oci(engine) => engine.close().await,
            Self::DockerEngine(engine) => engine.close().await,
            Self::Testcontainers(engine) => engine.close().await,
            Self::Puller(engine) => engine.close().await,
        }
    }
}
