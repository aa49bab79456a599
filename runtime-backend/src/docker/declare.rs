//! Prepare: a declaration as the daemon's request, and the container made from it.

use super::ports::Reservations;
use super::{DockerDriver, Instance, daemon_failure};
use crate::driver::{Create, Result};
use crate::merge::merge;
use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, EndpointSettings, HealthConfig, HostConfig,
    HostConfigCgroupnsModeEnum, Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountImageOptions,
    MountTmpfsOptions, MountType, NetworkConnectRequest, NetworkingConfig, PortBinding, ResourcesUlimits,
};
use bollard::query_parameters::CreateContainerOptionsBuilder;
use shakedown_spec::{
    Attachment, Container, Device, Endpoints, Failure, FailureKind, Healthcheck, MountSource, NamespaceMode,
    NetworkMode, Port, Propagation, Published, Relabel, Resources, SecurityOptions, VolumesFrom,
};
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

impl DockerDriver {
    pub(crate) async fn make_container(&self, request: Create) -> Result<Endpoints> {
        let service = request.container.display_name();
        let (published, reserved) = match request.container.network_mode {
            NetworkMode::Host => (as_they_are(&request.container.ports), Reservations::default()),
            _ => Reservations::choose(&request.container.ports, self.inner.endpoint.is_local()).map_err(
                |error| {
                    let title = format!("no port of the host was free for {service}");
                    Failure::new(FailureKind::LaunchFailed, title).fact("reason", error.to_string())
                },
            )?,
        };
        let on_network = !request.container.networks.is_empty();
        let endpoints = Endpoints {
            host: self.inner.endpoint.host(),
            published,
            peer_host: on_network.then(|| request.container.aliases().swap_remove(0)),
        };
        let instance = Arc::new(Instance {
            name: format!("shakedown-{}", request.id),
            service,
            endpoints: Mutex::new(endpoints.clone()),
            reserved: Mutex::new(reserved),
            making: Arc::default(),
            process: Mutex::default(),
            internal: super::forward::is_needed(&request.container),
            limited: request.container.resources.memory.is_some(),
            signalled: AtomicBool::new(false),
            forwards: Mutex::default(),
            host_ports: request.container.host_ports.clone(),
            shown: Mutex::default(),
            exit: watch::Sender::new(None),
            input: Mutex::default(),
            tty: request.container.tty,
            stdin_open: request.container.stdin_open,
            host_network: request.container.network_mode == NetworkMode::Host,
        });
        // In a task of its own: a caller that goes away must not leave a request half way, after which the daemon
        // might still make the container behind a removal that found none. The lock is taken before anyone knows the
        // id, so that a removal can only come after.
        let removal_waits = Arc::clone(&instance.making).lock_owned().await;
        self.remember(&request.id, &instance);
        let driver = self.clone();
        let making = tokio::spawn(async move {
            let made = driver.request(&request, &instance).await;
            drop(removal_waits);
            made
        });
        making.await.map_err(|error| Failure::new(FailureKind::Other, error.to_string()))??;
        Ok(endpoints)
    }

    fn remember(&self, id: &str, instance: &Arc<Instance>) {
        let mut containers = self.inner.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.insert(id.to_owned(), Arc::clone(instance));
    }

    async fn request(&self, request: &Create, instance: &Instance) -> Result<()> {
        let container = &request.container;
        let endpoints = instance.endpoints.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut labels = self.labels();
        labels.insert(super::SESSION_LABEL.to_owned(), request.session.clone());
        labels.extend(container.labels.clone());
        self.make_volumes(container).await?;
        let mut body = body(container, &request.image.id, labels);
        let version = self.inner.info.server_version.as_deref();
        let mut host = host_config(container, super::host_ports::names(container, version))?;
        host.mounts = Some(self.mounts(request));
        if container.network_mode != NetworkMode::Host {
            body.exposed_ports = Some(endpoints.published.iter().map(key).collect());
            host.port_bindings = Some(self.bindings(&container.ports, &endpoints.published));
        }
        if let NetworkMode::Container(_) = container.network_mode {
            // The daemon refuses a name of its own for a container whose network is another's.
            body.hostname = None;
        }
        let mut attachments = container.networks.iter();
        if let Some(first) = attachments.next() {
            let name = self.network_name(&first.network.key);
            let endpoint = HashMap::from([(name.clone(), endpoint(container, first))]);
            body.networking_config = Some(NetworkingConfig { endpoints_config: Some(endpoint) });
            host.network_mode = Some(name);
        }
        body.host_config = Some(host);
        let body = patched(body, container)?;

        let title = || format!("{} could not be created", instance.service);
        let options = CreateContainerOptionsBuilder::new().name(&instance.name).build();
        let created = self.inner.docker.create_container(Some(options), body).await;
        created.map_err(|error| daemon_failure(FailureKind::LaunchFailed, title(), &error))?;
        for attachment in attachments {
            let join = NetworkConnectRequest {
                container: instance.name.clone(),
                endpoint_config: Some(endpoint(container, attachment)),
            };
            let joined =
                self.inner.docker.connect_network(&self.network_name(&attachment.network.key), join).await;
            joined.map_err(|error| daemon_failure(FailureKind::LaunchFailed, title(), &error))?;
        }
        self.put_files(&instance.name, &instance.service, container.files.clone()).await
    }

