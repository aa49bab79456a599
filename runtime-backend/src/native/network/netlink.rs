//! Netlink: messages, and the handful of rtnetlink ones the runtime needs: links, addresses, routes (rtnetlink(7)).

use crate::native::sys::{CallError, Called};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

// linux/rtnetlink.h, linux/if_link.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_GATEWAY: u16 = 5;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const IFF_UP: u32 = 1;
/// The loopback interface's number in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// A connection to the network configuration of the namespace in which it was made.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// Connects to the current network namespace.
    pub(crate) fn open() -> Result<Self, CallError> {
        // No protocol number means 0, which is NETLINK_ROUTE.
        Self::connect(None, "NETLINK_ROUTE")
    }

    /// Connects to the packet filter of the current network namespace.
    pub(super) fn open_filter() -> Result<Self, CallError> {
        Self::connect(Some(rustix::net::netlink::NETFILTER), "NETLINK_NETFILTER")
    }

    fn connect(protocol: Option<Protocol>, name: &str) -> Result<Self, CallError> {
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
                .call(|| format!("socket(AF_NETLINK, SOCK_RAW, {name})"))?;
        Ok(Self { socket })
    }

    /// The socket alone, for what the kernel sends without being asked.
    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Switches an interface on.
    pub(crate) fn up(&self, index: u32) -> Result<(), CallError> {
        self.send(Message::link(RTM_NEWLINK, 0, index, IFF_UP).finish(), || {
            format!("RTM_NEWLINK #{index} up")
        })
    }

    /// Makes a bridge, switched on; returns its number.
    pub(crate) fn add_bridge(&self, name: &str) -> Result<u32, CallError> {
        let mut message = Message::link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0, IFF_UP);
        message.text(IFLA_IFNAME, name);
        message.nested(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"));
        self.send(message.finish(), || format!("RTM_NEWLINK {name} type bridge"))?;
        self.index(name)
    }

    /// Makes a pair of interfaces: `name` on the bridge, `peer` in another namespace, with a hardware address derived
    /// from its `address`.
    pub(crate) fn add_veth(
        &self,
        name: &str,
        bridge: u32,
        peer: &str,
        address: Ipv4Addr,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), CallError> {
        let mut message = Message::link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0, IFF_UP);
        message.text(IFLA_IFNAME, name);
        message.number(IFLA_MASTER, bridge);
        message.nested(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nested(IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |inner| {
                    // The peer is switched on by itself later: IFF_UP here makes the whole message fail with ENOTCONN.
                    inner.bytes.extend(link_header(0, 0));
                    inner.text(IFLA_IFNAME, peer);
                    // As Docker does: an address that is given again is the same interface to its neighbours.
                    let [a, b, c, d] = address.octets();
                    inner.attribute(IFLA_ADDRESS, &[0x02, 0x42, a, b, c, d]);
                    inner.number(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
                });
            });
        });
        self.send(message.finish(), || format!("RTM_NEWLINK {name} type veth peer {peer}"))
    }

    /// Removes an interface.
    pub(crate) fn remove(&self, index: u32) -> Result<(), CallError> {
        self.send(Message::link(RTM_DELLINK, 0, index, 0).finish(), || format!("RTM_DELLINK #{index}"))
    }

    /// Whether a bridge has interfaces. To be asked on a connection of its own: of the answer only the beginning is read.
    pub(super) fn has_ports(&self, bridge: u32) -> Result<bool, CallError> {
        let mut message = Message::unanswered(RTM_GETLINK, NLM_F_DUMP);
        message.bytes.extend(link_header(0, 0));
        message.number(IFLA_MASTER, bridge);
        let kind = self.answer(&message.finish()).and_then(|answer| match kind_of(&answer) {
            Some(RTM_NEWLINK) => Ok(true),
            Some(NLMSG_DONE) => Ok(false),
            _ => Err(Errno::BADMSG),
        });
        kind.call(|| format!("netlink(RTM_GETLINK master #{bridge})"))
    }

    /// Gives an interface an address.
    pub(crate) fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<(), CallError> {
        let message = address_message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, index, address, prefix);
        self.send(message, || format!("RTM_NEWADDR {address}/{prefix} #{index}"))
    }

    /// Takes an address from an interface.
    pub(super) fn remove_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<(), CallError> {
        let message = address_message(RTM_DELADDR, 0, index, address, prefix);
        self.send(message, || format!("RTM_DELADDR {address}/{prefix} #{index}"))
    }

    /// Sets the default route, in place of the one that there is.
    pub(crate) fn set_default_route(&self, index: u32, gateway: Ipv4Addr) -> Result<(), CallError> {
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
        // struct rtmsg: family, lengths, tos, table (main), protocol (boot), scope (universe), type (unicast), flags
        message.bytes.extend([AddressFamily::INET.as_raw() as u8, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
        message.attribute(RTA_GATEWAY, &gateway.octets());
        message.number(RTA_OIF, index);
        self.send(message.finish(), || format!("RTM_NEWROUTE default via {gateway}"))
    }

    /// Makes every address that no other route leads to one of this namespace's own; connections to such an address
    /// come from `source`, if it is given.
    pub(super) fn add_local_default(&self, source: Option<Ipv4Addr>) -> Result<(), CallError> {
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
        // As above, but scope host and type local.
        message.bytes.extend([AddressFamily::INET.as_raw() as u8, 0, 0, 0, 254, 3, 254, 2, 0, 0, 0, 0]);
        message.number(RTA_OIF, LOOPBACK);
        if let Some(source) = source {
            message.attribute(RTA_PREFSRC, &source.octets());
        }
        self.send(message.finish(), || "RTM_NEWROUTE local default".to_owned())
    }

    /// The same for IPv6.
    pub(super) fn add_local_default_v6(&self) -> Result<(), CallError> {
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
        message.bytes.extend([AddressFamily::INET6.as_raw() as u8, 0, 0, 0, 254, 3, 254, 2, 0, 0, 0, 0]);
        message.number(RTA_OIF, LOOPBACK);
        self.send(message.finish(), || "RTM_NEWROUTE local default, IPv6".to_owned())
    }

    /// Adds a default route for IPv6, which goes with its interface. Of several, the one with the least `metric` is used.
    pub(super) fn add_default_route_v6(
        &self,
        index: u32,
        gateway: Ipv6Addr,
        metric: u32,
    ) -> Result<(), CallError> {
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
        message.bytes.extend([AddressFamily::INET6.as_raw() as u8, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
        message.attribute(RTA_GATEWAY, &gateway.octets());
        message.number(RTA_OIF, index);
        message.number(RTA_PRIORITY, metric);
        self.send(message.finish(), || format!("RTM_NEWROUTE default via {gateway}"))
    }

    /// The number of an interface.
    pub(crate) fn index(&self, name: &str) -> Result<u32, CallError> {
        rustix::net::netdevice::name_to_index(&self.socket, name)
            .call(|| format!("ioctl(SIOCGIFINDEX, {name:?})"))
    }

    /// Sends messages of which one asks for an answer, or fails.
    pub(super) fn send(&self, messages: Vec<u8>, text: impl FnOnce() -> String) -> Result<(), CallError> {
        self.exchange(&messages).call(|| format!("netlink({})", text()))
    }

    fn exchange(&self, messages: &[u8]) -> Result<(), Errno> {
        // struct nlmsghdr, then struct nlmsgerr, which begins with the negative error number.
        let answer = self.answer(messages)?;
        let error = answer.get(16..20).and_then(|four| Some(i32::from_ne_bytes(four.try_into().ok()?)));
        match (kind_of(&answer), error) {
            (Some(NLMSG_ERROR), Some(0)) => Ok(()),
            (Some(NLMSG_ERROR), Some(error)) => Err(Errno::from_raw_os_error(-error)),
            _ => Err(Errno::BADMSG),
        }
    }

    fn answer(&self, messages: &[u8]) -> Result<Vec<u8>, Errno> {
        rustix::net::send(&self.socket, messages, SendFlags::empty())?;
        let mut buffer = vec![0_u8; 8192];
        let (_, received) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
        buffer.truncate(received);
        Ok(buffer)
    }
}

/// The type of the first message.
fn kind_of(answer: &[u8]) -> Option<u16> {
    answer.get(4..6).and_then(|two| Some(u16::from_ne_bytes(two.try_into().ok()?)))
}

fn address_message(kind: u16, flags: u16, index: u32, address: IpAddr, prefix: u8) -> Vec<u8> {
    // Nobody else can have the address: it need not be looked for, which would take a second on IPv6.
    const IFA_F_NODAD: u8 = 2;
    let (family, own_flags, octets) = match address {
        IpAddr::V4(v4) => (AddressFamily::INET, 0, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AddressFamily::INET6, IFA_F_NODAD, v6.octets().to_vec()),
    };
    let mut message = Message::new(kind, flags);
    // struct ifaddrmsg: family, prefix length, flags, scope (universe), index
    message.bytes.extend([family.as_raw() as u8, prefix, own_flags, 0]);
    message.bytes.extend(index.to_ne_bytes());
    message.attribute(IFA_LOCAL, &octets);
    message.attribute(IFA_ADDRESS, &octets);
    message.finish()
}

/// A message under construction.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        Self::unanswered(kind, flags | NLM_F_ACK)
    }

    /// A message that is answered only if it fails, or if `flags` ask for it.
    pub(super) fn unanswered(kind: u16, flags: u16) -> Self {
        // struct nlmsghdr: length (filled in at the end), type, flags, sequence, port
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        Self { bytes }
    }

    fn link(kind: u16, flags: u16, index: u32, set: u32) -> Self {
        let mut message = Self::new(kind, flags);
        message.bytes.extend(link_header(index, set));
        message
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |inner| inner.bytes.extend(value));
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.nested(kind, |inner| {
            inner.bytes.extend(value.bytes());
            inner.bytes.push(0);
        });
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// An attribute is its length, its type and its value, padded to four bytes.
    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        fill(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = (self.bytes.len() as u32).to_ne_bytes();
        self.bytes[..4].copy_from_slice(&length);
        self.bytes
    }
}

/// struct ifinfomsg: family and padding, type, index, flags, which flags to change
fn link_header(index: u32, set: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(index.to_ne_bytes());
    bytes.extend(set.to_ne_bytes());
    bytes.extend(set.to_ne_bytes());
    bytes
}
