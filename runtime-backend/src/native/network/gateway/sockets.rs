//! The sockets that the launcher made in a diverted namespace.

use super::packet::{Flow, Syn, destination, fragments};
use crate::native::sys;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, UdpSocket};

/// What every task of a gateway writes to.
#[derive(Debug)]
pub(super) struct Sockets {
    raw: OwnedFd,
    /// Tells the fragments of one packet from those of the next.
    identification: AtomicU16,
}

/// What the interfaces of networks carry at once.
const LARGEST_PACKET: usize = 1500;

impl Sockets {
    /// Sends a packet into the namespace. One that does not go is lost, as packets may be: whoever waits asks again.
    pub(super) fn send(&self, packet: &[u8]) {
        let Some(to) = destination(packet).map(|address| SocketAddr::new(address, 0)) else { return };
        let send = |packet: &[u8]| rustix::net::sendto(&self.raw, packet, SendFlags::DONTWAIT, &to);
        if let Err(Errno::MSGSIZE) = send(packet) {
            // Zero would be replaced by the kernel, for each piece by another number.
            let identification = self.identification.fetch_add(1, Ordering::Relaxed).max(1);
            for piece in fragments(packet, LARGEST_PACKET, identification) {
                let _ = send(&piece);
            }
        }
    }
}

#[cfg(test)]
impl Sockets {
    /// Loses what it is to send: this is no raw socket.
    pub(super) fn nowhere() -> Self {
        let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self { raw: socket.into(), identification: AtomicU16::new(1) }
    }
}

/// Takes the sockets over in the order in which they travel.
pub(super) fn take(exits: Vec<OwnedFd>) -> io::Result<(TcpListener, UdpSocket, Log, Sockets)> {
    let exits = <[OwnedFd; 4]>::try_from(exits);
    let [listener, datagrams, log, raw] =
        exits.map_err(|_| io::Error::other("four sockets are a way out"))?;
    let listener = TcpListener::from_std(listener.into())?;
    let datagrams = UdpSocket::from_std(datagrams.into())?;
    Ok((listener, datagrams, Log(sys::watch(log)?), Sockets { raw, identification: AtomicU16::new(1) }))
}

/// The socket that is told which connections are asked for.
#[derive(Debug)]
pub(super) struct Log(AsyncFd<OwnedFd>);

impl Log {
    /// The next packets.
    pub(super) async fn next(&self) -> io::Result<Vec<Syn>> {
        let read = |socket: &OwnedFd| {
            let mut buffer = vec![0; 128 << 10];
            match rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => Ok(logged(buffer.get(..length).unwrap_or_default())),
                // Some were lost: they are sent again.
                Err(Errno::NOBUFS) => Ok(Vec::new()),
                Err(errno) => Err(errno.into()),
            }
        };
        self.0.async_io(Interest::READABLE, read).await
    }
}

/// The packets in messages of nfnetlink_log: `struct nlmsghdr`, `struct nfgenmsg`, attributes.
fn logged(mut bytes: &[u8]) -> Vec<Syn> {
    const NFULNL_MSG_PACKET: u16 = 4 << 8;
    const NFULA_PAYLOAD: u16 = 9;
    const HEADERS: usize = 20;
    let mut found = Vec::new();
    while let Some((length, kind)) = number(bytes, 0).zip(short(bytes, 4)) {
        let Some(message) = bytes.get(..length as usize).filter(|message| message.len() >= HEADERS) else {
            break;
        };
        let mut attributes = &message[HEADERS..];
        while let Some((length, name)) = short(attributes, 0).zip(short(attributes, 2)) {
            let Some(value) = attributes.get(4..usize::from(length)) else { break };
            if (kind, name) == (NFULNL_MSG_PACKET, NFULA_PAYLOAD) {
                found.extend(Syn::read(value));
            }
            attributes = attributes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        }
        bytes = bytes.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The next diverted datagram: whose it is, and what. None if it does not say where it was sent to.
pub(super) async fn next_datagram(
    socket: &UdpSocket,
    buffer: &Mutex<Vec<u8>>,
) -> io::Result<Option<(Flow, Vec<u8>)>> {
    let mut space = nix::cmsg_space!(libc::sockaddr_in6);
    let read = || {
        let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let received = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let target = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4OrigDstAddr(address) => {
                Some(SocketAddr::V4(SocketAddrV4::from(SockaddrIn::from(address))))
            }
            ControlMessageOwned::Ipv6OrigDstAddr(address) => {
                Some(SocketAddr::V6(SocketAddrV6::from(SockaddrIn6::from(address))))
            }
            _ => None,
        });
        let (client, length) = (received.address.and_then(socket_address), received.bytes);
        let flow = client.zip(target).map(|(client, target)| Flow { client, target });
        Ok(flow.map(|flow| (flow, buffer[..length].to_vec())))
    };
    socket.async_io(Interest::READABLE, read).await
}

fn socket_address(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}
