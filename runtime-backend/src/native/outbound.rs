//! Prepare stage: which network a container gets, and its way to the outside.

use super::driver::NativeDriver;
use super::instance::Instance;
use super::launch::Trouble;
use super::launcher::{Connection, Handle, Joining, Request};
use super::network::addresses::{Address, HOST, LONE, Plan};
use super::network::gateway::{Gateway, Permit};
use super::network::resolver::Resolver;
use shakedown_spec::{Attachment, Container, NetworkMode};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use tokio::sync::OnceCell;

/// The network of containers that make interfaces and rules of their own: these would not get along with what diverts
/// packets in the namespace of a container that is alone. No network of a user has an empty key.
const SHARED: &str = "";

/// What an address of the host is declared as.
pub(super) const HOST_GATEWAY: &str = "host-gateway";

/// Why a container cannot have the host's network.
pub(super) const HOST_NETWORK: &str = "only root may start a process in the host's network namespace";

/// Why no network has IPv6.
const NO_IPV6: &str = "this kernel has no IPv6, or it is switched off";

/// Why containers have no addresses on IPv6 here, if they have not.
pub(super) fn missing_ipv6() -> Option<String> {
    (!std::path::Path::new("/proc/net/if_inet6").exists()).then(|| NO_IPV6.to_owned())
}

/// A declared address of a name, as the container's `/etc/hosts` has it; `hosts_own` if its network is the host's.
pub(super) fn host_address(address: &str, hosts_own: bool) -> String {
    match address {
        HOST_GATEWAY if hosts_own => Ipv4Addr::LOCALHOST.to_string(),
        HOST_GATEWAY => HOST.to_string(),
        address => address.to_owned(),
    }
}

/// The ways to the outside of a session.
#[derive(Debug)]
pub(super) struct Outbound {
    /// Why there are none.
    missing: Option<String>,
    /// That of all networks together.
    networks: OnceCell<Gateway>,
    /// The same for IPv6.
    networks_v6: OnceCell<Gateway>,
}

impl Outbound {
    /// Finds out whether the outside can be reached from here.
    pub(super) async fn new(launcher: &Handle) -> Self {
        let tried = launcher.ask(Request::TryExit).await;
        let missing = tried.err().map(|trouble| {
            let call = trouble.call.or(trouble.reason).unwrap_or_default();
            format!("packets cannot be diverted in a network namespace: {call}")
        });
        Self { missing, networks: OnceCell::new(), networks_v6: OnceCell::new() }
    }

    /// Why containers do not reach the outside here, if they do not.
    pub(super) fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// Whether this container is to reach the outside where its networks lead there.
    pub(super) fn wanted(&self, container: &Container) -> bool {
        self.missing.is_none() && container.network_mode.is_default() && container.outbound.unwrap_or(true)
    }

    /// Why containers do not reach the outside over IPv6 here, if they do not.
    pub(super) fn missing_v6(&self) -> Option<String> {
        let no_route = || (!has_route_v6()).then(|| "this machine has no route for IPv6".to_owned());
        self.missing.clone().or_else(missing_ipv6).or_else(no_route)
    }

    /// Makes the way out of networks; over IPv6 as well if it is wanted and leads anywhere.
    pub(super) async fn open(&self, launcher: &Handle, v6: bool) -> Result<(), Trouble> {
        self.networks.get_or_try_init(|| open(launcher, false)).await?;
        if v6 && self.missing_v6().is_none() {
            self.networks_v6.get_or_try_init(|| open(launcher, true)).await?;
        }
        Ok(())
    }

    /// Whether this container can reach the outside.
    pub(super) fn reaches(&self, container: &Container) -> bool {
        let leads = |joined: &shakedown_spec::Attachment| !joined.network.internal;
        self.wanted(container) && (container.networks.is_empty() || container.networks.iter().any(leads))
    }

