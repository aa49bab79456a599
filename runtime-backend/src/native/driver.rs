//! The keeper's side of the native driver.

use super::bundle::Facts;
use super::cgroup::{Cgroup, Layout};
use super::image::{
    Bundled, ImageSummary, LocalUnpacker, RegistriesConfig, Store, StoreLimits, StoreOptions, StoredImage,
    Unpacker,
};
use super::instance::{Instance, Running};
use super::launch::Trouble;
use super::launcher::{
    Handle, Identity, Job, Launcher, MappedUnpacker, Reply, Request, WrittenFile, sending_pipe,
};
use super::network::addresses::HOST;
use super::network::gateway::Gateway;
use super::network::publish::{self, Bound};
use super::outbound::{HOST_GATEWAY, HOST_NETWORK, Outbound, host_address};
use super::streams::{Checked, Streams};
use super::transfer;
use super::users::{Accounts, User};
use crate::build::{BuildProgress, BuildRequest};
use crate::driver::{Capability, Create, Driver, Exec, ExecRequest, Exit, Image, Progress, Result, Socket};
use crate::pack::pack;
use crate::transfer::{ByteStream, ListedImage, LoadedImage, NewImage, SavedImage};
use crate::wait::{Poll, poll};
use crate::wanted::{BINFMT_MISC, Runs, Wanted};
use crate::{ArchiveForm, LogBook};
use async_trait::async_trait;
use futures_util::FutureExt;
use shakedown_spec::{
    Container, Endpoints, Failure, FailureKind, ImageReference, ImageSource, Network, NetworkMode, Platform,
    Protocol, Published,
};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
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

/// Why there is one user in a container.
const ONE_ID: &str = "this user has no range in /etc/subuid and /etc/subgid, or newuidmap is not installed";

#[derive(Debug, Default)]
struct Books {
    instances: BTreeMap<String, Arc<Instance>>,
    /// Images resolved in this session, by id.
    images: BTreeMap<String, Arc<StoredImage>>,
    /// Who is on which network, under which names.
    members: BTreeMap<String, Vec<Member>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    id: String,
    address: Ipv4Addr,
    names: Vec<String>,
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

    /// What a declaration asks for that this driver cannot do here.
    fn check(&self, container: &Container) -> Result<()> {
        let name = container.display_name();
        let unsupported = |what: String| {
            Failure::new(FailureKind::Unsupported, format!("the native driver cannot run {name}: {what}"))
                .hint("`SHAKEDOWN_DRIVER=docker` uses Docker instead")
        };
        if let Some(port) = container.ports.iter().find(|port| port.protocol != Protocol::Tcp) {
            return Err(unsupported(format!("it publishes TCP ports only, not {port}")));
        }
        let single = self.launcher.identity() == Identity::Single;
        if let Some(file) = container.files.iter().find(|file| single && (file.uid, file.gid) != (0, 0)) {
            return Err(unsupported(format!(
                "{} cannot belong to {}:{}: {ONE_ID}",
                file.path, file.uid, file.gid
            )));
        }
        if let Some(name) = container.sysctls.keys().find(|name| !is_namespaced(name)) {
            return Err(unsupported(format!("`{name}` is a parameter of the whole machine")));
        }
        if let Some(reason) = self.outbound.missing().filter(|_| container.outbound == Some(true)) {
            return Err(unsupported(format!("it cannot reach the outside: {reason}")));
        }
        let wants_host = container.extra_hosts.values().any(|address| address == HOST_GATEWAY);
        if wants_host && container.network_mode != NetworkMode::Host && !self.outbound.reaches(container) {
            let reason = self.outbound.missing().unwrap_or("its networks lead nowhere else");
            return Err(unsupported(format!("it cannot reach the host (`{HOST_GATEWAY}`): {reason}")));
        }
        if container.network_mode == NetworkMode::Host && self.launcher.identity() != Identity::Root {
            return Err(unsupported(format!("it cannot have the host's network: {HOST_NETWORK}")));
        }
        if container.privileged && self.launcher.identity() != Identity::Root {
            return Err(unsupported("a privileged container needs root".to_owned()));
        }
        Ok(())
    }

    /// Makes the file system and the network; returns the addresses, the users the image knows, and the container's own
    /// way to the outside.
    async fn prepare(
        &self,
        request: &Create,
        layers: Vec<PathBuf>,
    ) -> Result<(Vec<Ipv4Addr>, Accounts, Option<Gateway>)> {
        let container = &request.container;
        let failed = |trouble| launch_failed(container, trouble);
        let connection = self.outbound.connection(&self.launcher, container).await.map_err(failed)?;
        let (id, paths) = (request.id.clone(), Accounts::paths());
        let prepare = Request::Prepare { id, layers, upper: None, connection, paths };
        let (reply, exits) = self.launcher.ask_for(prepare).await.map_err(failed)?;
        let Reply::Prepared { addresses, texts } = reply else {
            return Ok((Vec::new(), Accounts::default(), None));
        };
        let gateway = self.outbound.admit(container, &addresses, exits).map_err(failed)?;
        Ok((addresses, Accounts::read(texts), gateway))
    }

