//! How a store reaches registries: passwords, what is declared about each registry, how long to try.

use super::registry::Credentials;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How a store is opened. The default knows no passwords and no registry but by its name.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Where passwords are found.
    pub credentials: Credentials,
    /// What is declared about registries.
    pub registries: RegistriesConfig,
    /// How long to try.
    pub retry: RetryPolicy,
}

impl StoreOptions {
    /// With the passwords that Docker's and Podman's command lines use.
    #[must_use]
    pub fn of_environment() -> Self {
        Self { credentials: Credentials::of_environment(), ..Self::default() }
    }
}

/// What is declared about registries: the table `registries` of `shakedown.toml`.
///
/// ```toml
/// [registries."docker.io"]
/// mirrors = ["mirror.example:5000", "cache.example/hub"]
///
/// [registries."registry.example:5000"]
/// insecure = true            # plain HTTP; this machine's own registries need no such line
///
/// [registries."registry.example"]
/// ca = "registry.pem"        # trusted besides the system's authorities
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RegistriesConfig {
    /// By the registry's name as references have it: host, and port if there is one.
    pub registries: BTreeMap<String, RegistryConfig>,
}

/// What is declared about one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Spoken to in plain HTTP: everyone on the way can read passwords.
    pub insecure: bool,
    /// Asked first, in this order: host, port and a path in front of repositories' names, if there is one.
    pub mirrors: Vec<String>,
    /// A file of certificates (PEM) that may vouch for the registry, besides the system's. A registry of this machine
    /// that has one is spoken to in HTTPS.
    pub ca: Option<PathBuf>,
}

/// When to try a request again, and when to give up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often one thing is asked for, the first time included.
    pub attempts: u32,
    /// The pause before the second attempt. Each further one is twice as long; a random part of up to a half is taken
    /// off, so that many clients do not come back at once.
    pub first_pause: Duration,
    /// The longest pause, also when the registry asks for a longer one with `Retry-After`.
    pub longest_pause: Duration,
    /// How long a registry may say nothing at all before the connection counts as broken.
    pub stall: Duration,
    /// How much has to arrive within [`window`](Self::window); a connection that is slower counts as broken.
    pub least: u64,
    /// See [`least`](Self::least). Time in which nobody was waiting for the registry does not count.
    pub window: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            least: 64 << 10,
            window: Duration::from_secs(60),
        }
    }
}
