//! Services of this machine for containers: what listens on loopback only, shown at the engine's own address.
//!
//! A local engine's containers reach this machine at the address of its first bridge. What listens on all addresses is
//! found there; what listens on loopback is not, so it is passed on from here. A machine that hosts the engine in a
//! virtual one has no such address, and its containers reach loopback by the engine's own means.

use super::{DockerDriver, forward};
use shakedown_spec::Container;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// By which containers know the host.
const HOST_NAMES: [&str; 2] = ["host.docker.internal", "host.testcontainers.internal"];

/// Why ports of this machine cannot be shown.
pub(super) const REMOTE: &str = "the engine runs on another machine";

/// The names of the host that a container is to know, for an engine that knows where that is: Docker does since 20.10.
pub(super) fn names(container: &Container, version: Option<&str>) -> Vec<String> {
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    // Podman, whose versions are lower, has the first name by itself.
    let known = major.is_some_and(|major| major >= 20) || !container.host_ports.is_empty();
    let wanted = HOST_NAMES.iter().filter(|name| !container.extra_hosts.contains_key(**name));
    let wanted = wanted.filter(|_| known && container.network_mode.is_default());
    wanted.map(|name| format!("{name}:host-gateway")).collect()
}

impl DockerDriver {
    /// Passes on what containers send to these ports of the host, until it is dropped.
    pub(super) async fn show_host_ports(&self, ports: &[u16]) -> io::Result<JoinSet<()>> {
        let mut tasks = JoinSet::new();
        let Some(gateway) = self.bridge_address().await.filter(|_| !ports.is_empty()) else {
            return Ok(tasks);
        };
        for port in ports {
            match listen(SocketAddr::new(gateway, *port)) {
                Ok(listener) => {
                    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
                    tasks.spawn(forward::serve(TcpListener::from_std(listener)?, target));
                }
                // The service listens there itself; or the address is none of this machine.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {
                }
                Err(error) => return Err(error),
            }
        }
        Ok(tasks)
    }

    /// What `host-gateway` is.
    async fn bridge_address(&self) -> Option<IpAddr> {
        let network = self.inner.docker.inspect_network("bridge", None).await.ok()?;
        let configs = network.ipam?.config?;
        configs.into_iter().find_map(|config| config.gateway?.parse().ok())
    }
}

/// Several containers, also of several sessions, may be shown one port.
fn listen(at: SocketAddr) -> io::Result<std::net::TcpListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind(&socket, &at)?;
    listen(&socket, 128)?;
    Ok(socket.into())
}
