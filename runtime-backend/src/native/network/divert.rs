//! What leaves a network namespace comes to sockets of the keeper: no interface, route or rule of the host is touched.
//!
//! ```text
//! container ──SYN────────► rule: log, drop ──► log socket ──► keeper connects to the outside
//!           ◄─RST, ICMP───────── raw socket ◄── it could not
//!           ──SYN──┐ ◄── raw socket, marked ◄── it could: the connection is let through
//!                  └────► rule: tproxy ──────► listener: the container's end of the connection
//!           ──UDP───────► rule: tproxy ──────► datagram socket ──► keeper
//!           ◄─UDP────────────── raw socket ◄────────────────────── answers
//! ```
//!
//! Connecting first and letting the container's SYN through afterwards means that a container sees what it would see on a
//! routed network: a refusal is a refusal, and a connection is there when the other side has accepted it.

use super::addresses::{HOST, LONE};
use super::netlink::{LOOPBACK, Message, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Netlink};
use crate::native::sys::{CallError, Called};
use nix::sys::socket::{SetSockOpt, setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};

/// Where diverted connections arrive.
const ENTRANCE: SocketAddrV4 = SocketAddrV4::new(HOST, 1);
const ENTRANCE_V6: SocketAddrV6 = SocketAddrV6::new(Ipv6Addr::new(0xfd73, 0x686b, 1, 0, 0, 0, 0, 1), 1, 0, 0);
/// The mark of packets that are let through.
const MARK: u32 = 0x5348_414b;
const TABLE: &str = "shakedown";
const CHAIN: &str = "outbound";

/// From which packets of a namespace its own ones are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A container's own namespace, with nothing but its loopback interface: by their addresses.
    Alone,
    /// The session's, with the bridges: by the routes to them.
    Bridges,
    /// The same for IPv6.
    BridgesV6,
}

impl Place {
    fn is_v6(self) -> bool {
        self == Self::BridgesV6
    }

    fn family(self) -> AddressFamily {
        if self.is_v6() { AddressFamily::INET6 } else { AddressFamily::INET }
    }

    fn entrance(self) -> SocketAddr {
        if self.is_v6() { ENTRANCE_V6.into() } else { ENTRANCE.into() }
    }

    /// The group of the log socket; it is the namespace's own.
    fn log_group(self) -> u16 {
        if self.is_v6() { 2 } else { 1 }
    }
}

/// The sockets to which a namespace's way out leads, in the order in which they travel.
pub(crate) type Exits = [OwnedFd; 4];

/// Diverts what leaves the current network namespace. The sockets are, in this order: listener, datagrams, log, raw.
pub(crate) fn divert(place: Place) -> Result<Exits, CallError> {
    let listener = transparent(place, SocketType::STREAM)?;
    rustix::net::listen(&listener, 1024).call(|| "listen()".to_owned())?;
    let datagrams = transparent(place, SocketType::DGRAM)?;
    if place.is_v6() {
        set(&datagrams, sockopt::Ipv6OrigDstAddr, &true, "IPV6_RECVORIGDSTADDR")?;
    } else {
        set(&datagrams, sockopt::Ipv4OrigDstAddr, &true, "IP_RECVORIGDSTADDR")?;
    }
    let raw = open(place, SocketType::RAW, Some(ipproto::RAW), "SOCK_RAW, IPPROTO_RAW")?;
    set(&raw, sockopt::Mark, &MARK, "SO_MARK")?;
    let log = log_socket(place.log_group())?;
    let filter = Netlink::open_filter()?;
    filter.send(rules(place), || "NFT_MSG_NEWRULE … tproxy".to_owned())?;
    let netlink = Netlink::open()?;
    match place {
        Place::Alone => netlink.add_local_default(Some(LONE))?,
        Place::Bridges => netlink.add_local_default(None)?,
        Place::BridgesV6 => netlink.add_local_default_v6()?,
    }
    Ok([listener, datagrams, log, raw])
}