    /// A local daemon publishes on loopback only, so that a test's database is not open to the office.
    fn bindings(
        &self,
        declared: &[Port],
        published: &[Published],
    ) -> HashMap<String, Option<Vec<PortBinding>>> {
        let usual = if self.inner.endpoint.is_local() { "127.0.0.1" } else { "0.0.0.0" };
        let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
        for (port, declared) in published.iter().zip(declared) {
            let address = declared.address.map_or_else(|| usual.to_owned(), |address| address.to_string());
            let binding = PortBinding { host_ip: Some(address), host_port: Some(port.host.to_string()) };
            bindings.entry(key(port)).or_default().get_or_insert_default().push(binding);
        }
        bindings
    }
}

/// The ports of a container that has the host's network: its own.
fn as_they_are(ports: &[Port]) -> Vec<Published> {
    let own =
        |port: &Port| Published { container: port.container, protocol: port.protocol, host: port.container };
    ports.iter().map(own).collect()
}

/// A port as the daemon's maps spell it.
fn key(port: &Published) -> String {
    format!("{}/{}", port.container, port.protocol)
}

fn body(container: &Container, image: &str, labels: HashMap<String, String>) -> ContainerCreateBody {
    // An empty list means "as the image says" to the daemon; one empty string means "none".
    let list = |value: &Option<Vec<String>>| match value {
        Some(list) if list.is_empty() => Some(vec![String::new()]),
        other => other.clone(),
    };
    ContainerCreateBody {
        image: Some(image.to_owned()),
        domainname: container.domainname.clone(),
        hostname: Some(container.hostname.clone().unwrap_or_else(|| host_name(&container.display_name()))),
        user: container.user.clone(),
        env: Some(container.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        cmd: container.command.clone(),
        entrypoint: list(&container.entrypoint),
        working_dir: container.workdir.clone(),
        labels: Some(labels),
        healthcheck: container.healthcheck.as_ref().map(health_config),
        stop_signal: container.stop_signal.clone(),
        tty: Some(container.tty),
        open_stdin: Some(container.stdin_open),
        // Its one attachment is held by the driver; the end of that one's input is the end of the process's.
        stdin_once: Some(container.stdin_open),
        stop_timeout: container
            .stop_timeout
            .map(|timeout| i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(container: &Container, names: Vec<String>) -> Result<HostConfig> {
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let security = SecurityOptions::read(&container.security_opt).unwrap_or_default();
    let paths = |declared: &Option<Vec<String>>| match declared {
        None if security.systempaths_unconfined => Some(Vec::new()),
        declared => declared.clone(),
    };
    let Resources { memory, memory_swap, cpu_millis, pids, shm_size, ulimits, .. } = &container.resources;
    let limits = &container.resources;
    Ok(HostConfig {
        binds: some(&labelled_binds(container)),
        group_add: some(&container.group_add),
        devices: Some(container.devices.iter().map(device).collect()),
        device_requests: (!container.cdi_devices.is_empty()).then(|| {
            let device_ids = Some(container.cdi_devices.clone());
            vec![DeviceRequest { driver: Some("cdi".to_owned()), device_ids, ..DeviceRequest::default() }]
        }),
        volumes_from: some(&volumes_from(container)),
        ipc_mode: namespace(&container.ipc),
        pid_mode: namespace(&container.pid),
        cgroupns_mode: hosts_groups(container),
        userns_mode: users(container),
        masked_paths: paths(&container.masked_paths),
        readonly_paths: paths(&container.readonly_paths),
        memory: number("memory", *memory)?,
        memory_swap: number("memory and swap", *memory_swap)?,
        nano_cpus: number("cpu", cpu_millis.map(|millis| millis.saturating_mul(1_000_000)))?,
        pids_limit: number("pids", *pids)?,
        memory_reservation: number("memory_reservation", limits.memory_reservation)?,
        cpu_shares: number("cpu_shares", limits.cpu_shares)?,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        blkio_weight: limits.blkio_weight,
        shm_size: number("shm_size", *shm_size)?,
        ulimits: Some(
            ulimits
                .iter()
                .map(|limit| ResourcesUlimits {
                    name: Some(limit.name.clone()),
                    soft: Some(unlimited(limit.soft)),
                    hard: Some(unlimited(limit.hard)),
                })
                .collect(),
        ),
        init: Some(container.init),
        privileged: Some(container.privileged),
        cap_add: some(&container.cap_add),
        cap_drop: some(&container.cap_drop),
        security_opt: some(&security_options(container)),
        readonly_rootfs: Some(container.read_only),
        sysctls: Some(container.sysctls.clone().into_iter().collect()),
        network_mode: match &container.network_mode {
            NetworkMode::Default => None,
            NetworkMode::Container(id) => Some(format!("container:shakedown-{id}")),
            mode => Some(mode.to_string()),
        },
        dns: some(&container.dns),
        dns_search: some(&container.dns_search),
        extra_hosts: Some(
            container
                .extra_hosts
                .iter()
                .map(|(name, address)| format!("{name}:{address}"))
                .chain(names)
                .collect(),
        ),
        ..HostConfig::default()
    })
}

/// Whose control groups it sees, if they are not its own.
fn hosts_groups(container: &Container) -> Option<HostConfigCgroupnsModeEnum> {
    (container.cgroupns == NamespaceMode::Host).then_some(HostConfigCgroupnsModeEnum::HOST)
}

/// Whose users it has, if the daemon's setting is not to count.
fn users(container: &Container) -> Option<String> {
    (container.userns == Some(NamespaceMode::Host)).then(|| "host".to_owned())
}

/// The containers whose volumes it has, as the daemon spells them.
fn volumes_from(container: &Container) -> Vec<String> {
    let spelled =
        |from: &VolumesFrom| format!("shakedown-{}:{}", from.id, if from.read_only { "ro" } else { "rw" });
    container.volumes_from.iter().map(spelled).collect()
}

fn number(what: &str, value: Option<u64>) -> Result<Option<i64>> {
    value.map(i64::try_from).transpose().map_err(|_| {
        Failure::new(FailureKind::Invalid, format!("the limit `{what}` is larger than {}", i64::MAX))
    })
}

/// `RLIM_INFINITY` is all ones (getrlimit(2)); the daemon spells it -1.
fn unlimited(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(-1)
}

impl DockerDriver {
    fn mounts(&self, request: &Create) -> Vec<Mount> {
        let labelled = |mount: &&shakedown_spec::Mount| label(mount).is_some();
        let mounts = request.container.mounts.iter().filter(|mount| !labelled(mount));
        mounts.map(|mount| self.mount(mount, request)).collect()
    }

    fn mount(&self, mount: &shakedown_spec::Mount, request: &Create) -> Mount {
        let mut made = Mount {
            target: Some(mount.target.clone()),
            read_only: Some(mount.read_only),
            ..Mount::default()
        };
        match &mount.source {
            MountSource::Bind { source, options } => {
                (made.typ, made.source) = (Some(MountType::BIND), Some(source.clone()));
                let propagation = options.propagation.map(|propagation| match propagation {
                    Propagation::Rprivate => MountBindOptionsPropagationEnum::RPRIVATE,
                    Propagation::Rslave => MountBindOptionsPropagationEnum::RSLAVE,
                    Propagation::Rshared => MountBindOptionsPropagationEnum::RSHARED,
                });
                made.bind_options =
                    propagation.map(|_| MountBindOptions { propagation, ..MountBindOptions::default() });
            }
            MountSource::Volume { volume } => {
                (made.typ, made.source) = (Some(MountType::VOLUME), Some(self.volume_name(&volume.key)));
            }
            MountSource::Image { image, subpath } => {
                let id = request.mounted.get(image).map_or(image, |image| &image.id);
                (made.typ, made.source) = (Some(MountType::IMAGE), Some(id.clone()));
                let subpath = subpath.as_ref().map(|path| path.trim_start_matches('/').to_owned());
                made.image_options = subpath.map(|subpath| MountImageOptions { subpath: Some(subpath) });
            }
            MountSource::Tmpfs { size, mode } => {
                let size_bytes = size.and_then(|size| i64::try_from(size).ok());
                let options = MountTmpfsOptions { size_bytes, mode: mode.map(i64::from), options: None };
                (made.typ, made.tmpfs_options) = (Some(MountType::TMPFS), Some(options));
            }
        }
        made
    }
}

/// The letter that asks for an SELinux label.
fn label(mount: &shakedown_spec::Mount) -> Option<char> {
    let MountSource::Bind { options, .. } = &mount.source else { return None };
    options.relabel.map(|relabel| match relabel {
        Relabel::Shared => 'z',
        Relabel::Private => 'Z',
    })
}

/// Bind mounts whose source gets a label: the daemon takes this in the short form only.
fn labelled_binds(container: &Container) -> Vec<String> {
    let bind = |mount: &shakedown_spec::Mount| {
        let (MountSource::Bind { source, options }, letter) = (&mount.source, label(mount)?) else {
            return None;
        };
        let access = if mount.read_only { "ro" } else { "rw" };
        let passed = match options.propagation {
            None => "",
            Some(Propagation::Rprivate) => ",rprivate",
            Some(Propagation::Rslave) => ",rslave",
            Some(Propagation::Rshared) => ",rshared",
        };
        Some(format!("{source}:{}:{access},{letter}{passed}", mount.target))
    };
    container.mounts.iter().filter_map(bind).collect()
}

fn device(device: &Device) -> DeviceMapping {
    DeviceMapping {
        path_on_host: Some(device.source.clone()),
        path_in_container: Some(device.target().to_owned()),
        cgroup_permissions: Some(device.permissions().to_owned()),
    }
}

/// The daemon has its own default, which is private.
fn namespace(mode: &NamespaceMode) -> Option<String> {
    match mode {
        NamespaceMode::Private => None,
        NamespaceMode::Container(id) => Some(format!("container:shakedown-{id}")),
        mode => Some(mode.to_string()),
    }
}

/// As the daemon takes them; what is about paths has its own fields there.
fn security_options(container: &Container) -> Vec<String> {
    let own = container.security_opt.iter().filter(|option| !option.starts_with("systempaths"));
    let without = container.no_new_privileges.then(|| "no-new-privileges".to_owned());
    own.cloned().chain(without).collect()
}

/// The request with what the declaration changes of it.
fn patched(body: ContainerCreateBody, container: &Container) -> Result<ContainerCreateBody> {
    let Some(patch) = container.raw.get("docker") else { return Ok(body) };
    let invalid = |error: serde_json::Error| {
        let title =
            format!("the `docker` part of `raw` for {} is no create request", container.display_name());
        Failure::new(FailureKind::Invalid, title).fact("reason", error.to_string())
    };
    let mut json = serde_json::to_value(&body).map_err(invalid)?;
    merge(&mut json, patch);
    serde_json::from_value(json).map_err(invalid)
}

/// The names of the container on one network. The service's own name is one of them everywhere.
fn endpoint(container: &Container, attachment: &Attachment) -> EndpointSettings {
    let mut aliases = attachment.aliases.clone();
    aliases.push(container.display_name());
    super::network::endpoint(aliases, attachment)
}

/// What of a name may stand in a host name: sethostname(2) takes 64 bytes, and `_` is refused by some programs.
fn host_name(name: &str) -> String {
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    name.trim_matches('-').to_owned()
}

fn health_config(check: &Healthcheck) -> HealthConfig {
    let nanos =
        |duration: Option<Duration>| duration.and_then(|duration| i64::try_from(duration.as_nanos()).ok());
    HealthConfig {
        test: Some(check.test.clone()),
        interval: nanos(check.interval),
        timeout: nanos(check.timeout),
        start_period: nanos(check.start_period),
        retries: check.retries.map(i64::from),
        start_interval: nanos(check.start_interval),
    }
}
