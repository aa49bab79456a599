//! The few packets the gateway reads and writes itself (RFC 791, 792, 768, 9293; for IPv6 RFC 8200, 4443).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const FRAGMENT_V6: u8 = 44;
/// The length of a header.
const HEADER: usize = 20;
const HEADER_V6: usize = 40;

/// The two ends of a connection or of an exchange of datagrams, as the container sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    /// The container's end.
    pub(super) client: SocketAddr,
    /// Where the container sends to.
    pub(super) target: SocketAddr,
}

/// The packet with which a container asks for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Syn {
    /// Whose connection.
    pub(super) flow: Flow,
    packet: Vec<u8>,
    /// The length of the IP header.
    header: usize,
}

impl Syn {
    /// Reads a whole IP packet; none if it is anything else than TCP.
    pub(super) fn read(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let (header, protocol) = match first >> 4 {
            4 => (usize::from(first & 15) * 4, packet.get(9)?),
            // Programs that put other headers in front of a request for a connection need rights for it.
            6 => (HEADER_V6, packet.get(6)?),
            _ => return None,
        };
        let segment = packet.get(header..)?;
        if header < HEADER || *protocol != TCP || segment.len() < HEADER {
            return None;
        }
        let address = |v4: usize, v6: usize| {
            Some(match first >> 4 {
                4 => IpAddr::from(<[u8; 4]>::try_from(packet.get(v4..v4 + 4)?).ok()?),
                _ => IpAddr::from(<[u8; 16]>::try_from(packet.get(v6..v6 + 16)?).ok()?),
            })
        };
        let port = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
        let client = SocketAddr::new(address(12, 8)?, port(0)?);
        let target = SocketAddr::new(address(16, 24)?, port(2)?);
        Some(Self { flow: Flow { client, target }, packet: packet.to_vec(), header })
    }

    /// One that asks for this connection.
    #[cfg(test)]
    pub(super) fn of(flow: Flow) -> Self {
        let segment = [&ports(flow.client, flow.target)[..], &[0; 16]].concat();
        Self { flow, packet: packet(flow.client, flow.target, TCP, &segment), header: HEADER }
    }

