//! Making a container and starting its first process.

use super::NativeDriver;
use super::exec::Connected;
use super::failures::{copy_failed, launch_failed, port_failed};
use super::names::{asks_for_names, names_on};
use super::options::{Extras, files_by_root, with_groups};
use crate::LogBook;
use crate::driver::{Create, Exit, Result};
use crate::native::bundle::{Bundle, Facts};
use crate::native::cgroup::Cgroup;
use crate::native::instance::{Instance, Place, Prepared, Running};
use crate::native::launch::Trouble;
use crate::native::launcher::{Connection, Identity, Instead, Job, Pending, Reply, Request};
use crate::native::network::addresses::Address;
use crate::native::network::gateway::Gateway;
use crate::native::network::ports::Taken;
use crate::native::stacked::Stacking;
use crate::native::sys::DeviceRule;
use crate::native::users::{Accounts, User};
use crate::pack::pack;
use shakedown_spec::{Container, Failure, FailureKind, File, NetworkMode, Port};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

impl NativeDriver {
    /// Makes the file system and the network. What comes beside are the sockets at which the container asks for names.
    ///
    /// What comes of it is waited for at the start, where it is known already: the launcher works meanwhile.
    pub(super) async fn prepare(
        &self,
        request: &Create,
        layers: Vec<PathBuf>,
    ) -> Result<(Prepared, Vec<OwnedFd>)> {
        let container = &request.container;
        let connection = self.connection(request).await?;
        let alone = matches!(&connection, Connection::Own { networks, .. } if networks.is_empty());
        let plain = alone && container.files.is_empty() && self.shift(container).is_none();
        match self.known_accounts(&layers).filter(|_| plain && self.instead.get().is_none()) {
            Some(accounts) => {
                let asked = self.prepare_request(request, layers, connection, None);
                let pending = self.launcher.post(asked, &[]).await;
                let pending = pending.map_err(|trouble| launch_failed(container, trouble))?;
                let prepared = self.prepared(request, vec![Address::ALONE], accounts, None);
                Ok((Prepared { pending: Some(pending), ..prepared }, Vec::new()))
            }
            None => self.prepare_now(request, layers, connection).await,
        }
    }

    async fn prepare_now(
        &self,
        request: &Create,
        layers: Vec<PathBuf>,
        connection: Connection,
    ) -> Result<(Prepared, Vec<OwnedFd>)> {
        let container = &request.container;
        let failed = |trouble| launch_failed(container, trouble);
        let trees = layers.clone();
        let prepare = self.prepare_request(request, layers, connection, Some(Accounts::paths()));
        let (reply, sockets) = self.launcher.ask_for(prepare).await.map_err(failed)?;
        let (addresses, mut texts, instead) = match reply {
            Reply::Prepared { addresses, texts, instead } => (addresses, texts, instead),
            _ => (Vec::new(), Vec::new(), None),
        };
        if self.complete(container, &request.id, trees.clone(), instead).await? {
            texts = self.read_accounts(request).await?;
        }
        let accounts = Accounts::read(texts);
        self.books().accounts.insert(trees, accounts.clone());
        // The sockets of a container on networks are asked for names.
        let (exits, asked) =
            if container.networks.is_empty() { (sockets, Vec::new()) } else { (Vec::new(), sockets) };
        let gateway = self.outbound.admit(container, &addresses, exits).map_err(failed)?;
        Ok((self.prepared(request, addresses, accounts, gateway), asked))
    }

    /// The network to make for a container, with a place to ask for names if it is on networks.
    async fn connection(&self, request: &Create) -> Result<Connection> {
        let container = &request.container;
        let connection = self.outbound.connection(&self.launcher, container).await;
        let mut connection = connection.map_err(|trouble| launch_failed(container, trouble))?;
        if let Connection::Own { resolver, .. } = &mut connection {
            *resolver = asks_for_names(container, &request.image.config) && !container.networks.is_empty();
        }
        Ok(connection)
    }

    /// Without `paths` to read, nothing but the kernel's overlayfs will do.
    fn prepare_request(
        &self,
        request: &Create,
        layers: Vec<PathBuf>,
        connection: Connection,
        paths: Option<Vec<PathBuf>>,
    ) -> Request {
        let (id, shift, otherwise) = (request.id.clone(), self.shift(&request.container), paths.is_some());
        let paths = paths.unwrap_or_default();
        Request::Prepare { id, layers, upper: None, shift, connection, paths, otherwise }
    }

    fn prepared(
        &self,
        request: &Create,
        addresses: Vec<Address>,
        accounts: Accounts,
        gateway: Option<Gateway>,
    ) -> Prepared {
        let container = &request.container;
        let would_ask = asks_for_names(container, &request.image.config);
        let (places, reaches) = (places(container, addresses), self.outbound.reaches(container));
        Prepared { places, accounts, gateway, reaches, would_ask, pending: None }
    }

