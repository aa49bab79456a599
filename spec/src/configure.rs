//! The methods every module shares: builder-lite, in any order, on the module's own type.

use crate::{
    Attachment, Build, Container, Device, File, Healthcheck, ImageReference, Mount, NamespaceMode, Network,
    NetworkMode, Port, PullPolicy, RestartPolicy, Ulimit, Volume, VolumesFrom, Wait,
};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Common options of containers. Every method takes and returns the module's own type, so they mix with its own.
///
/// ```
/// use shakedown_spec::{Configure, GenericContainer, Wait};
///
/// let orders = GenericContainer::new("ghcr.io/shop/orders:3")
///     .env("LOG_LEVEL", "debug")
///     .port(8080)
///     .wait(Wait::http(8080, "/health"));
/// assert_eq!(orders.0.env["LOG_LEVEL"], "debug");
/// ```
pub trait Configure: AsMut<Container> + Sized {
    /// Changes any field of the declaration: for what has no method of its own.
    #[must_use]
    fn with(mut self, change: impl FnOnce(&mut Container)) -> Self {
        change(self.as_mut());
        self
    }

    /// Uses another image, such as another tag of the module's own.
    ///
    /// Modules know images by their names. One of a name that the module does not know is refused at the start, because
    /// users, paths and variables of it may be others: use [`compatible_image`](Self::compatible_image) if they are not.
    /// Sources (`oci:DIR`, `build:DIR`, …) and what `shakedown.toml` puts in an image's place are taken as they are.
    #[must_use]
    fn image(self, image: impl Into<String>) -> Self {
        self.with(|c| {
            c.image = image.into();
            c.build = None;
        })
    }

    /// Uses the image that this builds.
    #[must_use]
    fn build(self, build: Build) -> Self {
        self.with(|c| {
            c.image = format!("build:{build}");
            c.build = Some(Box::new(build));
        })
    }

    /// Uses an image of another name, of which the caller knows that it works like the module's own:
    /// `Postgres::new().compatible_image("mycorp/pg:17")`.
    #[must_use]
    fn compatible_image(self, image: impl Into<String>) -> Self {
        self.with(|c| {
            c.image = image.into();
            c.build = None;
            // What is no reference is refused at the start, with the reason.
            if let Ok(reference) = c.image.parse::<ImageReference>()
                && !c.compatible.is_empty()
            {
                c.compatible.push(reference.name());
            }
        })
    }

    /// Declares which images, by their names without tags, the rest of the declaration is written for: for modules.
    #[must_use]
    fn made_for<S: Into<String>>(self, names: impl IntoIterator<Item = S>) -> Self {
        self.with(|c| c.compatible = names.into_iter().map(Into::into).collect())
    }

    /// Uses the image for this platform, such as `linux/arm64`, on a machine that may have to emulate it.
    ///
    /// What the machine cannot run is refused at the start.
    #[must_use]
    fn platform(self, platform: impl Into<String>) -> Self {
        self.with(|c| c.platform = Some(platform.into()))
    }

    /// Accepts the licence that the module asks its user to accept. Without such a licence it changes nothing.
    #[must_use]
    fn accept_licence(self) -> Self {
        self.with(|c| {
            if let Some(licence) = &mut c.licence {
                licence.accepted = true;
            }
        })
    }

    /// Names the service in messages and on networks.
    #[must_use]
    fn name(self, name: impl Into<String>) -> Self {
        self.with(|c| c.name = Some(name.into()))
    }

    /// Replaces the image's command.
    #[must_use]
    fn command<S: Into<String>>(self, argv: impl IntoIterator<Item = S>) -> Self {
        self.with(|c| c.command = Some(argv.into_iter().map(Into::into).collect()))
    }

    /// Replaces the image's entry point.
    #[must_use]
    fn entrypoint<S: Into<String>>(self, argv: impl IntoIterator<Item = S>) -> Self {
        self.with(|c| c.entrypoint = Some(argv.into_iter().map(Into::into).collect()))
    }

