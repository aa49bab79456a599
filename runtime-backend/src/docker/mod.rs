//! The Docker driver: any Docker-compatible socket, over bollard.
//!
//! Resolve, prepare and launch happen in the daemon; what is here translates declarations on the way in and answers
//! on the way out. Everything the daemon is asked to make carries the session's label from its first instant, so that
//! a later session finds what a dead one left.

mod build;
mod declare;
mod discover;
mod exec;
mod failures;
mod files;
mod forward;
mod host_ports;
mod image;
mod policy;
mod listeners;
mod network;
mod ports;
mod pause;
mod process;
mod transfer;
mod usage;
mod volume;

pub use discover::{Candidate, Endpoint, candidates, connect_first};

use crate::build::{BuildProgress, BuildRequest};
use crate::driver::{
    Attached, Capability, Create, Driver, Exec, ExecRequest, Exit, Health, Image, Progress, Result,
    SharedInput, Socket, Usage,
};
use crate::transfer::{ByteStream, ListedImage, LoadedImage, NewImage, SavedImage};
use crate::wanted::{Runs, Wanted};
use crate::{ArchiveForm, Bundled, LogBook};
use async_trait::async_trait;
use bollard::Docker;
use bollard::models::SystemInfo;
use failures::{daemon_failure, is_gone};
use ports::Reservations;
use shakedown_spec::{
    Attachment, Container, Endpoints, Failure, FailureKind, ImageReference, ImageSource, Mount, MountSource,
    NamespaceMode, Network, NetworkMode, Platform, SecurityOptions,
};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::sync::watch;

/// The label whose value is the session's name; on everything this driver makes.
pub const SESSION_LABEL: &str = "org.shakedown.session";

/// How long a daemon may take to say its version before it counts as not answering.
const GREETING: Duration = Duration::from_secs(10);
/// bollard's limit on the head of an answer. Podman sends the head of `wait` when the container has ended, so the
/// limit may not be shorter than a container may live.
const ANSWER_SECONDS: u64 = 24 * 3600;

/// Runs containers in a Docker-compatible daemon.
///
/// Clones are the same driver.
#[derive(Clone)]
pub struct DockerDriver {
    inner: Arc<Inner>,
}

struct Inner {
    docker: Docker,
    endpoint: Endpoint,
    session: String,
    info: SystemInfo,
    containers: Mutex<HashMap<String, Arc<Instance>>>,
    /// Held while a network is looked up and made: before API 1.44 the daemon makes two networks of one name.
    networks: Arc<tokio::sync::Mutex<()>>,
    /// Held while an image is uploaded, so that two tests that start one image upload it once.
    uploads: tokio::sync::Mutex<()>,
}

/// What the driver knows of a container it made.
struct Instance {
    /// The name in the daemon, `shakedown-<id>`.
    name: String,
    /// The service's name in messages.
    service: String,
    endpoints: Mutex<Endpoints>,
    /// The host's ports from create to start.
    reserved: Mutex<Reservations>,
    /// Held while the daemon makes the container; removal waits for it.
    making: Arc<tokio::sync::Mutex<()>>,
    /// Process id of the first process and the daemon's id of the container, once started.
    process: Mutex<Option<(i64, String)>>,
    /// Set if the daemon publishes nothing for it.
    internal: bool,
    /// Whether its use of memory is limited.
    limited: bool,
    /// Whether it was sent a signal.
    signalled: AtomicBool,
    forwards: Mutex<forward::Forwards>,
    /// The ports of this machine that it is to reach, and what passes them on.
    host_ports: Vec<u16>,
    shown: Mutex<tokio::task::JoinSet<()>>,
    exit: watch::Sender<Option<Result<Exit>>>,
    /// The input of the first process, once started, if it was declared with one.
    input: Mutex<Option<SharedInput>>,
    /// Whether the first process has a terminal, and an input.
    tty: bool,
    stdin_open: bool,
    /// Whether its ports are the host's.
    host_network: bool,
}