    /// The users the container knows, if a declared file has changed them.
    async fn changed_accounts(&self, request: &Create) -> Result<Option<Accounts>> {
        let named = Accounts::paths();
        if !request.container.files.iter().any(|file| named.iter().any(|path| path.starts_with(&file.path))) {
            return Ok(None);
        }
        let reply = self.launcher.ask(Request::Read { id: request.id.clone(), paths: named }).await;
        match reply.map_err(|trouble| launch_failed(&request.container, trouble))? {
            Reply::Text(texts) => Ok(Some(Accounts::read(texts))),
            _ => Ok(None),
        }
    }

    /// The users a running container knows: its entry point may have added some.
    async fn accounts_now(&self, instance: &Instance) -> Accounts {
        let request = Request::Read { id: instance.create.id.clone(), paths: Accounts::paths() };
        match self.launcher.ask(request).await {
            Ok(Reply::Text(texts)) => Accounts::read(texts),
            _ => instance.accounts.clone(),
        }
    }

    async fn put_files(&self, request: &Create) -> Result<()> {
        if request.container.files.is_empty() {
            return Ok(());
        }
        let files = request.container.files.clone();
        let (read, write) =
            io::pipe().map_err(|error| copy_failed(&request.container, &error.to_string()))?;
        let packing = tokio::task::spawn_blocking(move || {
            pack(&files, &mut io::BufWriter::with_capacity(1 << 17, write))
        });
        let job = Job::CopyIn { id: request.id.clone(), path: "/".into() };
        let copied = self.launcher.work::<()>(job, read.as_fd()).await;
        drop(read);
        match packing.await {
            Ok(Err((path, error))) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(copy_failed(&request.container, &format!("{path}: {error}")))
            }
            _ => copied.map_err(|trouble| copy_failed(&request.container, &trouble.to_string())),
        }
    }

    /// Whom the first process runs as.
    ///
    /// Where a container can have one id only, a service that would change its user runs as that user from the start.
    fn user(&self, instance: &Instance) -> Result<User> {
        let (container, image) = (&instance.create.container, &instance.create.image.config);
        let declared = container.user.as_deref().unwrap_or(&image.user);
        let resolve = |text: &str| {
            instance.accounts.resolve(text).map_err(|reason| {
                let title = format!("{} could not be launched: unknown user", container.display_name());
                Failure::new(FailureKind::LaunchFailed, title).fact("user", text).fact("reason", reason)
            })
        };
        let user = resolve(declared)?;
        match &container.service_user {
            Some(service) if self.launcher.identity() == Identity::Single && user.uid == 0 => {
                resolve(service)
            }
            _ => Ok(user),
        }
    }

    /// The files that name the container and its neighbours.
    fn name_files(&self, instance: &Instance) -> Vec<WrittenFile> {
        let container = &instance.create.container;
        let hostname = container.hostname.clone().unwrap_or_else(|| container.display_name());
        let declared =
            |file: &WrittenFile| container.files.iter().any(|own| file.path == Path::new(&own.path));
        let files = vec![
            WrittenFile { path: "/etc/hosts".into(), content: self.hosts(instance, &hostname) },
            WrittenFile { path: "/etc/hostname".into(), content: format!("{hostname}\n") },
            WrittenFile { path: "/etc/resolv.conf".into(), content: self.resolver_file(container) },
        ];
        // What the declaration brings itself is left as it is.
        files.into_iter().filter(|file| !declared(file)).collect()
    }

    fn hosts(&self, instance: &Instance, hostname: &str) -> String {
        let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        let mut line = |address: &str, names: &str| text.push_str(&format!("{address}\t{names}\n"));
        line(&instance.address().to_string(), hostname);
        for (name, address) in &instance.create.container.extra_hosts {
            line(&host_address(address, instance.create.container.network_mode == NetworkMode::Host), name);
        }
        let books = self.books();
        for joined in &instance.create.container.networks {
            for member in books.members.get(&joined.network.key).into_iter().flatten() {
                line(&member.address.to_string(), &member.names.join(" "));
            }
        }
        text
    }

    /// Enters the container in its networks.
    fn enter_networks(&self, instance: &Instance) {
        let create = &instance.create;
        let mut books = self.books();
        for (joined, address) in create.container.networks.iter().zip(&instance.addresses) {
            let mut names = joined.aliases.clone();
            names.push(create.container.display_name());
            names.dedup();
            let member = Member { id: create.id.clone(), address: *address, names };
            books.members.entry(joined.network.key.clone()).or_default().push(member);
        }
    }

    /// Tells the other containers of the same networks who is there now.
    async fn tell_neighbours(&self, create: &Create) {
        let neighbours: Vec<Arc<Instance>> = {
            let books = self.books();
            let keys = create.container.networks.iter().map(|joined| &joined.network.key);
            let members = keys.filter_map(|key| books.members.get(key)).flatten();
            members
                .filter(|m| m.id != create.id)
                .filter_map(|m| books.instances.get(&m.id).cloned())
                .collect()
        };
        for neighbour in neighbours {
            let hosts = |file: &WrittenFile| file.path == Path::new("/etc/hosts");
            let files = self.name_files(&neighbour).into_iter().filter(hosts).collect();
            // One that is being removed at this moment needs no names any more.
            let _ = self.launcher.ask(Request::Write { id: neighbour.create.id.clone(), files }).await;
        }
    }

    fn facts<'a>(&'a self, create: &'a Create, user: &'a User) -> Facts<'a> {
        Facts {
            container: &create.container,
            image: &create.image.config,
            user,
            identity: self.launcher.identity(),
            cgroups: self.cgroups.views(),
        }
    }

    fn cgroup(&self, create: &Create) -> Result<Option<Cgroup>> {
        let resources = &create.container.resources;
        if !resources.need_cgroup() {
            return Ok(None);
        }
        self.cgroups.create(&create.session, &create.id, resources).map(Some)
    }

    async fn launch(&self, instance: &Arc<Instance>, log: Arc<LogBook>) -> Result<()> {
        let create = &instance.create;
        let user = self.user(instance)?;
        let facts = self.facts(create, &user);
        let bundle = facts.bundle()?;
        let failed = |trouble| launch_failed(&create.container, trouble);
        let files = self.name_files(instance);
        let cgroup = self.cgroup(create)?;
        let joining = cgroup.as_ref().map(Cgroup::joining).transpose();
        let joining =
            joining.map_err(|error| failed(Trouble::new("join the control group", error.to_string())))?;
        let streams =
            Streams::new(false).map_err(|error| failed(Trouble::new("make pipes", error.to_string())))?;
        let mut descriptors = streams.theirs().to_vec();
        descriptors.extend(joining.iter().flatten().map(AsFd::as_fd));
        let request = Request::Start {
            id: create.id.clone(),
            spec: Box::new(bundle.spec),
            filter: bundle.filter,
            files,
            parts: Vec::new(),
        };
        let child = self.launcher.start(request, &descriptors).await.map_err(failed)?;
        streams.into_log(log);
        let running = Arc::new(Running { child, cgroup });
        instance.set_running(Arc::clone(&running));
        tokio::spawn(watch_end(Arc::clone(instance), running));
        Ok(())
    }

    fn serve_ports(&self, instance: &Instance) -> Result<()> {
        for (port, bound) in instance.take_bound() {
            let target = SocketAddr::from((instance.address(), port));
            let tasks = bound.serve(&self.launcher, &instance.create.id, target);
            let tasks = tasks.map_err(|error| port_failed(&instance.create.container, port, &error))?;
            instance.carry(tasks);
        }
        Ok(())
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

fn unpacker(launcher: Option<&Handle>) -> Arc<dyn Unpacker> {
    match launcher {
        Some(launcher) if launcher.identity() == Identity::Ranges => {
            Arc::new(MappedUnpacker::new(launcher.clone()))
        }
        _ => Arc::new(LocalUnpacker::of_this_process()),
    }
}

/// Whether the files of this user's unpacked images belong to ids that only a launcher may touch.
#[must_use]
pub fn trees_need_launcher() -> bool {
    Identity::detect() == Identity::Ranges
}

/// Opens the image store without a driver, reaching registries as is declared. Must be called within a tokio runtime.
///
/// # Errors
///
/// The store cannot be used.
pub async fn open_store(
    launcher: Option<Launcher>,
    root: &Path,
    registries: RegistriesConfig,
) -> Result<Store> {
    let launcher = launcher.map(connect).transpose()?;
    let options = StoreOptions { registries, ..StoreOptions::of_environment() };
    Store::open_with(root, unpacker(launcher.as_ref()), options).await
}

/// The directory of this user's image store: `$SHAKEDOWN_STORE`, else `/var/lib/shakedown` for root, else
/// `$XDG_DATA_HOME/shakedown`, else `~/.local/share/shakedown`, else one in `/var/tmp`.
#[must_use]
pub fn store_directory() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let uid = rustix::process::geteuid();
    if let Some(chosen) = variable("SHAKEDOWN_STORE") {
        return chosen;
    }
    if uid.is_root() && rustix::fs::access("/var/lib", rustix::fs::Access::WRITE_OK).is_ok() {
        return PathBuf::from("/var/lib/shakedown");
    }
    let data = variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    let usable = |path: &PathBuf| path.is_absolute() && std::fs::create_dir_all(path).is_ok();
    data.filter(usable).map_or_else(
        || PathBuf::from(format!("/var/tmp/shakedown-{}", uid.as_raw())),
        |data| data.join("shakedown"),
    )
}