    /// Sets an environment variable.
    #[must_use]
    fn env(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|c| {
            c.env.insert(key.into(), value.into());
        })
    }

    /// Sets the variables of a file of `NAME=value` lines, as `docker run --env-file`. What `env` sets counts before it.
    #[must_use]
    fn env_file(self, path: impl Into<String>) -> Self {
        self.with(|c| c.env_files.push(path.into()))
    }

    /// Sets a variable to the value that it has for the test, if it is set there.
    #[must_use]
    fn env_from_host(self, name: impl Into<String>) -> Self {
        self.with(|c| c.env_from_host.push(name.into()))
    }

    /// Adds a label.
    #[must_use]
    fn label(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|c| {
            c.labels.insert(key.into(), value.into());
        })
    }

    /// Sets the host name inside the container.
    #[must_use]
    fn hostname(self, name: impl Into<String>) -> Self {
        self.with(|c| c.hostname = Some(name.into()))
    }

    /// Sets the domain name inside the container.
    #[must_use]
    fn domainname(self, name: impl Into<String>) -> Self {
        self.with(|c| c.domainname = Some(name.into()))
    }

    /// Sets the working directory of the first process.
    #[must_use]
    fn workdir(self, path: impl Into<String>) -> Self {
        self.with(|c| c.workdir = Some(path.into()))
    }

    /// Runs the first process as this `user`, `uid`, `user:group` or `uid:gid`.
    #[must_use]
    fn user(self, user: impl Into<String>) -> Self {
        self.with(|c| c.user = Some(user.into()))
    }

    /// Adds a group of the first process, by its number or by its name in the image.
    #[must_use]
    fn group_add(self, group: impl Into<String>) -> Self {
        self.with(|c| c.group_add.push(group.into()))
    }

    /// Publishes a port of the container: a number, or a [`Port`].
    #[must_use]
    fn port(self, port: impl Into<Port>) -> Self {
        self.with(|c| c.ports.push(port.into()))
    }

    /// Puts a file in before the start, mode 0644, owner root.
    #[must_use]
    fn file(self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.copy(File::bytes(path, bytes))
    }

    /// Puts a file or a directory in before the start, with mode and owner.
    #[must_use]
    fn copy(self, file: File) -> Self {
        self.with(|c| c.files.push(file))
    }

    /// Mounts something.
    #[must_use]
    fn mount(self, mount: Mount) -> Self {
        self.with(|c| c.mounts.push(mount))
    }

    /// Mounts a volume.
    #[must_use]
    fn volume(self, volume: &Volume, target: impl Into<String>) -> Self {
        self.mount(Mount::volume(volume, target))
    }

    /// Mounts what the running container of this id has mounted, at the same places: bind mounts, volumes, and what its
    /// image declares as volumes.
    #[must_use]
    fn volumes_from(self, id: impl Into<String>) -> Self {
        self.with(|c| c.volumes_from.push(VolumesFrom { id: id.into(), read_only: false }))
    }

    /// Gives the container a device of the host: `/dev/fuse`, or `/dev/fuse:/dev/other:rw`.
    #[must_use]
    fn device(self, device: impl Into<Device>) -> Self {
        self.with(|c| c.devices.push(device.into()))
    }

    /// Gives the container a device by its name in the Container Device Interface, such as `nvidia.com/gpu=all`.
    #[must_use]
    fn cdi_device(self, name: impl Into<String>) -> Self {
        self.with(|c| c.cdi_devices.push(name.into()))
    }

    /// Whose System V objects, POSIX message queues and `/dev/shm` the container sees.
    #[must_use]
    fn ipc(self, mode: NamespaceMode) -> Self {
        self.with(|c| c.ipc = mode)
    }

    /// Whose processes the container sees.
    #[must_use]
    fn pid(self, mode: NamespaceMode) -> Self {
        self.with(|c| c.pid = mode)
    }

    /// Whose users the container's are. [`Private`](NamespaceMode::Private): its root is not the host's, even where the
    /// driver runs as root; [`Host`](NamespaceMode::Host): the host's.
    #[must_use]
    fn userns(self, mode: NamespaceMode) -> Self {
        self.with(|c| c.userns = Some(mode))
    }

    /// Joins a network.
    #[must_use]
    fn network(self, network: &Network) -> Self {
        self.with(|c| c.networks.push(Attachment::to(network)))
    }

    /// A further name on the network joined last; put it after [`network`](Configure::network).
    #[must_use]
    fn alias(self, alias: impl Into<String>) -> Self {
        self.with(|c| match c.networks.last_mut() {
            Some(last) => last.aliases.push(alias.into()),
            None => c.name = Some(alias.into()),
        })
    }

    /// Chooses the address on the network joined last, which has to declare its subnet; put it after
    /// [`network`](Configure::network).
    #[must_use]
    fn ip(self, address: impl Into<Ipv4Addr>) -> Self {
        self.with(|c| {
            if let Some(last) = c.networks.last_mut() {
                last.ip = Some(address.into());
            }
        })
    }

    /// Lets the container reach what listens on this port of this machine, on loopback only as well, as
    /// `host.docker.internal` and as `host.testcontainers.internal`.
    ///
    /// ```
    /// use shakedown_spec::{Configure, GenericContainer};
    ///
    /// let api = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let port = api.local_addr()?.port();
    /// let shop = GenericContainer::new("shop")
    ///     .host_port(port)
    ///     .env("API", format!("http://host.docker.internal:{port}/"));
    /// # assert_eq!(shop.0.host_ports, [port]);
    /// # Ok::<_, std::io::Error>(())
    /// ```
    #[must_use]
    fn host_port(self, port: u16) -> Self {
        self.with(|c| c.host_ports.push(port))
    }

    /// Gives the container another network than its own; see [`NetworkMode`].
    ///
    /// ```
    /// use shakedown_spec::{Configure, GenericContainer, NetworkMode};
    ///
    /// let probe = GenericContainer::new("busybox").network_mode(NetworkMode::Host);
    /// # assert_eq!(probe.0.network_mode, NetworkMode::Host);
    /// ```
    #[must_use]
    fn network_mode(self, mode: NetworkMode) -> Self {
        self.with(|c| c.network_mode = mode)
    }

    /// Says whether the container may open connections to the outside. `true` makes it an error where this machine
    /// cannot do it; by default the container then goes without.
    #[must_use]
    fn outbound(self, allowed: bool) -> Self {
        self.with(|c| c.outbound = Some(allowed))
    }

    /// Adds the address of a name server to use instead of the host's.
    #[must_use]
    fn dns(self, server: impl Into<String>) -> Self {
        self.with(|c| c.dns.push(server.into()))
    }

    /// Adds a domain in which names are looked up.
    #[must_use]
    fn dns_search(self, domain: impl Into<String>) -> Self {
        self.with(|c| c.dns_search.push(domain.into()))
    }

    /// Adds a condition to the module's own readiness.
    #[must_use]
    fn wait(self, wait: Wait) -> Self {
        self.with(|c| c.waits.push(wait))
    }

    /// How long the container may take from launch until it is ready (default: 60 s).
    #[must_use]
    fn timeout(self, timeout: Duration) -> Self {
        self.with(|c| c.timeout = Some(timeout))
    }

    /// Replaces the image's health check.
    #[must_use]
    fn healthcheck(self, check: Healthcheck) -> Self {
        self.with(|c| c.healthcheck = Some(check))
    }

    /// Limits the memory, in bytes.
    #[must_use]
    fn memory(self, bytes: u64) -> Self {
        self.with(|c| c.resources.memory = Some(bytes))
    }

    /// Keeps so many bytes of the log, the newest; 64 MiB when it is not said.
    #[must_use]
    fn log_limit(self, bytes: u64) -> Self {
        self.with(|c| c.log_limit = Some(bytes))
    }

    /// Limits memory and swap together, in bytes; the value of [`memory`](Self::memory) means no swap.
    #[must_use]
    fn memory_swap(self, bytes: u64) -> Self {
        self.with(|c| c.resources.memory_swap = Some(bytes))
    }

    /// Keeps this much memory, in bytes, for the container when the machine runs short of it.
    #[must_use]
    fn memory_reservation(self, bytes: u64) -> Self {
        self.with(|c| c.resources.memory_reservation = Some(bytes))
    }

    /// Weighs the container against others where processors are scarce: 2 to 262,144, where 1024 is usual.
    #[must_use]
    fn cpu_shares(self, shares: u64) -> Self {
        self.with(|c| c.resources.cpu_shares = Some(shares))
    }

    /// Keeps the container to these processors: `0-2,7`.
    #[must_use]
    fn cpuset_cpus(self, list: impl Into<String>) -> Self {
        let list = list.into();
        self.with(|c| c.resources.cpuset_cpus = Some(list))
    }

    /// Keeps the container's memory to these nodes: `0`.
    #[must_use]
    fn cpuset_mems(self, list: impl Into<String>) -> Self {
        let list = list.into();
        self.with(|c| c.resources.cpuset_mems = Some(list))
    }

    /// Weighs the container against others where disks are busy: 10 to 1000.
    #[must_use]
    fn blkio_weight(self, weight: u16) -> Self {
        self.with(|c| c.resources.blkio_weight = Some(weight))
    }

    /// Limits the number of processes and threads.
    #[must_use]
    fn pids_limit(self, pids: u64) -> Self {
        self.with(|c| c.resources.pids = Some(pids))
    }

    /// Limits the CPU time, in processors: `1.5` is one and a half.
    #[must_use]
    fn cpus(self, cpus: f64) -> Self {
        // A negative or absurd number saturates; zero thousandths is refused at start, where it can be told.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, see above")]
        self.with(|c| c.resources.cpu_millis = Some((cpus * 1000.0) as u64))
    }

    /// Gives the container all capabilities and devices, as `docker run --privileged`; on the native driver it may make device nodes, and has the usual ones.
    #[must_use]
    fn privileged(self) -> Self {
        self.with(|c| c.privileged = true)
    }

    /// Adds a capability to Docker's default set.
    #[must_use]
    fn cap_add(self, capability: impl Into<String>) -> Self {
        self.with(|c| c.cap_add.push(capability.into()))
    }

    /// Takes a capability from Docker's default set.
    #[must_use]
    fn cap_drop(self, capability: impl Into<String>) -> Self {
        self.with(|c| c.cap_drop.push(capability.into()))
    }

    /// Adds a security option as `docker run --security-opt` takes it: `no-new-privileges`, `seccomp=unconfined`,
    /// `seccomp=profile.json`, `apparmor=PROFILE`, `label=type:TYPE`, `systempaths=unconfined`.
    #[must_use]
    fn security_opt(self, option: impl Into<String>) -> Self {
        self.with(|c| c.security_opt.push(option.into()))
    }

    /// Limits a resource of the first process (`nofile`, `nproc`, `core`, …); see getrlimit(2).
    #[must_use]
    fn ulimit(self, name: impl Into<String>, soft: u64, hard: u64) -> Self {
        self.with(|c| c.resources.ulimits.push(Ulimit { name: name.into(), soft, hard }))
    }

    /// Sets the size of `/dev/shm`, in bytes (default: 64 MiB).
    #[must_use]
    fn shm_size(self, bytes: u64) -> Self {
        self.with(|c| c.resources.shm_size = Some(bytes))
    }

    /// Sets a kernel parameter of the container's own namespaces.
    #[must_use]
    fn sysctl(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|c| {
            c.sysctls.insert(name.into(), value.into());
        })
    }

    /// Changes what a driver makes of the declaration, for what has no option; see [`Container::raw`].
    ///
    /// ```
    /// use shakedown_spec::{Configure, GenericContainer};
    ///
    /// let patched = GenericContainer::new("busybox")
    ///     .raw("docker", serde_json::json!({"HostConfig": {"OomScoreAdj": 500}}))
    ///     .raw("native", serde_json::json!({"process": {"oomScoreAdj": 500}}));
    /// # assert_eq!(patched.0.raw.len(), 2);
    /// ```
    #[must_use]
    fn raw(self, driver: impl Into<String>, patch: serde_json::Value) -> Self {
        self.with(|c| {
            c.raw.insert(driver.into(), patch);
        })
    }

    /// Makes the root file system read-only.
    #[must_use]
    fn read_only(self) -> Self {
        self.with(|c| c.read_only = true)
    }

    /// Adds a line to `/etc/hosts`; the address may be `host-gateway`, the host.
    #[must_use]
    fn extra_host(self, name: impl Into<String>, address: impl Into<String>) -> Self {
        self.with(|c| {
            c.extra_hosts.insert(name.into(), address.into());
        })
    }

    /// When to ask the registry for the image.
    #[must_use]
    fn pull_policy(self, policy: PullPolicy) -> Self {
        self.with(|c| c.pull_policy = Some(policy))
    }

    /// The signal that asks the container to stop, such as `SIGINT`.
    #[must_use]
    fn stop_signal(self, signal: impl Into<String>) -> Self {
        self.with(|c| c.stop_signal = Some(signal.into()))
    }

    /// How long the container may take to stop before it is killed (default: 10 s).
    #[must_use]
    fn stop_timeout(self, timeout: Duration) -> Self {
        self.with(|c| c.stop_timeout = Some(timeout))
    }

    /// Gives the first process a terminal: programs then write as they do for a person. Its output is one stream.
    #[must_use]
    fn tty(self, tty: bool) -> Self {
        self.with(|c| c.tty = tty)
    }

    /// Keeps the first process's input open for `attach`; by default it reads an empty one.
    #[must_use]
    fn stdin_open(self, open: bool) -> Self {
        self.with(|c| c.stdin_open = open)
    }

    /// Puts a small init in front of the program, as `docker run --init`: it is process 1, forwards signals, collects
    /// the processes that nobody waits for, and ends as the program does.
    #[must_use]
    fn init(self, init: bool) -> Self {
        self.with(|c| c.init = init)
    }

    /// Starts the container again when it has ended. See [`RestartPolicy`].
    ///
    /// ```
    /// use shakedown_spec::{Configure, GenericContainer, RestartPolicy};
    ///
    /// let worker = GenericContainer::new("worker").restart(RestartPolicy::on_failure_at_most(3));
    /// # assert_eq!(worker.0.restart.to_string(), "on-failure:3");
    /// ```
    #[must_use]
    fn restart(self, policy: RestartPolicy) -> Self {
        self.with(|c| c.restart = policy)
    }

    /// Removes the container when it has ended, as `docker run --rm`.
    #[must_use]
    fn auto_remove(self, remove: bool) -> Self {
        self.with(|c| c.auto_remove = remove)
    }
}

impl<T: AsMut<Container>> Configure for T {}

impl AsMut<Container> for Container {
    fn as_mut(&mut self) -> &mut Container {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `.cpus(1.5)` is one and a half processors.
    #[test]
    fn cpus_are_kept_in_thousandths() {
        assert_eq!(Container::of("redis").cpus(1.5).resources.cpu_millis, Some(1500));
    }

    /// An alias belongs to the network named before it.
    #[test]
    fn aliases_belong_to_the_network_named_last() {
        let (front, back) = (Network::named("front"), Network::named("back"));
        let declared = Container::of("shop/orders").network(&front).alias("web").network(&back).alias("api");
        assert_eq!(declared.networks[0].aliases, ["web"]);
        assert_eq!(declared.networks[1].aliases, ["api"]);
        assert_eq!(declared.aliases(), ["web", "api", "orders"]);
    }
}
