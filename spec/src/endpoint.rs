//! Ports, and where a running container is reached.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The transport of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the container, and where it is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The port the service listens on in its container.
    pub container: u16,
    /// The transport.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port of the host; a free one is chosen when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<u16>,
    /// The address of the host to publish at; loopback, which nobody else reaches, when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

impl Port {
    /// A TCP port, published on a free port of the host.
    #[must_use]
    pub fn tcp(container: u16) -> Self {
        Self { container, protocol: Protocol::Tcp, host: None, address: None }
    }

    /// A UDP port, published on a free port of the host.
    #[must_use]
    pub fn udp(container: u16) -> Self {
        Self { protocol: Protocol::Udp, ..Self::tcp(container) }
    }

    /// An SCTP port, published on a free port of the host, where the driver can do it.
    #[must_use]
    pub fn sctp(container: u16) -> Self {
        Self { protocol: Protocol::Sctp, ..Self::tcp(container) }
    }

    /// Publishes on this port of the host instead of a free one.
    #[must_use]
    pub fn on_host(mut self, port: u16) -> Self {
        self.host = Some(port);
        self
    }

    /// Publishes at this address of the host instead of loopback: `0.0.0.0` is all of them, on IPv6 as well, and lets
    /// other machines in.
    #[must_use]
    pub fn at(mut self, address: impl Into<IpAddr>) -> Self {
        self.address = Some(address.into());
        self
    }
}

impl From<u16> for Port {
    fn from(port: u16) -> Self {
        Self::tcp(port)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.protocol)
    }
}

impl FromStr for Port {
    type Err = String;

    /// Reads `80`, `80/tcp`, `53/udp`, `8080:80/tcp` (host first) and `0.0.0.0:8080:80`, as Docker writes them; an IPv6
    /// address stands in brackets.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            format!(
                "`{text}` is not a port: expected forms like `80`, `53/udp`, `8080:80/tcp`, `0.0.0.0:8080:80`"
            )
        };
        let (numbers, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((numbers, "tcp")) => (numbers, Protocol::Tcp),
            Some((numbers, "udp")) => (numbers, Protocol::Udp),
            Some((numbers, "sctp")) => (numbers, Protocol::Sctp),
            Some(_) => return Err(wrong()),
        };
        let number = |digits: &str| digits.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong);
        let Some((before, container)) = numbers.rsplit_once(':') else {
            return Ok(Self { container: number(numbers)?, protocol, host: None, address: None });
        };
        let (address, host) = match before.rsplit_once(':') {
            None => (None, Some(number(before)?)),
            Some((address, host)) => {
                let bare =
                    address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
                let address = bare.parse::<IpAddr>().map_err(|_| wrong())?;
                // Nothing between the colons is a free port at this address.
                (Some(address), if host.is_empty() { None } else { Some(number(host)?) })
            }
        };
        Ok(Self { container: number(container)?, protocol, host, address })
    }
}

/// A port of a running container and the port of the host that leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Published {
    /// The port in the container.
    pub container: u16,
    /// The transport.
    pub protocol: Protocol,
    /// The port of the host.
    pub host: u16,
}

/// Where a running container is reached, from the test and from other containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoints {
    /// The host to connect to from the test, usually `127.0.0.1`.
    pub host: String,
    /// The published ports.
    pub published: Vec<Published>,
    /// The name by which containers on the same network reach this one; its first alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_host: Option<String>,
}

impl Endpoints {
    /// The host's port that leads to TCP port `container`, if that port was declared.
    #[must_use]
    pub fn tcp(&self, container: u16) -> Option<u16> {
        self.host_port(container, Protocol::Tcp)
    }

    /// The host's port that leads to UDP port `container`, if that port was declared.
    #[must_use]
    pub fn udp(&self, container: u16) -> Option<u16> {
        self.host_port(container, Protocol::Udp)
    }

    /// The host's port that leads to this port, if it was declared.
    #[must_use]
    pub fn host_port(&self, container: u16, protocol: Protocol) -> Option<u16> {
        let found =
            self.published.iter().find(|port| port.container == container && port.protocol == protocol);
        found.map(|port| port.host)
    }

    /// The host as it stands in a URL: an IPv6 address gets its brackets.
    #[must_use]
    pub fn url_host(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// A user who writes a port as Docker does gets what Docker gives.
    #[test]
    fn ports_are_read_as_docker_writes_them() {
        assert_eq!("80".parse(), Ok(Port::tcp(80)));
        assert_eq!("53/udp".parse(), Ok(Port::udp(53)));
        assert_eq!("8080:80/tcp".parse(), Ok(Port::tcp(80).on_host(8080)));
        assert_eq!("0.0.0.0:8080:80".parse(), Ok(Port::tcp(80).on_host(8080).at(Ipv4Addr::UNSPECIFIED)));
        assert_eq!("[::1]::53/udp".parse(), Ok(Port::udp(53).at(Ipv6Addr::LOCALHOST)));
        for wrong in ["", "0", "65536", "80/http", "a:80", "80:", "1:2:3", "::80", "1.2.3:1:80", ":80"] {
            assert!(wrong.parse::<Port>().is_err(), "{wrong}");
        }
    }
}
