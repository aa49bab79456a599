//! Prepare stage: which network a container gets, and its way to the outside.

use super::driver::NativeDriver;
use super::instance::Instance;
use super::launch::Trouble;
use super::launcher::{Connection, Handle, Request};
use super::network::addresses::{HOST, LONE};
use super::network::gateway::{Gateway, Permit};
use super::network::resolver::Resolver;
use shakedown_spec::{Container, NetworkMode};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use tokio::sync::OnceCell;

/// The network of containers that make interfaces and rules of their own: these would not get along with what diverts
/// packets in the namespace of a container that is alone. No network of a user has an empty key.
const SHARED: &str = "";

/// What an address of the host is declared as.
pub(super) const HOST_GATEWAY: &str = "host-gateway";

/// Why a container cannot have the host's network.
pub(super) const HOST_NETWORK: &str = "only root may start a process in the host's network namespace";

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
}

impl Outbound {
    /// Finds out whether the outside can be reached from here.
    pub(super) async fn new(launcher: &Handle) -> Self {
        let tried = launcher.ask(Request::TryExit).await;
        let missing = tried.err().map(|trouble| {
            let call = trouble.call.or(trouble.reason).unwrap_or_default();
            format!("packets cannot be diverted in a network namespace: {call}")
        });
        Self { missing, networks: OnceCell::new() }
    }

    /// Why containers do not reach the outside here, if they do not.
    pub(super) fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// Whether this container can reach the outside.
    pub(super) fn reaches(&self, container: &Container) -> bool {
        let leads = |joined: &shakedown_spec::Attachment| !joined.network.internal;
        self.missing.is_none()
            && container.network_mode.is_default()
            && container.outbound.unwrap_or(true)
            && (container.networks.is_empty() || container.networks.iter().any(leads))
    }

    /// The network to make for this container. What it needs besides is made now.
    pub(super) async fn connection(
        &self,
        launcher: &Handle,
        container: &Container,
    ) -> Result<Connection, Trouble> {
        let mut networks: Vec<String> =
            container.networks.iter().map(|joined| joined.network.key.clone()).collect();
        match &container.network_mode {
            NetworkMode::Host => return Ok(Connection::Host),
            NetworkMode::Container(other) => return Ok(Connection::Of(other.clone())),
            NetworkMode::None => return Ok(Connection::Own { networks, outbound: false }),
            NetworkMode::Default => {}
        }
        let outbound = self.reaches(container);
        if outbound && networks.is_empty() && changes_its_network(container) {
            launcher.ask(Request::CreateNetwork { key: SHARED.to_owned(), internal: false }).await?;
            networks.push(SHARED.to_owned());
        }
        if outbound && !networks.is_empty() {
            self.networks.get_or_try_init(|| open(launcher)).await?;
        }
        Ok(Connection::Own { networks, outbound })
    }

    /// Lets a container out: through its own gateway if it was given `exits`, else through that of the networks.
    pub(super) fn admit(
        &self,
        container: &Container,
        addresses: &[Ipv4Addr],
        exits: Vec<OwnedFd>,
    ) -> Result<Option<Gateway>, Trouble> {
        if !self.reaches(container) {
            return Ok(None);
        }
        let permit = Permit {
            host: container.extra_hosts.values().any(|address| address == HOST_GATEWAY),
            resolver: Resolver::of_host().behind_host,
        };
        if !exits.is_empty() {
            let own = serve(exits)?;
            own.admit(LONE, permit);
            return Ok(Some(own));
        }
        let internal = container.networks.iter().map(|joined| joined.network.internal);
        for (address, internal) in addresses.iter().zip(internal.chain(std::iter::repeat(false))) {
            if let Some(gateway) = self.networks.get().filter(|_| !internal) {
                gateway.admit(*address, permit.clone());
            }
        }
        Ok(None)
    }

    /// Ends what is carried for a container on networks; for one with a gateway of its own, that ends with it.
    pub(super) fn dismiss(&self, instance: &Instance) {
        let gateway = self.networks.get().filter(|_| !instance.has_gateway());
        for address in gateway.iter().flat_map(|_| &instance.addresses) {
            gateway.iter().for_each(|gateway| gateway.dismiss(*address));
        }
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

async fn open(launcher: &Handle) -> Result<Gateway, Trouble> {
    let (_, exits) = launcher.ask_for(Request::OpenExit).await?;
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
