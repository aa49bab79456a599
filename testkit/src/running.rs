//! The running container in a test.

use crate::NewImage;
use crate::guard::{Alive, Guard};
use crate::session::Share;
use crate::{
    Attachment, Endpoints, Exec, ExecOutput, Exit, Failure, FailureKind, File, GenericContainer, Health,
    LogLines, LogOptions, Logs, Module, Network, Pending, Port, Process, Protocol, Usage, error, files,
};
use shakedown_server::api::{LogQuery, Started};
use std::fmt;
use std::ops::Deref;
use std::panic::Location;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A container that is ready. It dereferences to the connection info of its module.
///
/// Dropping it removes the container and waits until it is gone, from any thread, inside or outside a runtime; a test
/// that panics shows the end of the container's log. If the process is killed instead, the session keeper removes it.
///
/// ```no_run
/// use shakedown::{modules::Postgres, prelude::*};
///
/// # async fn orders() -> shakedown::Result {
/// let db = Postgres::new().start().await?;
/// let url = db.url();
/// let version = db.exec(["postgres", "--version"]).await?.success()?;
/// assert!(version.stdout().contains("PostgreSQL"));
/// # drop(url); Ok(()) }
/// ```
#[must_use = "dropping a running container removes it"]
pub struct Running<M: Module> {
    guard: Guard,
    endpoints: Endpoints,
    timings: Timings,
    connection: Arc<M::Connection>,
}

/// How long each stage of a start took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timings {
    /// Finding the image, fetching it if needed.
    pub resolve: Duration,
    /// Making the file system, the network, the ports; putting files in.
    pub prepare: Duration,
    /// Starting the first process.
    pub launch: Duration,
    /// Waiting until it was ready.
    pub wait: Duration,
}

impl Timings {
    /// All stages together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.resolve + self.prepare + self.launch + self.wait
    }
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct State {
    /// `starting`, `ready`, `paused`, `restarting`, or `exited`.
    pub status: String,
    /// How it ended, once it has.
    pub exit: Option<Exit>,
    /// How often its policy has started it again.
    pub restarts: u32,
    /// How it fares by its health check, if it has one.
    pub health: Option<Health>,
}

impl<M: Module> Running<M> {
    pub(crate) fn new(share: Arc<Share>, test: String, started: Started, connection: M::Connection) -> Self {
        let Started { id, name, endpoints, timings } = started;
        let timings = Timings {
            resolve: Duration::from_micros(timings.resolve_us),
            prepare: Duration::from_micros(timings.prepare_us),
            launch: Duration::from_micros(timings.launch_us),
            wait: Duration::from_micros(timings.wait_us),
        };
        Self {
            guard: Guard::new(share, id, name, test),
            endpoints,
            timings,
            connection: Arc::new(connection),
        }
    }

