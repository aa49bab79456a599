//! The declaration of one container.

use crate::{File, Healthcheck, Mount, Network, Port, Resources, Wait, serial};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What should run, and when it is ready. Fields left empty mean what the image says.
///
/// Built with the methods of [`Configure`](crate::Configure), in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Container {
    /// The image: a reference (`postgres:17`), or a source (`oci:DIR`, `docker-archive:FILE`, …).
    pub image: String,
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
    /// Labels for tools that list containers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Host name inside the container; the name when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Working directory of the first process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid` of the first process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
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
    /// Networks to join.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Attachment>,
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
    /// Whether the root file system can only be read.
    pub read_only: bool,
    /// Kernel parameters of the container's own namespaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Extra lines of `/etc/hosts`: name to address.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_hosts: BTreeMap<String, String>,
    /// Signal that asks the container to stop; the image's, else `SIGTERM`, when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// How long the container may take to stop before it is killed; 10 s when unset.
    #[serde(rename = "stop_timeout_ms", with = "serial::millis", skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<Duration>,
    /// When to ask the registry for the image.
    pub pull_policy: PullPolicy,
}

impl Container {
    /// A declaration of `image` with everything else as the image says.
    pub fn of(image: impl Into<String>) -> Self {
        Self { image: image.into(), ..Self::default() }
    }

    /// The service's name in messages and on networks: the declared one, else the last part of the image's name.
    #[must_use]
    pub fn display_name(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let (_, path) = self.image.rsplit_once('/').unwrap_or(("", &self.image));
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
}

/// When to ask the registry for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Only when the image is not in the local store.
    #[default]
    Missing,
    /// At every start, so that a moved tag is noticed.
    Always,
    /// Not at all: an image that is not in the local store is an error.
    Never,
}

/// Any image, without a module: what it needs is declared with [`Configure`](crate::Configure).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GenericContainer(pub Container);

impl GenericContainer {
    /// A container of `image`.
    pub fn new(image: impl Into<String>) -> Self {
        Self(Container::of(image))
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
        name("", "container");
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
