//! Who listens in a container's network, and connections to it.

use super::{DockerDriver, Instance};
use crate::driver::{Driver, ExecRequest, Result, Socket};
use crate::sockets::listens_on;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::PoisonError;
use tokio::net::TcpStream;

impl DockerDriver {
    pub(crate) async fn listens(&self, id: &str, port: u16) -> Result<bool> {
        let instance = self.instance(id)?;
        if let Some(tables) = self.read_tables(&instance) {
            return Ok(listens_on(&tables, port, None));
        }
        let output = self
            .exec(id, ExecRequest::of(["cat", "/proc/net/tcp", "/proc/net/tcp6"]))
            .await?
            .collect()
            .await?;
        let tables = String::from_utf8_lossy(&output.stdout);
        // `cat` fails for a missing tcp6 (IPv6 off) and has still shown the other table.
        if tables.contains("local_address") {
            return Ok(listens_on(&tables, port, None));
        }
        // The image has no `cat`. A connection through the published port is the last way to ask; the daemon's proxy
        // may accept it for a service that is not there yet, which the protocol probes tell apart.
        Ok(self.dial(id, port).await.is_ok())
    }

    /// The socket tables of the container's network namespace, read from outside, if its first process is a process
    /// of this machine: the daemon may run in a virtual machine, where the number means another process. The control
    /// group of the right one carries the container's id.
    fn read_tables(&self, instance: &Instance) -> Option<String> {
        if !self.inner.endpoint.is_local() {
            return None;
        }
        let (pid, id) = instance.process.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        if pid <= 0 || id.is_empty() || !group.contains(&id) {
            return None;
        }
        let mut tables = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
        tables.push_str(&std::fs::read_to_string(format!("/proc/{pid}/net/tcp6")).unwrap_or_default());
        Some(tables)
    }

    pub(crate) async fn dial(&self, id: &str, port: u16) -> io::Result<Box<dyn Socket>> {
        let instance = self.instance(id).map_err(io::Error::other)?;
        // The daemon's proxy accepts connections from the start on. Where it costs nothing to know that nobody is
        // behind it, the answer is the one the service itself would give.
        if self.read_tables(&instance).is_some_and(|tables| !listens_on(&tables, port, None)) {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused"));
        }
        let endpoints = instance.endpoints.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stream = match endpoints.tcp(port) {
            Some(host_port) => TcpStream::connect((endpoints.host.as_str(), host_port)).await?,
            None => TcpStream::connect(SocketAddr::new(self.address(&instance).await?, port)).await?,
        };
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    /// An address of the container on one of its networks.
    pub(super) async fn address(&self, instance: &Instance) -> io::Result<IpAddr> {
        let inspected = self.inner.docker.inspect_container(&instance.name, None).await;
        let inspected = inspected.map_err(|error| io::Error::other(super::failures::words(&error)))?;
        let networks = inspected.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        networks
            .into_values()
            .filter_map(|network| network.ip_address)
            .find_map(|address| address.parse().ok())
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotConnected, "the container has no network address")
            })
    }
}
