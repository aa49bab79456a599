//! The declaration of one container.

use crate::{
    Build, Device, File, Healthcheck, Licence, Mount, NamespaceMode, Network, NetworkMode, Port, PullPolicy,
    Resources, RestartPolicy, VolumesFrom, Wait, serial,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// What should run, and when it is ready. Fields left empty mean what the image says.
///
/// Built with the methods of [`Configure`](crate::Configure), in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Container {
    /// The image: a reference (`postgres:17`), or a source (`oci:DIR`, `docker-archive:FILE`, …).
    pub image: String,
    /// Builds the image; `image` is then only its name in messages. `build:DIR` in `image` is the short form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<Box<Build>>,
    /// The service's name in messages, and its host name on networks; derived from the image when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Replaces the image's entry point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Environment variables, on top of the image's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Files of `NAME=value` lines, as `docker run --env-file` reads them; `env` counts before them. A line with a name
    /// alone is as one of `env_from_host`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env_files: Vec<String>,
    /// Names of variables that have the values they have for the test; one that is not set there is not set.
    ///
    /// The client that starts the container puts the values into `env`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env_from_host: Vec<String>,
    /// Labels for tools that list containers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Host name inside the container; the name when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Domain name (NIS) inside the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Working directory of the first process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid` of the first process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Further groups of the first process, by number or by their names in the image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group_add: Vec<String>,
    /// The user that the image's entry point changes to anyway, such as `postgres`.
    ///
    /// Where only one user id can be mapped (an ordinary user without `/etc/subuid`), the container runs as this
    /// user from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_user: Option<String>,
    /// Ports to publish.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Files put in before the start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// Mounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Containers whose bind mounts and volumes are mounted here as well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes_from: Vec<VolumesFrom>,
    /// Devices of the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Devices by their names in the Container Device Interface, such as `nvidia.com/gpu=all`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cdi_devices: Vec<String>,
    /// Whose System V objects, POSIX message queues and `/dev/shm` the container sees.
    #[serde(skip_serializing_if = "NamespaceMode::is_private")]
    pub ipc: NamespaceMode,
    /// Whose processes the container sees.
    #[serde(skip_serializing_if = "NamespaceMode::is_private")]
    pub pid: NamespaceMode,
    /// Whose control groups the container sees: its own, or the host's.
    #[serde(skip_serializing_if = "NamespaceMode::is_private")]
    pub cgroupns: NamespaceMode,
    /// Whose users the container's are: others than the host's (`private`), or the host's. What the driver does anyway
    /// when unset: as root the host's, as an ordinary user others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userns: Option<NamespaceMode>,
    /// Networks to join.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Attachment>,
    /// Which network the container has; only the default one can join networks.
    #[serde(skip_serializing_if = "NetworkMode::is_default")]
    pub network_mode: NetworkMode,
    /// Whether the container may open connections to the outside. When unset it may, if this machine can do it and it is
    /// not on internal networks alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound: Option<bool>,
    /// Addresses of name servers; the host's when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Domains in which names are looked up; the host's when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// Replaces the image's health check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// What has to hold before the container counts as ready; all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<Wait>,
    /// How long the container may take from launch until it is ready; 60 s when unset.
    #[serde(rename = "timeout_ms", with = "serial::millis", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Limits.
    pub resources: Resources,
    /// All capabilities and devices, no seccomp filter: as `docker run --privileged`.
    pub privileged: bool,
    /// Capabilities on top of Docker's default set (`NET_ADMIN`, or `ALL`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities taken from Docker's default set (`NET_RAW`, or `ALL`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// Whether set-user-id programs gain nothing.
    pub no_new_privileges: bool,
    /// Security options as `docker run --security-opt` takes them; see
    /// [`security_opt`](crate::Configure::security_opt).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_opt: Vec<String>,
    /// Paths of which nothing can be read, instead of Docker's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked_paths: Option<Vec<String>>,
    /// Paths that can only be read, instead of Docker's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readonly_paths: Option<Vec<String>>,
    /// Whether the root file system can only be read.
    pub read_only: bool,
    /// Kernel parameters of the container's own namespaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// TCP and UDP ports of this machine that the container reaches as `host.docker.internal` and
    /// `host.testcontainers.internal`, also those that listen on loopback only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<u16>,
    /// Extra lines of `/etc/hosts`: name to address, or to `host-gateway`, the host.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_hosts: BTreeMap<String, String>,
    /// Signal that asks the container to stop; the image's, else `SIGTERM`, when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// How long the container may take to stop before it is killed; 10 s when unset.
    #[serde(rename = "stop_timeout_ms", with = "serial::millis", skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<Duration>,
    /// Whether the first process has a terminal; its output is then one stream.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// Whether the first process has an input that `attach` writes to; otherwise it reads an empty one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdin_open: bool,
    /// Whether the first process is a small init that forwards signals to the program and collects what it leaves.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
    /// Whether it is started again when its first process has ended.
    #[serde(skip_serializing_if = "RestartPolicy::is_no")]
    pub restart: RestartPolicy,
    /// Whether it is removed when it has ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub auto_remove: bool,
    /// What has no option: by the name of a driver, a JSON document that is merged (RFC 7396) into what that driver makes
    /// of the declaration. For `docker` the body of its create request, for `native` the OCI runtime specification.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, serde_json::Value>,
    /// When to ask the registry for the image; what `shakedown.toml` says, else `missing`, when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// What kind of machine the image has to be for, such as `linux/arm64`; this machine's kind when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Names of images without tags, such as `postgres`, that the rest of the declaration is written for. An image of
    /// another name is refused; see [`compatible_image`](crate::Configure::compatible_image). Empty means any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub compatible: Vec<String>,
    /// How many bytes of its log are kept, the newest; 64 MiB when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_limit: Option<u64>,
    /// What the user has to accept before the container may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<Licence>,
}

