//! Published UDP ports: datagrams carried to a service and back, as an address translation would.
//!
//! ```text
//! client A ──► published socket ──► socket of A's flow ──► service
//!          ◄── from the address that A sent to ◄──────────
//! ```
//!
//! Each pair of a client and the address that it sent to has a socket of its own to the service: this is how the
//! service tells clients apart, and how its answers are told apart here.

use crate::wait::{Poll, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::collections::HashMap;
use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

/// The largest datagram.
const LARGEST: usize = 64 << 10;
/// The most flows of one port; the one that was quiet for longest gives way.
const MOST_FLOWS: usize = 1024;
/// How many datagrams of a client may wait for the service's socket.
const QUEUE: usize = 64;
/// How long a flow without an answer is kept, and one with: as by the kernel's own address translation.
const UNANSWERED: Duration = Duration::from_secs(30);
const ANSWERED: Duration = Duration::from_secs(120);

/// Binds sockets to one number: at `address`, or at loopback of both families when there is none; `0.0.0.0` is all
/// addresses of both. The number is `wanted`, or a free one.
///
/// # Errors
///
/// The number is taken, or the address is not one of this machine.
pub(crate) fn bind(
    kind: SocketType,
    address: Option<IpAddr>,
    wanted: Option<u16>,
) -> io::Result<(u16, Vec<OwnedFd>)> {
    // Another process may have the number on IPv6 alone; a free port is then tried again with another number.
    let mut last = None;
    for _ in 0..16 {
        match bind_once(kind, address, wanted.unwrap_or(0)) {
            Err(error) if wanted.is_none() && error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
            result => return result,
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

fn bind_once(kind: SocketType, address: Option<IpAddr>, port: u16) -> io::Result<(u16, Vec<OwnedFd>)> {
    let (first, second): (IpAddr, Option<Ipv6Addr>) = match address {
        None => (Ipv4Addr::LOCALHOST.into(), Some(Ipv6Addr::LOCALHOST)),
        Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => {
            (Ipv4Addr::UNSPECIFIED.into(), Some(Ipv6Addr::UNSPECIFIED))
        }
        Some(address) => (address, None),
    };
    let first = socket(kind, SocketAddr::new(first, port))?;
    let bound = SocketAddr::try_from(rustix::net::getsockname(&first)?)?;
    let mut sockets = vec![first];
    if let Some(second) = second {
        match socket(kind, SocketAddr::new(second.into(), bound.port())) {
            Ok(second) => sockets.push(second),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            // No IPv6 on this host.
            Err(_) => {}
        }
    }
    Ok((bound.port(), sockets))
}

fn socket(kind: SocketType, at: SocketAddr) -> io::Result<OwnedFd> {
    const BACKLOG: i32 = 1024;
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if at.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Else a port of one's own choice could not be taken again for a minute.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &at)?;
    if kind == SocketType::STREAM {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// A UDP port of the host that is taken.
#[derive(Debug)]
pub(crate) struct Relay {
    /// The host's port.
    pub(crate) port: u16,
    sockets: Vec<OwnedFd>,
}

impl Relay {
    /// Takes the port `wanted` at `address`, or a free one at loopback, the same number on IPv4 and IPv6.
    pub(crate) fn take(address: Option<IpAddr>, wanted: Option<u16>) -> io::Result<Self> {
        let (port, sockets) = bind(SocketType::DGRAM, address, wanted)?;
        for socket in &sockets {
            // Answers come from the address that was asked, which on `0.0.0.0` is any.
            let v6 = SocketAddr::try_from(rustix::net::getsockname(socket)?)?.is_ipv6();
            if v6 {
                setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            } else {
                setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
            }
        }
        Ok(Self { port, sockets })
    }

    /// Carries datagrams to the service, to which `connect` makes a connected socket, until it is dropped. Must be
    /// called within a tokio runtime.
    pub(crate) fn serve<C, F>(self, connect: C) -> io::Result<JoinSet<()>>
    where
        C: Fn() -> F + Clone + Send + Sync + 'static,
        F: Future<Output = io::Result<UdpSocket>> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        for socket in self.sockets {
            let outer = Outer(UdpSocket::from_std(socket.into())?);
            let flows = Flows {
                outer: Arc::new(outer),
                buffer: Arc::new(Mutex::new(vec![0; LARGEST])),
                connect: connect.clone(),
                open: HashMap::new(),
                tasks: JoinSet::new(),
                begun: 0,
            };
            tasks.spawn(flows.carry());
        }
        Ok(tasks)
    }
}

/// A client, and the address that it sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Way {
    client: SocketAddr,
    own: IpAddr,
}

/// A published socket.
#[derive(Debug)]
struct Outer(UdpSocket);

impl Outer {
    /// The next datagram; none if it does not say where it was sent to.
    async fn next(&self, buffer: &Mutex<Vec<u8>>) -> io::Result<Option<(Way, Vec<u8>)>> {
        let read = || {
            let mut space = nix::cmsg_space!(libc::in6_pktinfo);
            let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let received =
                recvmsg::<SockaddrStorage>(self.0.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
            let own = received.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())))
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
                }
                _ => None,
            });
            let (client, length) = (received.address.as_ref().and_then(address), received.bytes);
            let way = client.zip(own).map(|(client, own)| Way { client, own });
            Ok(way.map(|way| (way, buffer[..length].to_vec())))
        };
        self.0.async_io(Interest::READABLE, read).await
    }

    /// Sends an answer. One that does not go is lost, as datagrams may be.
    fn answer(&self, way: Way, bytes: &[u8]) {
        let (slices, to) = ([IoSlice::new(bytes)], SockaddrStorage::from(way.client));
        let send = |info: ControlMessage<'_>| {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = sendmsg(self.0.as_raw_fd(), &slices, &[info], flags, Some(&to));
        };
        match way.own {
            IpAddr::V4(own) => {
                let own = libc::in_addr { s_addr: u32::from_ne_bytes(own.octets()) };
                let none = libc::in_addr { s_addr: 0 };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: own, ipi_addr: none };
                send(ControlMessage::Ipv4PacketInfo(&info));
            }
            IpAddr::V6(own) => {
                let own = libc::in6_addr { s6_addr: own.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: own, ipi6_ifindex: 0 };
                send(ControlMessage::Ipv6PacketInfo(&info));
            }
        }
    }
}

