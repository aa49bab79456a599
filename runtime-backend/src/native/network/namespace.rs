//! Network namespaces: the session's with its bridges, and one a container.

use super::addresses::{Address, HOST, LONE, PREFIX_V6, Plan, RESOLVER, Subnet};
use super::divert::{Exits, Place, accept, divert};
use super::maker::Maker;
use super::netlink::{LOOPBACK, Netlink};
use crate::native::launch::{Ahead, Form, Trouble, Trying};
use crate::native::launcher::{Joining, Users};
use crate::native::sys::{self, CallError, Called};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::LinkNameSpaceType;
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// That of the default route of the first network for IPv6: the kernel's own choice for a route without one.
const FIRST_METRIC: u32 = 1024;

/// All networks of a session. Lives in the launcher, whose network namespace holds the bridges.
#[derive(Debug)]
pub(crate) struct Networks {
    /// The launcher's own namespace, to which it returns.
    home: OwnedFd,
    netlink: Netlink,
    bridges: BTreeMap<String, Bridge>,
    /// Those of networks that were removed, for the next ones. To make one takes the kernel a fraction of a millisecond,
    /// to take one away 17 ms (an `rcu_barrier` for each), in which no interface of the whole machine can be changed.
    retired: VecDeque<u32>,
    made: u16,
    interfaces: u32,
    /// A namespace that was made ahead of time, for the next container.
    spare: Option<Prepared>,
    /// Who makes them, from the first time there was nothing else to do.
    maker: Option<Maker>,
    /// Where the devices of containers are, if nodes can be made.
    devices: Option<OwnedFd>,
    /// Whether there has been nothing else to do since the last container.
    rested: bool,
    /// What the last container asked for, and the next one probably will.
    usual: Kind,
    /// What the first process of the last container began with, and that of the next one probably will.
    form: Option<Rc<Form>>,
    /// Whether what leaves the bridges' namespace is diverted, over IPv4 and over IPv6.
    diverted: [bool; 2],
}

/// A container's namespace before anything of the container is in it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) namespace: OwnedFd,
    pub(super) kind: Kind,
    /// Its first process.
    pub(super) ahead: Option<Ahead>,
    /// The form that this has, or could not be given.
    pub(super) form: Option<Rc<Form>>,
    /// Where its way out leads, or where it asks for names, if that is in there.
    pub(super) sockets: Vec<OwnedFd>,
}

/// A process that waits to be a container's first one, and the form it has.
pub(crate) type Waiting = (Ahead, Rc<Form>);

/// What a container's namespace is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A container on no network that may reach the outside: its way out begins in its own namespace.
    AloneWithExit,
    /// A container on networks: it asks for names in there, and its way out begins behind a bridge.
    WithResolver,
    /// Any other: it is alone for good, or answers for names itself.
    Plain,
}

impl Kind {
    const ALL: [Self; 3] = [Self::AloneWithExit, Self::WithResolver, Self::Plain];

    /// As the maker is told.
    pub(super) fn number(self) -> u8 {
        self as u8
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
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
    /// Its way out begins in there.
    diverted: bool,
    joined: Vec<Member>,
    /// The network over which its default route leads.
    way_out: Option<String>,
}

/// What a container has of a network of its own.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) network: ContainerNetwork,
    /// Those of what begins in its own namespace.
    pub(crate) sockets: Vec<OwnedFd>,
    /// A process in it that waits to be the container's first one.
    pub(crate) ahead: Option<Waiting>,
}

/// A container's connection with a network.
#[derive(Debug)]
struct Member {
    key: String,
    address: Address,
    /// The number of its interface, `eth0` and up.
    number: usize,
    /// The name of the bridge's end.
    outer: String,
}

/// A container's connection with a network that is about to end.
#[derive(Debug)]
pub(crate) struct Leaving {
    /// The network.
    pub(crate) key: String,
    address: Ipv4Addr,
    interface: String,
}

impl Leaving {
    /// Takes the interface away. May be called in a fork of the launcher.
    pub(crate) fn remove_interface(&self) -> Result<(), CallError> {
        let netlink = Netlink::open()?;
        match netlink.index(&self.interface).and_then(|index| netlink.remove(index)) {
            // The container has ended meanwhile.
            Err(CallError { errno: Errno::NODEV, .. }) => Ok(()),
            other => other,
        }
    }
}

impl ContainerNetwork {
    /// Its addresses, in the order in which it joined; the one on its loopback interface if it is on no network.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        let joined: Vec<Address> = self.joined.iter().map(|member| member.address).collect();
        if joined.is_empty() { vec![Address::ALONE] } else { joined }
    }
}

