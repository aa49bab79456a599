//! Published ports of containers that are only on internal networks.
//!
//! A daemon publishes nothing for them. A local one's bridges are reachable from this machine all the same, so the
//! ports that were reserved here are served here: each connection is passed on to the container's own address, and
//! each datagram.

use super::{DockerDriver, Instance};
use crate::relay::Relay;
use shakedown_spec::{Container, Protocol};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::PoisonError;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// The listeners of one container; dropping it closes them and every connection through them.
pub(crate) type Forwards = JoinSet<()>;

/// Whether the daemon will publish nothing for this container.
pub(crate) fn is_needed(container: &Container) -> bool {
    !container.ports.is_empty()
        && !container.networks.is_empty()
        && container.networks.iter().all(|attachment| attachment.network.internal)
}

impl DockerDriver {
    /// Serves the container's TCP ports here.
    pub(super) async fn forward(&self, instance: &Instance) -> io::Result<()> {
        let address = self.address(instance).await?;
        let published = instance.endpoints.lock().unwrap_or_else(PoisonError::into_inner).published.clone();
        instance.reserved.lock().unwrap_or_else(PoisonError::into_inner).release();
        let mut forwards = Forwards::new();
        for port in published.iter().filter(|port| port.protocol == Protocol::Tcp) {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.host)).await?;
            forwards.spawn(serve(listener, SocketAddr::new(address, port.container)));
        }
        for port in published.iter().filter(|port| port.protocol == Protocol::Udp) {
            let target = SocketAddr::new(address, port.container);
            let relay = Relay::take(None, Some(port.host))?;
            let mut carried = relay.serve(move || datagrams(target))?;
            forwards.spawn(async move { while carried.join_next().await.is_some() {} });
        }
        *instance.forwards.lock().unwrap_or_else(PoisonError::into_inner) = forwards;
        Ok(())
    }

    /// Ends the forwarding of a container that is being removed.
    pub(super) fn end_forwards(instance: &Instance) {
        instance.forwards.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

/// A datagram socket that is connected to `target`.
async fn datagrams(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(target).await?;
    Ok(socket)
}

pub(super) async fn serve(listener: TcpListener, target: SocketAddr) {
    let mut connections = JoinSet::new();
    // An error of accept(2) is one of the connection, or passes (too many open files).
    loop {
        if let Ok((mut near, _)) = listener.accept().await {
            connections.spawn(async move {
                if let Ok(mut far) = TcpStream::connect(target).await {
                    // The end of either side is the end of the connection, not a fault.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
        while connections.try_join_next().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shakedown_spec::{Attachment, Network, Port};

    /// Only a container without any way out needs it.
    #[test]
    fn one_open_network_is_enough_for_the_daemon() {
        let on = |networks: &[Network]| {
            let mut container = Container::of("redis");
            container.ports.push(Port::tcp(6379));
            container.networks = networks.iter().map(Attachment::to).collect();
            is_needed(&container)
        };
        assert!(!on(&[]));
        assert!(on(&[Network::new().internal()]));
        assert!(!on(&[Network::new().internal(), Network::new()]));
    }
}
