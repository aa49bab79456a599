//! The keeper's side of the native driver.

mod cdi;
mod check;
mod exec;
mod failures;
mod names;
mod networks;
mod pause;
mod options;
mod signal;
mod start;
mod store;
mod usage;

pub(super) use options::Extras;
pub use store::{open_store, store_directory, trees_need_launcher};

use self::check::{NO_SCTP, ONE_ID};
use self::failures::{copy_failed, failure};
use self::pause::thaw;
use self::signal::signal_number;
use self::start::take_ports;
use self::store::unpacker;
use super::cgroup::Layout;
use super::image::{Bundled, ImageSummary, Store, StoreLimits, StoredImage};
use super::instance::{Instance, Running};
use super::launcher::{Connection, Handle, Identity, Instead, Job, Launcher, Reply, Request, sending_pipe};
use super::network::addresses::HOST;
use super::network::carrier::Carrier;
use super::network::names::Directory;
use super::network::publish;
use super::outbound::{HOST_NETWORK, Outbound, missing_ipv6};
use super::stacked::{Stacking, VARIABLE};
use super::streams::Checked;
use super::transfer;
use super::users::Accounts;
use crate::build::{BuildProgress, BuildRequest};
use crate::driver::{
    Attached, Capability, Create, Driver, Exec, ExecRequest, Exit, Image, Progress, Result, Socket, Usage,
};
use crate::transfer::{ByteStream, ListedImage, LoadedImage, NewImage, SavedImage};
use crate::wait::{Poll, poll};
use crate::wanted::{BINFMT_MISC, Runs, Wanted};
use crate::{ArchiveForm, LogBook};
use async_trait::async_trait;
use shakedown_spec::{
    Attachment, Endpoints, Failure, FailureKind, ImageReference, ImageSource, Network, NetworkMode, Platform,
    Port, Published,
};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::io::AsyncRead;

/// Runs containers itself: no daemon, nothing to install.
#[derive(Debug)]
pub struct NativeDriver {
    pub(super) launcher: Handle,
    pub(super) store: Store,
    pub(super) cgroups: Layout,
    pub(super) outbound: Outbound,
    /// Who is on which network, under which names.
    names: Arc<Directory>,
    pub(super) carrier: Carrier,
    books: Mutex<Books>,
    volumes: tokio::sync::Mutex<options::Volumes>,
    /// What took the place of the kernel's overlayfs, once it was seen.
    instead: OnceLock<Instead>,
    /// The image store's directory.
    place: PathBuf,
}

#[derive(Debug, Default)]
struct Books {
    instances: BTreeMap<String, Arc<Instance>>,
    /// Images resolved in this session, by id.
    images: BTreeMap<String, Arc<StoredImage>>,
    /// The users of images that containers were made of, by their layers.
    accounts: BTreeMap<Vec<PathBuf>, Accounts>,
}

impl NativeDriver {
    /// Takes over a launcher; `directory` is the directory of the image store. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    pub async fn new(launcher: Launcher, directory: &Path) -> Result<Self> {
        let launcher = connect(launcher)?;
        let store = Store::open(directory, unpacker(Some(&launcher))).await?;
        let outbound = Outbound::new(&launcher).await;
        let cgroups = Layout::detect();
        let (carrier, books, volumes) = (Carrier::default(), Mutex::default(), tokio::sync::Mutex::default());
        let (names, instead, place) = (Arc::default(), OnceLock::new(), directory.to_owned());
        Ok(Self { launcher, store, cgroups, outbound, names, carrier, books, volumes, instead, place })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the kernel's overlayfs is not used, as far as that is known, and what is instead.
    fn overlay_missing(&self) -> Option<String> {
        let told = |stacking: Stacking, reason: &str| format!("{reason}: {} is used", stacking.described());
        if let Some(instead) = self.instead.get() {
            return Some(told(instead.stacking, &instead.reason));
        }
        match Stacking::demanded() {
            Ok(None | Some(Stacking::Kernel)) => None,
            Ok(Some(other)) => Some(told(other, &format!("{VARIABLE} demands it"))),
            Err(reason) => Some(reason),
        }
    }