/// Lets what is sent to `address` arrive in the current network namespace, which was diverted as [`Place::Alone`].
pub(super) fn accept(address: Ipv4Addr) -> Result<(), CallError> {
    let mut batch = header(BATCH_BEGIN, 0, 0, SUBSYSTEM).finish();
    let place = Place::Alone;
    // Without NLM_F_APPEND it comes before the others.
    let mut message = filter_message(place, NEW_RULE, NLM_F_ACK | NLM_F_CREATE);
    message.text(1, TABLE);
    message.text(2, CHAIN);
    message.nested(4 | NESTED, |expressions| {
        let mut rule = Rule { expressions, place };
        rule.payload(NETWORK_HEADER, 16, 4).compare(EQUAL, &address.octets()).verdict(ACCEPT);
    });
    batch.extend(message.finish());
    batch.extend(header(BATCH_END, 0, 0, SUBSYSTEM).finish());
    Netlink::open_filter()?.send(batch, || format!("NFT_MSG_NEWRULE ip daddr {address} accept"))
}

fn open(
    place: Place,
    kind: SocketType,
    protocol: Option<rustix::net::Protocol>,
    text: &str,
) -> Result<OwnedFd, CallError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if place.is_v6() { "AF_INET6" } else { "AF_INET" };
    socket_with(place.family(), kind, flags, protocol).call(|| format!("socket({family}, {text})"))
}

/// A socket that is given connections and datagrams to any address.
fn transparent(place: Place, kind: SocketType) -> Result<OwnedFd, CallError> {
    let (socket, entrance) = (open(place, kind, None, "…")?, place.entrance());
    set(&socket, sockopt::IpTransparent, &true, "IP_TRANSPARENT")?;
    rustix::net::bind(&socket, &entrance).call(|| format!("bind({entrance})"))?;
    Ok(socket)
}

fn set<O: SetSockOpt>(socket: &OwnedFd, option: O, value: &O::Val, name: &str) -> Result<(), CallError> {
    setsockopt(socket, option, value)
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))
        .call(|| format!("setsockopt({name})"))
}

/// A socket that is told the packets of its group, whole.
fn log_socket(group: u16) -> Result<OwnedFd, CallError> {
    // linux/netfilter/nfnetlink_log.h
    const NFULNL_MSG_CONFIG: u16 = 4 << 8 | 1;
    const NFULA_CFG_CMD: u16 = 1;
    const NFULA_CFG_MODE: u16 = 2;
    const NFULNL_CFG_CMD_BIND: u8 = 1;
    const NFULNL_COPY_PACKET: u8 = 2;
    let log = Netlink::open_filter()?;
    let mut message = Message::unanswered(NFULNL_MSG_CONFIG, NLM_F_ACK);
    message.bytes.extend([0, 0]);
    message.bytes.extend(group.to_be_bytes());
    message.attribute(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND]);
    let [a, b, c, d] = 0xffff_u32.to_be_bytes();
    message.attribute(NFULA_CFG_MODE, &[a, b, c, d, NFULNL_COPY_PACKET, 0]);
    log.send(message.finish(), || format!("NFULNL_CFG_CMD_BIND {group}"))?;
    let log = log.into_socket();
    rustix::io::ioctl_fionbio(&log, true).call(|| "ioctl(FIONBIO)".to_owned())?;
    rustix::net::sockopt::set_socket_recv_buffer_size(log.as_fd(), 1 << 20)
        .call(|| "setsockopt(SO_RCVBUF)".to_owned())?;
    Ok(log)
}

// linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const NESTED: u16 = 0x8000;
const VERDICT: u32 = 0;
const VALUE: u32 = 1;
const SECOND_VALUE: u32 = 2;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// ```text
/// chain outbound { type filter hook prerouting priority mangle
///   iif != lo accept; ip daddr 127.0.0.0/8 accept; ip daddr 10.88.0.2 accept      # alone
///   fib daddr type != local accept                              # bridges
///   icmp type echo-request drop    # else this namespace would answer in the name of the whole world
///   mark != ours, tcp flags & (fin|syn|rst|ack) == syn, log group 1 queue-threshold 1, drop
///   tcp tproxy to 10.88.0.1:1; udp tproxy to 10.88.0.1:1
/// }
/// ```
///
/// Of IPv6, what belongs to it alone (RFC 4861) is sent to many or to the bridge's own addresses, and arrives.
fn rules(place: Place) -> Vec<u8> {
    let rule = |fill: &dyn Fn(&mut Rule<'_>)| rule_with(place, 0, fill);
    let mut batch = header(BATCH_BEGIN, 0, 0, SUBSYSTEM).finish();
    let mut table = filter_message(place, NEW_TABLE, NLM_F_CREATE);
    table.text(1, TABLE);
    batch.extend(table.finish());
    batch.extend(chain(place).finish());
    match place {
        Place::Alone => {
            // What comes from a network that the container joins later has arrived.
            batch.extend(rule(&|rule| {
                rule.interface().compare(NOT_EQUAL, &LOOPBACK.to_ne_bytes()).verdict(ACCEPT);
            }));
            batch.extend(rule(&|rule| {
                rule.payload(NETWORK_HEADER, 16, 4).masked(&[255, 0, 0, 0]).compare(EQUAL, &[127, 0, 0, 0]);
                rule.verdict(ACCEPT);
            }));
            batch.extend(rule(&|rule| {
                rule.payload(NETWORK_HEADER, 16, 4).compare(EQUAL, &LONE.octets()).verdict(ACCEPT);
            }));
        }
        Place::Bridges | Place::BridgesV6 => batch.extend(rule(&|rule| {
            const RTN_LOCAL: u32 = 2;
            rule.address_type().compare(NOT_EQUAL, &RTN_LOCAL.to_ne_bytes()).verdict(ACCEPT);
        })),
    }
    batch.extend(rule(&|rule| {
        let (protocol, echo_request) =
            if place.is_v6() { (libc::IPPROTO_ICMPV6, 128) } else { (libc::IPPROTO_ICMP, 8) };
        rule.protocol(protocol).payload(TRANSPORT_HEADER, 0, 1).compare(EQUAL, &[echo_request]);
        rule.verdict(DROP);
    }));
    batch.extend(rule(&|rule| {
        const FLAGS: u8 = 0x17;
        const SYN: u8 = 0x02;
        rule.mark().compare(NOT_EQUAL, &MARK.to_ne_bytes());
        rule.protocol(libc::IPPROTO_TCP);
        rule.payload(TRANSPORT_HEADER, 13, 1).masked(&[FLAGS]).compare(EQUAL, &[SYN]);
        rule.log().verdict(DROP);
    }));
    batch.extend(rule(&|rule| {
        rule.protocol(libc::IPPROTO_TCP).divert();
    }));
    // The end of a batch is not answered before Linux 6.10, so its last rule is.
    batch.extend(rule_with(place, NLM_F_ACK, |rule| {
        rule.protocol(libc::IPPROTO_UDP).divert();
    }));
    batch.extend(header(BATCH_END, 0, 0, SUBSYSTEM).finish());
    batch
}

/// struct nfgenmsg: family, version, resource
fn header(kind: u16, flags: u16, family: u8, resource: u16) -> Message {
    let mut message = Message::unanswered(kind, flags);
    message.bytes.extend([family, 0]);
    message.bytes.extend(resource.to_be_bytes());
    message
}

fn filter_message(place: Place, kind: u16, flags: u16) -> Message {
    header(kind, flags, place.family().as_raw() as u8, 0)
}

fn chain(place: Place) -> Message {
    const PREROUTING: u32 = 0;
    const MANGLE: i32 = -150;
    let mut chain = filter_message(place, NEW_CHAIN, NLM_F_CREATE);
    chain.text(1, TABLE);
    chain.text(3, CHAIN);
    chain.nested(4 | NESTED, |hook| {
        hook.attribute(1, &PREROUTING.to_be_bytes());
        hook.attribute(2, &MANGLE.to_be_bytes());
    });
    chain.text(7, "filter");
    chain
}

fn rule_with(place: Place, flags: u16, fill: impl FnOnce(&mut Rule<'_>)) -> Vec<u8> {
    let mut message = filter_message(place, NEW_RULE, flags | NLM_F_CREATE | NLM_F_APPEND);
    message.text(1, TABLE);
    message.text(2, CHAIN);
    message.nested(4 | NESTED, |expressions| fill(&mut Rule { expressions, place }));
    message.finish()
}

/// The expressions of a rule. Each loads a value into a register, or acts on the one that was loaded last.
struct Rule<'a> {
    expressions: &'a mut Message,
    place: Place,
}

impl Rule<'_> {
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Message)) -> &mut Self {
        self.expressions.nested(1 | NESTED, |element| {
            element.text(1, name);
            element.nested(2 | NESTED, fill);
        });
        self
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32) -> &mut Self {
        self.expression("payload", |data| numbers(data, &[(1, VALUE), (2, base), (3, offset), (4, length)]))
    }

    fn masked(&mut self, mask: &[u8]) -> &mut Self {
        let length = mask.len() as u32;
        self.expression("bitwise", |data| {
            numbers(data, &[(1, VALUE), (2, VALUE), (3, length)]);
            data.nested(4 | NESTED, |value| value.attribute(1, mask));
            data.nested(5 | NESTED, |value| value.attribute(1, &vec![0; mask.len()]));
        })
    }

    fn compare(&mut self, operation: u32, with: &[u8]) -> &mut Self {
        self.expression("cmp", |data| {
            numbers(data, &[(1, VALUE), (2, operation)]);
            data.nested(3 | NESTED, |value| value.attribute(1, with));
        })
    }

    fn meta(&mut self, key: u32) -> &mut Self {
        self.expression("meta", |data| numbers(data, &[(1, VALUE), (2, key)]))
    }

    /// The number of the interface that it came from.
    fn interface(&mut self) -> &mut Self {
        self.meta(4)
    }

    fn mark(&mut self) -> &mut Self {
        self.meta(3)
    }

    fn protocol(&mut self, protocol: i32) -> &mut Self {
        self.meta(16).compare(EQUAL, &[protocol as u8])
    }

    /// The kind of route that leads to the destination.
    fn address_type(&mut self) -> &mut Self {
        const TYPE: u32 = 3;
        const DESTINATION: u32 = 2;
        self.expression("fib", |data| numbers(data, &[(1, VALUE), (2, TYPE), (3, DESTINATION)]))
    }

    fn log(&mut self) -> &mut Self {
        let group = self.place.log_group();
        self.expression("log", |data| {
            data.attribute(1, &group.to_be_bytes());
            // Told at once, not by the hundred.
            data.attribute(4, &1_u16.to_be_bytes());
        })
    }

    fn immediate(&mut self, register: u32, value: &[u8]) -> &mut Self {
        self.expression("immediate", |data| {
            numbers(data, &[(1, register)]);
            data.nested(2 | NESTED, |inner| inner.attribute(1, value));
        })
    }

    fn verdict(&mut self, code: u32) -> &mut Self {
        self.expression("immediate", |data| {
            numbers(data, &[(1, VERDICT)]);
            data.nested(2 | NESTED, |inner| {
                inner.nested(2 | NESTED, |verdict| numbers(verdict, &[(1, code)]));
            });
        })
    }

    fn divert(&mut self) -> &mut Self {
        if self.place.is_v6() {
            self.immediate(VALUE, &ENTRANCE_V6.ip().octets());
        } else {
            self.immediate(VALUE, &ENTRANCE.ip().octets());
        }
        self.immediate(SECOND_VALUE, &self.place.entrance().port().to_be_bytes());
        let family = u32::from(self.place.family().as_raw());
        self.expression("tproxy", |data| numbers(data, &[(1, family), (2, VALUE), (3, SECOND_VALUE)]))
    }
}

fn numbers(data: &mut Message, list: &[(u16, u32)]) {
    for (kind, number) in list {
        data.attribute(*kind, &number.to_be_bytes());
    }
}
