//! What a declaration asks for that cannot be done here.

use super::NativeDriver;
use crate::driver::Result;
use crate::native::launcher::Identity;
use crate::native::outbound::{HOST_GATEWAY, HOST_NETWORK};
use shakedown_spec::{Container, Failure, FailureKind, NetworkMode, Protocol};

/// Why there is one user in a container.
pub(super) const ONE_ID: &str =
    "this user has no range in /etc/subuid and /etc/subgid, or newuidmap is not installed";

impl NativeDriver {
    /// What a declaration asks for that this driver cannot do here.
    pub(super) fn check(&self, container: &Container) -> Result<()> {
        let name = container.display_name();
        let unsupported = |what: String| {
            Failure::new(FailureKind::Unsupported, format!("the native driver cannot run {name}: {what}"))
                .hint("`SHAKEDOWN_DRIVER=docker` uses Docker instead")
        };
        if let Some(port) = container.ports.iter().find(|port| port.protocol != Protocol::Tcp) {
            return Err(unsupported(format!("it publishes TCP ports only, not {port}")));
        }
        let single = self.launcher.identity() == Identity::Single;
        if let Some(file) = container.files.iter().find(|file| single && (file.uid, file.gid) != (0, 0)) {
            return Err(unsupported(format!(
                "{} cannot belong to {}:{}: {ONE_ID}",
                file.path, file.uid, file.gid
            )));
        }
        if let Some(name) = container.sysctls.keys().find(|name| !is_namespaced(name)) {
            return Err(unsupported(format!("`{name}` is a parameter of the whole machine")));
        }
        if let Some(reason) = self.outbound.missing().filter(|_| container.outbound == Some(true)) {
            return Err(unsupported(format!("it cannot reach the outside: {reason}")));
        }
        let wants_host = container.extra_hosts.values().any(|address| address == HOST_GATEWAY);
        if wants_host && container.network_mode != NetworkMode::Host && !self.outbound.reaches(container) {
            let reason = self.outbound.missing().unwrap_or("its networks lead nowhere else");
            return Err(unsupported(format!("it cannot reach the host (`{HOST_GATEWAY}`): {reason}")));
        }
        if container.network_mode == NetworkMode::Host && self.launcher.identity() != Identity::Root {
            return Err(unsupported(format!("it cannot have the host's network: {HOST_NETWORK}")));
        }
        if container.privileged && self.launcher.identity() != Identity::Root {
            return Err(unsupported("a privileged container needs root".to_owned()));
        }
        Ok(())
    }
}

/// Whether a kernel parameter belongs to a container's own namespaces: the list of Docker.
fn is_namespaced(name: &str) -> bool {
    const OWN: [&str; 8] =
        ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    let kernel = name.strip_prefix("kernel.");
    name.starts_with("net.")
        || name.starts_with("fs.mqueue.")
        || kernel.is_some_and(|rest| OWN.contains(&rest))
}
