//! What a declaration asks for that cannot be done here.

use super::NativeDriver;
use crate::driver::Result;
use crate::native::launcher::Identity;
use crate::native::outbound::{HOST_GATEWAY, HOST_NETWORK};
use shakedown_spec::{
    Container, Device, Failure, FailureKind, MountSource, NamespaceMode, NetworkMode, Propagation, Protocol,
    SecurityOptions,
};
use std::path::Path;

/// Why there is one user in a container.
pub(super) const ONE_ID: &str =
    "this user has no range in /etc/subuid and /etc/subgid, or newuidmap is not installed";

/// Why no SCTP port is published.
pub(super) const NO_SCTP: &str = "the native driver carries TCP and UDP";

impl NativeDriver {
    /// What a declaration asks for that this driver cannot do here.
    pub(super) fn check(&self, container: &Container) -> Result<()> {
        let name = container.display_name();
        let unsupported = |what: String| {
            Failure::new(FailureKind::Unsupported, format!("the native driver cannot run {name}: {what}"))
                .hint("`SHAKEDOWN_DRIVER=docker` uses Docker instead")
        };
        if let Some(port) = container.ports.iter().find(|port| port.protocol == Protocol::Sctp) {
            return Err(unsupported(format!("it cannot publish {port}: {NO_SCTP}")));
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
        let wants_host = container.extra_hosts.values().any(|address| address == HOST_GATEWAY)
            || !container.host_ports.is_empty();
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
        self.check_options(container).map_or(Ok(()), |what| Err(unsupported(what)))
    }

    /// What of the options cannot be done here.
    fn check_options(&self, container: &Container) -> Option<String> {
        let identity = self.launcher.identity();
        if !container.group_add.is_empty() && identity == Identity::Single {
            return Some(format!("it cannot have further groups: {ONE_ID}"));
        }
        if container.pid == NamespaceMode::Host {
            return Some(format!("it cannot see the host's processes: {HOST_PROCESSES}"));
        }
        if container.ipc == NamespaceMode::Host && identity != Identity::Root {
            return Some(format!("it cannot have the host's ipc namespace: {HOST_IPC}"));
        }
        let restricted = |device: &Device| !["r", "w"].iter().all(|one| device.permissions().contains(one));
        if let (Some(device), Some(reason)) =
            (container.devices.iter().find(|d| restricted(d)), self.cgroups.missing("devices"))
        {
            return Some(format!("the permissions of {} cannot be kept: {reason}", device.source));
        }
        for mount in &container.mounts {
            let MountSource::Bind { options, .. } = &mount.source else { continue };
            if !matches!(options.propagation, None | Some(Propagation::Rprivate)) {
                return Some(format!("mounts below {} cannot be passed on: {PROPAGATION}", mount.target));
            }
            if options.relabel.is_some() && Path::new(SELINUX).exists() {
                return Some(format!("what is mounted at {} cannot be labelled: {RELABEL}", mount.target));
            }
        }
        let security = SecurityOptions::read(&container.security_opt).unwrap_or_default();
        let profile = security.apparmor.filter(|profile| profile != "unconfined");
        if let (Some(profile), Some(reason)) = (profile, apparmor_missing()) {
            return Some(format!("it cannot have the AppArmor profile `{profile}`: {reason}"));
        }
        let label = security.label.iter().find(|part| *part != "disable");
        if let (Some(part), Some(reason)) = (label, selinux_missing()) {
            return Some(format!("it cannot have the SELinux label `{part}`: {reason}"));
        }
        None
    }
}

/// Why a container has the host's ipc namespace as root only.
pub(super) const HOST_IPC: &str = "it belongs to root";

/// Why a container is never among the host's processes.
pub(super) const HOST_PROCESSES: &str =
    "its processes would not end with the session, which is a pid namespace: nothing is to be left behind";

/// Why mounts are not passed on.
pub(super) const PROPAGATION: &str = "every mount of the native driver is private";

const RELABEL: &str = "the native driver does not change labels of files";

const SELINUX: &str = "/sys/fs/selinux/enforce";

/// Why no AppArmor profile can be given.
pub(super) fn apparmor_missing() -> Option<String> {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    let there = enabled.trim() == "Y";
    (!there).then(|| "this kernel has no AppArmor, or it is off".to_owned())
}

/// Why no SELinux label can be given.
pub(super) fn selinux_missing() -> Option<String> {
    Some(if Path::new(SELINUX).exists() {
        "the native driver has no labels".to_owned()
    } else {
        "this kernel has no SELinux, or it is off".to_owned()
    })
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