    /// The users of an image, if a container of it has been made.
    fn known_accounts(&self, layers: &[PathBuf]) -> Option<Accounts> {
        self.books().accounts.get(layers).cloned()
    }

    /// Completes what was begun with [`prepare`](Self::prepare): whether it is there. Where it failed it has to be done
    /// anew, in another way or for a message.
    async fn settle(&self, instance: &Instance, pending: Pending) -> Result<bool> {
        let container = &instance.create.container;
        let Ok((_, exits)) = pending.answer().await else { return Ok(false) };
        let gateway = self.outbound.admit(container, &[Address::ALONE], exits);
        instance.set_gateway(gateway.map_err(|trouble| launch_failed(container, trouble))?);
        Ok(true)
    }

    /// The users the container knows, if a declared file has changed them.
    pub(super) async fn changed_accounts(&self, request: &Create) -> Result<Option<Accounts>> {
        let named = Accounts::paths();
        if !request.container.files.iter().any(|file| named.iter().any(|path| path.starts_with(&file.path))) {
            return Ok(None);
        }
        self.read_accounts(request).await.map(|texts| Some(Accounts::read(texts)))
    }

    async fn read_accounts(&self, request: &Create) -> Result<Vec<String>> {
        let read = Request::Read { id: request.id.clone(), paths: Accounts::paths() };
        let reply = self.launcher.ask(read).await;
        match reply.map_err(|trouble| launch_failed(&request.container, trouble))? {
            Reply::Text(texts) => Ok(texts),
            _ => Ok(Vec::new()),
        }
    }

    /// Notes what took the place of the kernel's overlayfs, and copies the files if it is a copy: whether it is.
    pub(super) async fn complete(
        &self,
        container: &Container,
        id: &str,
        trees: Vec<PathBuf>,
        instead: Option<Instead>,
    ) -> Result<bool> {
        let Some(instead) = instead else { return Ok(false) };
        let copied = instead.stacking == Stacking::Copy;
        // The first answer stands: the others have the same reason.
        let _ = self.instead.set(instead);
        if copied {
            let failed = |trouble| launch_failed(container, trouble);
            let nothing = std::fs::File::open("/dev/null");
            let nothing =
                nothing.map_err(|error| failed(Trouble::new("open /dev/null", error.to_string())))?;
            let fill = Job::Fill { id: id.to_owned(), trees };
            self.launcher.work::<()>(fill, nothing.as_fd()).await.map_err(failed)?;
        }
        Ok(copied)
    }

    /// The users a running container knows: its entry point may have added some.
    pub(super) async fn accounts_now(&self, instance: &Instance) -> Accounts {
        let request = Request::Read { id: instance.create.id.clone(), paths: Accounts::paths() };
        match self.launcher.ask(request).await {
            Ok(Reply::Text(texts)) => Accounts::read(texts),
            _ => instance.accounts.clone(),
        }
    }

    pub(super) async fn put_files(&self, request: &Create, extras: &Extras) -> Result<()> {
        for (root, files) in files_by_root(&request.container, extras)? {
            self.put_into(request, root.unwrap_or_else(|| request.id.clone()), files).await?;
        }
        Ok(())
    }