    pub(super) fn instance(&self, id: &str) -> Result<Arc<Instance>> {
        self.books().instances.get(id).cloned().ok_or_else(|| {
            Failure::new(FailureKind::NoSuchContainer, format!("there is no container `{id}`"))
        })
    }

    fn running(&self, id: &str) -> Result<(Arc<Instance>, Arc<Running>)> {
        let instance = self.instance(id)?;
        let running = instance.running().ok_or_else(|| {
            let title = format!("{} does not run", instance.create.container.display_name());
            Failure::new(FailureKind::NoSuchContainer, title)
        })?;
        Ok((instance, running))
    }

    fn stored(&self, image: &Image) -> Result<Arc<StoredImage>> {
        self.books().images.get(&image.id).cloned().ok_or_else(|| {
            Failure::new(FailureKind::ImageNotFound, format!("image {} was not resolved", image.reference))
        })
    }
}

/// The limits that can be set here, without a driver.
#[must_use]
pub fn limits() -> Vec<crate::doctor::Limit> {
    let layout = Layout::detect();
    let one = |(name, limit): (&'static str, &str)| {
        let (missing, fix) = layout.remedy(limit).unzip();
        crate::doctor::Limit { name, missing, fix: fix.unwrap_or_default().to_owned() }
    };
    LIMITS.into_iter().map(one).collect()
}

/// Limits by the names of their capabilities, and as control groups call them.
const LIMITS: [(&str, &str); 6] = [
    ("memory limit", "memory"),
    ("swap limit", "swap"),
    ("pids limit", "pids"),
    ("cpu limit", "cpu"),
    ("cpuset", "cpuset"),
    ("blkio weight", "blkio"),
];

