//! Network namespaces: the session's with its bridges, and one a container.

use super::addresses::{LONE, PREFIX, Subnet};
use super::divert::{Exits, Place, divert};
use super::netlink::{LOOPBACK, Netlink};
use crate::native::launch::{Trouble, Trying};
use crate::native::sys::{self, CallError, Called};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::LinkNameSpaceType;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// All networks of a session. Lives in the launcher, whose network namespace holds the bridges.
#[derive(Debug)]
pub(crate) struct Networks {
    /// The launcher's own namespace, to which it returns.
    home: OwnedFd,
    netlink: Netlink,
    bridges: BTreeMap<String, Bridge>,
    made: u16,
    interfaces: u32,
    /// A namespace made while there was nothing else to do, for the next container.
    spare: Option<Prepared>,
    /// What the last container asked for, and the next one probably will.
    usual: Kind,
    /// Whether what leaves the bridges' namespace is diverted.
    diverted: bool,
}

/// A container's namespace before anything of the container is in it.
#[derive(Debug)]
struct Prepared {
    namespace: OwnedFd,
    /// Where its way out leads, if it has one of its own.
    exits: Option<Exits>,
}

/// What a container's namespace is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A container on no network that may reach the outside: its way out begins in its own namespace.
    AloneWithExit,
    /// Any other: it is alone for good, or its way out begins behind a bridge.
    Plain,
}

#[derive(Debug)]
struct Bridge {
    index: u32,
    subnet: Subnet,
    /// Whether it leads nowhere else.
    internal: bool,
}

/// A container's network.
#[derive(Debug)]
pub(crate) struct ContainerNetwork {
    /// Its namespace.
    pub(crate) namespace: OwnedFd,
    /// Its address in each network, in the order asked for; [`LONE`] if it is in none.
    pub(crate) addresses: Vec<Ipv4Addr>,
    keys: Vec<String>,
}

impl Networks {
    /// Takes over the launcher's network namespace.
    pub(crate) fn new() -> Result<Self, Trouble> {
        let doing = || "set up the session's network".to_owned();
        let home = current().trying(doing)?;
        let netlink = Netlink::open().trying(doing)?;
        netlink.up(LOOPBACK).trying(doing)?;
        // Inherited from the host; networks of a session are not routed into each other.
        let _ = std::fs::write("/proc/sys/net/ipv4/ip_forward", "0");
        Ok(Self {
            home,
            netlink,
            bridges: BTreeMap::new(),
            made: 0,
            interfaces: 0,
            spare: None,
            usual: Kind::AloneWithExit,
            diverted: false,
        })
    }

