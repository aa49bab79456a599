//! This process's share in the session: one lease, taken on first use and held until the process ends.

use crate::{
    Capability, Container, Exec, ExecOutput, Exit, Failure, FailureKind, LogLine, Logs, NewImage, Pending,
    Process, State, Usage, evidence,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use shakedown_runtime::ExecRequest;
use shakedown_server::api::{LeaseGranted, LogEntry, LogQuery, Started};
use shakedown_server::client::{Client, Lease};
use shakedown_server::frames::Asked;
use shakedown_spec::Attachment;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::Mutex;

static SHARE: Mutex<Option<Arc<Share>>> = Mutex::const_new(None);

/// The share of this process. Many tests may ask at once; the first connects, the others wait for it.
///
/// When the keeper has died, the next who asks gets a share in a new session; what ran in the old one is gone.
pub(crate) async fn share() -> Result<Arc<Share>, Failure> {
    let mut slot = SHARE.lock().await;
    if let Some(share) = slot.as_ref().filter(|share| !share.void.load(Ordering::Acquire)) {
        return Ok(Arc::clone(share));
    }
    let share = Share::take().await?;
    *slot = Some(Arc::clone(&share));
    Ok(share)
}

/// A lease, and the keeper that granted it. Its methods are the keeper's, in the types of this crate.
#[derive(Debug)]
pub(crate) struct Share {
    keeper: Client,
    granted: LeaseGranted,
    /// Set when the keeper has gone.
    void: Arc<AtomicBool>,
}

impl Share {
    async fn take() -> Result<Arc<Self>, Failure> {
        let directory = std::env::current_dir().map_err(|error| {
            Failure::new(FailureKind::Other, "the working directory of the test cannot be read")
                .fact("reason", error.to_string())
        })?;
        let keeper = Client::connect(&directory).await?;
        let lease = keeper.lease(&evidence::binary(), &directory).await?;
        let (granted, void) = (lease.granted().clone(), Arc::new(AtomicBool::new(false)));
        tokio::spawn(hold(lease, Arc::clone(&void)));
        Ok(Arc::new(Self { keeper, granted, void }))
    }

    /// What the keeper said when it granted the lease.
    pub(crate) fn granted(&self) -> &LeaseGranted {
        &self.granted
    }

    pub(crate) async fn start(&self, container: &Container) -> Result<Started, Failure> {
        self.keeper.start_container(&self.granted.lease, container).await
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<(), Failure> {
        self.keeper.remove(id).await
    }

    pub(crate) async fn commit(&self, id: &str, image: &NewImage) -> Result<String, Failure> {
        Ok(self.keeper.commit(id, image).await?.id)
    }

    /// The keeper itself, for what is about no container.
    pub(crate) fn keeper(&self) -> &Client {
        &self.keeper
    }

    pub(crate) async fn stop(&self, id: &str) -> Result<Exit, Failure> {
        self.keeper.stop(id).await
    }

    pub(crate) async fn start_again(&self, id: &str) -> Result<(), Failure> {
        self.keeper.start_again(id).await.map(drop)
    }

    pub(crate) async fn restart(&self, id: &str) -> Result<(), Failure> {
        self.keeper.restart(id).await.map(drop)
    }

    pub(crate) async fn pause(&self, id: &str) -> Result<(), Failure> {
        self.keeper.pause(id).await
    }

    pub(crate) async fn unpause(&self, id: &str) -> Result<(), Failure> {
        self.keeper.unpause(id).await
    }

    pub(crate) async fn state(&self, id: &str) -> Result<State, Failure> {
        let state = self.keeper.state(id).await?;
        let (status, health, exit) = (state.status, state.health, state.exit);
        Ok(State { status, exit, restarts: state.restarts, health })
    }

    pub(crate) async fn exec_detached(&self, id: &str, command: Exec) -> Result<(), Failure> {
        self.keeper.exec_detached(id, command.request, &command.input).await
    }

    pub(crate) async fn interact(&self, id: &str, command: Exec) -> Result<Process, Failure> {
        let request = ExecRequest { stdin: true, ..command.request };
        let mut talk = self.keeper.exec_stream(id, &request).await?;
        if !command.input.is_empty() {
            talk.input.send(&Asked::Input(command.input.into())).await?;
        }
        Ok(Process::new(request.argv, talk))
    }

    pub(crate) async fn attach(&self, id: &str, name: &str) -> Result<Process, Failure> {
        Ok(Process::new(vec![name.to_owned()], self.keeper.attach(id, true).await?))
    }

    pub(crate) async fn kill(&self, id: &str, signal: &str) -> Result<(), Failure> {
        self.keeper.kill(id, signal).await
    }

    pub(crate) async fn join_network(&self, id: &str, joined: &Attachment) -> Result<(), Failure> {
        self.keeper.join_network(id, joined).await
    }

    pub(crate) async fn leave_network(&self, id: &str, key: &str) -> Result<(), Failure> {
        self.keeper.leave_network(id, key).await
    }

    pub(crate) async fn exited(&self, id: &str) -> Result<Exit, Failure> {
        self.keeper.exit(id).await
    }

    pub(crate) async fn logs(&self, id: &str, query: &LogQuery) -> Result<Logs, Failure> {
        Ok(Logs { lines: self.follow(id, query).await?.try_collect().await? })
    }

    /// The lines of a log as they come.
    pub(crate) async fn follow(
        &self,
        id: &str,
        query: &LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, Failure>>, Failure> {
        let entries = self.keeper.logs(id, query).await?;
        Ok(entries.and_then(async |entry| log_line(entry)).boxed())
    }

    pub(crate) async fn usage(&self, id: &str) -> Result<Usage, Failure> {
        self.keeper.usage(id).await
    }

    pub(crate) async fn exec(&self, id: &str, command: Exec) -> Result<ExecOutput, Failure> {
        let Exec { request, input } = command;
        let argv = request.argv.clone();
        let ended = self.keeper.exec(id, request, &input).await?;
        let (stdout, stderr) = (decoded(&ended.stdout)?, decoded(&ended.stderr)?);
        Ok(ExecOutput { argv, stdout, stderr, exit: ended.exit })
    }

    /// Unpacks `tar` at `/` of the container.
    pub(crate) async fn put_files(&self, id: &str, tar: Vec<u8>) -> Result<(), Failure> {
        self.keeper.copy_in(id, "/", stream::iter([Ok(tar.into())])).await
    }

    /// The file or directory at `path` of the container as a tar stream with one top entry.
    pub(crate) async fn get_files(&self, id: &str, path: &str) -> Result<Vec<u8>, Failure> {
        let chunks = self.keeper.copy_out(id, path).await?;
        let tar = chunks.try_fold(Vec::new(), async |mut tar, chunk| {
            tar.extend_from_slice(&chunk);
            Ok(tar)
        });
        tar.await.map_err(|error| crate::files::failed(path, &error))
    }
}

/// Keeps the connection open that is the lease, and notes its end.
async fn hold(mut lease: Lease, void: Arc<AtomicBool>) {
    lease.ended().await;
    void.store(true, Ordering::Release);
}

fn log_line(entry: LogEntry) -> Result<LogLine, Failure> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_micros(entry.time_us);
    Ok(LogLine { stream: entry.stream, time, partial: entry.partial, bytes: decoded(&entry.bytes)? })
}

fn decoded(text: &str) -> Result<Vec<u8>, Failure> {
    STANDARD.decode(text).map_err(|error| {
        Failure::new(FailureKind::Other, "the session keeper sent something that is not base64")
            .fact("reason", error.to_string())
    })
}

/// What runs the containers of this test run.
///
/// ```no_run
/// # fn main() -> shakedown::Result {
/// let session = shakedown::session().blocking()?;
/// if let Some(reason) = session.missing("memory limit") {
///     eprintln!("{} cannot limit memory here: {reason}", session.driver());
/// }
/// # Ok(()) }
/// ```
#[track_caller]
pub fn session() -> Pending<Session> {
    Pending::spawn(async { Ok(Session { share: share().await? }) })
}

/// One test run: all processes that `cargo test` or `cargo nextest run` started, and their containers.
#[derive(Clone, Debug)]
pub struct Session {
    share: Arc<Share>,
}

impl Session {
    /// The session's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.share.granted().session
    }

    /// What runs the containers: `native` or `docker`.
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.share.granted().driver
    }

    /// What the driver is here, in one line: version, socket, root or user.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.share.granted().description
    }

    /// What the driver can do here, and the reason where it cannot.
    #[must_use]
    pub fn capabilities(&self) -> &[Capability] {
        &self.share.granted().capabilities
    }

    /// Why the driver cannot do `capability` here; `None` if it can.
    #[must_use]
    pub fn missing(&self, capability: &str) -> Option<&str> {
        self.capabilities().iter().find(|known| known.name == capability)?.missing.as_deref()
    }
}