/// Whether a kernel parameter belongs to a container's own namespaces: the list of Docker.
fn is_namespaced(name: &str) -> bool {
    const OWN: [&str; 8] =
        ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    let kernel = name.strip_prefix("kernel.");
    name.starts_with("net.")
        || name.starts_with("fs.mqueue.")
        || kernel.is_some_and(|rest| OWN.contains(&rest))
}

/// Waits for the end of a container's first process and tells everybody.
async fn watch_end(instance: Arc<Instance>, running: Arc<Running>) {
    let mut exit = running.child.exit.clone();
    let ended = exit.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
    // Without the launcher there is no container either: it was killed.
    let (code, signal) = ended.unwrap_or((137, Some(libc::SIGKILL)));
    let out_of_memory = running.cgroup.as_ref().is_some_and(Cgroup::out_of_memory);
    instance.ended(Exit { code, signal, out_of_memory });
}

fn take_ports(container: &Container) -> Result<Vec<(u16, Bound)>> {
    let take = |port: &shakedown_spec::Port| {
        Bound::take(port.host)
            .map(|bound| (port.container, bound))
            .map_err(|error| port_failed(container, port.host.unwrap_or(port.container), &error))
    };
    let mapped = container.ports.iter().filter(|_| container.network_mode != NetworkMode::Host);
    mapped.map(take).collect()
}

