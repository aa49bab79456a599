//! Prepare: a declaration as the daemon's request, and the container made from it.

use super::ports::Reservations;
use super::{DockerDriver, Instance, daemon_failure};
use crate::driver::{Create, Result};
use bollard::models::{
    ContainerCreateBody, EndpointSettings, HealthConfig, HostConfig, Mount, MountTmpfsOptions, MountType,
    NetworkConnectRequest, NetworkingConfig, PortBinding, ResourcesUlimits,
};
use bollard::query_parameters::CreateContainerOptionsBuilder;
use shakedown_spec::{
    Attachment, Container, Endpoints, Failure, FailureKind, Healthcheck, MountSource, NetworkMode, Port,
    Published, Resources,
};
use std::collections::HashMap;
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
            forwards: Mutex::default(),
            exit: watch::Sender::new(None),
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
        let mut body = body(container, &request.image.id, labels);
        let mut host = host_config(container)?;
        if container.network_mode != NetworkMode::Host {
            body.exposed_ports = Some(endpoints.published.iter().map(key).collect());
            host.port_bindings = Some(self.bindings(&endpoints.published));
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
    fn bindings(&self, published: &[Published]) -> HashMap<String, Option<Vec<PortBinding>>> {
        let address = if self.inner.endpoint.is_local() { "127.0.0.1" } else { "0.0.0.0" };
        let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
        for port in published {
            let binding =
                PortBinding { host_ip: Some(address.to_owned()), host_port: Some(port.host.to_string()) };
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
        hostname: Some(container.hostname.clone().unwrap_or_else(|| host_name(&container.display_name()))),
        user: container.user.clone(),
        env: Some(container.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        cmd: container.command.clone(),
        entrypoint: list(&container.entrypoint),
        working_dir: container.workdir.clone(),
        labels: Some(labels),
        healthcheck: container.healthcheck.as_ref().map(health_config),
        stop_signal: container.stop_signal.clone(),
        stop_timeout: container
            .stop_timeout
            .map(|timeout| i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(container: &Container) -> Result<HostConfig> {
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let Resources { memory, memory_swap, cpu_millis, pids, shm_size, ulimits } = &container.resources;
    Ok(HostConfig {
        mounts: Some(container.mounts.iter().map(mount).collect()),
        memory: number("memory", *memory)?,
        memory_swap: number("memory and swap", *memory_swap)?,
        nano_cpus: number("cpu", cpu_millis.map(|millis| millis.saturating_mul(1_000_000)))?,
        pids_limit: number("pids", *pids)?,
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
        privileged: Some(container.privileged),
        cap_add: some(&container.cap_add),
        cap_drop: some(&container.cap_drop),
        security_opt: container.no_new_privileges.then(|| vec!["no-new-privileges".to_owned()]),
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
            container.extra_hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect(),
        ),
        ..HostConfig::default()
    })
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

fn mount(mount: &shakedown_spec::Mount) -> Mount {
    let (typ, source, tmpfs_options) = match &mount.source {
        MountSource::Bind { source } => (MountType::BIND, Some(source.clone()), None),
        MountSource::Tmpfs { size, mode } => {
            let size_bytes = size.and_then(|size| i64::try_from(size).ok());
            let options = MountTmpfsOptions { size_bytes, mode: mode.map(i64::from), options: None };
            (MountType::TMPFS, None, Some(options))
        }
    };
    Mount {
        target: Some(mount.target.clone()),
        source,
        typ: Some(typ),
        read_only: Some(mount.read_only),
        tmpfs_options,
        ..Mount::default()
    }
}

/// The names of the container on one network. The service's own name is one of them everywhere.
fn endpoint(container: &Container, attachment: &Attachment) -> EndpointSettings {
    let mut aliases = attachment.aliases.clone();
    aliases.push(container.display_name());
    EndpointSettings { aliases: Some(aliases), ..EndpointSettings::default() }
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
        start_interval: None,
    }
}