impl Networks {
    /// Takes over the launcher's network namespace. `devices` is the mount of the default devices, if nodes can be made.
    pub(crate) fn new(devices: Option<OwnedFd>) -> Result<Self, Trouble> {
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
            retired: VecDeque::new(),
            made: 0,
            interfaces: 0,
            spare: None,
            maker: None,
            devices,
            rested: false,
            usual: Kind::AloneWithExit,
            form: None,
            diverted: [false; 2],
        })
    }

    /// The launcher's own namespace.
    pub(crate) fn home(&self) -> BorrowedFd<'_> {
        self.home.as_fd()
    }

    /// Whether what leaves a namespace can be diverted here. What this makes is for the first container.
    pub(crate) fn try_exit(&mut self) -> Result<(), Trouble> {
        self.spare = Some(new_namespace(self.home(), Kind::AloneWithExit, None)?);
        Ok(())
    }

    /// Diverts what leaves the bridges; none if that has been done.
    pub(crate) fn open_exit(&mut self, v6: bool) -> Result<Option<Exits>, Trouble> {
        let diverted = &mut self.diverted[usize::from(v6)];
        if *diverted {
            return Ok(None);
        }
        let place = if v6 { Place::BridgesV6 } else { Place::Bridges };
        let exits = divert(place).trying(|| "lead the networks to the outside".to_owned())?;
        *diverted = true;
        Ok(Some(exits))
    }

    /// Makes a network, unless it is there.
    pub(crate) fn create(&mut self, key: &str, internal: bool, plan: Plan) -> Result<(), Trouble> {
        if self.bridges.contains_key(key) {
            return Ok(());
        }
        let doing = || format!("make the network `{key}`");
        // Where the module br_netfilter is loaded, else, rules would be applied to what a bridge passes on, and what they
        // divert there would be lost. Each time, because it may have been loaded meanwhile.
        for family in ["iptables", "ip6tables"] {
            let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"), "0");
        }
        let subnet = self.subnet(plan).map_err(|reason| Trouble::new(doing(), reason))?;
        let index = self.bridge().trying(doing)?;
        self.made = self.made.wrapping_add(1);
        let (gateway, prefix, gateway_v6) = (subnet.gateway(), subnet.prefix(), subnet.gateway_v6());
        self.bridges.insert(key.to_owned(), Bridge { index, subnet, internal });
        self.netlink.add_address(index, gateway.into(), prefix).trying(doing)?;
        match gateway_v6 {
            Some(gateway) => self.netlink.add_address(index, gateway.into(), PREFIX_V6).trying(doing),
            None => Ok(()),
        }
    }

    /// Addresses that no other network has.
    fn subnet(&self, plan: Plan) -> Result<Subnet, String> {
        let taken = |subnet: &Subnet| self.bridges.iter().find(|(_, other)| other.subnet.overlaps(subnet));
        let with_v6 = |subnet: Subnet| if plan.ipv6 { subnet.with_v6(self.made) } else { subnet };
        if let Some((base, prefix)) = plan.subnet {
            let subnet = Subnet::declared(base, prefix, plan.gateway);
            if let Some((other, _)) = taken(&subnet) {
                return Err(format!("{base}/{prefix} has addresses of the network `{other}`"));
            }
            if subnet.overlaps(&Subnet::declared(HOST, 30, None)) {
                return Err(format!(
                    "{base}/{prefix} has the address by which containers reach the host, {HOST}"
                ));
            }
            return Ok(with_v6(subnet));
        }
        let mut numbers = (0..32_768_u32).map(|more| ((u32::from(self.made) + more) % 32_768) as u16);
        let free = numbers
            .find_map(|number| Some(Subnet::numbered(number)).filter(|subnet| taken(subnet).is_none()));
        free.map(with_v6).ok_or_else(|| "all subnets are taken".to_owned())
    }

    /// Removes a network. Its bridge is kept without addresses.
    pub(crate) fn remove(&mut self, key: &str) -> Result<(), Trouble> {
        let Some(Bridge { index, subnet, .. }) = self.bridges.remove(key) else { return Ok(()) };
        let doing = || format!("remove the network `{key}`");
        self.netlink.remove_address(index, subnet.gateway().into(), subnet.prefix()).trying(doing)?;
        if let Some(gateway) = subnet.gateway_v6() {
            self.netlink.remove_address(index, gateway.into(), PREFIX_V6).trying(doing)?;
        }
        self.retired.push_back(index);
        Ok(())
    }

    /// A bridge for a new network.
    fn bridge(&mut self) -> Result<u32, CallError> {
        // Interfaces of containers that have ended go a moment later. One in a namespace that was lent to another
        // container stays as long as that runs: such a bridge is nobody else's.
        for _ in 0..self.retired.len().min(2) {
            let Some(index) = self.retired.pop_front() else { break };
            if Netlink::open().and_then(|netlink| netlink.has_ports(index)).is_ok_and(|ports| !ports) {
                return Ok(index);
            }
            self.retired.push_back(index);
        }
        self.netlink.add_bridge(&format!("shk{}", self.made))
    }

    /// Makes the network of a container that joins `networks`, with a way out if it is wanted, and a place to ask for
    /// names. The sockets of what begins in its own namespace are returned: of its way out if it is on no network, else
    /// those that are asked for names. With `users`, the network is theirs.
    pub(crate) fn join(
        &mut self,
        networks: &[Joining],
        outbound: bool,
        resolver: bool,
        users: Option<&Users>,
    ) -> Result<Joined, Trouble> {
        let kind = match (networks.is_empty(), outbound, resolver) {
            (true, true, _) => Kind::AloneWithExit,
            (false, _, true) => Kind::WithResolver,
            _ => Kind::Plain,
        };
        self.usual = kind;
        self.take_made();
        let ready = self.spare.take_if(|spare| users.is_none() && spare.kind == kind);
        // For the next one, while this one is set up: of many that are started at once, every other is made beside. One
        // alone is not kept waiting for a processor, but has its successor made when it is started.
        let rested = std::mem::take(&mut self.rested);
        if ready.is_none() || !rested {
            // Without a process in it: where all processors are busy, a fork that waits costs more than it saves.
            self.ask_maker(false);
        }
        let Prepared { namespace, sockets, ahead, form, .. } = match ready {
            Some(ready) => ready,
            None => new_namespace(self.home(), kind, users)?,
        };
        let diverted = kind == Kind::AloneWithExit;
        let mut network = ContainerNetwork { namespace, diverted, joined: Vec::new(), way_out: None };
        for joining in networks {
            if let Err(trouble) = self.attach(&mut network, joining, outbound) {
                self.leave(&network);
                return Err(trouble);
            }
        }
        if networks.is_empty() && kind == Kind::Plain {
            self.inside(&network.namespace, |inner| inner.add_address(LOOPBACK, LONE.into(), 32))
                .trying(|| "give the container an address".to_owned())?;
        }
        Ok(Joined { network, sockets, ahead: ahead.zip(form) })
    }

    /// Notes with what the first process of a container could have begun.
    pub(crate) fn expect(&mut self, form: Option<Form>) {
        if let Some(form) = form {
            self.form = Some(Rc::new(form));
        }
    }

    /// Gives the container's addresses back. Its interfaces go with its namespace: removing them one by one would
    /// take the kernel twenty milliseconds each.
    pub(crate) fn leave(&mut self, network: &ContainerNetwork) {
        for member in &network.joined {
            if let Some(bridge) = self.bridges.get_mut(&member.key) {
                bridge.subnet.give_back(member.address.v4);
            }
        }
    }

    /// Connects a container, which may run, with one more network. The sockets are those that are asked for names, if
    /// it is to have them.
    pub(crate) fn connect(
        &mut self,
        network: &mut ContainerNetwork,
        joining: &Joining,
        outbound: bool,
        resolver: bool,
    ) -> Result<(Address, Vec<OwnedFd>), Trouble> {
        let sockets = if resolver {
            let doing = || "make a place to ask for names".to_owned();
            self.visit(network.namespace.as_fd(), resolver_sockets).trying(doing)?
        } else {
            Vec::new()
        };
        let before = network.joined.len();
        if let Err(trouble) = self.attach(network, joining, outbound && !network.diverted) {
            if network.joined.len() > before
                && let Ok(leaving) = self.disconnect(network, &joining.key, outbound)
            {
                let _ = leaving.remove_interface();
                self.has_left(&leaving);
            }
            return Err(trouble);
        }
        let Some(address) = network.joined.last().map(|member| member.address) else {
            return Err(Trouble::new("join a network", "nothing was made"));
        };
        if network.diverted {
            // What is sent to itself by this address is not for the outside.
            let admitted = self.visit(network.namespace.as_fd(), || accept(address.v4));
            admitted.trying(|| format!("connect the container to the network `{}`", joining.key))?;
        }
        Ok((address, sockets))
    }

    /// Begins to take a container, which may run, from a network: what leads elsewhere leads there no longer over this
    /// one. What is left to do takes the kernel some milliseconds, and can be done in another process.
    pub(crate) fn disconnect(
        &mut self,
        network: &mut ContainerNetwork,
        key: &str,
        outbound: bool,
    ) -> Result<Leaving, Trouble> {
        let doing = || format!("take the container from the network `{key}`");
        let Some(place) = network.joined.iter().position(|member| member.key == key) else {
            return Err(Trouble::new(doing(), "it is not on it"));
        };
        let member = network.joined.remove(place);
        if network.way_out.as_deref() == Some(key) {
            network.way_out = None;
            let next = network.joined.iter().find(|member| outbound && self.leads(&member.key));
            if let Some(next) = next {
                self.inside(&network.namespace, |inner| {
                    inner
                        .set_default_route(inner.index(&format!("eth{}", next.number))?, next.address.gateway)
                })
                .trying(doing)?;
                network.way_out = Some(next.key.clone());
            }
        }
        Ok(Leaving { key: member.key, address: member.address.v4, interface: member.outer })
    }

    /// Ends what [`disconnect`](Self::disconnect) began, after the interface is gone.
    pub(crate) fn has_left(&mut self, leaving: &Leaving) {
        if let Some(bridge) = self.bridges.get_mut(&leaving.key) {
            bridge.subnet.give_back(leaving.address);
        }
    }

    fn leads(&self, key: &str) -> bool {
        self.bridges.get(key).is_some_and(|bridge| !bridge.internal)
    }

    /// Sees to it that a namespace is ready for the next container. Called when there is nothing else to do.
    pub(crate) fn stock_up(&mut self) {
        self.rested = true;
        if self.maker.is_none() {
            // Without one, each container's namespace is made when it is needed.
            let devices = self.devices.as_ref().map(AsFd::as_fd);
            self.maker = Maker::start(self.home(), devices).ok();
        }
        self.take_made();
        // Those of many at once have no process in them, nor has the first one.
        let fits = |spare: &Prepared| spare.kind == self.usual && spare.form.is_some() >= self.form.is_some();
        if !self.spare.as_ref().is_some_and(fits) {
            self.spare = None;
            self.ask_maker(true);
        }
    }

    fn ask_maker(&mut self, with_process: bool) {
        let (usual, form) = (self.usual, self.form.as_ref().filter(|_| with_process));
        if self.maker.as_mut().is_some_and(|maker| maker.ask(usual, form).is_err()) {
            self.maker = None;
        }
    }

    /// Ends what was made ahead, and who makes it: the launcher has been moved into another control group.
    pub(crate) fn renew(&mut self) {
        (self.spare, self.maker) = (None, None);
    }

    /// Closes what keeps mounts of a container that nobody needs any more, without waiting for it.
    pub(crate) fn let_go(&mut self, descriptors: Vec<OwnedFd>) {
        let refused = |maker: &Maker| maker.let_go(&descriptors).is_err();
        if !descriptors.is_empty() && self.maker.as_ref().is_some_and(refused) {
            self.maker = None;
        }
    }

    fn take_made(&mut self) {
        match self.maker.as_mut().map(Maker::take) {
            Some(Ok(Some(made))) => self.spare = Some(made),
            Some(Ok(None)) | None => {}
            Some(Err(_)) => self.maker = None,
        }
    }

    /// TCP sockets in the container's network.
    pub(crate) fn sockets(&self, namespace: BorrowedFd<'_>, count: usize) -> Result<Vec<OwnedFd>, Trouble> {
        self.visit(namespace, || (0..count).map(|_| open(SocketType::STREAM, "SOCK_STREAM")).collect())
            .trying(|| "make a socket in the container's network".to_owned())
    }

    /// A UDP socket in the container's network.
    pub(crate) fn datagram_socket(&self, namespace: BorrowedFd<'_>) -> Result<OwnedFd, Trouble> {
        self.visit(namespace, || open(SocketType::DGRAM, "SOCK_DGRAM"))
            .trying(|| "make a socket in the container's network".to_owned())
    }

    /// The default route leads over the first network that leads anywhere.
    fn attach(
        &mut self,
        network: &mut ContainerNetwork,
        joining: &Joining,
        outbound: bool,
    ) -> Result<(), Trouble> {
        let key = &joining.key;
        let doing = || format!("connect the container to the network `{key}`");
        let leads = outbound && self.leads(key);
        let way_out = leads && network.way_out.is_none();
        // Without one, programs see at once that IPv6 leads nowhere.
        let leads_v6 = leads && self.diverted[1];
        let Some(bridge) = self.bridges.get_mut(key) else {
            return Err(Trouble::new(doing(), "there is no such network"));
        };
        let Some(address) = bridge.subnet.take(joining.ip) else {
            let reason = joining.ip.map(|ip| format!("{ip} is taken, or is none of its addresses"));
            return Err(Trouble::new(doing(), reason.unwrap_or_else(|| "it has no free address".to_owned())));
        };
        let (index, prefix) = (bridge.index, bridge.subnet.prefix());
        self.interfaces += 1;
        let outer = format!("shv{}", self.interfaces);
        let taken = |number: &usize| network.joined.iter().any(|member| member.number == *number);
        let number = (0..).find(|number| !taken(number)).unwrap_or_default();
        let peer = format!("eth{number}");
        let namespace = network.namespace.as_fd();
        let made = self.netlink.add_veth(&outer, index, &peer, address.v4, namespace).trying(doing);
        if made.is_err() {
            bridge.subnet.give_back(address.v4);
        }
        made?;
        network.joined.push(Member { key: key.clone(), address, number, outer });
        self.inside(&network.namespace, |inner| {
            let index = inner.index(&peer)?;
            inner.add_address(index, address.v4.into(), prefix)?;
            if let Some(v6) = address.v6 {
                inner.add_address(index, v6.into(), PREFIX_V6)?;
            }
            inner.up(index)?;
            if let Some(gateway) = address.gateway_v6.filter(|_| leads_v6) {
                inner.add_default_route_v6(index, gateway, FIRST_METRIC + number as u32)?;
            }
            if way_out { inner.set_default_route(index, address.gateway) } else { Ok(()) }
        })
        .trying(doing)?;
        if way_out {
            network.way_out = Some(key.clone());
        }
        Ok(())
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

/// Makes a namespace, of `users` if they are not the launcher's, and returns to `home`.
pub(super) fn new_namespace(
    home: BorrowedFd<'_>,
    kind: Kind,
    users: Option<&Users>,
) -> Result<Prepared, Trouble> {
    let doing = || "make a network namespace".to_owned();
    match users {
        None => sys::unshare_network().call(|| "unshare(CLONE_NEWNET)".to_owned()),
        Some(users) => users.network().and_then(|namespace| enter(namespace.as_fd())),
    }
    .trying(doing)?;
    let made = current().and_then(|namespace| {
        let netlink = Netlink::open()?;
        netlink.up(LOOPBACK)?;
        // Docker lets every user of a container bind low ports. Where it cannot be set, root still can.
        let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
        let _ = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
        let sockets = match kind {
            Kind::Plain => Vec::new(),
            Kind::WithResolver => resolver_sockets()?,
            Kind::AloneWithExit => {
                // Before the routes that name it as their source.
                netlink.add_address(LOOPBACK, LONE.into(), 32)?;
                divert(Place::Alone)?.into()
            }
        };
        Ok(Prepared { namespace, kind, ahead: None, form: None, sockets })
    });
    enter(home).trying(doing)?;
    made.trying(doing)
}

/// A socket in the current network namespace.
fn open(kind: SocketType, name: &str) -> Result<OwnedFd, CallError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::INET, kind, flags, None).call(|| format!("socket(AF_INET, {name})"))
}

/// Where names are asked for in the current network namespace, by datagrams and by connections.
fn resolver_sockets() -> Result<Vec<OwnedFd>, CallError> {
    const DNS: u16 = 53;
    let at = SocketAddrV4::new(RESOLVER, DNS);
    let made =
        [(SocketType::DGRAM, "SOCK_DGRAM"), (SocketType::STREAM, "SOCK_STREAM")].map(|(kind, name)| {
            let socket = open(kind, name)?;
            rustix::net::bind(&socket, &at).call(|| format!("bind({at}, {name})"))?;
            if kind == SocketType::STREAM {
                rustix::net::listen(&socket, 64).call(|| format!("listen({at})"))?;
            }
            Ok(socket)
        });
    made.into_iter().collect()
}

pub(super) fn enter(namespace: BorrowedFd<'_>) -> Result<(), CallError> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .call(|| "setns(…, CLONE_NEWNET)".to_owned())
}

fn current() -> Result<OwnedFd, CallError> {
    rustix::fs::openat(CWD, "/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .call(|| "open(\"/proc/self/ns/net\")".to_owned())
}