    /// The packet once more, to be let through. Its checksum was to be filled in by an interface that it never reached.
    pub(super) fn again(&self) -> Vec<u8> {
        let mut packet = self.packet.clone();
        let segment = &mut packet[self.header..];
        segment[16..18].fill(0);
        let sum = pseudo_sum(self.flow.client, self.flow.target, TCP, segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// What the container is told if its connection could not be made; nothing if nobody would have told it.
    pub(super) fn answer(&self, error: &io::Error) -> Option<Vec<u8>> {
        match error.kind() {
            io::ErrorKind::TimedOut => None,
            io::ErrorKind::NetworkUnreachable => Some(self.unreachable(Reason::Network)),
            io::ErrorKind::HostUnreachable => Some(self.unreachable(Reason::Host)),
            io::ErrorKind::PermissionDenied => Some(self.unreachable(Reason::Prohibited)),
            _ => Some(self.reset()),
        }
    }

    /// Refuses the connection, as a host does on which nothing listens.
    fn reset(&self) -> Vec<u8> {
        const RST_ACK: u8 = 0x14;
        let sequence: [u8; 4] = self.packet[self.header + 4..self.header + 8].try_into().unwrap_or_default();
        let mut segment = ports(self.flow.target, self.flow.client).to_vec();
        segment.extend([0; 4]);
        segment.extend(u32::from_be_bytes(sequence).wrapping_add(1).to_be_bytes());
        // Five words of header; no window, checksum or urgent data.
        segment.extend([5 << 4, RST_ACK, 0, 0, 0, 0, 0, 0]);
        let sum = pseudo_sum(self.flow.target, self.flow.client, TCP, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        packet(self.flow.target, self.flow.client, TCP, &segment)
    }

    fn unreachable(&self, reason: Reason) -> Vec<u8> {
        unreachable(self.flow, reason, &self.packet[..self.header + 8])
    }
}

/// A datagram from the target to the container.
pub(super) fn datagram(flow: Flow, bytes: &[u8]) -> Vec<u8> {
    packet(flow.target, flow.client, UDP, &datagram_to(flow.target, flow.client, bytes))
}

/// Tells the container that nothing takes datagrams at the target.
pub(super) fn port_unreachable(flow: Flow) -> Vec<u8> {
    let sent = packet(flow.client, flow.target, UDP, &datagram_to(flow.client, flow.target, &[]));
    unreachable(flow, Reason::Port, &sent)
}

/// A UDP datagram; its checksum is left out where that is allowed, with IPv4.
fn datagram_to(from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut datagram = ports(from, to).to_vec();
    datagram.extend(u16::try_from(bytes.len() + 8).unwrap_or(u16::MAX).to_be_bytes());
    datagram.extend([0; 2]);
    datagram.extend(bytes);
    if from.is_ipv6() {
        // Zero would mean that there is none (RFC 768).
        let sum = match pseudo_sum(from, to, UDP, &datagram) {
            0 => u16::MAX,
            sum => sum,
        };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    datagram
}

/// The fragments of a packet that is larger than `most`. Fragments with one identification are one packet.
pub(super) fn fragments(packet: &[u8], most: usize, identification: u16) -> Vec<Vec<u8>> {
    match packet.first().map(|first| first >> 4) {
        Some(6) => fragments_v6(packet, most, identification),
        _ => fragments_v4(packet, most, identification),
    }
}

/// They have the header, and the place of what follows in a header of their own (RFC 8200, 4.5).
fn fragments_v6(packet: &[u8], most: usize, identification: u16) -> Vec<Vec<u8>> {
    const OWN: usize = 8;
    const MORE: u16 = 1;
    let (header, content) = packet.split_at(HEADER_V6.min(packet.len()));
    let size = (most.saturating_sub(HEADER_V6 + OWN) & !7).max(8);
    let count = content.len().div_ceil(size);
    let fragment = |(number, part): (usize, &[u8])| {
        let more = if number + 1 < count { MORE } else { 0 };
        let offset = u16::try_from(number * size).unwrap_or(0) | more;
        let mut fragment = header.to_vec();
        fragment[4..6].copy_from_slice(&((part.len() + OWN) as u16).to_be_bytes());
        let next = std::mem::replace(&mut fragment[6], FRAGMENT_V6);
        fragment.extend([next, 0]);
        fragment.extend(offset.to_be_bytes());
        fragment.extend(u32::from(identification).to_be_bytes());
        fragment.extend(part);
        fragment
    };
    content.chunks(size).enumerate().map(fragment).collect()
}

/// They have the header, and their place in it (RFC 791, 3.2).
fn fragments_v4(packet: &[u8], most: usize, identification: u16) -> Vec<Vec<u8>> {
    const MORE: u16 = 0x2000;
    let (header, content) = packet.split_at(HEADER.min(packet.len()));
    // Offsets are counted in units of eight bytes.
    let size = (most.saturating_sub(HEADER) & !7).max(8);
    let count = content.len().div_ceil(size);
    let fragment = |(number, part): (usize, &[u8])| {
        let more = if number + 1 < count { MORE } else { 0 };
        let offset = u16::try_from(number * size / 8).unwrap_or(0) | more;
        let mut fragment = header.to_vec();
        fragment[4..6].copy_from_slice(&identification.to_be_bytes());
        fragment[6..8].copy_from_slice(&offset.to_be_bytes());
        fragment.extend(part);
        fragment
    };
    content.chunks(size).enumerate().map(fragment).collect()
}

/// Why something is not reached.
#[derive(Clone, Copy, Debug)]
enum Reason {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Reason {
    /// The type of the message and its code (RFC 792; RFC 1812, 5.2.7.1; RFC 4443, 3.1).
    fn code(self, v6: bool) -> [u8; 2] {
        match (self, v6) {
            (Self::Network, false) => [3, 0],
            (Self::Host, false) => [3, 1],
            (Self::Port, false) => [3, 3],
            (Self::Prohibited, false) => [3, 13],
            (Self::Network, true) => [1, 0],
            (Self::Prohibited, true) => [1, 1],
            (Self::Host, true) => [1, 3],
            (Self::Port, true) => [1, 4],
        }
    }
}

fn unreachable(flow: Flow, reason: Reason, quoted: &[u8]) -> Vec<u8> {
    let v6 = flow.client.is_ipv6();
    let [kind, code] = reason.code(v6);
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(quoted);
    let protocol = if v6 { ICMP_V6 } else { ICMP };
    let sum =
        if v6 { pseudo_sum(flow.target, flow.client, protocol, &message) } else { !folded(sum(&message)) };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(flow.target, flow.client, protocol, &message)
}

fn ports(from: SocketAddr, to: SocketAddr) -> [u8; 4] {
    let ([a, b], [c, d]) = (from.port().to_be_bytes(), to.port().to_be_bytes());
    [a, b, c, d]
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An IP packet. With IPv4, length, identification and checksum are filled in by the kernel (raw(7), `IP_HDRINCL`).
fn packet(from: SocketAddr, to: SocketAddr, protocol: u8, content: &[u8]) -> Vec<u8> {
    const TIME_TO_LIVE: u8 = 64;
    let mut packet = if from.is_ipv6() {
        let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
        vec![6 << 4, 0, 0, 0, length[0], length[1], protocol, TIME_TO_LIVE]
    } else {
        const VERSION_AND_LENGTH: u8 = 0x45;
        vec![VERSION_AND_LENGTH, 0, 0, 0, 0, 0, 0, 0, TIME_TO_LIVE, protocol, 0, 0]
    };
    packet.extend(octets(from.ip()));
    packet.extend(octets(to.ip()));
    packet.extend(content);
    packet
}

/// Where a packet goes.
pub(super) fn destination(packet: &[u8]) -> Option<IpAddr> {
    Some(match packet.first()? >> 4 {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?).into(),
    })
}

/// The checksum of a segment, which covers the addresses as well (RFC 9293, 3.1; RFC 8200, 8.1).
fn pseudo_sum(from: SocketAddr, to: SocketAddr, protocol: u8, segment: &[u8]) -> u16 {
    let addresses = sum(&octets(from.ip())) + sum(&octets(to.ip()));
    !folded(addresses + u64::from(protocol) + segment.len() as u64 + sum(segment))
}

fn sum(bytes: &[u8]) -> u64 {
    let word = |two: &[u8]| u64::from(two[0]) << 8 | u64::from(two.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(word).sum()
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN from 10.88.0.2:40000 to 192.0.2.7:80, captured: its checksum covers the addresses only, as the kernel leaves
    /// it for an interface to finish.
    fn syn() -> Syn {
        let mut segment =
            vec![0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0xab, 0xcd, 0, 0];
        let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 88, 0, 2, 192, 0, 2, 7];
        packet.append(&mut segment);
        Syn::read(&packet).unwrap()
    }

    /// The same over IPv6, from fd73:686b:0:3::a80:302 to 2001:db8::7.
    fn syn_v6() -> Syn {
        let mut packet = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
        packet.extend("fd73:686b:0:3::a80:302".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(&syn().packet[20..]);
        Syn::read(&packet).unwrap()
    }

    /// Length and checksum of a packet over IPv6 are right.
    #[track_caller]
    fn is_whole_v6(packet: &[u8], flow: Flow) {
        assert_eq!(&packet[8..24], octets(flow.target.ip()));
        assert_eq!(&packet[24..40], octets(flow.client.ip()));
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet.len() - 40);
        let ends = sum(&packet[8..40]) + u64::from(packet[6]) + (packet.len() - 40) as u64;
        assert_eq!(folded(ends + sum(&packet[40..])), 0xffff, "the checksum is wrong");
    }

    /// What is told over IPv6 is taken by the kernel as well, which drops whatever has a wrong checksum.
    #[test]
    fn packets_of_version_6_are_right() {
        let syn = syn_v6();
        assert_eq!(syn.flow.client, "[fd73:686b:0:3::a80:302]:40000".parse().unwrap());
        assert_eq!(syn.flow.target, "[2001:db8::7]:80".parse().unwrap());
        let again = syn.again();
        is_whole_v6(&again, Flow { client: syn.flow.target, target: syn.flow.client });
        is_whole_v6(&syn.answer(&io::ErrorKind::ConnectionRefused.into()).unwrap(), syn.flow);
        let told = syn.answer(&io::ErrorKind::NetworkUnreachable.into()).unwrap();
        is_whole_v6(&told, syn.flow);
        assert_eq!((told[6], &told[40..42], &told[48..]), (ICMP_V6, &[1, 0][..], &syn.packet[..48]));
        is_whole_v6(&port_unreachable(syn.flow), syn.flow);
        let whole = datagram(syn.flow, &[7; 3001]);
        is_whole_v6(&whole, syn.flow);
        let pieces = fragments(&whole, 1500, 9);
        let place = |piece: &Vec<u8>| u16::from_be_bytes([piece[42], piece[43]]);
        assert_eq!(pieces.iter().map(place).collect::<Vec<_>>(), [1, 1448 | 1, 2896]);
        assert!(
            pieces.iter().all(|piece| piece.len() <= 1500 && piece[6] == FRAGMENT_V6 && piece[40] == UDP)
        );
        let content: Vec<u8> = pieces.iter().flat_map(|piece| piece[48..].to_vec()).collect();
        assert_eq!(content, whole[40..]);
    }

    #[track_caller]
    fn is_whole(packet: &[u8], from: [u8; 4], to: [u8; 4]) {
        assert_eq!((&packet[12..16], &packet[16..20]), (&from[..], &to[..]));
        let ends = sum(&packet[12..20]) + u64::from(packet[9]) + (packet.len() - 20) as u64;
        assert_eq!(folded(ends + sum(&packet[20..])), 0xffff, "the checksum is wrong");
    }

    /// A packet that is let through, or refused, is one that the kernel takes.
    #[test]
    fn checksums_are_right() {
        let syn = syn();
        assert_eq!(syn.flow.client, "10.88.0.2:40000".parse().unwrap());
        assert_eq!(syn.flow.target, "192.0.2.7:80".parse().unwrap());
        is_whole(&syn.again(), [10, 88, 0, 2], [192, 0, 2, 7]);
        let refusal = syn.answer(&io::ErrorKind::ConnectionRefused.into()).unwrap();
        is_whole(&refusal, [192, 0, 2, 7], [10, 88, 0, 2]);
        assert_eq!(refusal[28..32], [1, 2, 3, 5], "it acknowledges the SYN");
    }

    /// A container that is told nothing tries again by itself; all else it learns at once.
    #[test]
    fn errors_are_passed_on() {
        let syn = syn();
        assert_eq!(syn.answer(&io::ErrorKind::TimedOut.into()), None);
        let told = syn.answer(&io::ErrorKind::HostUnreachable.into()).unwrap();
        assert_eq!((told[9], &told[20..22]), (ICMP, &[3, 1][..]));
        assert_eq!(folded(sum(&told[20..])), 0xffff);
        assert_eq!(told[28..], syn.packet[..28], "it quotes what was sent");
    }

    /// A large answer comes in pieces that fit, and together are the whole.
    #[test]
    fn large_packets_are_cut() {
        let flow = syn().flow;
        let whole = datagram(flow, &[7; 3000]);
        let pieces = fragments(&whole, 1500, 9);
        let place = |piece: &Vec<u8>| u16::from_be_bytes([piece[6], piece[7]]);
        assert_eq!(pieces.iter().map(place).collect::<Vec<_>>(), [0x2000, 0x2000 | 185, 370]);
        assert!(pieces.iter().all(|piece| piece.len() <= 1500 && piece[4..6] == [0, 9]));
        let content: Vec<u8> = pieces.iter().flat_map(|piece| piece[20..].to_vec()).collect();
        assert_eq!(content, whole[20..]);
    }

    /// What is no SYN is left alone.
    #[test]
    fn other_packets_are_not_read() {
        let packet = syn().packet;
        for wrong in [&packet[..39], &[], &[0x65; 60]] {
            assert_eq!(Syn::read(wrong), None);
        }
    }
}
