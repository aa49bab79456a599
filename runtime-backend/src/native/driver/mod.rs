//! The keeper's side of the native driver.

mod check;
mod failures;
mod names;
mod signal;
mod start;
mod store;

pub use store::{open_store, store_directory, trees_need_launcher};

use self::check::ONE_ID;
use self::failures::{copy_failed, exec_failed, failure};
use self::names::Member;
use self::signal::signal_number;
use self::start::take_ports;
use self::store::unpacker;
use super::cgroup::{Cgroup, Layout};
use super::image::{Bundled, ImageSummary, Store, StoreLimits, StoredImage};
use super::instance::{Instance, Running};
use super::launcher::{Handle, Identity, Job, Launcher, Request, sending_pipe};
use super::network::addresses::HOST;
use super::network::publish;
use super::outbound::{HOST_NETWORK, Outbound};
use super::streams::{Checked, Streams};
use super::transfer;
use crate::build::{BuildProgress, BuildRequest};
use crate::driver::{Capability, Create, Driver, Exec, ExecRequest, Exit, Image, Progress, Result, Socket};
use crate::transfer::{ByteStream, ListedImage, LoadedImage, NewImage, SavedImage};
use crate::wait::{Poll, poll};
use crate::wanted::{BINFMT_MISC, Runs, Wanted};
use crate::{ArchiveForm, LogBook};
use async_trait::async_trait;
use futures_util::FutureExt;
use shakedown_spec::{
    Endpoints, Failure, FailureKind, ImageReference, ImageSource, Network, NetworkMode, Platform, Protocol,
    Published,
};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncRead;

/// Runs containers itself: no daemon, nothing to install.
#[derive(Debug)]
pub struct NativeDriver {
    pub(super) launcher: Handle,
    pub(super) store: Store,
    pub(super) cgroups: Layout,
    pub(super) outbound: Outbound,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    instances: BTreeMap<String, Arc<Instance>>,
    /// Images resolved in this session, by id.
    images: BTreeMap<String, Arc<StoredImage>>,
    /// Who is on which network, under which names.
    members: BTreeMap<String, Vec<Member>>,
}