    async fn put_into(&self, request: &Create, id: String, files: Vec<File>) -> Result<()> {
        let (read, write) =
            io::pipe().map_err(|error| copy_failed(&request.container, &error.to_string()))?;
        let packing = tokio::task::spawn_blocking(move || {
            pack(&files, &mut io::BufWriter::with_capacity(1 << 17, write))
        });
        let job = Job::CopyIn { id, path: "/".into() };
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
    pub(super) fn user(&self, instance: &Instance) -> Result<User> {
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

    pub(super) fn facts<'a>(&'a self, create: &'a Create, extras: &'a Extras, user: &'a User) -> Facts<'a> {
        Facts {
            container: &create.container,
            image: &create.image.config,
            user,
            identity: self.launcher.identity(),
            remapped: self.shift(&create.container).is_some(),
            cgroups: self.cgroups.views(),
            devices: &extras.devices,
        }
    }

    /// Gets ready for control groups. What the launcher made ahead is where that was before.
    pub(super) async fn open_groups(&self, create: &Create) -> Result<()> {
        if self.cgroups.open(&create.session, self.launcher.pid()).await? {
            let renewed = self.launcher.ask(Request::Renew).await;
            renewed.map_err(|trouble| launch_failed(&create.container, trouble))?;
        }
        Ok(())
    }

    /// The control groups of a container whose declaration asks for limits or for rules for devices.
    async fn cgroup(&self, create: &Create, devices: Option<Vec<DeviceRule>>) -> Result<Option<Cgroup>> {
        let (resources, session, id) = (&create.container.resources, &create.session, &create.id);
        if !resources.need_cgroup() && devices.is_none() {
            return Ok(None);
        }
        let mut cgroup = Cgroup::default();
        if resources.need_cgroup() {
            self.open_groups(create).await?;
            cgroup = self.cgroups.create(session, id, resources)?;
        }
        if let Some(rules) = devices {
            self.cgroups.restrict_devices(&mut cgroup, session, id, &rules)?;
        }
        Ok(Some(cgroup))
    }

    pub(super) async fn launch(&self, instance: &Arc<Instance>, log: Arc<LogBook>) -> Result<()> {
        let create = &instance.create;
        instance.begin_anew();
        let user = with_groups(instance, self.user(instance)?)?;
        let facts = self.facts(create, &instance.extras, &user);
        let bundle = facts.bundle()?;
        let failed = |trouble| launch_failed(&create.container, trouble);
        let files = self.name_files(instance);
        let devices = self.device_rules(create, &instance.extras, &user);
        let cgroup = self.cgroup(create, devices).await?;
        let joining = cgroup.as_ref().map(Cgroup::joining).transpose().map(Option::unwrap_or_default);
        let joining =
            joining.map_err(|error| failed(Trouble::new("join the control group", error.to_string())))?;
        let container = &create.container;
        let connected = Connected::new(container.tty, container.stdin_open)
            .map_err(|error| failed(Trouble::new("make pipes", error)))?;
        let mut descriptors = connected.theirs().to_vec();
        descriptors.extend(joining.iter().map(AsFd::as_fd));
        let request = |bundle: Bundle| Request::Start {
            id: create.id.clone(),
            spec: Box::new(bundle.spec),
            filter: bundle.filter,
            live_nodes: create.container.privileged,
            files: files.clone(),
            parts: instance.extras.parts.clone(),
            init: create.container.init,
        };
        let started = self.launcher.post(request(bundle), &descriptors).await.map_err(failed)?;
        let settled = match instance.take_pending() {
            Some(pending) => self.settle(instance, pending).await?,
            None => true,
        };
        let child = if settled {
            started.child().await
        } else {
            let connection = self.connection(create).await?;
            let (made, _) = self.prepare_now(create, instance.image.layers.clone(), connection).await?;
            instance.set_gateway(made.gateway);
            self.launcher.start(request(facts.bundle()?), &descriptors).await
        };
        let child = child.map_err(failed)?;
        let attached = connected
            .into_log(log, container.stdin_open)
            .map_err(|error| failed(Trouble::new("take the terminal", error)))?;
        let running = Arc::new(Running { child, cgroup, attached });
        instance.set_running(Arc::clone(&running));
        let settled = running.cgroup.as_ref().map_or(Ok(()), Cgroup::settle);
        tokio::spawn(watch_end(Arc::clone(instance), running));
        settled.map_err(|error| failed(Trouble::new("limit its processor time", error.to_string())))
    }

    pub(super) fn serve_ports(&self, instance: &Instance) -> Result<()> {
        for (port, bound) in instance.take_bound() {
            let target = instance.target(port);
            let tasks = bound.serve(&self.carrier, &self.launcher, &instance.create.id, target);
            let tasks = tasks.map_err(|error| port_failed(&instance.create.container, port, &error))?;
            instance.carry(tasks);
        }
        Ok(())
    }
}

/// Waits for the end of a container's first process and tells everybody.
async fn watch_end(instance: Arc<Instance>, running: Arc<Running>) {
    let mut exit = running.child.exit.clone();
    let ended = exit.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
    // Without the launcher there is no container either: it was killed.
    let (code, signal) = ended.unwrap_or((137, Some(libc::SIGKILL)));
    // An init ends with the code that a shell would give for the program's signal.
    let signal =
        signal.or_else(|| (instance.create.container.init && code > 128 && code <= 192).then(|| code - 128));
    let out_of_memory = running.cgroup.as_ref().is_some_and(Cgroup::out_of_memory);
    // Before it is told: who hears of the end may start it again, with control groups of the same names.
    drop(running);
    instance.ended(Exit { code, signal, out_of_memory });
}

pub(super) fn take_ports(container: &Container) -> Result<Vec<(Port, Taken)>> {
    let take = |port: &Port| {
        Taken::take(port)
            .map(|taken| (*port, taken))
            .map_err(|error| port_failed(container, port.host.unwrap_or(port.container), &error))
    };
    let mapped = container.ports.iter().filter(|_| container.network_mode != NetworkMode::Host);
    mapped.map(take).collect()
}

/// Where the container is: the addresses are in the order of its networks.
fn places(container: &Container, addresses: Vec<Address>) -> Vec<Place> {
    let mut joined = container.networks.iter();
    let place = |address| match joined.next() {
        Some(joined) => Place {
            key: joined.network.key.clone(),
            internal: joined.network.internal,
            names: names_on(container, joined),
            address,
        },
        None => Place { key: String::new(), internal: false, names: Vec::new(), address },
    };
    addresses.into_iter().map(place).collect()
}
