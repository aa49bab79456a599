//! Published ports: listeners on the host's loopback, carried into the container's network.
//!
//! The outgoing sockets are made by the launcher inside the container's network namespace, so they need neither a
//! route nor a right on this side.

use crate::native::launcher::Handle;
use crate::wait::{Poll, poll};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// How much is carried at once in each direction.
pub(super) const BUFFER: usize = 64 << 10;

/// A port of the host that is taken, on IPv4 and, where the host has it, on IPv6.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The host's port.
    pub(crate) port: u16,
    listeners: Vec<std::net::TcpListener>,
}

impl Bound {
    /// Takes the port `wanted`, or a free one, the same number on IPv4 and IPv6.
    pub(crate) fn take(wanted: Option<u16>) -> io::Result<Self> {
        // Another process may have the number on IPv6 alone; a free port is then tried again with another number.
        let mut last = None;
        for _ in 0..16 {
            match Self::try_take(wanted.unwrap_or(0)) {
                Err(error) if wanted.is_none() && error.kind() == io::ErrorKind::AddrInUse => {
                    last = Some(error);
                }
                result => return result,
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    fn try_take(port: u16) -> io::Result<Self> {
        let v4 = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let port = v4.local_addr()?.port();
        let mut listeners = vec![v4];
        match std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
            Ok(v6) => listeners.push(v6),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            // No IPv6 on this host.
            Err(_) => {}
        }
        listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        Ok(Self { port, listeners })
    }

    /// Carries connections to `target` of the container `id` until it is dropped.
    pub(crate) fn serve(self, launcher: &Handle, id: &str, target: SocketAddr) -> io::Result<JoinSet<()>> {
        let mut tasks = JoinSet::new();
        for listener in self.listeners {
            let listener = TcpListener::from_std(listener)?;
            tasks.spawn(accept(listener, launcher.clone(), id.to_owned(), target));
        }
        Ok(tasks)
    }
}

async fn accept(listener: TcpListener, launcher: Handle, id: String, target: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            outer = next_connection(&listener) => {
                connections.spawn(carry(outer, launcher.clone(), id.clone(), target));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// The next connection. An error means that the peer has gone again, or that descriptors are short for the moment.
pub(super) async fn next_connection(listener: &TcpListener) -> TcpStream {
    persistent(|| async { listener.accept().await.map(|(outer, _)| outer) }).await
}

/// What comes next, however often it fails before: the wait loop asks again, less and less often.
pub(super) async fn persistent<T, C>(mut next: impl FnMut() -> C + Send) -> T
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

/// Carries one connection. If the container does not accept it, it is closed: that is what Docker's proxy does.
async fn carry(mut outer: TcpStream, launcher: Handle, id: String, target: SocketAddr) {
    let Ok(mut inner) = connect(&launcher, &id, target).await else { return };
    let _ = outer.set_nodelay(true);
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut outer, &mut inner, BUFFER, BUFFER).await;
}

/// Connects to an address inside the container's network.
pub(crate) async fn connect(launcher: &Handle, id: &str, target: SocketAddr) -> io::Result<TcpStream> {
    let sockets = launcher.sockets(id, 1).await.map_err(|trouble| io::Error::other(trouble.to_string()))?;
    let socket: OwnedFd =
        sockets.into_iter().next().ok_or_else(|| io::Error::other("the launcher made no socket"))?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    /// A test that connects to `localhost` reaches the service whichever family its resolver prefers.
    #[test]
    fn a_port_is_the_same_on_both_families() {
        let bound = Bound::take(None).unwrap();
        for listener in &bound.listeners {
            assert_eq!(listener.local_addr().unwrap().port(), bound.port);
        }
        let taken = Bound::take(Some(bound.port)).unwrap_err();
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
