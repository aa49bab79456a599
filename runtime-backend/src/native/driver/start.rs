//! Making a container and starting its first process.

use super::NativeDriver;
use super::failures::{copy_failed, launch_failed, port_failed};
use crate::LogBook;
use crate::driver::{Create, Exit, Result};
use crate::native::bundle::Facts;
use crate::native::cgroup::Cgroup;
use crate::native::instance::{Instance, Running};
use crate::native::launch::Trouble;
use crate::native::launcher::{Identity, Job, Reply, Request};
use crate::native::network::gateway::Gateway;
use crate::native::network::publish::Bound;
use crate::native::streams::Streams;
use crate::native::users::{Accounts, User};
use crate::pack::pack;
use shakedown_spec::{Container, Failure, FailureKind, NetworkMode};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

impl NativeDriver {
    /// Makes the file system and the network; returns the addresses, the users the image knows, and the container's own
    /// way to the outside.
    pub(super) async fn prepare(
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
    pub(super) async fn changed_accounts(&self, request: &Create) -> Result<Option<Accounts>> {
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
    pub(super) async fn accounts_now(&self, instance: &Instance) -> Accounts {
        let request = Request::Read { id: instance.create.id.clone(), paths: Accounts::paths() };
        match self.launcher.ask(request).await {
            Ok(Reply::Text(texts)) => Accounts::read(texts),
            _ => instance.accounts.clone(),
        }
    }

    pub(super) async fn put_files(&self, request: &Create) -> Result<()> {
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

    pub(super) fn facts<'a>(&'a self, create: &'a Create, user: &'a User) -> Facts<'a> {
        Facts {
            container: &create.container,
            image: &create.image.config,
            user,
            identity: self.launcher.identity(),
            cgroups: self.cgroups.views(),
        }
    }

    pub(super) fn cgroup(&self, create: &Create) -> Result<Option<Cgroup>> {
        let resources = &create.container.resources;
        if !resources.need_cgroup() {
            return Ok(None);
        }
        self.cgroups.create(&create.session, &create.id, resources).map(Some)
    }

    pub(super) async fn launch(&self, instance: &Arc<Instance>, log: Arc<LogBook>) -> Result<()> {
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

    pub(super) fn serve_ports(&self, instance: &Instance) -> Result<()> {
        for (port, bound) in instance.take_bound() {
            let target = SocketAddr::from((instance.address(), port));
            let tasks = bound.serve(&self.launcher, &instance.create.id, target);
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
    let out_of_memory = running.cgroup.as_ref().is_some_and(Cgroup::out_of_memory);
    instance.ended(Exit { code, signal, out_of_memory });
}

pub(super) fn take_ports(container: &Container) -> Result<Vec<(u16, Bound)>> {
    let take = |port: &shakedown_spec::Port| {
        Bound::take(port.host)
            .map(|bound| (port.container, bound))
            .map_err(|error| port_failed(container, port.host.unwrap_or(port.container), &error))
    };
    let mapped = container.ports.iter().filter(|_| container.network_mode != NetworkMode::Host);
    mapped.map(take).collect()
}