impl DockerDriver {
    /// Connects to the daemon at `endpoint` for the session of this name.
    ///
    /// # Errors
    ///
    /// The daemon does not answer there: [`FailureKind::NoDriver`], with the reason as its title.
    pub async fn connect(endpoint: &Endpoint, session: &str) -> Result<Self> {
        endpoint.probe().await.map_err(|reason| Failure::new(FailureKind::NoDriver, reason))?;
        let greeting = async {
            let docker = match endpoint {
                Endpoint::Unix(path) => {
                    let path = path.to_string_lossy();
                    Docker::connect_with_unix(&path, ANSWER_SECONDS, bollard::API_DEFAULT_VERSION)?
                }
                Endpoint::Tcp { .. } => Docker::connect_with_http(
                    &endpoint.to_string(),
                    ANSWER_SECONDS,
                    bollard::API_DEFAULT_VERSION,
                )?,
            };
            let docker = docker.negotiate_version().await?;
            let info = docker.info().await?;
            Ok::<_, bollard::errors::Error>((docker, info))
        };
        let refused =
            |reason: String| Failure::new(FailureKind::NoDriver, format!("{}: {reason}", endpoint.place()));
        let (docker, info) = match tokio::time::timeout(GREETING, greeting).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(refused(failures::words(&error))),
            Err(_) => return Err(refused(format!("no answer within {} s", GREETING.as_secs()))),
        };
        let inner = Inner {
            docker,
            endpoint: endpoint.clone(),
            session: session.to_owned(),
            info,
            containers: Mutex::default(),
            networks: Arc::default(),
            uploads: tokio::sync::Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The daemon's address.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    fn instance(&self, id: &str) -> Result<Arc<Instance>> {
        let containers = self.inner.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.get(id).cloned().ok_or_else(|| {
            Failure::new(FailureKind::NoSuchContainer, format!("there is no container `{id}`"))
        })
    }

    fn check_host_ports(&self, container: &Container) -> Result<()> {
        if container.host_ports.is_empty() || self.inner.endpoint.is_local() {
            return Ok(());
        }
        let title = format!("{} cannot be shown ports of this machine", container.display_name());
        Err(Failure::new(FailureKind::Unsupported, title).fact("reason", host_ports::REMOTE))
    }

    /// The labels of everything this driver makes: the session's, and those by which Testcontainers' own tools list
    /// what a test made.
    fn labels(&self) -> HashMap<String, String> {
        [
            (SESSION_LABEL, self.inner.session.as_str()),
            ("org.testcontainers", "true"),
            ("org.testcontainers.lang", "rust"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }
}

impl fmt::Debug for DockerDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerDriver").field("endpoint", &self.inner.endpoint).finish_non_exhaustive()
    }
}

/// Why what is masked is not sure to stay so; a daemon does not say which runc it has in a way that can be compared.
const FALSE_NULL: &str = "runc before 1.2.8 and 1.3.3 masks with whatever is at /dev/null (CVE-2025-31133)";

#[async_trait]
impl Driver for DockerDriver {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn description(&self) -> String {
        let version = self.inner.info.server_version.as_deref().unwrap_or("of unknown version");
        let system = self.inner.info.operating_system.as_deref().unwrap_or("unknown system");
        format!("Docker {version} at {} ({system})", self.inner.endpoint.place())
    }

    fn capabilities(&self) -> Vec<Capability> {
        let mut list = capabilities(&self.inner.info);
        let missing = (!self.inner.endpoint.is_local()).then(|| host_ports::REMOTE.to_owned());
        list.push(Capability { name: "host ports".to_owned(), missing });
        list.push(Capability { name: "image mounts".to_owned(), missing: self.image_mounts_missing() });
        list.push(Capability { name: "ipv6 outbound".to_owned(), missing: self.ipv6_outbound_missing() });
        list.push(Capability {
            name: "masks with a mounted /dev".to_owned(),
            missing: Some(FALSE_NULL.to_owned()),
        });
        list
    }

    async fn obtain(&self, wanted: &Wanted, progress: Progress) -> Result<Image> {
        self.obtain_image(wanted, progress).await
    }

    async fn stored(&self, reference: &ImageReference) -> Result<Vec<String>> {
        self.stored_digests(reference).await
    }

