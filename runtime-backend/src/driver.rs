//! The boundary between what a test wants and how a container is run.
//!
//! A driver resolves images, makes networks, and creates, starts and removes containers. It knows sessions only as a
//! name that everything it makes has to carry, so that a later session can find and remove what a dead one left.

use crate::build::{BuildProgress, BuildRequest};
use crate::native::image::StoreLimits;
use crate::transfer::{ByteStream, ListedImage, LoadedImage, NewImage, SavedImage};
use crate::{ArchiveForm, Bundled, LogBook, Runs, Wanted};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use shakedown_spec::{
    Attachment, Container, Endpoints, Failure, FailureKind, Healthcheck, ImageReference, ImageSource,
    Network, Platform, PullPolicy, Stream,
};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// What a driver call gives, or why it does not.
pub type Result<T> = std::result::Result<T, Failure>;

/// Runs containers. All methods may be called at the same time from many tasks.
///
/// Ids are chosen by the caller *before* [`create`](Driver::create), so that the caller's guard exists before the
/// container does; [`remove`](Driver::remove) of an id that was never created, or is removed already, succeeds.
#[async_trait]
pub trait Driver: Send + Sync + fmt::Debug {
    /// `native` or `docker`.
    fn name(&self) -> &'static str;

    /// One line that says what this driver is here: version, socket, root or user.
    fn description(&self) -> String;

    /// What this driver can do on this machine, and the reason where it cannot.
    fn capabilities(&self) -> Vec<Capability>;

    /// Finds out what is only known by trying, for who looks at [`capabilities`](Driver::capabilities) alone.
    async fn examine(&self) {}

    /// Finds the image, fetching it if the terms say so. Nothing unverified is ever unpacked.
    async fn obtain(&self, wanted: &Wanted, progress: Progress) -> Result<Image>;

    /// As [`obtain`](Driver::obtain), for the machine at hand, with the network.
    async fn resolve(&self, source: &ImageSource, policy: PullPolicy, progress: Progress) -> Result<Image> {
        self.obtain(&Wanted::new(source.clone(), policy), progress).await
    }

    /// What the local store has under this reference: the digests of the index or manifest that it can be asked for by.
    /// Nothing, if the image is not there. No network is used.
    async fn stored(&self, reference: &ImageReference) -> Result<Vec<String>>;

    /// The digest of what the registry means by this reference now; `None` if it does not say.
    async fn current(&self, reference: &ImageReference, wanted: &Wanted) -> Result<Option<String>>;

    /// Takes the images of a bundle in, under their names and digests.
    async fn import_bundle(&self, file: &Path, progress: Progress) -> Result<Vec<Bundled>>;

    /// What becomes of an image of this kind here.
    fn runs(&self, platform: &Platform) -> Runs;

    /// Builds an image. The answer names it by its id; `request.names` name it from then on, too.
    ///
    /// # Errors
    ///
    /// A base image cannot be had, or a step failed: the failure has its line and the end of its output.
    async fn build(&self, request: BuildRequest, progress: BuildProgress) -> Result<Image> {
        let _ = progress;
        let title = format!("{} cannot be built by the {} driver", request.plan.dockerfile.name, self.name());
        Err(Failure::new(FailureKind::Unsupported, title))
    }

    /// The images that are there.
    async fn images(&self) -> Result<Vec<ListedImage>>;

    /// Takes a name from an image, and removes the image with its last name; by its id, the image.
    async fn remove_image(&self, image: &ImageSource) -> Result<()>;

    /// Gives the image a name more. An image that has the name loses it.
    async fn tag(&self, image: &Image, name: &ImageReference) -> Result<()>;

    /// Sends the image to a registry, under the reference's tag.
    async fn push(&self, image: &Image, to: &ImageReference, progress: Progress) -> Result<()>;

    /// Writes the images to one archive, each layer once.
    async fn save(&self, images: &[SavedImage], form: ArchiveForm) -> Result<ByteStream>;

    /// Takes all images of an archive of either form, compressed or not, with the names they have in it.
    async fn load(&self, archive: ByteStream, progress: Progress) -> Result<Vec<LoadedImage>>;

    /// Makes an image of a root file system: a tar archive, compressed or not.
    async fn import(&self, tar: ByteStream, new: &NewImage) -> Result<Image>;

    /// Makes an image of a container, created or running: its image with what was written since, and with what its
    /// declaration says about its processes. What is mounted is no part of it.
    async fn commit(&self, id: &str, new: &NewImage) -> Result<Image>;

    /// Makes the network if it is not there. Networks are told apart by key within the session.
    async fn create_network(&self, network: &Network) -> Result<()>;

    /// Removes the network; one that is not there is no error.
    async fn remove_network(&self, key: &str) -> Result<()>;

    /// Connects a container, created or running, with a network that is there.
    async fn connect_network(&self, id: &str, joined: &Attachment) -> Result<()>;

