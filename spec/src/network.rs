//! A network that containers share.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

/// A private network. Containers on it reach each other by name, on every port, published or not.
///
/// It is a declaration: the network itself is made when the first container that names it starts, and removed with
/// the last one. Clones are the same network; two calls of [`Network::new`] are two networks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// What tells this network from the others of the session.
    pub key: String,
    /// Whether containers are kept from everything outside the network (published ports still work).
    #[serde(default)]
    pub internal: bool,
    /// Labels for tools that list networks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Network {
    /// A network of its own, with a random key.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "each call makes a different network; a default value would not"
    )]
    pub fn new() -> Self {
        Self::named(format!("net-{:016x}", RandomState::new().hash_one(())))
    }

    /// The network of this name in the session: tests that name it equally share it.
    pub fn named(key: impl Into<String>) -> Self {
        Self { key: key.into(), internal: false, labels: BTreeMap::new() }
    }

    /// Keeps the containers from everything outside the network.
    #[must_use]
    pub fn internal(mut self) -> Self {
        self.internal = true;
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two tests that each make a network must not meet on it.
    #[test]
    fn new_networks_differ_and_clones_do_not() {
        let (one, two) = (Network::new(), Network::new());
        assert_ne!(one, two);
        assert_eq!(one, one.clone());
    }
}
