//! The ports of the host, chosen before the container starts so that a declaration can refer to them.

use shakedown_spec::{Port, Protocol, Published};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;

/// The chosen ports, and the sockets that keep others from taking them until the daemon does.
///
/// A TCP socket that is bound with `SO_REUSEADDR` and does not listen is a reservation: the kernel gives its port to
/// nobody who asks for *any* port (`bind` to port 0 and `connect` pass it over), but lets another socket with
/// `SO_REUSEADDR` bind to it by number and listen, as the daemon's proxies do. The port therefore stays true from
/// create to start. UDP knows no such state, and its sockets are closed right before the start.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    tcp: Vec<OwnedFd>,
    udp: Vec<UdpSocket>,
}

/// The lowest of the ports chosen on a remote host. The range lies below that of outgoing connections (32768 and up
/// on Linux), which cannot be seen from here.
const REMOTE_FIRST: u16 = 20_000;
const REMOTE_COUNT: u16 = 12_000;

impl Reservations {
    /// Chooses a port of the host for every declared one without a fixed one.
    ///
    /// # Errors
    ///
    /// The system has no free port.
    pub(crate) fn choose(ports: &[Port], local: bool) -> io::Result<(Vec<Published>, Self)> {
        let mut held = Self::default();
        let mut published = Vec::new();
        for port in ports {
            let host = match port.host {
                Some(fixed) => fixed,
                None if local => held.reserve(port.protocol)?,
                None => {
                    REMOTE_FIRST
                        + u16::try_from(RandomState::new().hash_one(port) % u64::from(REMOTE_COUNT))
                            .unwrap_or(0)
                }
            };
            published.push(Published { container: port.container, protocol: port.protocol, host });
        }
        Ok((published, held))
    }

    fn reserve(&mut self, protocol: Protocol) -> io::Result<u16> {
        if protocol == Protocol::Udp {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let port = socket.local_addr()?.port();
            self.udp.push(socket);
            return Ok(port);
        }
        let socket = bound(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
        let address = SocketAddrV4::try_from(rustix::net::getsockname(&socket)?)?;
        self.tcp.push(socket);
        Ok(address.port())
    }

    /// Reserves ports that were chosen before, for a container that has ended and may be started again.
    ///
    /// # Errors
    ///
    /// One is taken: by the daemon, which has not let go of it yet, or by another program.
    pub(crate) fn again(published: &[Published]) -> io::Result<Self> {
        let mut held = Self::default();
        for port in published {
            let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port.host);
            match port.protocol {
                Protocol::Tcp => held.tcp.push(bound(&address)?),
                Protocol::Udp => held.udp.push(UdpSocket::bind(address)?),
                Protocol::Sctp => {}
            }
        }
        Ok(held)
    }

    /// Lets go of what the daemon could not bind to while it is held here.
    pub(crate) fn release_udp(&mut self) {
        self.udp.clear();
    }

    /// Lets go of everything.
    pub(crate) fn release(&mut self) {
        self.udp.clear();
        self.tcp.clear();
    }
}

/// A socket that is bound, and does not listen.
fn bound(address: &SocketAddrV4) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Before bind(2): a bind to port 0 with this option set on both sockets still gives two of them two ports.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// No other process gets a chosen port by chance before the daemon takes it, and the daemon can take it.
    #[test]
    fn a_reserved_port_is_given_to_nobody_but_the_one_who_names_it() {
        let (published, held) =
            Reservations::choose(&[Port::tcp(80), Port::tcp(81), Port::udp(53)], true).unwrap();
        assert_ne!(published[0].host, published[1].host);
        for _ in 0..200 {
            let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            assert_ne!(other.local_addr().unwrap().port(), published[0].host);
        }
        // std sets SO_REUSEADDR, as Go's net package does in the daemon's proxies.
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, published[0].host)).unwrap();
        drop(held);
        drop(taken);
    }

    /// A fixed port is what the user said.
    #[test]
    fn fixed_ports_are_kept() {
        let (published, _) = Reservations::choose(&[Port::tcp(80).on_host(8080)], true).unwrap();
        assert_eq!(published, [Published { container: 80, protocol: Protocol::Tcp, host: 8080 }]);
    }
}