    async fn current(&self, reference: &ImageReference, _wanted: &Wanted) -> Result<Option<String>> {
        self.current_digest(reference).await
    }

    async fn import_bundle(&self, file: &Path, progress: Progress) -> Result<Vec<Bundled>> {
        self.take_bundle(file, &progress).await
    }

    fn runs(&self, platform: &Platform) -> Runs {
        self.verdict(platform)
    }

    async fn build(&self, request: BuildRequest, progress: BuildProgress) -> Result<Image> {
        self.build_image(request, progress).await
    }

    async fn images(&self) -> Result<Vec<ListedImage>> {
        self.list_images().await
    }

    async fn remove_image(&self, image: &ImageSource) -> Result<()> {
        self.delete_image(image).await
    }

    async fn tag(&self, image: &Image, name: &ImageReference) -> Result<()> {
        self.name_image(image, name).await
    }

    async fn push(&self, image: &Image, to: &ImageReference, progress: Progress) -> Result<()> {
        self.push_image(image, to, progress).await
    }

    async fn save(&self, images: &[SavedImage], form: ArchiveForm) -> Result<ByteStream> {
        self.save_images(images, form).await
    }

    async fn load(&self, archive: ByteStream, progress: Progress) -> Result<Vec<LoadedImage>> {
        self.load_images(archive, progress).await
    }

    async fn import(&self, tar: ByteStream, new: &NewImage) -> Result<Image> {
        self.import_image(tar, new).await
    }

    async fn commit(&self, id: &str, new: &NewImage) -> Result<Image> {
        self.commit_container(id, new).await
    }

    async fn create_network(&self, network: &Network) -> Result<()> {
        self.make_network(network).await
    }

    async fn remove_network(&self, key: &str) -> Result<()> {
        self.drop_network(key).await
    }

    async fn connect_network(&self, id: &str, joined: &Attachment) -> Result<()> {
        self.join_network(id, joined).await
    }

    async fn disconnect_network(&self, id: &str, key: &str) -> Result<()> {
        self.leave_network(id, key).await
    }

    async fn remove_volume(&self, key: &str) -> Result<()> {
        self.drop_volume(key).await
    }

    async fn create(&self, request: Create) -> Result<Endpoints> {
        check_files(&request.container)?;
        self.check_options(&request.container)?;
        check_outbound(&request.container)?;
        self.check_host_ports(&request.container)?;
        self.make_container(request).await
    }

    async fn start(&self, id: &str, log: Arc<LogBook>) -> Result<()> {
        self.start_container(id, log).await
    }

    async fn exited(&self, id: &str) -> Result<Exit> {
        let mut exit = self.instance(id)?.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|answer| answer.clone()).unwrap_or_else(|| {
            Err(Failure::new(
                FailureKind::NoSuchContainer,
                format!("container `{id}` was removed before it started"),
            ))
        })
    }

    async fn kill(&self, id: &str, signal: &str) -> Result<()> {
        self.signal(id, signal).await
    }

    async fn remove(&self, id: &str) -> Result<()> {
        self.remove_container(id).await
    }

    async fn exec(&self, id: &str, request: ExecRequest) -> Result<Exec> {
        self.run(id, request).await
    }

    async fn pause(&self, id: &str) -> Result<()> {
        self.pause_container(id).await
    }

    async fn unpause(&self, id: &str) -> Result<()> {
        self.unpause_container(id).await
    }

    async fn attach(&self, id: &str) -> Result<Attached> {
        self.attached(id)
    }

    async fn health(&self, id: &str) -> Result<Option<Health>> {
        self.health_of(id).await.map(Some)
    }

    async fn copy_in(&self, id: &str, path: &str, tar: Pin<Box<dyn AsyncRead + Send>>) -> Result<()> {
        self.upload(id, path, tar).await
    }

    async fn copy_out(&self, id: &str, path: &str) -> Result<Pin<Box<dyn AsyncRead + Send>>> {
        self.download(id, path).await
    }

    async fn usage(&self, id: &str) -> Result<Usage> {
        self.used(id).await
    }

    async fn listening(&self, id: &str, port: u16) -> Result<bool> {
        self.listens(id, port).await
    }

    async fn connect(&self, id: &str, port: u16) -> std::io::Result<Box<dyn Socket>> {
        self.dial(id, port).await
    }

    async fn sweep(&self, session: &str) -> Result<()> {
        self.sweep_session(session).await
    }
}