    /// The container's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.guard.alive.id
    }

    /// The service's name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.guard.alive.name
    }

    /// The host to connect to from the test.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.endpoints.host
    }

    /// The port of the host that leads to a port of the container, for ports that the module's own connection info does
    /// not tell: a number is a TCP port, [`Port::udp`] a UDP port.
    ///
    /// # Errors
    ///
    /// The declaration does not publish that port; the failure names those it does.
    #[track_caller]
    pub fn port_of(&self, container: impl Into<Port>) -> Result<u16, Failure> {
        let (caller, port) = (Location::caller(), container.into());
        self.endpoints.host_port(port.container, port.protocol).ok_or_else(|| {
            let mut failure = undeclared(self.name(), &port, &self.endpoints);
            error::locate(&mut failure, caller);
            failure
        })
    }

    /// Where it is reached, from the test and from other containers.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The module's connection info, to keep beyond a borrow of this.
    #[must_use]
    pub fn connection(&self) -> Arc<M::Connection> {
        Arc::clone(&self.connection)
    }

    /// How long each stage of the start took.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Runs a command in the container: words, or an [`Exec`] with options. Any exit code is a result;
    /// [`ExecOutput::success`] asks for 0.
    ///
    /// # Errors
    ///
    /// The command could not be run, for instance because there is no such program.
    #[track_caller]
    pub fn exec(&self, command: impl Into<Exec>) -> Pending<ExecOutput> {
        let command = command.into();
        self.ask(|keeper, id| async move { keeper.exec(&id, command).await })
    }

    /// What it has written so far.
    #[track_caller]
    pub fn logs(&self) -> Pending<Logs> {
        self.logs_of(LogOptions::new())
    }

    /// What it has written so far, as far as the options want it.
    ///
    /// ```no_run
    /// use shakedown::prelude::*;
    ///
    /// # async fn orders() -> shakedown::Result {
    /// let orders = GenericContainer::new("orders").start().await?;
    /// let last = orders.logs_of(LogOptions::new().stderr().tail(10)).await?;
    /// assert!(last.text().is_empty(), "it complains: {}", last.text());
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn logs_of(&self, options: LogOptions) -> Pending<Logs> {
        self.ask(|keeper, id| async move { keeper.logs(&id, &options.query).await })
    }

    /// Follows its output, until that ends: line by line, as soon as they are written.
    ///
    /// A reader that is slower than the container holds nothing up; it misses lines once the log is longer than
    /// [`log_limit`](crate::Configure::log_limit).
    #[track_caller]
    pub fn follow_logs(&self, options: LogOptions) -> Pending<LogLines> {
        self.ask(|keeper, id| async move {
            let query = LogQuery { follow: true, ..options.query };
            Ok(LogLines::new(keeper.follow(&id, &query).await?))
        })
    }

    /// What it uses now: memory, processor time, processes.
    #[track_caller]
    pub fn stats(&self) -> Pending<Usage> {
        self.ask(|keeper, id| async move { keeper.usage(&id).await })
    }

    /// Puts a file or a directory in, with mode and owner.
    ///
    /// # Errors
    ///
    /// The source cannot be read, or the container's file system cannot be written.
    #[track_caller]
    pub fn copy_in(&self, file: File) -> Pending<()> {
        self.ask(|keeper, id| async move { keeper.put_files(&id, files::pack(&file)?).await })
    }

    /// Copies the file or directory at `path` of the container to `target` on this machine. Missing parents of
    /// `target` are made; a file there is replaced.
    ///
    /// # Errors
    ///
    /// There is nothing at `path`, or `target` cannot be written.
    #[track_caller]
    pub fn copy_out(&self, path: impl Into<String>, target: impl AsRef<Path>) -> Pending<()> {
        let (path, target) = (path.into(), std::path::absolute(target.as_ref()));
        self.ask(|keeper, id| async move {
            let tar = keeper.get_files(&id, &path).await?;
            let target = target.map_err(|error| files::failed(&path, &error))?;
            files::unpack(&tar, &target).map_err(|error| files::failed(&path, &error))
        })
    }

    /// The content of the regular file at `path` of the container.
    ///
    /// # Errors
    ///
    /// There is no file at `path`, or it is something else, such as a directory.
    #[track_caller]
    pub fn read_file(&self, path: impl Into<String>) -> Pending<Vec<u8>> {
        let path = path.into();
        self.ask(|keeper, id| async move {
            let tar = keeper.get_files(&id, &path).await?;
            files::only_file(&tar).map_err(|error| files::failed(&path, &error))
        })
    }

    /// Asks it to stop with its stop signal, and kills it after its stop timeout. Its log and files can still be read.
    #[track_caller]
    pub fn stop(&self) -> Pending<Exit> {
        self.ask(|keeper, id| async move { keeper.stop(&id).await })
    }

    /// Sends a signal, such as `SIGHUP`, to its first process.
    #[track_caller]
    pub fn kill(&self, signal: impl Into<String>) -> Pending<()> {
        let signal = signal.into();
        self.ask(|keeper, id| async move { keeper.kill(&id, &signal).await })
    }

    /// Starts it again after its end, with the same files, ports and networks, and waits until it is ready. One that runs
    /// is left as it is.
    ///
    /// ```no_run
    /// use shakedown::{modules::Redis, prelude::*};
    ///
    /// # async fn orders() -> shakedown::Result {
    /// let cache = Redis::new().start().await?;
    /// cache.stop().await?;
    /// // What does the client do now? Its connections are refused, and nobody else gets the port.
    /// cache.start_again().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Why it did not become ready.
    #[track_caller]
    pub fn start_again(&self) -> Pending<()> {
        self.ask(|keeper, id| async move { keeper.start_again(&id).await })
    }

    /// Stops it and starts it again, with the same files, ports and networks; waits until it is ready.
    ///
    /// # Errors
    ///
    /// Why it did not become ready.
    #[track_caller]
    pub fn restart(&self) -> Pending<()> {
        self.ask(|keeper, id| async move { keeper.restart(&id).await })
    }

    /// Halts all its processes: connections stay open, and nobody answers. It can be stopped, killed and removed.
    ///
    /// # Errors
    ///
    /// The capability `pause` is missing here, or it has ended.
    #[track_caller]
    pub fn pause(&self) -> Pending<()> {
        self.ask(|keeper, id| async move { keeper.pause(&id).await })
    }

    /// Lets its processes go on where they stood.
    #[track_caller]
    pub fn unpause(&self) -> Pending<()> {
        self.ask(|keeper, id| async move { keeper.unpause(&id).await })
    }

    /// What it is doing: its status, its health, how often its policy has started it again.
    #[track_caller]
    pub fn state(&self) -> Pending<State> {
        self.ask(|keeper, id| async move { keeper.state(&id).await })
    }

    /// Starts a command in the container and does not wait for it; its output is thrown away.
    ///
    /// # Errors
    ///
    /// The command could not be run.
    #[track_caller]
    pub fn exec_detached(&self, command: impl Into<Exec>) -> Pending<()> {
        let command = command.into();
        self.ask(|keeper, id| async move { keeper.exec_detached(&id, command).await })
    }

    /// Starts a command in the container and talks to it.
    ///
    /// # Errors
    ///
    /// The command could not be run.
    #[track_caller]
    pub fn interact(&self, command: impl Into<Exec>) -> Pending<Process> {
        let command = command.into();
        self.ask(|keeper, id| async move { keeper.interact(&id, command).await })
    }

    /// Talks to its first process. Output begins with what it has written so far; input is read if the container was
    /// declared with `stdin_open`.
    ///
    /// # Errors
    ///
    /// It does not run.
    #[track_caller]
    pub fn attach(&self) -> Pending<Process> {
        let name = self.name().to_owned();
        self.ask(|keeper, id| async move { keeper.attach(&id, &name).await })
    }

    /// Joins a network: a [`Network`](crate::Network), or an [`Attachment`] with names and an address. Others on it find
    /// the container at once, and it finds them.
    ///
    /// ```no_run
    /// use shakedown::{Attachment, prelude::*};
    ///
    /// # async fn orders() -> shakedown::Result {
    /// let (front, back) = (Network::new(), Network::new());
    /// let shop = GenericContainer::new("shop").network(&front).start().await?;
    /// shop.join_network(Attachment::to(&back).alias("till")).await?;
    /// shop.leave_network(&back).await?;
    /// # drop(shop); Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// It is on that network, or it was declared with another network than its own.
    #[track_caller]
    pub fn join_network(&self, to: impl Into<Attachment>) -> Pending<()> {
        let joined = to.into();
        self.ask(|keeper, id| async move { keeper.join_network(&id, &joined).await })
    }

    /// Leaves a network: for a test of what a service does when others are out of reach.
    ///
    /// # Errors
    ///
    /// It is not on that network.
    #[track_caller]
    pub fn leave_network(&self, network: &Network) -> Pending<()> {
        let key = network.key.clone();
        self.ask(|keeper, id| async move { keeper.leave_network(&id, &key).await })
    }

    /// Resolves when its first process has ended, and its policy does not start it again.
    #[track_caller]
    pub fn exited(&self) -> Pending<Exit> {
        self.ask(|keeper, id| async move { keeper.exited(&id).await })
    }

    /// Makes an image of it, with what was written to it so far, for further containers to start from. What is mounted
    /// is no part of it. Gives the image's id.
    ///
    /// The image stays until somebody removes it: [`images::remove`](crate::images::remove), `shakedown images rm`, or
    /// `docker rmi`.
    ///
    /// ```no_run
    /// use shakedown::prelude::*;
    ///
    /// # async fn orders() -> shakedown::Result {
    /// let first = GenericContainer::new("busybox").command(["sleep", "1000"]).start().await?;
    /// first.exec(["touch", "/orders"]).await?;
    /// first.commit("orders:seeded").await?;
    /// let second = GenericContainer::new("orders:seeded").start().await?;
    /// # drop(second); Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// The name is none, or the driver could not make the image.
    #[track_caller]
    pub fn commit(&self, image: impl Into<NewImage>) -> Pending<String> {
        let image = image.into();
        self.ask(|keeper, id| async move { keeper.commit(&id, &image).await })
    }

    pub(crate) fn alive(&self) -> &Alive {
        &self.guard.alive
    }

    /// One question to the keeper about this container.
    #[track_caller]
    fn ask<T: Send + 'static, F>(&self, question: impl FnOnce(Arc<Share>, String) -> F) -> Pending<T>
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        Pending::spawn(question(Arc::clone(&self.guard.alive.share), self.guard.alive.id.clone()))
    }
}

