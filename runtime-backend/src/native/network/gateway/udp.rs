//! Datagrams: a socket to the outside for each pair of ends, kept while answers come.

use super::packet::{Flow, datagram, port_unreachable};
use super::sockets::next_datagram;
use super::{Client, Shared, clear};
use crate::native::network::publish::persistent;
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

/// The largest datagram.
pub(super) const LARGEST: usize = 64 << 10;

/// A socket to the outside, and who waits for what it receives.
#[derive(Debug)]
pub(super) struct Exchange {
    outer: Arc<UdpSocket>,
    /// When the container last sent something.
    sent: Instant,
    waiting: AbortHandle,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.waiting.abort();
    }
}

/// Carries what containers send.
pub(super) async fn datagrams(shared: Arc<Shared>, socket: UdpSocket) {
    loop {
        if let Some((flow, bytes)) = persistent(|| next_datagram(&socket, &shared.buffer)).await {
            carry(&shared, flow, &bytes);
        }
    }
}

fn carry(shared: &Arc<Shared>, flow: Flow, bytes: &[u8]) {
    let mut clients = shared.clients();
    let Some(client) = clients.get_mut(&flow.client.ip()) else { return };
    if let Some(exchange) = client.exchanges.get_mut(&flow) {
        exchange.sent = Instant::now();
        if send(&exchange.outer, bytes) == Err(Errno::CONNREFUSED) {
            // This is the answer to the datagram before, and takes the place of this one.
            shared.sockets.send(&port_unreachable(flow));
            let _ = send(&exchange.outer, bytes);
        }
        return;
    }
    let Some(outside) = client.permit.destination(flow.target) else {
        shared.sockets.send(&port_unreachable(flow));
        return;
    };
    if client.exchanges.len() >= shared.most.exchanges {
        let oldest = client.exchanges.iter().min_by_key(|(_, exchange)| exchange.sent);
        if let Some(oldest) = oldest.map(|(flow, _)| *flow) {
            client.exchanges.remove(&oldest);
        }
    }
    if let Ok(outer) = open(outside) {
        let _ = send(&outer, bytes);
        begin(shared, client, flow, outer);
    }
}

/// Not by way of the runtime, which would have to learn first that a new socket can be written to.
fn send(outer: &UdpSocket, bytes: &[u8]) -> Result<(), Errno> {
    rustix::net::send(outer, bytes, SendFlags::DONTWAIT).map(drop)
}

fn open(outside: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match outside {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(outside)?;
    UdpSocket::from_std(socket)
}

fn begin(shared: &Arc<Shared>, client: &mut Client, flow: Flow, outer: UdpSocket) {
    let outer = Arc::new(outer);
    let (carrying, answered) = (Arc::clone(shared), Arc::clone(&outer));
    clear(&mut client.waiting);
    let waiting = client.waiting.spawn(async move {
        answers(&carrying, flow, &answered).await;
        if let Some(client) = carrying.clients().get_mut(&flow.client.ip()) {
            // Another one may have its place by now.
            let own = client.exchanges.get(&flow).is_some_and(|found| Arc::ptr_eq(&found.outer, &answered));
            own.then(|| client.exchanges.remove(&flow));
        }
    });
    client.exchanges.insert(flow, Exchange { outer, sent: Instant::now(), waiting });
}

/// How long an exchange is kept after the last datagram: as long as the kernel's own address translation does. A query
/// for a name has its one answer; a resolver makes a new exchange for each, and many.
fn patience(flow: Flow, answers: u64) -> Duration {
    const DNS: u16 = 53;
    Duration::from_secs(match answers {
        1.. if flow.target.port() == DNS => 5,
        0 | 1 => 30,
        _ => 120,
    })
}

/// Carries answers until nothing has come and gone for a while.
async fn answers(shared: &Shared, flow: Flow, outer: &UdpSocket) {
    let (mut count, mut last) = (0, Instant::now());
    loop {
        let end = last + patience(flow, count);
        match timeout_at(end, outer.readable()).await {
            Err(_) => {
                let clients = shared.clients();
                let exchange = clients.get(&flow.client.ip()).and_then(|client| client.exchanges.get(&flow));
                match exchange.map(|exchange| exchange.sent) {
                    Some(sent) if sent > last => last = sent,
                    _ => return,
                }
            }
            Ok(Err(_)) => return,
            Ok(Ok(())) => {
                let mut buffer = shared.buffer.lock().unwrap_or_else(PoisonError::into_inner);
                let packet = match outer.try_recv(&mut buffer) {
                    Ok(length) => datagram(flow, &buffer[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => port_unreachable(flow),
                    Err(_) => return,
                };
                drop(buffer);
                shared.sockets.send(&packet);
                (count, last) = (count + 1, Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HOST, Most, Permit, Sockets};
    use super::*;
    use std::net::IpAddr;

    const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 88, 0, 2));

    fn gateway() -> Arc<Shared> {
        let shared = Shared::new(Sockets::nowhere(), Most { exchanges: 8, ..Most::default() });
        shared.clients().insert(OWN, Client::new(Permit::of_host()));
        Arc::new(shared)
    }

    fn flow(client: u16, target: u16) -> Flow {
        Flow { client: SocketAddr::new(OWN, client), target: SocketAddr::new(HOST.into(), target) }
    }

    fn server() -> (std::net::UdpSocket, u16) {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    /// A container that asks for many names is answered: the oldest query gives way, not the newest.
    #[tokio::test]
    async fn the_oldest_exchange_gives_way() {
        let (shared, (server, port)) = (gateway(), server());
        for client in 40000..40020 {
            carry(&shared, flow(client, port), b"query");
            assert_eq!(server.recv(&mut [0; 16]).unwrap(), 5, "{client}");
        }
        let clients = shared.clients();
        let kept = &clients[&OWN].exchanges;
        assert!(kept.len() == 8 && kept.contains_key(&flow(40019, port)));
    }

    /// What a container sends to a service that has just started arrives, although the port was closed before.
    #[tokio::test]
    async fn a_refusal_does_not_swallow_the_next_datagram() {
        let (shared, (server, port)) = (gateway(), server());
        drop(server);
        carry(&shared, flow(40000, port), b"early");
        let server = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        carry(&shared, flow(40000, port), b"on time");
        assert_eq!(server.recv(&mut [0; 16]).unwrap(), 7);
    }

    /// An exchange ends some time after its last datagram; one that has got its answer from a name server soon.
    #[tokio::test(start_paused = true)]
    async fn exchanges_end() {
        let (shared, (server, port)) = (gateway(), server());
        carry(&shared, flow(40000, port), b"query");
        let open = || shared.clients()[&OWN].exchanges.len();
        let begun = Instant::now();
        assert_eq!(open(), 1);
        while open() > 0 {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((30..=32).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        drop(server);
        let seconds = |port, answers| patience(flow(40000, port), answers).as_secs();
        assert_eq!([seconds(53, 0), seconds(53, 1), seconds(80, 1), seconds(80, 2)], [30, 5, 30, 120]);
    }
}