/// Why some files cannot be declared.
const NAME_FILES: &str = "the engine mounts its own /etc/hosts, /etc/hostname and /etc/resolv.conf";

/// Why files and a read-only root do not go together.
const READ_ONLY_ROOT: &str = "the engine copies no files into a container whose root is read-only";

/// Refuses files that would not be found in the container.
fn check_files(container: &Container) -> Result<()> {
    let title = || format!("the files for {} could not be copied", container.display_name());
    if container.read_only && !container.files.is_empty() {
        return Err(Failure::new(FailureKind::Unsupported, title())
            .fact("reason", READ_ONLY_ROOT)
            .hint("mount them: `.mount(Mount::bind(..).read_only())`"));
    }
    let names = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
    match container.files.iter().find(|file| names.contains(&file.path.as_str())) {
        Some(file) => Err(Failure::new(FailureKind::Unsupported, title())
            .fact("file", &file.path)
            .fact("reason", NAME_FILES)
            .hint("`.extra_host(..)` adds a line to /etc/hosts, `.hostname(..)` sets the name")),
        None => Ok(()),
    }
}

/// Why programs in a terminal do not end with who looks at it.
const NO_HANGUP: &str = "the engine goes on with a command whose terminal nobody looks at any more";

/// What an internal network does not keep out.
const INTERNAL: &str = "the engine's internal networks reach the machine itself, by its bridge";

/// Why one container alone cannot be kept from the outside.
const NO_OUTBOUND: &str = "the engine keeps networks from the outside, not containers";

fn check_outbound(container: &Container) -> Result<()> {
    let none = container.network_mode == NetworkMode::None;
    let internal = |joined: &Attachment| joined.network.internal;
    let apart = none || !container.networks.is_empty() && container.networks.iter().all(internal);
    if container.outbound != Some(false) || apart {
        return Ok(());
    }
    let title = format!("{} cannot be kept from the outside", container.display_name());
    Err(Failure::new(FailureKind::Unsupported, title)
        .fact("reason", NO_OUTBOUND)
        .hint("join a network that is internal: `Network::new().internal()`"))
}

/// What the daemon warns of, if it warns of this.
fn warned(info: &SystemInfo, of: &str) -> Option<String> {
    let warning = info.warnings.iter().flatten().find(|warning| warning.contains(of))?;
    Some(format!("the daemon says: {}", warning.trim_start_matches("WARNING: ")))
}

impl DockerDriver {
    /// Why images cannot be mounted.
    fn image_mounts_missing(&self) -> Option<String> {
        self.older_than(48, "mounts images")
    }

    /// Why networks do not lead to the outside over IPv6.
    fn ipv6_outbound_missing(&self) -> Option<String> {
        self.older_than(46, "translates addresses of IPv6")
    }

    /// What the daemon does from this minor version of the API on, if it is older.
    fn older_than(&self, minor: usize, does: &str) -> Option<String> {
        let version = self.inner.docker.client_version();
        let old = (version.major_version, version.minor_version) < (1, minor);
        old.then(|| format!("the daemon speaks API {version}, and {does} from 1.{minor} on"))
    }

