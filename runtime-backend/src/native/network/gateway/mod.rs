//! The way from a container to the outside: the keeper connects in its name.
//!
//! The launcher diverts what leaves a namespace to sockets (`divert`); this is what is behind them. A container that is on
//! no network has a gateway of its own, the networks of a session have one together.

mod packet;
mod sockets;
mod tcp;
mod udp;

use super::addresses::{HOST, is_ours};
use packet::Flow;
use sockets::Sockets;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::JoinSet;

/// What a container may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permit {
    /// Whether services of the host are reached at [`HOST`].
    pub(crate) host: bool,
    /// The ports of the host that are reached there in any case.
    pub(crate) host_ports: Vec<u16>,
    /// The address of the container's network. Programs that look for the host take the gateway of their default route
    /// for it.
    pub(crate) gateway: Ipv4Addr,
    /// The resolver behind [`HOST`].
    pub(crate) resolver: Option<IpAddr>,
}

impl Permit {
    /// Where a flow really goes, if it may.
    fn destination(&self, target: SocketAddr) -> Option<SocketAddr> {
        const DNS: u16 = 53;
        let address = match target.ip() {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => return leads_out(address).then_some(target),
        };
        if address == HOST || address == self.gateway {
            let services = self.host || self.host_ports.contains(&target.port());
            let services = services.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let resolver = self.resolver.filter(|_| target.port() == DNS);
            return resolver.or(services).map(|address| SocketAddr::new(address, target.port()));
        }
        // 0.0.0.0 and 127.0.0.0/8 are the host's own as seen from here.
        let own = address.is_loopback() || address.is_unspecified();
        // Link-local addresses are no container's neighbours. The metadata service of clouds is among them: it gives the
        // machine's rights to whoever asks from the machine.
        let near = own || address.is_link_local() || address.is_multicast() || address.is_broadcast();
        (!near).then_some(target)
    }
}

/// Whether an address of version 6 is reached over a network, and is no session's own.
fn leads_out(address: Ipv6Addr) -> bool {
    // The metadata services of Amazon and Google are at local addresses that others may have as well.
    const METADATA: [Ipv6Addr; 2] = [
        Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
        Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    ];
    // ::1 and :: are among them, and addresses of version 4, for which the rules above would not apply.
    let own = address.segments()[..5] == [0; 5] || is_ours(address);
    let near = address.is_unicast_link_local() || address.is_multicast() || METADATA.contains(&address);
    !(own || near)
}

/// Connects containers with the outside until it is dropped.
#[derive(Debug)]
pub(crate) struct Gateway {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    sockets: Sockets,
    clients: Mutex<HashMap<IpAddr, Client>>,
    most: Most,
    /// Where datagrams are read into, one after the other: a buffer for each exchange would be 64 MiB for a container.
    buffer: Mutex<Vec<u8>>,
}

/// How much a container may have at once: what one takes, the others of the session lack.
#[derive(Clone, Copy, Debug)]
struct Most {
    /// Connections, those that are being made among them.
    connections: usize,
    /// Exchanges of datagrams.
    exchanges: usize,
}

impl Default for Most {
    fn default() -> Self {
        Self { connections: 4096, exchanges: 1024 }
    }
}

#[cfg(test)]
impl Permit {
    /// That of a container that was given the host.
    fn of_host() -> Self {
        Self { host: true, host_ports: Vec::new(), gateway: HOST, resolver: None }
    }
}

/// A container. What is carried for it ends when it is dropped.
#[derive(Debug)]
struct Client {
    permit: Permit,
    /// What carries connections.
    carried: JoinSet<()>,
    connections: HashMap<Flow, tcp::Connecting>,
    /// What waits for answers.
    waiting: JoinSet<()>,
    exchanges: HashMap<Flow, udp::Exchange>,
}

impl Client {
    fn new(permit: Permit) -> Self {
        Self {
            permit,
            carried: JoinSet::new(),
            connections: HashMap::new(),
            waiting: JoinSet::new(),
            exchanges: HashMap::new(),
        }
    }
}

impl Gateway {
    /// Serves the sockets of a diverted namespace; must be called within a tokio runtime.
    pub(crate) fn serve(exits: Vec<OwnedFd>) -> io::Result<Self> {
        let (listener, datagrams, log, sockets) = sockets::take(exits)?;
        let shared = Arc::new(Shared::new(sockets, Most::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(tcp::requests(Arc::clone(&shared), log));
        tasks.spawn(tcp::connections(Arc::clone(&shared), listener));
        tasks.spawn(udp::datagrams(Arc::clone(&shared), datagrams));
        Ok(Self { shared, _tasks: tasks })
    }

    /// Lets the container at this address out.
    pub(crate) fn admit(&self, address: IpAddr, permit: Permit) {
        self.shared.clients().insert(address, Client::new(permit));
    }

    /// Ends everything that is carried for the container at this address.
    pub(crate) fn dismiss(&self, address: IpAddr) {
        self.shared.clients().remove(&address);
    }
}

impl Shared {
    fn new(sockets: Sockets, most: Most) -> Self {
        Self { sockets, clients: Mutex::default(), most, buffer: Mutex::new(vec![0; udp::LARGEST]) }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes those out that are done.
fn clear(tasks: &mut JoinSet<()>) {
    while tasks.try_join_next().is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn leads(permit: &Permit, target: &str, expected: Option<&str>) {
        let destination = permit.destination(target.parse().unwrap());
        assert_eq!(destination, expected.map(|address| address.parse().unwrap()), "{target}");
    }

    /// A container reaches the host's own services only if it asked for them, over IPv4.
    #[test]
    fn the_host_is_reached_by_those_who_asked() {
        let resolver = Some("127.0.0.53".parse().unwrap());
        let gateway = Ipv4Addr::new(10, 128, 3, 1);
        let ordinary = Permit { host: false, host_ports: vec![8080], gateway, resolver };
        leads(&ordinary, "192.0.2.7:443", Some("192.0.2.7:443"));
        leads(&ordinary, "10.88.0.1:53", Some("127.0.0.53:53"));
        for closed in [
            "10.88.0.1:5432",
            "10.128.3.1:5432",
            "127.0.0.1:5432",
            "0.0.0.0:5432",
            "224.0.0.251:5353",
            "169.254.169.254:80",
        ] {
            leads(&ordinary, closed, None);
        }
        leads(&ordinary, "10.88.0.1:8080", Some("127.0.0.1:8080"));
        let trusted = Permit { host: true, ..ordinary };
        for host in ["10.88.0.1:5432", "10.128.3.1:5432"] {
            leads(&trusted, host, Some("127.0.0.1:5432"));
        }
        leads(&trusted, "[2001:db8::7]:443", Some("[2001:db8::7]:443"));
        leads(&trusted, "[fd12:3456::7]:443", Some("[fd12:3456::7]:443"));
        for closed in [
            "[::1]:5432",
            "[::]:5432",
            "[::ffff:127.0.0.1]:5432",
            "[::127.0.0.1]:5432",
            "[fe80::1]:5432",
            "[ff02::1]:5432",
            "[fd73:686b:0:3::a80:301]:5432",
            "[fd00:ec2::254]:80",
            "[fd20:ce::254]:80",
        ] {
            leads(&trusted, closed, None);
        }
        leads(&Permit { resolver: None, ..trusted }, "10.88.0.1:53", Some("127.0.0.1:53"));
    }
}