impl NativeDriver {
    /// Takes over a launcher; `store` is the directory of the image store. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    pub async fn new(launcher: Launcher, store: &Path) -> Result<Self> {
        let launcher = connect(launcher)?;
        let store = Store::open(store, unpacker(Some(&launcher))).await?;
        let outbound = Outbound::new(&launcher).await;
        Ok(Self { launcher, store, cgroups: Layout::detect(), outbound, books: Mutex::default() })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Removes what a dead session of this name left: its control groups. All else went with its launcher.
///
/// # Errors
///
/// A control group could not be removed.
pub async fn sweep(session: &str) -> Result<()> {
    /// How long the last processes of a killed session may take to end.
    const ENDING: std::time::Duration = std::time::Duration::from_secs(5);
    let layout = Layout::detect();
    let swept = poll(ENDING, || async {
        match layout.sweep(session) {
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
        format!("native runtime {}, {identity}", env!("CARGO_PKG_VERSION"))
    }

    fn capabilities(&self) -> Vec<Capability> {
        let identity = self.launcher.identity();
        let not_yet = |what: &str| Some(format!("the native driver has no {what} yet"));
        let list = [
            ("networks", None),
            ("fixed ports", None),
            ("bind mounts", None),
            ("files on a read-only root", None),
            ("own hosts file", None),
            ("memory limit", self.cgroups.missing("memory")),
            ("pids limit", self.cgroups.missing("pids")),
            ("cpu limit", self.cgroups.missing("cpu")),
            ("several users", (identity == Identity::Single).then(|| ONE_ID.to_owned())),
            ("privileged", (identity != Identity::Root).then(|| "it needs root".to_owned())),
            ("udp ports", not_yet("UDP proxy")),
            ("outbound", self.outbound.missing().map(str::to_owned)),
            ("internal without the host", None),
            ("no outbound", None),
            ("host network", (identity != Identity::Root).then(|| HOST_NETWORK.to_owned())),
            ("terminal", not_yet("terminals")),
        ];
        list.map(|(name, missing)| Capability { name: name.to_owned(), missing }).into()
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
        let request = Request::CreateNetwork { key: network.key.clone(), internal: network.internal };
        let made = self.launcher.ask(request).await;
        made.map(drop).map_err(|trouble| failure(&format!("network {}", network.key), "made", trouble))
    }

    async fn remove_network(&self, key: &str) -> Result<()> {
        self.books().members.remove(key);
        let removed = self.launcher.ask(Request::RemoveNetwork { key: key.to_owned() }).await;
        removed.map(drop).map_err(|trouble| failure(&format!("network {key}"), "removed", trouble))
    }

    async fn create(&self, request: Create) -> Result<Endpoints> {
        self.check(&request.container)?;
        let image = self.stored(&request.image)?;
        let bound = take_ports(&request.container)?;
        let tcp = |container, host| Published { container, protocol: Protocol::Tcp, host };
        let published = match request.container.network_mode {
            // The service takes the host's port itself.
            NetworkMode::Host => {
                request.container.ports.iter().map(|port| tcp(port.container, port.container)).collect()
            }
            _ => bound.iter().map(|(port, bound)| tcp(*port, bound.port)).collect(),
        };
        let (addresses, accounts, gateway) = self.prepare(&request, image.layers.clone()).await?;
        self.put_files(&request).await?;
        let accounts = self.changed_accounts(&request).await?.unwrap_or(accounts);
        let peer_host =
            (!request.container.networks.is_empty()).then(|| request.container.aliases().swap_remove(0));
        let instance = Arc::new(Instance::new(request, addresses, accounts, image, bound, gateway));
        self.enter_networks(&instance);
        self.books().instances.insert(instance.create.id.clone(), Arc::clone(&instance));
        Ok(Endpoints { host: Ipv4Addr::LOCALHOST.to_string(), published, peer_host })
    }

    async fn start(&self, id: &str, log: Arc<LogBook>) -> Result<()> {
        let instance = self.instance(id)?;
        self.launch(&instance, log).await?;
        self.serve_ports(&instance)?;
        self.tell_neighbours(&instance.create).await;
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
        sent.map(drop).map_err(|trouble| failure(&name, "signalled", trouble))
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let instance = {
            let mut books = self.books();
            for members in books.members.values_mut() {
                members.retain(|member| member.id != id);
            }
            books.instances.remove(id)
        };
        let removed = self.launcher.ask(Request::Remove { id: id.to_owned() }).await;
        if let Some(instance) = instance {
            drop(instance.take_bound());
            self.outbound.dismiss(&instance);
            self.tell_neighbours(&instance.create).await;
        }
        removed.map(drop).map_err(|trouble| failure(&format!("container {id}"), "removed", trouble))
    }

    async fn exec(&self, id: &str, request: ExecRequest) -> Result<Exec> {
        let (instance, running) = self.running(id)?;
        let container = &instance.create.container;
        let title =
            || format!("`{}` could not be run in {}", request.argv.join(" "), container.display_name());
        let failed = |reason: String| Failure::new(FailureKind::ExecFailed, title()).fact("reason", reason);
        if request.tty {
            return Err(Failure::new(FailureKind::Unsupported, title())
                .fact("reason", "the native driver has no terminals yet"));
        }
        let user = match &request.user {
            Some(user) => self.accounts_now(&instance).await.resolve(user).map_err(failed)?,
            None => self.user(&instance)?,
        };
        let facts = self.facts(&instance.create, &user);
        let (process, filter) = facts.exec(&request)?;
        let streams = Streams::new(request.stdin).map_err(|error| failed(error.to_string()))?;
        let joining =
            running.cgroup.as_ref().map(Cgroup::joining).transpose().map_err(|e| failed(e.to_string()))?;
        let mut descriptors = streams.theirs().to_vec();
        descriptors.extend(joining.iter().flatten().map(AsFd::as_fd));
        let exec = Request::Exec { id: id.to_owned(), process: Box::new(process), filter };
        let child =
            self.launcher.start(exec, &descriptors).await.map_err(|trouble| exec_failed(title(), trouble))?;
        drop(descriptors);
        let (output, stdin) = streams.into_stream();
        let exit = async move {
            let mut exit = child.exit.clone();
            let ended = exit.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
            let (code, signal) = ended.unwrap_or((137, Some(libc::SIGKILL)));
            Ok(Exit { code, signal, out_of_memory: false })
        };
        let stdin = stdin.map(|sender| Box::pin(sender) as Pin<Box<dyn tokio::io::AsyncWrite + Send>>);
        Ok(Exec { output, stdin, exit: exit.boxed() })
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

    async fn sweep(&self, session: &str) -> Result<()> {
        sweep(session).await
    }
}