    /// Refuses what the daemon would leave out without a word, or not understand.
    fn check_options(&self, container: &Container) -> Result<()> {
        let refused = |what: &str, reason: &str| {
            let title = format!("{} cannot have {what}", container.display_name());
            Err(Failure::new(FailureKind::Unsupported, title).fact("reason", reason))
        };
        let shows_image = |mount: &Mount| matches!(mount.source, MountSource::Image { .. });
        if let (true, Some(reason)) = (container.mounts.iter().any(shows_image), self.image_mounts_missing())
        {
            return refused("an image mounted", &reason);
        }
        let security = SecurityOptions::read(&container.security_opt).unwrap_or_default();
        let apparmor = security.apparmor.is_some_and(|profile| profile != "unconfined");
        if let (true, Some(reason)) = (apparmor, lsm_missing(&self.inner.info, "apparmor")) {
            return refused("an AppArmor profile", &reason);
        }
        let reason = match container.userns {
            Some(NamespaceMode::Host) => host_users_missing(&self.inner.info),
            Some(_) => own_users_missing(&self.inner.info),
            None => None,
        };
        if let (Some(reason), Some(mode)) = (reason, &container.userns) {
            return refused(&format!("the users it asks for (`userns: {mode}`)"), &reason);
        }
        let selinux = security.label.iter().any(|part| part != "disable");
        match lsm_missing(&self.inner.info, "selinux") {
            Some(reason) if selinux => refused("an SELinux label", &reason),
            _ => Ok(()),
        }
    }
}

/// Why labels or profiles of this security module cannot be given.
fn lsm_missing(info: &SystemInfo, name: &str) -> Option<String> {
    (!has_option(info, name))
        .then(|| format!("the daemon does not use {name} (see the security options of `docker info`)"))
}

fn has_option(info: &SystemInfo, name: &str) -> bool {
    info.security_options.iter().flatten().any(|option| option.contains(&format!("name={name}")))
}

/// Why a container's users cannot be others than the host's.
fn own_users_missing(info: &SystemInfo) -> Option<String> {
    let own = has_option(info, "userns") || has_option(info, "rootless");
    (!own).then(|| "it is a setting of the daemon (`userns-remap`), which is off".to_owned())
}

/// Why a container's users cannot be the host's.
fn host_users_missing(info: &SystemInfo) -> Option<String> {
    has_option(info, "rootless").then(|| "the daemon runs as an ordinary user".to_owned())
}

/// What the daemon says it can do. A daemon that says nothing is taken at its best.
fn capabilities(info: &SystemInfo) -> Vec<Capability> {
    let limit = |name: &str, there: Option<bool>, what: &str| Capability {
        name: name.to_owned(),
        missing: (there == Some(false))
            .then(|| format!("the daemon has no {what} (see the warnings of `docker info`)")),
    };
    let always = |name: &str| Capability { name: name.to_owned(), missing: None };
    vec![
        limit("memory limit", info.memory_limit, "memory controller"),
        limit("swap limit", info.swap_limit, "swap accounting"),
        limit("cpu limit", info.cpu_cfs_quota, "CPU quota"),
        limit("pids limit", info.pids_limit, "pids controller"),
        limit("cpuset", info.cpu_set, "cpuset controller"),
        Capability { name: "blkio weight".to_owned(), missing: warned(info, "blkio weight") },
        always("networks"),
        limit("outbound", info.ipv4_forwarding, "IPv4 forwarding"),
        always("udp ports"),
        always("sctp ports"),
        always("ipv6 networks"),
        always("fixed ports"),
        always("exec as user"),
        always("privileged"),
        always("bind mounts"),
        always("volumes"),
        always("shared ipc"),
        always("host ipc"),
        always("shared processes"),
        always("host processes"),
        always("devices"),
        always("device permissions"),
        Capability { name: "apparmor".to_owned(), missing: lsm_missing(info, "apparmor") },
        Capability { name: "selinux".to_owned(), missing: lsm_missing(info, "selinux") },
        Capability { name: "own users".to_owned(), missing: own_users_missing(info) },
        Capability { name: "host users".to_owned(), missing: host_users_missing(info) },
        always("mount propagation"),
        always("several users"),
        Capability { name: "files on a read-only root".to_owned(), missing: Some(READ_ONLY_ROOT.to_owned()) },
        always("host network"),
        always("pause"),
        Capability { name: "terminal hangup".to_owned(), missing: Some(NO_HANGUP.to_owned()) },
        Capability { name: "internal without the host".to_owned(), missing: Some(INTERNAL.to_owned()) },
        Capability { name: "no outbound".to_owned(), missing: Some(NO_OUTBOUND.to_owned()) },
        Capability { name: "own hosts file".to_owned(), missing: Some(NAME_FILES.to_owned()) },
    ]
}
