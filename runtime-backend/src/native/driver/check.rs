//! What a declaration asks for that cannot be done here.

use super::NativeDriver;
use crate::driver::Result;
use crate::native::launcher::{Identity, Shift};
use crate::native::outbound::{HOST_GATEWAY, HOST_NETWORK};
use shakedown_spec::{
    Container, Device, Failure, FailureKind, MountSource, NamespaceMode, NetworkMode, Propagation, Protocol,
    SecurityOptions,
};
use std::path::Path;
use std::sync::OnceLock;

/// The failure of a container that asks for what cannot be done here.
pub(super) fn unsupported(container: &Container, what: String) -> Failure {
    let title = format!("the native driver cannot run {}: {what}", container.display_name());
    Failure::new(FailureKind::Unsupported, title).hint("`SHAKEDOWN_DRIVER=docker` uses Docker instead")
}

/// Why there is one user in a container.
pub(super) const ONE_ID: &str =
    "this user has no range in /etc/subuid and /etc/subgid, or newuidmap is not installed";

/// Why no SCTP port is published.
pub(super) const NO_SCTP: &str = "the native driver carries TCP and UDP";

impl NativeDriver {
    /// What a declaration asks for that this driver cannot do here.
    pub(super) fn check(&self, container: &Container) -> Result<()> {
        let refused = |what: String| unsupported(container, what);
        if let Some(port) = container.ports.iter().find(|port| port.protocol == Protocol::Sctp) {
            return Err(refused(format!("it cannot publish {port}: {NO_SCTP}")));
        }
        let single = self.launcher.identity() == Identity::Single;
        if let Some(file) = container.files.iter().find(|file| single && (file.uid, file.gid) != (0, 0)) {
            return Err(refused(format!(
                "{} cannot belong to {}:{}: {ONE_ID}",
                file.path, file.uid, file.gid
            )));
        }
        if let Some(name) = container.sysctls.keys().find(|name| !is_namespaced(name)) {
            return Err(refused(format!("`{name}` is a parameter of the whole machine")));
        }
        if let Some(reason) = self.outbound.missing().filter(|_| container.outbound == Some(true)) {
            return Err(refused(format!("it cannot reach the outside: {reason}")));
        }
        let wants_host = container.extra_hosts.values().any(|address| address == HOST_GATEWAY)
            || !container.host_ports.is_empty();
        if wants_host && container.network_mode != NetworkMode::Host && !self.outbound.reaches(container) {
            let reason = self.outbound.missing().unwrap_or("its networks lead nowhere else");
            return Err(refused(format!("it cannot reach the host (`{HOST_GATEWAY}`): {reason}")));
        }
        if container.network_mode == NetworkMode::Host && self.launcher.identity() != Identity::Root {
            return Err(refused(format!("it cannot have the host's network: {HOST_NETWORK}")));
        }
        if container.privileged && self.launcher.identity() != Identity::Root {
            return Err(refused("a privileged container needs root".to_owned()));
        }
        self.check_users(container)?;
        self.check_options(container).map_or(Ok(()), |what| Err(refused(what)))
    }

    /// Which ids of the host the container's are, if it is as root and they are to be others.
    pub(in crate::native) fn shift(&self, container: &Container) -> Option<Shift> {
        static FOUND: OnceLock<Shift> = OnceLock::new();
        let wanted = container.userns == Some(NamespaceMode::Private);
        let root = self.launcher.identity() == Identity::Root;
        (wanted && root).then(|| *FOUND.get_or_init(Shift::find))
    }

    /// Whether the container can have the users it asks for, and share what it asks for with them.
    fn check_users(&self, container: &Container) -> Result<()> {
        let refused = |what: String| Err(unsupported(container, what));
        if container.userns == Some(NamespaceMode::Host)
            && let Some(reason) = host_users_missing(self.launcher.identity())
        {
            return refused(format!("it cannot have the host's users: {reason}"));
        }
        let modes = [&container.ipc, &container.pid];
        let shared = modes.into_iter().filter_map(|mode| match mode {
            NamespaceMode::Container(id) => Some(id),
            _ => None,
        });
        let network = match &container.network_mode {
            NetworkMode::Container(id) => Some(id),
            _ => None,
        };
        for id in shared.chain(network) {
            // One that is not there is told of when it is joined.
            if let Ok(other) = self.instance(id) {
                self.check_same_users(container, &other.create.container)?;
            }
        }
        if self.shift(container).is_none() {
            return Ok(());
        }
        if let Some(reason) = own_users_missing() {
            return refused(format!("it cannot have users of its own: {reason}"));
        }
        let open = |mode: &&NamespaceMode| **mode == NamespaceMode::Host;
        let namespaces = [&container.ipc, &container.pid, &container.cgroupns];
        let host = namespaces.iter().any(open) || container.network_mode == NetworkMode::Host;
        if host || container.privileged {
            return refused(
                "with users of its own it can neither be privileged nor share with the host".into(),
            );
        }
        Ok(())
    }

    /// What two containers share belongs to the users of one of them.
    pub(super) fn check_same_users(&self, one: &Container, other: &Container) -> Result<()> {
        if self.shift(one) == self.shift(other) {
            return Ok(());
        }
        Err(unsupported(one, OTHER_USERS.to_owned()))
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

/// Why two containers share nothing.
pub(super) const OTHER_USERS: &str =
    "of containers that share something, all or none have users of their own (`userns`)";

/// Why a container's users cannot be others than the host's.
pub(super) fn own_users_missing() -> Option<String> {
    const OLDEST: (u32, u32) = (5, 19);
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    if version.is_some_and(|version| version < OLDEST) {
        return Some(format!("layers with mapped ids need Linux 5.19, and this is {release}"));
    }
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    (most.trim() == "0").then(|| "user namespaces are off (user.max_user_namespaces = 0)".to_owned())
}

/// Why a container's users cannot be the host's.
pub(super) fn host_users_missing(identity: Identity) -> Option<String> {
    (identity != Identity::Root).then(|| "an ordinary user has one of them".to_owned())
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
