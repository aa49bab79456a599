//! The methods every module shares: builder-lite, in any order, on the module's own type.

use crate::{
    Attachment, Build, Container, File, Healthcheck, ImageReference, Mount, Network, NetworkMode, Port,
    PullPolicy, Wait,
};
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

    /// Joins a network.
    #[must_use]
    fn network(self, network: &Network) -> Self {
        self.with(|c| c.networks.push(Attachment { network: network.clone(), aliases: Vec::new() }))
    }

    /// A further name on the network joined last; put it after [`network`](Configure::network).
    #[must_use]
    fn alias(self, alias: impl Into<String>) -> Self {
        self.with(|c| match c.networks.last_mut() {
            Some(last) => last.aliases.push(alias.into()),
            None => c.name = Some(alias.into()),
        })
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