fn address(found: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = found.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| found.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

/// What comes next, however often it fails before: the wait loop asks again, less and less often.
pub(crate) async fn persistent<T, C>(mut next: impl FnMut() -> C + Send) -> T
where
    C: Future<Output = io::Result<T>> + Send,
{
    const PATIENCE: Duration = Duration::from_secs(3600);
    loop {
        let came = poll(PATIENCE, || {
            let next = next();
            async {
                match next.await {
                    Ok(came) => Poll::Ready(came),
                    Err(error) => Poll::NotYet(error.to_string()),
                }
            }
        });
        if let Ok(came) = came.await {
            return came;
        }
    }
}

/// A client's way to the service. It ends when it is dropped.
#[derive(Debug)]
struct Flow {
    number: u64,
    queue: mpsc::Sender<Vec<u8>>,
    sent: Instant,
    task: AbortHandle,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The flows of one published socket.
struct Flows<C> {
    outer: Arc<Outer>,
    /// Where datagrams are read into, one after the other: a buffer for each flow would be 64 MiB for a port.
    buffer: Arc<Mutex<Vec<u8>>>,
    connect: C,
    open: HashMap<Way, Flow>,
    tasks: JoinSet<(Way, u64)>,
    begun: u64,
}

impl<C, F> Flows<C>
where
    C: Fn() -> F + Send + Sync,
    F: Future<Output = io::Result<UdpSocket>> + Send + 'static,
{
    async fn carry(mut self) {
        let (outer, buffer) = (Arc::clone(&self.outer), Arc::clone(&self.buffer));
        loop {
            tokio::select! {
                came = persistent(|| outer.next(&buffer)) => {
                    if let Some((way, bytes)) = came {
                        self.send(way, bytes);
                    }
                }
                Some(ended) = self.tasks.join_next() => {
                    if let Ok((way, number)) = ended
                        && self.open.get(&way).is_some_and(|flow| flow.number == number)
                    {
                        self.open.remove(&way);
                    }
                }
            }
        }
    }

    fn send(&mut self, way: Way, mut bytes: Vec<u8>) {
        if let Some(flow) = self.open.get_mut(&way) {
            flow.sent = Instant::now();
            match flow.queue.try_send(bytes) {
                // A datagram more than the service takes is lost, as in a full buffer.
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => return,
                Err(mpsc::error::TrySendError::Closed(unsent)) => bytes = unsent,
            }
        }
        if self.open.len() >= MOST_FLOWS {
            let oldest = self.open.iter().min_by_key(|(_, flow)| flow.sent).map(|(way, _)| *way);
            oldest.and_then(|way| self.open.remove(&way));
        }
        let (queue, queued) = mpsc::channel(QUEUE);
        let _ = queue.try_send(bytes);
        self.begun += 1;
        let (number, connecting) = (self.begun, (self.connect)());
        let (outer, buffer) = (Arc::clone(&self.outer), Arc::clone(&self.buffer));
        let task = self.tasks.spawn(async move {
            // Without a socket its datagrams are lost; the next one tries again.
            if let Ok(inner) = connecting.await {
                flow(&outer, way, queued, &inner, &buffer).await;
            }
            (way, number)
        });
        self.open.insert(way, Flow { number, queue, sent: Instant::now(), task });
    }
}

/// Carries one client's datagrams and their answers until there were none for a while.
async fn flow(
    outer: &Outer,
    way: Way,
    mut queued: mpsc::Receiver<Vec<u8>>,
    inner: &UdpSocket,
    buffer: &Mutex<Vec<u8>>,
) {
    let mut patience = UNANSWERED;
    let next = async |queued: &mut mpsc::Receiver<Vec<u8>>| {
        tokio::select! {
            bytes = queued.recv() => bytes.map(Some),
            ready = inner.readable() => ready.ok().map(|()| None),
        }
    };
    while let Ok(Some(came)) = timeout(patience, next(&mut queued)).await {
        match came {
            Some(bytes) => {
                if inner
                    .send(&bytes)
                    .await
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
                {
                    // This is the answer to the datagram before, and takes the place of this one.
                    let _ = inner.send(&bytes).await;
                }
            }
            None => {
                let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
                // A refusal is no end: the service may only be starting.
                if let Ok(length) = inner.try_recv(&mut buffer) {
                    patience = ANSWERED;
                    outer.answer(way, &buffer[..length]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that answers with what it was sent, and a relay to it.
    async fn relayed(address: Option<IpAddr>) -> (u16, JoinSet<()>, SocketAddr) {
        let service = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = service.local_addr().unwrap();
        let relay = Relay::take(address, None).unwrap();
        let port = relay.port;
        let mut tasks = relay.serve(move || connected(at)).unwrap();
        tasks.spawn(async move {
            let mut buffer = vec![0; LARGEST];
            while let Ok((length, from)) = service.recv_from(&mut buffer).await {
                let _ = service.send_to(&buffer[..length], from).await;
            }
        });
        (port, tasks, at)
    }

    async fn connected(at: SocketAddr) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        socket.connect(at).await?;
        Ok(socket)
    }

    #[track_caller]
    fn asked(from: IpAddr, to: SocketAddr, bytes: &[u8]) -> impl Future<Output = Vec<u8>> {
        let (socket, bytes) = (std::net::UdpSocket::bind((from, 0)).unwrap(), bytes.to_vec());
        socket.set_nonblocking(true).unwrap();
        // Connected, so that an answer from elsewhere is not taken.
        socket.connect(to).unwrap();
        async move {
            let socket = UdpSocket::from_std(socket).unwrap();
            socket.send(&bytes).await.unwrap();
            let mut answer = vec![0; LARGEST];
            let length = timeout(Duration::from_secs(10), socket.recv(&mut answer)).await.unwrap().unwrap();
            answer.truncate(length);
            answer
        }
    }

    /// Answers reach the client that asked, from where it asked, however large.
    #[tokio::test]
    async fn answers_come_from_the_published_address() {
        let (port, _tasks, _) = relayed(Some(Ipv4Addr::UNSPECIFIED.into())).await;
        for to in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 7)] {
            let to = SocketAddr::from((to, port));
            assert_eq!(asked(Ipv4Addr::LOCALHOST.into(), to, b"one").await, b"one");
            assert_eq!(asked(Ipv4Addr::LOCALHOST.into(), to, &[7; 60_000]).await, [7; 60_000]);
        }
    }

    /// A test that asks `localhost` reaches the service whichever family its resolver prefers.
    #[tokio::test]
    async fn a_port_is_the_same_on_both_families() {
        let (port, _tasks, _) = relayed(None).await;
        let v6: SocketAddr = (Ipv6Addr::LOCALHOST, port).into();
        if std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            assert_eq!(asked(Ipv6Addr::LOCALHOST.into(), v6, b"six").await, b"six");
        }
        let v4: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
        assert_eq!(asked(Ipv4Addr::LOCALHOST.into(), v4, b"four").await, b"four");
        let taken = Relay::take(None, Some(port)).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    /// A client that asks before the service listens is answered as soon as it does.
    #[tokio::test]
    async fn a_refusal_is_not_the_end() {
        let free = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let relay = Relay::take(None, None).unwrap();
        let port = relay.port;
        let _tasks = relay.serve(move || connected(at)).unwrap();
        let client = connected((Ipv4Addr::LOCALHOST, port).into()).await.unwrap();
        client.send(b"early").await.unwrap();
        let came = poll(Duration::from_secs(10), || async {
            // Nothing tells that the first one has been refused; whatever comes after it must arrive.
            let Ok(service) = std::net::UdpSocket::bind(at) else { return Poll::NotYet(String::new()) };
            service.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            client.send(b"on time").await.unwrap();
            let service = service;
            service.set_nonblocking(true).unwrap();
            let service = UdpSocket::from_std(service).unwrap();
            let mut buffer = [0; 16];
            let (length, _) = service.recv_from(&mut buffer).await.unwrap();
            Poll::Ready(buffer[..length].to_vec())
        });
        assert!([&b"early"[..], b"on time"].contains(&&came.await.unwrap()[..]));
    }
}
