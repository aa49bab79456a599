//! A network that containers share.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;

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
    /// The subnet of the containers' addresses, such as `10.5.0.0/24`; a free one when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// The network's own address in its subnet; the first one when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Whether containers have addresses on IPv6 as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ipv6: bool,
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
        Self {
            key: key.into(),
            internal: false,
            subnet: None,
            gateway: None,
            ipv6: false,
            labels: BTreeMap::new(),
        }
    }

    /// Chooses the subnet of the containers' addresses, such as `10.5.0.0/24`, for programs that have addresses in
    /// their configuration; see [`Configure::ip`](crate::Configure::ip).
    #[must_use]
    pub fn subnet(mut self, subnet: impl Into<String>) -> Self {
        self.subnet = Some(subnet.into());
        self
    }

    /// Chooses the network's own address in its subnet.
    #[must_use]
    pub fn gateway(mut self, address: impl Into<Ipv4Addr>) -> Self {
        self.gateway = Some(address.into());
        self
    }

    /// Gives containers addresses on IPv6 as well, under the same names.
    #[must_use]
    pub fn ipv6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    /// The declared subnet: its first address and the length of its prefix.
    ///
    /// # Errors
    ///
    /// What is declared is no subnet of IPv4, or one that has no room for two containers, or that begins elsewhere.
    pub fn parsed_subnet(&self) -> Result<Option<(Ipv4Addr, u8)>, String> {
        let Some(text) = &self.subnet else { return Ok(None) };
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            Some((address.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?))
        });
        let Some((address, prefix @ 8..=29)) = parsed else {
            return Err(format!("`{}` is no subnet of IPv4 from /8 to /29", text.escape_debug()));
        };
        let base = Ipv4Addr::from(u32::from(address) & (u32::MAX << (32 - prefix)));
        if base != address {
            return Err(format!("`{text}` is an address in the subnet `{base}/{prefix}`"));
        }
        Ok(Some((address, prefix)))
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

/// Which network a container has.
///
/// In JSON a text: `default`, `none`, `host` or `container:ID`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NetworkMode {
    /// Its own, connected with the networks it joins.
    #[default]
    Default,
    /// Its own, connected with nothing.
    None,
    /// The host's: it listens on the host's ports, and nothing is published.
    Host,
    /// That of the running container with this id.
    Container(String),
}

impl NetworkMode {
    /// Whether this is the mode of a container that declares none.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

impl TryFrom<String> for NetworkMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "default" => Ok(Self::Default),
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            other => match other.strip_prefix("container:") {
                Some(id) if !id.is_empty() => Ok(Self::Container(id.to_owned())),
                _ => Err(format!("`{text}` is none of `default`, `none`, `host`, `container:ID`")),
            },
        }
    }
}

impl From<NetworkMode> for String {
    fn from(mode: NetworkMode) -> Self {
        mode.to_string()
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::None => f.write_str("none"),
            Self::Host => f.write_str("host"),
            Self::Container(id) => write!(f, "container:{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mode that is misspelt in a request is told.
    #[test]
    fn modes_are_texts() {
        for text in ["default", "none", "host", "container:orders-1"] {
            assert_eq!(NetworkMode::try_from(text.to_owned()).map(String::from), Ok(text.to_owned()));
        }
        for wrong in ["", "bridge", "container:"] {
            let told = NetworkMode::try_from(wrong.to_owned()).unwrap_err();
            assert!(told.contains(wrong) && told.contains("`host`"), "{told}");
        }
    }

    /// A subnet that is misspelt is told, before a kernel or an engine understands it in its own way.
    #[test]
    fn subnets_are_checked() {
        let parsed = |text: &str| Network::new().subnet(text).parsed_subnet();
        assert_eq!(parsed("10.5.0.0/16"), Ok(Some((Ipv4Addr::new(10, 5, 0, 0), 16))));
        for wrong in ["10.5.0.0", "10.5.0.0/30", "10.5.0.0/7", "fd00::/64", "10.5/16"] {
            assert!(parsed(wrong).unwrap_err().contains("is no subnet"), "{wrong}");
        }
        assert!(parsed("10.5.0.1/16").unwrap_err().contains("`10.5.0.0/16`"));
    }

    /// Two tests that each make a network must not meet on it.
    #[test]
    fn new_networks_differ_and_clones_do_not() {
        let (one, two) = (Network::new(), Network::new());
        assert_ne!(one, two);
        assert_eq!(one, one.clone());
    }
}
