//! The few packets the gateway reads and writes itself (RFC 791, 792, 768, 9293).

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const HEADER: usize = 20;

/// The two ends of a connection or of an exchange of datagrams, as the container sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    /// The container's end.
    pub(super) client: SocketAddrV4,
    /// Where the container sends to.
    pub(super) target: SocketAddrV4,
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
    /// Reads a whole IPv4 packet; none if it is anything else than TCP.
    pub(super) fn read(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let header = usize::from(first & 15) * 4;
        let segment = packet.get(header..)?;
        if first >> 4 != 4 || header < HEADER || packet.get(9) != Some(&TCP) || segment.len() < HEADER {
            return None;
        }
        let end = |address: usize, port: usize| {
            let [a, b, c, d] = packet.get(address..address + 4)?.try_into().ok()?;
            let port = u16::from_be_bytes(segment.get(port..port + 2)?.try_into().ok()?);
            Some(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port))
        };
        let flow = Flow { client: end(12, 0)?, target: end(16, 2)? };
        Some(Self { flow, packet: packet.to_vec(), header })
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
        // RFC 792: destination unreachable, with the reason.
        const NETWORK: u8 = 0;
        const HOST: u8 = 1;
        const PROHIBITED: u8 = 13;
        match error.kind() {
            io::ErrorKind::TimedOut => None,
            io::ErrorKind::NetworkUnreachable => Some(self.unreachable(NETWORK)),
            io::ErrorKind::HostUnreachable => Some(self.unreachable(HOST)),
            io::ErrorKind::PermissionDenied => Some(self.unreachable(PROHIBITED)),
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

    fn unreachable(&self, code: u8) -> Vec<u8> {
        unreachable(self.flow, code, &self.packet[..self.header + 8])
    }
}

/// A datagram from the target to the container.
pub(super) fn datagram(flow: Flow, bytes: &[u8]) -> Vec<u8> {
    packet(flow.target, flow.client, UDP, &datagram_to(flow.target, flow.client, bytes))
}

/// Tells the container that nothing takes datagrams at the target.
pub(super) fn port_unreachable(flow: Flow) -> Vec<u8> {
    const PORT: u8 = 3;
    let sent = packet(flow.client, flow.target, UDP, &datagram_to(flow.client, flow.target, &[]));
    unreachable(flow, PORT, &sent)
}

/// A UDP datagram; its checksum is left out, which IPv4 allows.
fn datagram_to(from: SocketAddrV4, to: SocketAddrV4, bytes: &[u8]) -> Vec<u8> {
    let mut datagram = ports(from, to).to_vec();
    datagram.extend(u16::try_from(bytes.len() + 8).unwrap_or(u16::MAX).to_be_bytes());
    datagram.extend([0; 2]);
    datagram.extend(bytes);
    datagram
}

/// The fragments of a packet that is larger than `most` (RFC 791, 3.2). Fragments with one identification are one packet.
pub(super) fn fragments(packet: &[u8], most: usize, identification: u16) -> Vec<Vec<u8>> {
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

fn unreachable(flow: Flow, code: u8, quoted: &[u8]) -> Vec<u8> {
    const DESTINATION_UNREACHABLE: u8 = 3;
    let mut message = vec![DESTINATION_UNREACHABLE, code, 0, 0, 0, 0, 0, 0];
    message.extend(quoted);
    let sum = !folded(sum(&message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(flow.target, flow.client, ICMP, &message)
}

fn ports(from: SocketAddrV4, to: SocketAddrV4) -> [u8; 4] {
    let ([a, b], [c, d]) = (from.port().to_be_bytes(), to.port().to_be_bytes());
    [a, b, c, d]
}

/// An IP packet; length, identification and checksum are filled in by the kernel (raw(7), `IP_HDRINCL`).
fn packet(from: SocketAddrV4, to: SocketAddrV4, protocol: u8, content: &[u8]) -> Vec<u8> {
    const VERSION_AND_LENGTH: u8 = 0x45;
    const TIME_TO_LIVE: u8 = 64;
    let mut packet = vec![VERSION_AND_LENGTH, 0, 0, 0, 0, 0, 0, 0, TIME_TO_LIVE, protocol, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(content);
    packet
}

/// The checksum of a segment, which covers the addresses as well (RFC 9293, 3.1).
fn pseudo_sum(from: SocketAddrV4, to: SocketAddrV4, protocol: u8, segment: &[u8]) -> u16 {
    let addresses = sum(&from.ip().octets()) + sum(&to.ip().octets());
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

    /// What is no SYN of IPv4 is left alone.
    #[test]
    fn other_packets_are_not_read() {
        let packet = syn().packet;
        for wrong in [&packet[..39], &[], &[0x65; 60]] {
            assert_eq!(Syn::read(wrong), None);
        }
    }
}