    /// Takes a container, created or running, from a network.
    async fn disconnect_network(&self, id: &str, key: &str) -> Result<()>;

    /// Removes a volume of the session; one that is not there is no error.
    async fn remove_volume(&self, key: &str) -> Result<()>;

    /// Makes the container without starting it: file system, declared files, ports. The ports are final.
    async fn create(&self, request: Create) -> Result<Endpoints>;

    /// Starts the first process; its output goes to `log`, which is closed after the last byte. When it has ended, it may
    /// be started again: files, networks and ports are the same.
    async fn start(&self, id: &str, log: Arc<LogBook>) -> Result<()>;

    /// Resolves when the first process has ended. Several callers may wait; a later caller gets the same answer.
    async fn exited(&self, id: &str) -> Result<Exit>;

    /// Sends a signal to the first process.
    async fn kill(&self, id: &str, signal: &str) -> Result<()>;

    /// Halts all processes of the container, until [`unpause`](Driver::unpause). A container that is paused already, and
    /// one that is killed or removed meanwhile, is no error.
    ///
    /// # Errors
    ///
    /// The capability `pause` is missing here: [`Unsupported`](FailureKind::Unsupported).
    async fn pause(&self, id: &str) -> Result<()>;

    /// Lets the processes go on.
    async fn unpause(&self, id: &str) -> Result<()>;

    /// The input and the terminal of the first process, which are the same for all who ask.
    async fn attach(&self, id: &str) -> Result<Attached>;

    /// What the driver itself knows of the container's health; `None` if it makes no checks.
    async fn health(&self, _id: &str) -> Result<Option<Health>> {
        Ok(None)
    }

    /// Removes the container and everything made for it, killing it first if it runs.
    async fn remove(&self, id: &str) -> Result<()>;

    /// Runs a further process in the container.
    async fn exec(&self, id: &str, request: ExecRequest) -> Result<Exec>;

    /// Unpacks a tar stream at the directory `path` of the container, created or running.
    async fn copy_in(&self, id: &str, path: &str, tar: Pin<Box<dyn AsyncRead + Send>>) -> Result<()>;

    /// A tar stream with one top entry: the file or directory at `path` of the container.
    async fn copy_out(&self, id: &str, path: &str) -> Result<Pin<Box<dyn AsyncRead + Send>>>;

    /// What the container uses now.
    ///
    /// # Errors
    ///
    /// It does not run.
    async fn usage(&self, id: &str) -> Result<Usage>;

    /// Whether something listens on this TCP port, asked inside the container's network.
    async fn listening(&self, id: &str, port: u16) -> Result<bool>;

    /// Connects to a TCP port of the container, published or not where the driver can.
    ///
    /// # Errors
    ///
    /// The error of the connection attempt, such as "connection refused".
    async fn connect(&self, id: &str, port: u16) -> std::io::Result<Box<dyn Socket>>;

    /// Keeps what the driver stores of images within its limits, if it is time for that. Nothing in use is removed.
    async fn keep_within(&self, _limits: &StoreLimits) -> Result<()> {
        Ok(())
    }

    /// Resolves when the driver has lost what it runs containers with, and every container with it: a new session is
    /// the way out. Never, for a driver that can connect again.
    async fn lost(&self) {
        std::future::pending::<()>().await;
    }

    /// Whether that has happened already, seen at once: before anybody can see that the containers are gone.
    fn is_lost(&self) -> bool {
        false
    }

    /// Removes whatever a dead session of this name left behind.
    async fn sweep(&self, session: &str) -> Result<()>;
}

/// A byte stream to a service.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// What a driver can or cannot do here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// A stable name, such as `memory limit`.
    pub name: String,
    /// Why it is missing; `None` means it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// Called with each step of getting an image: layer or blob, bytes done, bytes in all.
pub type Progress = Arc<dyn Fn(&str, u64, u64) + Send + Sync>;

/// A resolved image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The digest of its configuration, `sha256:…`: Docker's image id.
    pub id: String,
    /// How it was asked for.
    pub reference: String,
    /// What it says about its containers.
    pub config: ImageConfig,
}

/// What an image says about its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Command.
    pub command: Vec<String>,
    /// User, empty for root.
    pub user: String,
    /// Working directory, empty for `/`.
    pub workdir: String,
    /// Ports as `6379/tcp`.
    pub exposed: Vec<String>,
    /// Paths that want to be volumes.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Signal to stop with.
    pub stop_signal: Option<String>,
    /// Health check.
    pub healthcheck: Option<Healthcheck>,
    /// What kind of machine its programs are for, if it says so.
    pub platform: Option<Platform>,
}

