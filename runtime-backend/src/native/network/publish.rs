//! Published ports: listeners on the host's loopback, carried into the container's network.
//!
//! The outgoing sockets are made by the launcher inside the container's network namespace, so they need neither a
//! route nor a right on this side.

use super::carrier::Carrier;
use super::carry::carry;
use super::ports::Target;
use crate::native::launch::Trouble;
use crate::native::launcher::Handle;
use crate::relay;
pub(super) use crate::relay::persistent;
use rustix::net::SocketType;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// How many connections may wait to be accepted, as far as the kernel allows (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// How many sockets are asked for at once.
const AT_ONCE: usize = 8;

/// A port of the host that is taken, on IPv4 and, where the host has it, on IPv6.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The host's port.
    pub(crate) port: u16,
    listeners: Vec<std::net::TcpListener>,
}

impl Bound {
    /// Takes the port `wanted` at `address`, or a free one at loopback, the same number on IPv4 and IPv6.
    pub(crate) fn take(address: Option<IpAddr>, wanted: Option<u16>) -> io::Result<Self> {
        let (port, sockets) = relay::bind(SocketType::STREAM, address, wanted)?;
        let listeners = sockets.into_iter().map(std::net::TcpListener::from).collect();
        Ok(Self { port, listeners })
    }

    /// Carries connections to `target` of the container `id`, on the carrier's thread, until it is dropped.
    pub(crate) fn serve(
        self,
        carrier: &Carrier,
        launcher: &Handle,
        id: &str,
        target: Target,
    ) -> io::Result<JoinSet<()>> {
        let mut tasks = JoinSet::new();
        let sockets =
            Arc::new(Sockets { launcher: launcher.clone(), id: id.to_owned(), ready: Mutex::default() });
        let thread = carrier.thread()?;
        let _inside = thread.enter();
        for listener in self.listeners {
            // The standard library's 128 are soon full when a pool connects; who comes then tries again after a second.
            rustix::net::listen(&listener, BACKLOG)?;
            let listener = TcpListener::from_std(listener)?;
            tasks.spawn_on(accept(listener, Arc::clone(&sockets), target.clone()), &thread);
        }
        Ok(tasks)
    }
}

async fn accept(listener: TcpListener, sockets: Arc<Sockets>, target: Target) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            outer = next_connection(&listener) => {
                connections.spawn(Arc::clone(&sockets).carry(outer, target.now()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// The next connection. An error means that the peer has gone again, or that descriptors are short for the moment.
pub(super) async fn next_connection(listener: &TcpListener) -> TcpStream {
    persistent(|| async { listener.accept().await.map(|(outer, _)| outer) }).await
}

/// Sockets in a container's network that are not connected yet. The launcher makes several at once, so that not every
/// connection has to wait for it.
#[derive(Debug)]
struct Sockets {
    launcher: Handle,
    id: String,
    ready: Mutex<Vec<OwnedFd>>,
}

impl Sockets {
    /// Carries one connection. If the container does not accept it, it is closed: that is what Docker's proxy does.
    async fn carry(self: Arc<Self>, outer: TcpStream, target: SocketAddr) {
        let Ok(socket) = self.take().await else { return };
        let Ok(inner) = connect_from(socket, target).await else { return };
        carry(outer, inner).await;
    }

    async fn take(&self) -> io::Result<OwnedFd> {
        if let Some(socket) = self.ready().pop() {
            return Ok(socket);
        }
        let mut made = self.launcher.sockets(&self.id, AT_ONCE).await.map_err(in_words)?;
        let socket = made.pop().ok_or_else(|| io::Error::other("the launcher made no socket"));
        let mut ready = self.ready();
        // Those who asked at the same time have brought some, too.
        made.truncate(AT_ONCE.saturating_sub(ready.len()));
        ready.extend(made);
        socket
    }

    fn ready(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects to an address inside the container's network.
pub(crate) async fn connect(launcher: &Handle, id: &str, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = launcher.sockets(id, 1).await.map_err(in_words)?.pop();
    connect_from(socket.ok_or_else(|| io::Error::other("the launcher made no socket"))?, target).await
}

async fn connect_from(socket: OwnedFd, target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpSocket::from_std_stream(socket.into()).connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn in_words(trouble: Trouble) -> io::Error {
    io::Error::other(trouble.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    /// A test that connects to `localhost` reaches the service whichever family its resolver prefers.
    #[test]
    fn a_port_is_the_same_on_both_families() {
        let bound = Bound::take(None, None).unwrap();
        for listener in &bound.listeners {
            assert_eq!(listener.local_addr().unwrap().port(), bound.port);
        }
        let taken = Bound::take(None, Some(bound.port)).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    /// A shortage that passes does not end what a keeper carries for the rest of a session.
    #[tokio::test(start_paused = true)]
    async fn an_error_is_not_the_end() {
        let mut left = vec![Ok("here"), Err(Errno::MFILE), Err(Errno::NOMEM)];
        let came = persistent(|| std::future::ready(left.pop().unwrap().map_err(io::Error::from))).await;
        assert_eq!(came, "here");
    }
}