/// Removes what a dead session of this name left: its control groups. All else went with its launcher.
///
/// # Errors
///
/// A control group could not be removed.
pub async fn sweep(session: &str) -> Result<()> {
    /// How long the last processes of a killed session may take to end.
    const ENDING: std::time::Duration = std::time::Duration::from_secs(5);
    let swept = poll(ENDING, || async {
        match Layout::sweep(session) {
            Ok(()) => Poll::Ready(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Poll::NotYet(error.to_string()),
            Err(error) => Poll::Never(error.to_string()),
        }
    });
    swept.await.map_err(|missed| {
        let title = format!("control groups of the session {session} could not be removed");
        Failure::new(FailureKind::Other, title).fact("reason", missed.status)
    })
}

fn connect(launcher: Launcher) -> Result<Handle> {
    launcher.connect().map_err(|trouble| failure("the native driver", "used", trouble))
}

#[async_trait]
impl Driver for NativeDriver {
    fn name(&self) -> &'static str {
        "native"
    }

    fn description(&self) -> String {
        let identity = match self.launcher.identity() {
            Identity::Root => "as root",
            Identity::Ranges => "as an ordinary user with a range of ids",
            Identity::Single => "as an ordinary user with one id",
        };
        let stacked = match self.instead.get() {
            Some(instead) => format!(", file systems by {}", instead.stacking.described()),
            None => String::new(),
        };
        format!("native runtime {}, {identity}{stacked}", env!("CARGO_PKG_VERSION"))
    }

    async fn examine(&self) {
        let (id, layers) = ("examination".to_owned(), vec![self.place.clone()]);
        let (connection, paths) = (Connection::Unused, Vec::new());
        let request = Request::Prepare {
            id: id.clone(),
            layers,
            upper: None,
            shift: None,
            connection,
            paths,
            otherwise: true,
        };
        if let Ok(Reply::Prepared { instead: Some(instead), .. }) = self.launcher.ask(request).await {
            let _ = self.instead.set(instead);
        }
        // Of an examination that failed nothing is there.
        let _ = self.launcher.ask(Request::Remove { id }).await;
    }

    fn capabilities(&self) -> Vec<Capability> {
        let identity = self.launcher.identity();
        let list = [
            ("networks", None),
            ("fixed ports", None),
            ("bind mounts", None),
            ("files on a read-only root", None),
            ("own hosts file", None),
            ("several users", (identity == Identity::Single).then(|| ONE_ID.to_owned())),
            ("privileged", (identity != Identity::Root).then(|| "it needs root".to_owned())),
            ("udp ports", None),
            ("sctp ports", Some(NO_SCTP.to_owned())),
            ("ipv6 networks", missing_ipv6()),
            ("outbound", self.outbound.missing().map(str::to_owned)),
            ("ipv6 outbound", self.outbound.missing_v6()),
            ("host ports", self.outbound.missing().map(str::to_owned)),
            ("internal without the host", None),
            ("no outbound", None),
            ("host network", (identity != Identity::Root).then(|| HOST_NETWORK.to_owned())),
            ("terminal hangup", None),
            ("pause", self.cgroups.missing("freezer")),
            ("volumes", None),
            ("image mounts", None),
            ("shared ipc", None),
            ("host ipc", (identity != Identity::Root).then(|| check::HOST_IPC.to_owned())),
            ("overlayfs", self.overlay_missing()),
            ("own users", (identity == Identity::Root).then(check::own_users_missing).flatten()),
            ("host users", check::host_users_missing(identity)),
            ("shared processes", None),
            ("host processes", Some(check::HOST_PROCESSES.to_owned())),
            ("devices", None),
            ("device permissions", self.cgroups.missing("devices")),
            ("apparmor", check::apparmor_missing()),
            ("selinux", check::selinux_missing()),
            ("mount propagation", Some(check::PROPAGATION.to_owned())),
        ];
        let limits = LIMITS.map(|(name, limit)| (name, self.cgroups.missing(limit)));
        let all = limits.into_iter().chain(list);
        all.map(|(name, missing)| Capability { name: name.to_owned(), missing }).collect()
    }

    async fn keep_within(&self, limits: &StoreLimits) -> Result<()> {
        self.store.keep_within(limits).await.map(drop)
    }

    async fn stored(&self, reference: &ImageReference) -> Result<Vec<String>> {
        let digests = self.store.digests(reference).await?;
        Ok(digests.iter().map(ToString::to_string).collect())
    }

    async fn current(&self, reference: &ImageReference, wanted: &Wanted) -> Result<Option<String>> {
        let current = self.store.current(reference, &wanted.registries).await?;
        Ok(current.map(|digest| digest.to_string()))
    }

    async fn import_bundle(&self, file: &Path, progress: Progress) -> Result<Vec<Bundled>> {
        self.store.import_bundle(file, progress).await
    }

    fn runs(&self, platform: &Platform) -> Runs {
        Runs::on(&Platform::here(), platform, Path::new(BINFMT_MISC))
    }

    async fn obtain(&self, wanted: &Wanted, progress: Progress) -> Result<Image> {
        let stored = Arc::new(self.store.obtain(wanted, progress).await?);
        let image = stored.image.clone();
        self.books().images.insert(image.id.clone(), stored);
        Ok(image)
    }

    async fn build(&self, request: BuildRequest, progress: BuildProgress) -> Result<Image> {
        let stored = Arc::new(self.build_image(request, progress).await?);
        let image = stored.image.clone();
        self.books().images.insert(image.id.clone(), stored);
        Ok(image)
    }

    async fn images(&self) -> Result<Vec<ListedImage>> {
        let one = |image: ImageSummary| ListedImage {
            id: image.id.to_string(),
            names: image.names,
            created: image.created,
            size: image.size,
        };
        Ok(self.store.list()?.into_iter().map(one).collect())
    }

    async fn remove_image(&self, image: &ImageSource) -> Result<()> {
        let name = transfer::there(image)?;
        // What was resolved for a container of this session is kept for the next one; that is no use of its last name.
        if let Ok(details) = self.store.inspect(&name)
            && details.summary.names.len() < 2
        {
            self.books().images.remove(&details.summary.id.to_string());
        }
        self.store.remove(&name, false).await.map(drop)
    }

    async fn tag(&self, image: &Image, name: &ImageReference) -> Result<()> {
        self.store.tag(&image.id, name).await
    }

    async fn push(&self, image: &Image, to: &ImageReference, progress: Progress) -> Result<()> {
        self.store.push(&self.in_store(image).await?, to, progress).await.map(drop)
    }

    async fn save(&self, images: &[SavedImage], form: ArchiveForm) -> Result<ByteStream> {
        self.save_images(images, form).await
    }

    async fn load(&self, archive: ByteStream, progress: Progress) -> Result<Vec<LoadedImage>> {
        let one = |(stored, names): (StoredImage, Vec<ImageReference>)| LoadedImage {
            id: stored.image.id,
            names: names.iter().map(ImageReference::familiar).collect(),
        };
        Ok(self.store.load(archive, progress).await?.into_iter().map(one).collect())
    }

    async fn import(&self, tar: ByteStream, new: &NewImage) -> Result<Image> {
        Ok(transfer::known(&self.store.import(tar, new).await?, new))
    }

    async fn commit(&self, id: &str, new: &NewImage) -> Result<Image> {
        Ok(transfer::known(&self.commit_container(id, new).await?, new))
    }

    async fn create_network(&self, network: &Network) -> Result<()> {
        self.make_network(network).await
    }

    async fn remove_network(&self, key: &str) -> Result<()> {
        self.names.remove(key);
        let removed = self.launcher.ask(Request::RemoveNetwork { key: key.to_owned() }).await;
        removed.map(drop).map_err(|trouble| failure(&format!("network {key}"), "removed", trouble))
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

    async fn create(&self, mut request: Create) -> Result<Endpoints> {
        self.check(&request.container)?;
        let image = self.stored(&request.image)?;
        let extras = self.extras(&mut request, &image).await?;
        let bound = take_ports(&request.container)?;
        let at = |port: &Port, host| Published { container: port.container, protocol: port.protocol, host };
        let published = match request.container.network_mode {
            // The service takes the host's port itself.
            NetworkMode::Host => {
                request.container.ports.iter().map(|port| at(port, port.container)).collect()
            }
            _ => bound.iter().map(|(port, taken)| at(port, taken.port())).collect(),
        };
        let (mut prepared, asked) = self.prepare(&request, image.layers.clone()).await?;
        self.put_files(&request, &extras).await?;
        if let Some(changed) = self.changed_accounts(&request).await? {
            prepared.accounts = changed;
        }
        let peer_host =
            (!request.container.networks.is_empty()).then(|| request.container.aliases().swap_remove(0));
        let bound = bound.into_iter().map(|(port, taken)| (port.container, taken)).collect();
        let instance = Arc::new(Instance::new(request, prepared, image, extras, bound));
        self.serve_names(&instance, asked)?;
        self.enter_networks(&instance);
        self.books().instances.insert(instance.create.id.clone(), Arc::clone(&instance));
        Ok(Endpoints { host: Ipv4Addr::LOCALHOST.to_string(), published, peer_host })
    }

    async fn start(&self, id: &str, log: Arc<LogBook>) -> Result<()> {
        let instance = self.instance(id)?;
        self.launch(&instance, log).await?;
        self.serve_ports(&instance)?;
        self.tell_neighbours(&instance.create, &instance.places()).await;
        Ok(())
    }

    async fn exited(&self, id: &str) -> Result<Exit> {
        let instance = self.instance(id)?;
        let gone = || Failure::new(FailureKind::NoSuchContainer, format!("the container `{id}` was removed"));
        instance.exit().await.ok_or_else(gone)
    }

    async fn kill(&self, id: &str, signal: &str) -> Result<()> {
        let (instance, running) = self.running(id)?;
        let name = instance.create.container.display_name();
        let signal = signal_number(signal).ok_or_else(|| {
            Failure::new(FailureKind::Invalid, format!("`{signal}` is not a signal"))
                .hint("the names are those of signal(7), such as `SIGTERM`")
        })?;
        let sent = self.launcher.ask(Request::Signal { child: running.child.number, signal }).await;
        sent.map(drop).map_err(|trouble| failure(&name, "signalled", trouble))?;
        if signal == libc::SIGKILL {
            // In version 1 of control groups, what is frozen does not even end. In version 2 it is gone by now.
            let _ = thaw(&instance).await;
        }
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<()> {
        self.names.forget(id);
        let instance = self.books().instances.remove(id);
        if let Some(instance) = &instance {
            self.end_frozen(instance).await;
        }
        let removed = self.launcher.ask(Request::Remove { id: id.to_owned() }).await;
        if let Some(instance) = instance {
            instance.put_down().await;
            self.outbound.dismiss(&instance);
            self.tell_neighbours(&instance.create, &instance.places()).await;
        }
        removed.map(drop).map_err(|trouble| failure(&format!("container {id}"), "removed", trouble))
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

    async fn copy_in(&self, id: &str, path: &str, mut tar: Pin<Box<dyn AsyncRead + Send>>) -> Result<()> {
        let instance = self.instance(id)?;
        let failed = |reason: String| copy_failed(&instance.create.container, &reason);
        let (mut write, read) = sending_pipe().map_err(|error| failed(error.to_string()))?;
        let job = Job::CopyIn { id: id.to_owned(), path: path.into() };
        let pump = async move {
            let pumped = tokio::io::copy(&mut tar, &mut write).await;
            drop(write);
            pumped
        };
        let work = async {
            let outcome = self.launcher.work::<()>(job, read.as_fd()).await;
            drop(read);
            outcome
        };
        let (pumped, outcome) = tokio::join!(pump, work);
        outcome.map_err(|trouble| failed(trouble.to_string()))?;
        pumped.map(drop).map_err(|error| failed(error.to_string()))
    }

    async fn copy_out(&self, id: &str, path: &str) -> Result<Pin<Box<dyn AsyncRead + Send>>> {
        use tokio::io::AsyncBufReadExt;
        let instance = self.instance(id)?;
        let name = instance.create.container.display_name();
        let failed = move |reason: String| {
            let title = format!("`{path}` could not be copied out of {name}");
            Failure::new(FailureKind::CopyFailed, title).fact("reason", reason)
        };
        let job = Job::CopyOut { id: id.to_owned(), path: path.into() };
        let checked = Checked::of::<()>(&self.launcher, job).map_err(|error| failed(error.to_string()))?;
        let mut checked = tokio::io::BufReader::with_capacity(1 << 16, checked);
        // The first byte, or the reason why there is none.
        checked.fill_buf().await.map_err(|error| failed(error.to_string()))?;
        Ok(Box::pin(checked))
    }

    async fn usage(&self, id: &str) -> Result<Usage> {
        self.used(id)
    }

    async fn listening(&self, id: &str, port: u16) -> Result<bool> {
        let (_, running) = self.running(id)?;
        let Some(pid) = running.pid() else { return Ok(false) };
        let table =
            |file: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
        // The way out listens in the container's network, too.
        let entrance = Some(IpAddr::V4(HOST));
        Ok(crate::sockets::listens_on(&(table("tcp") + &table("tcp6")), port, entrance))
    }

    async fn connect(&self, id: &str, port: u16) -> io::Result<Box<dyn Socket>> {
        let instance = self.instance(id).map_err(io::Error::other)?;
        let target = SocketAddr::from((instance.address(), port));
        Ok(Box::new(publish::connect(&self.launcher, id, target).await?))
    }

    async fn lost(&self) {
        self.launcher.lost().await;
    }

    fn is_lost(&self) -> bool {
        self.launcher.is_lost()
    }

    async fn sweep(&self, session: &str) -> Result<()> {
        sweep(session).await
    }
}