/// Everything a driver needs to make a container.
#[derive(Clone, Debug)]
pub struct Create {
    /// The id, unique on this machine: letters, digits and `-`.
    pub id: String,
    /// The session it belongs to.
    pub session: String,
    /// The declaration. Host paths in it are absolute.
    pub container: Container,
    /// Its image, resolved by the same driver.
    pub image: Image,
    /// The images that it mounts, by the names they have in the declaration.
    pub mounted: BTreeMap<String, Image>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 plus the signal's number if a signal ended it, as shells count.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the container for its use of memory.
    #[serde(default)]
    pub out_of_memory: bool,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.out_of_memory, self.signal) {
            (true, _) => write!(f, "killed for its use of memory (code {})", self.code),
            (false, Some(signal)) => write!(f, "killed by signal {signal}"),
            (false, None) => write!(f, "code {}", self.code),
        }
    }
}

/// What a container uses; what cannot be known here is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Memory in bytes, without the page cache that can be had back at once: as `docker stats` counts.
    pub memory: Option<u64>,
    /// The most memory it may use, if that is limited.
    pub memory_limit: Option<u64>,
    /// Processor time in nanoseconds since it started.
    pub cpu_ns: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
    /// The most processes and threads it may have, if that is limited.
    pub pids_limit: Option<u64>,
}

/// A further process to run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExecRequest {
    /// The argument vector; the first is looked up in the container's `PATH`.
    pub argv: Vec<String>,
    /// Environment variables, on top of the container's.
    pub env: BTreeMap<String, String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; the container's when unset.
    pub user: Option<String>,
    /// Working directory; the container's when unset.
    pub workdir: Option<String>,
    /// Whether [`Exec::stdin`] is wanted; otherwise the process reads an empty input.
    pub stdin: bool,
    /// Whether the process gets a terminal; its output is then one stream.
    pub tty: bool,
    /// The size of the terminal; the kernel's (0 × 0, which programs take for 80 × 24) when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<TerminalSize>,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Changes the size of a terminal; the programs in it are told by a signal.
pub type Resize = Arc<dyn Fn(TerminalSize) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// Ends a further process at once.
pub type Abort = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// An input that several may write to; `None` once it has been closed.
pub type SharedInput = Arc<tokio::sync::Mutex<Option<Pin<Box<dyn AsyncWrite + Send>>>>>;

/// A way into a container's first process. Its output is in its log.
#[derive(Clone, Default)]
pub struct Attached {
    /// Its input, if it was declared with one.
    pub input: Option<SharedInput>,
    /// Sets the size of its terminal, if it was declared with one.
    pub resize: Option<Resize>,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

impl ExecRequest {
    /// A request for `argv` with everything else as the container has it.
    pub fn of<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// A running further process. Dropping it does not end the process; the container's removal does.
pub struct Exec {
    /// Its output as it comes; ends when the process has closed both streams.
    pub output: BoxStream<'static, std::io::Result<(Stream, Bytes)>>,
    /// Its input, if asked for; dropping it is the end of the input.
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// How it ended; resolves after the output has ended.
    pub exit: BoxFuture<'static, Result<Exit>>,
    /// Sets the size of its terminal, if it has one.
    pub resize: Option<Resize>,
    /// Kills it, where the driver can.
    pub abort: Option<Abort>,
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec").finish_non_exhaustive()
    }
}

/// How a container fares by its health check, in Docker's terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The verdict.
    pub status: HealthStatus,
    /// How many checks in a row have failed and count.
    pub failing_streak: u32,
    /// The last five checks, the newest last.
    pub log: Vec<HealthProbe>,
}

/// The verdict of the health checks so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No check has succeeded, and not enough have failed.
    #[default]
    Starting,
    /// The last check that counts succeeded.
    Healthy,
    /// As many checks in a row as declared have failed.
    Unhealthy,
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

/// One health check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthProbe {
    /// Its exit code; -1 if it took too long or could not be run.
    pub exit_code: i32,
    /// What it wrote, at most 4096 bytes.
    pub output: String,
    /// When it ended: microseconds since 1970-01-01 00:00 UTC.
    pub ended_us: u64,
}

/// A finished further process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: Exit,
}

impl Exec {
    /// Reads the output to its end and waits for the process; the input is closed at once.
    ///
    /// # Errors
    ///
    /// The output could not be read, or the process's end could not be learnt.
    pub async fn collect(mut self) -> Result<ExecOutput> {
        use futures_util::StreamExt;
        drop(self.stdin.take());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(chunk) = self.output.next().await {
            match chunk {
                Ok((Stream::Stdout, bytes)) => stdout.extend_from_slice(&bytes),
                Ok((Stream::Stderr, bytes)) => stderr.extend_from_slice(&bytes),
                Err(error) => {
                    let title = "the output of a command in the container could not be read";
                    let kind = shakedown_spec::FailureKind::ExecFailed;
                    return Err(Failure::new(kind, title).fact("reason", error.to_string()));
                }
            }
        }
        Ok(ExecOutput { stdout, stderr, exit: self.exit.await? })
    }
}