impl Running<GenericContainer> {
    /// The port of the host that leads to a port of the container: a number is a TCP port, [`Port::udp`] a UDP port.
    ///
    /// # Errors
    ///
    /// The declaration does not publish that port; the failure names those it does.
    #[track_caller]
    pub fn port(&self, container: impl Into<Port>) -> Result<u16, Failure> {
        self.port_of(container)
    }
}

fn undeclared(name: &str, port: &Port, endpoints: &Endpoints) -> Failure {
    let mut declared: Vec<_> =
        endpoints.published.iter().map(|port| format!("{}/{}", port.container, port.protocol)).collect();
    declared.dedup();
    let declared = if declared.is_empty() { "none".to_owned() } else { declared.join(", ") };
    Failure::new(FailureKind::PortNotDeclared, format!("{name} does not publish port {port}"))
        .fact("declared", declared)
        .hint(format!("add `.port({})` to its declaration", written(port)))
}

/// A port as a declaration has it.
fn written(port: &Port) -> String {
    match port.protocol {
        Protocol::Tcp => port.container.to_string(),
        protocol => format!("Port::{protocol}({})", port.container),
    }
}

impl<M: Module> Deref for Running<M> {
    type Target = M::Connection;

    fn deref(&self) -> &M::Connection {
        &self.connection
    }
}

impl<M: Module> fmt::Debug for Running<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("id", &self.id())
            .field("name", &self.name())
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}