fn port_failed(container: &Container, port: u16, error: &io::Error) -> Failure {
    let title = format!("port {port} of this machine could not be taken for {}", container.display_name());
    let failure = Failure::new(FailureKind::LaunchFailed, title).fact("reason", error.to_string());
    if error.kind() == io::ErrorKind::AddrInUse {
        failure.hint("leave the host's port out: a free one is chosen, and `port()` tells which")
    } else {
        failure
    }
}

fn copy_failed(container: &Container, reason: &str) -> Failure {
    let title = format!("the files for {} could not be copied", container.display_name());
    Failure::new(FailureKind::CopyFailed, title).fact("reason", reason)
}

fn launch_failed(container: &Container, trouble: Trouble) -> Failure {
    failure(&container.display_name(), "launched", trouble)
}

fn failure(what: &str, done: &str, trouble: Trouble) -> Failure {
    let mut failure = Failure::new(
        FailureKind::LaunchFailed,
        format!("{what} could not be {done}: cannot {}", trouble.doing),
    );
    if let Some(call) = trouble.call {
        failure = failure.fact("call", call);
    }
    if let Some((step, steps)) = trouble.step {
        failure = failure.fact("stage", format!("launch, in init, step {step} of {steps}"));
    }
    if let Some(reason) = trouble.reason {
        failure = failure.fact("reason", reason);
    }
    failure
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

fn exec_failed(title: String, trouble: Trouble) -> Failure {
    let mut failure = Failure::new(FailureKind::ExecFailed, title);
    if let Some(call) = trouble.call {
        failure = failure.fact("call", call);
    }
    failure.fact("reason", trouble.reason.unwrap_or_else(|| format!("cannot {}", trouble.doing)))
}

/// The number of a signal by name (`SIGTERM`, `TERM`, `SIGRTMIN+3`) or number.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    // As glibc counts: it keeps the first two real-time signals for itself (signal(7)).
    let real_time = |prefix: &str, base: i32| {
        let offset = name.strip_prefix(prefix)?;
        let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().ok()? };
        Some(base + offset).filter(|number| (34..=64).contains(number))
    };
    if let Some(number) = real_time("SIGRTMIN", 34).or_else(|| real_time("SIGRTMAX", 64)) {
        return Some(number);
    }
    nix::sys::signal::Signal::from_str(&name).ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images name their stop signal as signal(7) does; systemd's is a real-time one.
    #[test]
    fn signals_are_read_by_name_and_number() {
        for (text, number) in
            [("SIGTERM", 15), ("int", 2), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("37", 37)]
        {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for wrong in ["", "SIGBOGUS", "0", "65", "SIGRTMIN+31", "SIGRTMIN+x"] {
            assert_eq!(signal_number(wrong), None, "{wrong}");
        }
    }
}
