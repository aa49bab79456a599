//! When a keeper ends.

use crate::fixtures::Session;
use crate::session::ProcessIdentity;
use std::future::{Future, pending};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

/// How long a keeper stays when nothing is leased. Between two tests of a run there are milliseconds; a keeper that is
/// started again costs a few more, so that waiting long saves nothing, and a keeper that stays keeps memory.
const IDLE: Duration = Duration::from_secs(1);

/// Everything that ends a keeper.
#[derive(Debug)]
pub(super) struct Life {
    session: Arc<Session>,
    runner: Option<AsyncFd<OwnedFd>>,
    idle: Option<Duration>,
    terminate: Signal,
    interrupt: Signal,
}

impl Life {
    /// The life of a keeper that a test process started. Signals are caught from here on.
    #[expect(
        deprecated,
        reason = "an `OwnedFd` stays open while it is registered: all its successor demands"
    )]
    pub(super) fn new(session: &Arc<Session>, runner: Option<ProcessIdentity>) -> io::Result<Self> {
        // A runner that has ended already needs no watching: idleness ends the keeper.
        let runner = runner.and_then(ProcessIdentity::watch);
        let runner =
            runner.map(|descriptor| AsyncFd::with_interest(descriptor, Interest::READABLE)).transpose()?;
        Ok(Self { runner, idle: Some(IDLE), ..Self::in_foreground(session)? })
    }

    /// The life of `shakedown serve`: it ends when it is told to.
    pub(super) fn in_foreground(session: &Arc<Session>) -> io::Result<Self> {
        Ok(Self {
            session: Arc::clone(session),
            runner: None,
            idle: None,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Resolves when the keeper has to end, with the reason.
    pub(super) fn end(self) -> impl Future<Output = &'static str> {
        let Self { session, runner, idle, mut terminate, mut interrupt } = self;
        async move {
            let asked = session.ending();
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = asked.cancelled() => "DELETE /v1/session",
                () = runner_gone(&session, runner) => "the test run has ended",
                () = idle_too_long(&session, idle) => "nothing is leased",
                () = driver_lost(&session) => "the launcher of containers has ended, and they with it",
            }
        }
    }
}

/// Resolves when there is nothing left to run containers with: the next test process starts a new keeper.
async fn driver_lost(session: &Session) {
    match session.driver() {
        Ok(driver) => driver.lost().await,
        Err(_) => pending().await,
    }
}

/// Resolves once nothing has been leased for a while.
async fn idle_too_long(session: &Session, idle: Option<Duration>) {
    let Some(idle) = idle else { return pending().await };
    let mut leased = session.leased();
    loop {
        if leased.wait_for(|leases| *leases == 0).await.is_err() {
            return;
        }
        let busy_again = timeout(idle, leased.wait_for(|leases| *leases > 0)).await;
        if busy_again.is_err() && session.close_if_idle() {
            return;
        }
    }
}

/// Resolves once the runner has ended and no lease is left. A test process that outlives its runner keeps its lease.
async fn runner_gone(session: &Session, runner: Option<AsyncFd<OwnedFd>>) {
    let Some(runner) = runner else { return pending().await };
    // An error means that it cannot be watched; idleness ends the keeper then.
    if runner.readable().await.is_err() {
        return pending().await;
    }
    let mut leased = session.leased();
    while leased.wait_for(|leases| *leases == 0).await.is_ok() && !session.close_if_idle() {}
}
