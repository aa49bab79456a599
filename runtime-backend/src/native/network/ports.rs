//! Ports of the host, taken before a container starts and carried into its network from then on.

use super::carrier::Carrier;
use super::publish::Bound;
use crate::native::launcher::Handle;
use crate::relay::Relay;
use shakedown_spec::{Port, Protocol};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A port of a container, wherever it is.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The container's address.
    pub(crate) at: watch::Receiver<Ipv4Addr>,
    /// Its port.
    pub(crate) port: u16,
}

impl Target {
    /// Where it is now.
    pub(crate) fn now(&self) -> SocketAddr {
        SocketAddr::from((*self.at.borrow(), self.port))
    }
}

/// A port of the host.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Carries connections.
    Connections(Bound),
    /// Carries datagrams.
    Datagrams(Relay),
}

impl Taken {
    /// Takes what `port` asks for, or a free number.
    pub(crate) fn take(port: &Port) -> io::Result<Self> {
        match port.protocol {
            Protocol::Tcp => Bound::take(port.address, port.host).map(Self::Connections),
            Protocol::Udp => Relay::take(port.address, port.host).map(Self::Datagrams),
            Protocol::Sctp => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The host's port.
    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Connections(bound) => bound.port,
            Self::Datagrams(relay) => relay.port,
        }
    }

    /// Carries what arrives to `target` of the container `id` until it is dropped.
    pub(crate) fn serve(
        self,
        carrier: &Carrier,
        launcher: &Handle,
        id: &str,
        target: Target,
    ) -> io::Result<JoinSet<()>> {
        match self {
            Self::Connections(bound) => bound.serve(carrier, launcher, id, target),
            Self::Datagrams(relay) => {
                let (launcher, id) = (launcher.clone(), id.to_owned());
                relay.serve(move || {
                    let (launcher, id, target) = (launcher.clone(), id.clone(), target.now());
                    async move { datagrams(&launcher, &id, target).await }
                })
            }
        }
    }
}

/// A datagram socket of the container's network, connected to `target`.
pub(crate) async fn datagrams(launcher: &Handle, id: &str, target: SocketAddr) -> io::Result<UdpSocket> {
    let made = launcher.datagram_socket(id).await.map_err(|trouble| io::Error::other(trouble.to_string()))?;
    let socket = UdpSocket::from_std(made.into())?;
    socket.connect(target).await?;
    Ok(socket)
}
