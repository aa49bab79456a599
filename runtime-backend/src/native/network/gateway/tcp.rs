//! Connections: first to the outside, then with the container.

use super::packet::{Flow, Syn};
use super::sockets::Log;
use super::{Client, Shared, clear};
use crate::native::network::carry::carry;
use crate::native::network::publish::{next_connection, persistent};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long the outside may take to answer. The container sends its SYN once more after 31 s, which is a new request.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the container may take to complete a connection that is made: as long as it would send its SYN again.
const HANDSHAKE: Duration = Duration::from_secs(130);

/// A connection that the container has asked for and has not got yet.
#[derive(Debug)]
pub(super) struct Connecting {
    /// Takes the container's end.
    accepted: oneshot::Sender<TcpStream>,
    /// Whether the outside is there, so that the container is let through.
    open: bool,
}

/// Answers requests for connections.
pub(super) async fn requests(shared: Arc<Shared>, log: Log) {
    loop {
        persistent(|| log.next()).await.into_iter().for_each(|syn| request(&shared, syn));
    }
}

fn request(shared: &Arc<Shared>, syn: Syn) {
    let refused = |syn: &Syn| syn.answer(&io::ErrorKind::PermissionDenied.into());
    let mut clients = shared.clients();
    let Some(client) = clients.get_mut(&syn.flow.client.ip()) else {
        shared.sockets.send(&refused(&syn).unwrap_or_default());
        return;
    };
    match client.connections.get(&syn.flow) {
        // The packet that let it through has been lost.
        Some(Connecting { open: true, .. }) => shared.sockets.send(&syn.again()),
        Some(_) => {}
        None => match client.permit.destination(syn.flow.target) {
            Some(outside) => connect(shared, client, syn, outside),
            None => shared.sockets.send(&refused(&syn).unwrap_or_default()),
        },
    }
}

fn connect(shared: &Arc<Shared>, client: &mut Client, syn: Syn, outside: SocketAddr) {
    clear(&mut client.carried);
    if client.carried.len() >= shared.most.connections {
        shared.sockets.send(&syn.answer(&io::ErrorKind::ConnectionRefused.into()).unwrap_or_default());
        return;
    }
    let (accepted, inner) = oneshot::channel();
    client.connections.insert(syn.flow, Connecting { accepted, open: false });
    let shared = Arc::clone(shared);
    client.carried.spawn(async move {
        match timeout(PATIENCE, TcpStream::connect(outside)).await.unwrap_or_else(|late| Err(late.into())) {
            Ok(outer) => {
                shared.open(syn.flow);
                shared.sockets.send(&syn.again());
                let inner = timeout(HANDSHAKE, inner).await;
                shared.forget_connection(syn.flow);
                if let Ok(Ok(inner)) = inner {
                    carry(inner, outer).await;
                }
            }
            Err(error) => {
                // Before the answer: what the container asks for next is a new request.
                shared.forget_connection(syn.flow);
                shared.sockets.send(&syn.answer(&error).unwrap_or_default());
            }
        }
    });
}

/// Takes the containers' ends; one that nobody has asked for is closed.
pub(super) async fn connections(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let inner = next_connection(&listener).await;
        let (Ok(client), Ok(target)) = (inner.peer_addr(), inner.local_addr()) else { continue };
        if let Some(asked) = shared.take_connection(Flow { client, target }) {
            let _ = asked.accepted.send(inner);
        }
    }
}

impl Shared {
    fn open(&self, flow: Flow) {
        let mut clients = self.clients();
        let client = clients.get_mut(&flow.client.ip());
        if let Some(asked) = client.and_then(|client| client.connections.get_mut(&flow)) {
            asked.open = true;
        }
    }

    fn take_connection(&self, flow: Flow) -> Option<Connecting> {
        self.clients().get_mut(&flow.client.ip())?.connections.remove(&flow)
    }

    fn forget_connection(&self, flow: Flow) {
        drop(self.take_connection(flow));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HOST, Most, Permit, Sockets};
    use super::*;
    use std::net::Ipv4Addr;

    /// A container that opens connections without end does not take the descriptors of the others.
    #[tokio::test]
    async fn connections_are_limited() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let target = SocketAddr::new(HOST.into(), listener.local_addr().unwrap().port());
        let own = Ipv4Addr::new(10, 88, 0, 2);
        let shared = Arc::new(Shared::new(Sockets::nowhere(), Most { connections: 2, ..Most::default() }));
        shared.clients().insert(own.into(), Client::new(Permit::of_host()));
        for port in 40000..40005 {
            request(&shared, Syn::of(Flow { client: SocketAddr::new(own.into(), port), target }));
        }
        let [first, second] = [listener.accept().await.unwrap(), listener.accept().await.unwrap()];
        assert_eq!(shared.clients()[&own.into()].connections.len(), 2, "{first:?} {second:?}");
    }
}