impl Container {
    /// A declaration of `image` with everything else as the image says.
    pub fn of(image: impl Into<String>) -> Self {
        Self { image: image.into(), ..Self::default() }
    }

    /// A declaration of the image that this builds, with everything else as the image says.
    #[must_use]
    pub fn built(build: Build) -> Self {
        let image = format!("build:{build}");
        Self { image, build: Some(Box::new(build)), ..Self::default() }
    }

    /// The service's name in messages and on networks: the declared one, else the last part of the image's name.
    #[must_use]
    pub fn display_name(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        if let Some(build) = &self.build {
            return build.name().unwrap_or("container").to_owned();
        }
        const SCHEMES: [&str; 5] = ["oci:", "oci-archive:", "docker-archive:", "docker-daemon:", "build:"];
        let place = self.image.split('?').next().unwrap_or_default();
        let scheme = SCHEMES.iter().find_map(|scheme| place.strip_prefix(scheme));
        let place = scheme.unwrap_or(place).trim_end_matches(['/', '.']);
        let (_, path) = place.rsplit_once('/').unwrap_or(("", place));
        let end = path.find(['@', ':']).unwrap_or(path.len());
        let name: String =
            path[..end].chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
        if name.is_empty() { "container".to_owned() } else { name }
    }

    /// How long the container may take until it is ready.
    #[must_use]
    pub fn ready_timeout(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(60))
    }

    /// All names by which others on its networks reach the container; the display name comes last.
    #[must_use]
    pub fn aliases(&self) -> Vec<String> {
        let mut names: Vec<String> = self.networks.iter().flat_map(|net| net.aliases.clone()).collect();
        names.push(self.display_name());
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }
}

/// The membership of a container in a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The network.
    pub network: Network,
    /// Names by which others on this network reach the container, besides its own name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Its address; a free one when unset. The network has to declare its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
}

impl Attachment {
    /// The membership in `network`, with no further names and any address.
    #[must_use]
    pub fn to(network: &Network) -> Self {
        Self { network: network.clone(), aliases: Vec::new(), ip: None }
    }

    /// A further name.
    #[must_use]
    pub fn alias(mut self, alias: impl Into<String>) -> Self {
        self.aliases.push(alias.into());
        self
    }

    /// Chooses the address.
    #[must_use]
    pub fn ip(mut self, address: impl Into<Ipv4Addr>) -> Self {
        self.ip = Some(address.into());
        self
    }
}

impl From<&Network> for Attachment {
    fn from(network: &Network) -> Self {
        Self::to(network)
    }
}

/// Any image, without a module: what it needs is declared with [`Configure`](crate::Configure).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GenericContainer(pub Container);

impl GenericContainer {
    /// A container of `image`.
    pub fn new(image: impl Into<String>) -> Self {
        Self(Container::of(image))
    }

    /// A container of the image that this builds.
    #[must_use]
    pub fn build(build: Build) -> Self {
        Self(Container::built(build))
    }
}

impl AsMut<Container> for GenericContainer {
    fn as_mut(&mut self) -> &mut Container {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn name(image: &str, expected: &str) {
        assert_eq!(Container::of(image).display_name(), expected);
    }

    /// Messages name the service as its user would.
    #[test]
    fn the_display_name_is_the_last_part_of_the_image() {
        name("postgres:17", "postgres");
        name("ghcr.io/acme/orders-db@sha256:0123", "orders-db");
        name("localhost:5000/redis:7", "redis");
        name("oci:target/images/busybox", "busybox");
        name("docker-daemon:redis:7", "redis");
        name("docker-archive:redis.tar:redis:7", "redis.tar");
        name("build:images/orders/?dockerfile=docker/Release", "orders");
        name("build:.", "container");
        name("debian:bookworm?include=redis&mirror=http://deb.debian.org/debian", "debian");
        name("", "container");
        let built = |build: Build| Container::built(build).display_name();
        assert_eq!(built(Build::directory("tests/web").target("dev")), "web");
        assert_eq!(built(Build::directory(".")), "container");
        assert_eq!(built(Build::inline("FROM scratch")), "container");
    }

    /// What a declaration says survives the way to the keeper.
    #[test]
    fn a_declaration_survives_json() {
        let mut declared = Container::of("redis:7");
        declared.timeout = Some(Duration::from_millis(1500));
        declared.files.push(File::bytes("/etc/redis.conf", "maxmemory 1mb\n").mode(0o600));
        let json = serde_json::to_string(&declared).unwrap();
        assert_eq!(serde_json::from_str::<Container>(&json).unwrap(), declared);
    }

    /// A misspelt field in a REST request is told, not ignored.
    #[test]
    fn unknown_fields_are_refused() {
        let error =
            serde_json::from_str::<Container>(r#"{"image":"redis","prots":[]}"#).unwrap_err().to_string();
        assert!(error.contains("unknown field `prots`"), "{error}");
    }
}
