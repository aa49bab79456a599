//! Wait stage: is the container ready, and if not, why not? One loop for every driver.
//!
//! ```text
//! declared conditions ─► plan (checked, regexes compiled) ─► hold, one after the other ─► ready
//!                                                              │ each races the container's exit
//!                                                              └─► unmet ─► report (Failure)
//! ```
//!
//! Conditions about the log follow it without polling; everything else is asked by [`poll`], the only place that
//! sleeps.

mod check;
mod health;
mod hold;
mod http;
mod plan;
mod poll;
mod probe;
mod report;

pub use health::HealthMonitor;
pub use poll::{Missed, Poll, Span, pause, poll};

use crate::LogBook;
use crate::driver::{Driver, Exit, ImageConfig, Result};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use shakedown_spec::{Container, Stream};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A started container that should become ready.
#[derive(Clone, Debug)]
pub struct Target {
    /// What runs it.
    pub driver: Arc<dyn Driver>,
    /// Its id in the driver.
    pub id: String,
    /// Its declaration.
    pub container: Container,
    /// What its image says.
    pub image: ImageConfig,
    /// Its output.
    pub log: Arc<LogBook>,
    /// All times are multiplied by this: a slow machine sets `SHAKEDOWN_TIMEOUT_SCALE`. The caller reads it.
    pub time_scale: f64,
    /// The first line of the log that counts: what a run before wrote does not.
    pub from: usize,
    /// What its health check found so far, if the keeper makes the checks.
    pub health: Option<Arc<HealthMonitor>>,
    /// The container's end, if it is not that of its process: one that is started again goes on.
    pub end: Option<Shared<BoxFuture<'static, Result<Exit>>>>,
}

impl Target {
    /// A container with times as declared.
    pub fn new(
        driver: Arc<dyn Driver>,
        id: impl Into<String>,
        container: Container,
        image: ImageConfig,
        log: Arc<LogBook>,
    ) -> Self {
        let (from, health, end) = (0, None, None);
        Self { driver, id: id.into(), container, image, log, time_scale: 1.0, from, health, end }
    }

    /// What it wrote in this run.
    fn text(&self, stream: Option<Stream>) -> Vec<u8> {
        self.log.text_from(self.from, stream)
    }

    /// A declared time on this machine.
    fn scaled(&self, time: Duration) -> Duration {
        // A scale that is no positive number is no reason to fail.
        let scaled = Duration::try_from_secs_f64(time.as_secs_f64() * self.time_scale);
        scaled.ok().filter(|scaled| !scaled.is_zero()).unwrap_or(time)
    }
}

/// Finds what is wrong with the declared conditions before anything starts.
///
/// # Errors
///
/// A regular expression that is none, an HTTP check without a port, a health check where none is declared:
/// [`Invalid`](shakedown_spec::FailureKind::Invalid).
pub fn validate(container: &Container, image: &ImageConfig) -> Result<()> {
    plan::plan(container, image).map(drop)
}

/// Returns when the container is ready: when all its conditions held, one after the other.
///
/// A container without conditions is ready when every declared TCP port is listened on, or as soon as it runs if it
/// declares none. (Ports that only the image exposes do not count: images expose ports that are opened only in some
/// configurations.)
///
/// A log condition counts even if the container ends right after writing; every other condition fails at once with
/// the end of the container, except the ones that wait for it.
///
/// # Errors
///
/// It was not ready in time, ended before, ran out of memory, or its conditions are [invalid](validate).
pub async fn ready(target: &Target) -> Result<()> {
    let plans = plan::plan(&target.container, &target.image)?;
    let waiting = Waiting { target, exit: watch_exit(target), begin: Instant::now() };
    let deadline = waiting.begin + target.scaled(target.container.ready_timeout());
    for plan in &plans {
        if let Err(unmet) = hold::hold(&waiting, plan, deadline).await {
            return Err(report::failure(&waiting, unmet).await);
        }
    }
    Ok(())
}

/// A wait under way.
struct Waiting<'a> {
    target: &'a Target,
    /// The container's end, as often as asked.
    exit: Shared<BoxFuture<'static, Result<Exit>>>,
    begin: Instant,
}

impl fmt::Debug for Waiting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("target", self.target).finish_non_exhaustive()
    }
}

fn watch_exit(target: &Target) -> Shared<BoxFuture<'static, Result<Exit>>> {
    if let Some(end) = &target.end {
        return end.clone();
    }
    let (driver, id) = (Arc::clone(&target.driver), target.id.clone());
    async move { driver.exited(&id).await }.boxed().shared()
}