    /// The network to make for this container. What it needs besides is made now.
    pub(super) async fn connection(
        &self,
        launcher: &Handle,
        container: &Container,
    ) -> Result<Connection, Trouble> {
        let joining = |joined: &Attachment| Joining { key: joined.network.key.clone(), ip: joined.ip };
        let mut networks: Vec<Joining> = container.networks.iter().map(joining).collect();
        match &container.network_mode {
            NetworkMode::Host => return Ok(Connection::Host),
            NetworkMode::Container(other) => return Ok(Connection::Of(other.clone())),
            NetworkMode::None => return Ok(Connection::Own { networks, outbound: false, resolver: false }),
            NetworkMode::Default => {}
        }
        let outbound = self.reaches(container);
        if outbound && networks.is_empty() && changes_its_network(container) {
            let (key, plan) = (SHARED.to_owned(), Plan::default());
            launcher.ask(Request::CreateNetwork { key, internal: false, plan }).await?;
            networks.push(Joining { key: SHARED.to_owned(), ip: None });
        }
        if outbound && !networks.is_empty() {
            let v6 = |joined: &Attachment| joined.network.ipv6 && !joined.network.internal;
            self.open(launcher, container.networks.iter().any(v6)).await?;
        }
        Ok(Connection::Own { networks, outbound, resolver: false })
    }

    /// Lets a container out: through its own gateway if it was given `exits`, else through that of the networks.
    pub(super) fn admit(
        &self,
        container: &Container,
        addresses: &[Address],
        exits: Vec<OwnedFd>,
    ) -> Result<Option<Gateway>, Trouble> {
        if !self.reaches(container) {
            return Ok(None);
        }
        if !exits.is_empty() {
            let own = serve(exits)?;
            own.admit(LONE.into(), permit(container, &Address::ALONE));
            return Ok(Some(own));
        }
        let internal = container.networks.iter().map(|joined| joined.network.internal);
        for (address, internal) in addresses.iter().zip(internal.chain(std::iter::repeat(false))) {
            if !internal {
                self.admit_at(container, address);
            }
        }
        Ok(None)
    }

    /// Lets a container out over a network.
    pub(super) fn admit_at(&self, container: &Container, address: &Address) {
        if let Some(gateway) = self.networks.get() {
            gateway.admit(address.v4.into(), permit(container, address));
        }
        if let (Some(gateway), Some(v6)) = (self.networks_v6.get(), address.v6) {
            gateway.admit(v6.into(), permit(container, address));
        }
    }

    /// Ends what is carried for a container over a network.
    pub(super) fn dismiss_at(&self, address: &Address) {
        if let Some(gateway) = self.networks.get() {
            gateway.dismiss(address.v4.into());
        }
        if let (Some(gateway), Some(v6)) = (self.networks_v6.get(), address.v6) {
            gateway.dismiss(v6.into());
        }
    }

    /// Ends what is carried for a container on networks; for one with a gateway of its own, that ends with it.
    pub(super) fn dismiss(&self, instance: &Instance) {
        if !instance.has_gateway() {
            instance.places().iter().for_each(|place| self.dismiss_at(&place.address));
        }
    }
}

/// What a container may reach from this address.
fn permit(container: &Container, address: &Address) -> Permit {
    Permit {
        host: container.extra_hosts.values().any(|address| address == HOST_GATEWAY),
        host_ports: container.host_ports.clone(),
        gateway: address.gateway,
        resolver: Resolver::of_host().behind_host,
    }
}

/// Whether it may make interfaces, routes and rules in its namespace.
fn changes_its_network(container: &Container) -> bool {
    let grants = |name: &String| {
        let name = name.to_ascii_uppercase();
        ["NET_ADMIN", "ALL"].contains(&name.strip_prefix("CAP_").unwrap_or(&name))
    };
    container.privileged || container.cap_add.iter().any(grants)
}

/// Whether this machine reaches anything over IPv6. Connecting a datagram socket sends nothing; the address is one for
/// documentation (RFC 3849).
fn has_route_v6() -> bool {
    let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let socket = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0));
    socket.and_then(|socket| socket.connect((documentation, 9))).is_ok()
}

async fn open(launcher: &Handle, v6: bool) -> Result<Gateway, Trouble> {
    let (_, exits) = launcher.ask_for(Request::OpenExit { v6 }).await?;
    serve(exits)
}

fn serve(exits: Vec<OwnedFd>) -> Result<Gateway, Trouble> {
    Gateway::serve(exits)
        .map_err(|error| Trouble::new("lead the container to the outside", error.to_string()))
}

impl NativeDriver {
    /// The container's `/etc/resolv.conf`.
    pub(super) fn resolver_file(&self, container: &Container) -> String {
        let outbound = self.outbound.reaches(container)
            || matches!(container.network_mode, NetworkMode::Host | NetworkMode::Container(_));
        if container.network_mode == NetworkMode::Host
            && container.dns.is_empty()
            && container.dns_search.is_empty()
        {
            return std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        }
        Resolver::of_host().file(&container.dns, &container.dns_search, outbound)
    }
}