    /// The launcher's own namespace.
    pub(crate) fn home(&self) -> BorrowedFd<'_> {
        self.home.as_fd()
    }

    /// Whether what leaves a namespace can be diverted here. What this makes is for the first container.
    pub(crate) fn try_exit(&mut self) -> Result<(), Trouble> {
        self.spare = Some(self.new_namespace(Kind::AloneWithExit)?);
        Ok(())
    }

    /// Diverts what leaves the bridges; none if that has been done.
    pub(crate) fn open_exit(&mut self) -> Result<Option<Exits>, Trouble> {
        if self.diverted {
            return Ok(None);
        }
        let exits = divert(Place::Bridges).trying(|| "lead the networks to the outside".to_owned())?;
        self.diverted = true;
        Ok(Some(exits))
    }

    /// Makes a network, unless it is there.
    pub(crate) fn create(&mut self, key: &str, internal: bool) -> Result<(), Trouble> {
        if self.bridges.contains_key(key) {
            return Ok(());
        }
        let doing = || format!("make the network `{key}`");
        // Where the module br_netfilter is loaded, else, rules would be applied to what a bridge passes on, and what they
        // divert there would be lost. Each time, because it may have been loaded meanwhile.
        let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
        let subnet = Subnet::numbered(self.made % 32_768);
        let index = self.netlink.add_bridge(&format!("shk{}", self.made)).trying(doing)?;
        self.made = self.made.wrapping_add(1);
        let gateway = subnet.gateway();
        self.bridges.insert(key.to_owned(), Bridge { index, subnet, internal });
        self.netlink.add_address(index, gateway, PREFIX).trying(doing)
    }

    /// Removes a network.
    pub(crate) fn remove(&mut self, key: &str) -> Result<(), Trouble> {
        let Some(bridge) = self.bridges.remove(key) else { return Ok(()) };
        self.netlink.remove(bridge.index).trying(|| format!("remove the network `{key}`"))
    }

    /// Makes the network of a container that is in the networks `keys`, with a way out if it is wanted. A container that
    /// is in none gets its own, whose sockets are returned.
    pub(crate) fn join(
        &mut self,
        keys: &[String],
        outbound: bool,
    ) -> Result<(ContainerNetwork, Option<Exits>), Trouble> {
        let kind = if keys.is_empty() && outbound { Kind::AloneWithExit } else { Kind::Plain };
        self.usual = kind;
        let Prepared { namespace, exits } = match self.spare.take_if(|spare| spare.kind() == kind) {
            Some(ready) => ready,
            None => self.new_namespace(kind)?,
        };
        let mut network = ContainerNetwork { namespace, addresses: Vec::new(), keys: Vec::new() };
        if let Err(trouble) = self.attach_all(&mut network, keys, outbound) {
            self.leave(&network);
            return Err(trouble);
        }
        if keys.is_empty() {
            let doing = || "give the container an address".to_owned();
            if kind == Kind::Plain {
                self.inside(&network.namespace, |inner| inner.add_address(LOOPBACK, LONE, 32))
                    .trying(doing)?;
            }
            network.addresses.push(LONE);
        }
        Ok((network, exits))
    }

    /// The default route leads over the first network that leads anywhere.
    fn attach_all(
        &mut self,
        network: &mut ContainerNetwork,
        keys: &[String],
        outbound: bool,
    ) -> Result<(), Trouble> {
        let leads = |key: &String| self.bridges.get(key).is_some_and(|bridge| !bridge.internal);
        let way_out = keys.iter().position(leads).filter(|_| outbound);
        for (number, key) in keys.iter().enumerate() {
            self.attach(network, number, key, way_out == Some(number))?;
        }
        Ok(())
    }

    /// Gives the container's addresses back. Its interfaces go with its namespace: removing them one by one would
    /// take the kernel twenty milliseconds each.
    pub(crate) fn leave(&mut self, network: &ContainerNetwork) {
        for (key, address) in network.keys.iter().zip(&network.addresses) {
            if let Some(bridge) = self.bridges.get_mut(key) {
                bridge.subnet.give_back(*address);
            }
        }
    }

    /// Makes a namespace ahead of time. Called when there is nothing else to do.
    pub(crate) fn stock_up(&mut self) {
        if self.spare.as_ref().map(Prepared::kind) != Some(self.usual) {
            // A failure comes up again when a container needs the namespace, and is told then.
            self.spare = self.new_namespace(self.usual).ok();
        }
    }

    /// A TCP socket in the container's network.
    pub(crate) fn socket(&self, namespace: BorrowedFd<'_>) -> Result<OwnedFd, Trouble> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        self.visit(namespace, || {
            socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
                .call(|| "socket(AF_INET, SOCK_STREAM)".to_owned())
        })
        .trying(|| "make a socket in the container's network".to_owned())
    }

    fn attach(
        &mut self,
        network: &mut ContainerNetwork,
        number: usize,
        key: &str,
        way_out: bool,
    ) -> Result<(), Trouble> {
        let doing = || format!("connect the container to the network `{key}`");
        let Some(bridge) = self.bridges.get_mut(key) else {
            return Err(Trouble::new(doing(), "there is no such network"));
        };
        let Some(address) = bridge.subnet.take() else {
            return Err(Trouble::new(doing(), "it has no free address"));
        };
        network.keys.push(key.to_owned());
        network.addresses.push(address);
        let (index, gateway) = (bridge.index, bridge.subnet.gateway());
        self.interfaces += 1;
        let peer = format!("eth{number}");
        self.netlink
            .add_veth(&format!("shv{}", self.interfaces), index, &peer, address, network.namespace.as_fd())
            .trying(doing)?;
        self.inside(&network.namespace, |inner| {
            let index = inner.index(&peer)?;
            inner.add_address(index, address, PREFIX)?;
            inner.up(index)?;
            if way_out { inner.add_default_route(index, gateway) } else { Ok(()) }
        })
        .trying(doing)
    }

    fn new_namespace(&self, kind: Kind) -> Result<Prepared, Trouble> {
        let doing = || "make a network namespace".to_owned();
        sys::unshare_network().call(|| "unshare(CLONE_NEWNET)".to_owned()).trying(doing)?;
        let made = current().and_then(|namespace| {
            let netlink = Netlink::open()?;
            netlink.up(LOOPBACK)?;
            // Docker lets every user of a container bind low ports. Where it cannot be set, root still can.
            let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
            let _ = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
            let exits = match kind {
                Kind::Plain => None,
                Kind::AloneWithExit => {
                    // Before the routes that name it as their source.
                    netlink.add_address(LOOPBACK, LONE, 32)?;
                    Some(divert(Place::Alone)?)
                }
            };
            Ok(Prepared { namespace, exits })
        });
        self.go_home().trying(doing)?;
        made.trying(doing)
    }

    fn inside(
        &self,
        namespace: &OwnedFd,
        work: impl FnOnce(&Netlink) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        self.visit(namespace.as_fd(), || work(&Netlink::open()?))
    }

    fn visit<T>(
        &self,
        namespace: BorrowedFd<'_>,
        work: impl FnOnce() -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        enter(namespace)?;
        let result = work();
        self.go_home()?;
        result
    }

    fn go_home(&self) -> Result<(), CallError> {
        enter(self.home.as_fd())
    }
}

impl Prepared {
    fn kind(&self) -> Kind {
        if self.exits.is_some() { Kind::AloneWithExit } else { Kind::Plain }
    }
}

fn enter(namespace: BorrowedFd<'_>) -> Result<(), CallError> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .call(|| "setns(…, CLONE_NEWNET)".to_owned())
}

fn current() -> Result<OwnedFd, CallError> {
    rustix::fs::openat(CWD, "/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .call(|| "open(\"/proc/self/ns/net\")".to_owned())
}
