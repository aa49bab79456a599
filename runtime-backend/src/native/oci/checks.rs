//! What a `config.json` asks for that cannot be done, found before anything is made.

use super::{Result, invalid, label};
use crate::native::launch::Trouble;
use crate::native::sys;
use oci_spec::runtime::{Capability, LinuxNamespaceType, Process, Spec};
use shakedown_spec::{Failure, FailureKind};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Reads and checks `config.json`.
pub(super) fn load(bundle: &Path, config: Option<&Path>) -> Result<Spec> {
    let path = bundle.join(config.unwrap_or(Path::new("config.json")));
    let unreadable = |reason: String| {
        invalid("config.json cannot be used").fact("file", path.display().to_string()).fact("reason", reason)
    };
    let text = std::fs::read(&path).map_err(|error| unreadable(error.to_string()))?;
    let mut value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
    if let Some(process) = value.get_mut("process") {
        be_lenient(process);
    }
    let mut spec: Spec = serde_json::from_value(value).map_err(|error| unreadable(error.to_string()))?;
    check(&spec).map_err(|reason| unreadable(reason.to_owned()))?;
    spec.canonicalize_rootfs(bundle).map_err(|error| {
        unreadable("the root file system is not there".to_owned()).fact("root", error.to_string())
    })?;
    Ok(spec)
}

/// What other runtimes take as well: a process without a user is root's, and capabilities may be unknown.
pub(super) fn be_lenient(process: &mut serde_json::Value) {
    if let Some(fields) = process.as_object_mut() {
        fields.entry("user").or_insert_with(|| serde_json::json!({ "uid": 0, "gid": 0 }));
    }
    forget_unknown_capabilities(process);
}

/// A capability that this program does not know cannot be given, and is no reason to fail (OCI runtime specification,
/// "Linux Process").
fn forget_unknown_capabilities(process: &mut serde_json::Value) {
    let Some(sets) = process.get_mut("capabilities").and_then(|sets| sets.as_object_mut()) else { return };
    for set in sets.values_mut().filter_map(|set| set.as_array_mut()) {
        set.retain(|name| name.as_str().is_some_and(|name| capability(name).is_some()));
    }
}

/// A capability by its name, with or without `CAP_`.
pub(super) fn capability(name: &str) -> Option<Capability> {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).parse().ok()
}

fn check(spec: &Spec) -> std::result::Result<(), &'static str> {
    if !spec.version().starts_with("1.") {
        return Err("`ociVersion` is not 1.x");
    }
    let Some(linux) = spec.linux() else { return Err("there is no section `linux`") };
    if spec.root().is_none() {
        return Err("there is no section `root`");
    }
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let has = |kind| namespaces.iter().any(|namespace| namespace.typ() == kind);
    for namespace in namespaces {
        if namespaces.iter().filter(|other| other.typ() == namespace.typ()).count() > 1 {
            return Err("a namespace is listed twice");
        }
    }
    if !has(LinuxNamespaceType::Mount) {
        return Err("a container needs a mount namespace");
    }
    if spec.hostname().is_some() && !has(LinuxNamespaceType::Uts) {
        return Err("`hostname` needs a uts namespace");
    }
    if spec.domainname().is_some() && !has(LinuxNamespaceType::Uts) {
        return Err("`domainname` needs a uts namespace");
    }
    if linux.uid_mappings().is_some() && !has(LinuxNamespaceType::User) {
        return Err("`uidMappings` need a user namespace");
    }
    check_unsupported(spec)?;
    let process = spec.process().as_ref();
    if process.is_some_and(|process| !process.cwd().is_absolute()) {
        return Err("`process.cwd` is not an absolute path");
    }
    Ok(())
}

fn check_unsupported(spec: &Spec) -> std::result::Result<(), &'static str> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    if linux.intel_rdt().is_some() {
        return Err("`linux.intelRdt` is not supported");
    }
    if linux.personality().as_ref().is_some_and(|one| one.flags().iter().flatten().next().is_some()) {
        return Err("`linux.personality.flags` are not supported");
    }
    if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) {
        return Err("`linux.timeOffsets` are not supported");
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err("`linux.netDevices` are not supported");
    }
    if linux.memory_policy().is_some() {
        return Err("`linux.memoryPolicy` is not supported");
    }
    let given = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    if given(linux.mount_label()) && !label::has_selinux() {
        return Err("`linux.mountLabel` needs SELinux, which this machine does not have");
    }
    let Some(process) = spec.process() else { return Ok(()) };
    if process.scheduler().is_some() || process.io_priority().is_some() {
        return Err("`process.scheduler` and `process.ioPriority` are not supported");
    }
    if given(process.apparmor_profile()) && !label::has_apparmor() {
        return Err("`process.apparmorProfile` needs AppArmor, which this machine does not have");
    }
    if given(process.selinux_label()) && !label::has_selinux() {
        return Err("`process.selinuxLabel` needs SELinux, which this machine does not have");
    }
    Ok(())
}

/// A kernel parameter may be set only in a namespace of the container's own.
pub(super) fn parameters(spec: &Spec) -> std::result::Result<(), Trouble> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let has = |kind| linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == kind);
    for name in linux.sysctl().iter().flatten().map(|(name, _)| name) {
        let ipc = [
            "kernel.msgmax",
            "kernel.msgmnb",
            "kernel.msgmni",
            "kernel.sem",
            "kernel.shmall",
            "kernel.shmmax",
        ];
        let ipc = ipc.contains(&name.as_str())
            || matches!(name.as_str(), "kernel.shmmni" | "kernel.shm_rmid_forced")
            || name.starts_with("fs.mqueue.");
        let owned = (ipc && has(LinuxNamespaceType::Ipc))
            || (name.starts_with("net.") && has(LinuxNamespaceType::Network))
            || (name == "kernel.domainname" && has(LinuxNamespaceType::Uts));
        if !owned {
            let reason =
                "it is a parameter of the whole machine, or of a namespace that the container does not have";
            return Err(Trouble::new(format!("set the kernel parameter `{name}`"), reason));
        }
    }
    Ok(())
}

/// Of the descriptors that are to be passed on, those that are not open must not become others of this process: they are
/// taken by something that is closed when the program is executed.
pub(super) fn hold_places(kept: u32) -> Result<Vec<OwnedFd>> {
    let failed = |errno: rustix::io::Errno| {
        invalid("the descriptors to preserve could not be counted")
            .fact("--preserve-fds", kept.to_string())
            .fact("reason", errno.to_string())
    };
    let missing = (3..3 + kept).filter(|number| !sys::is_open(*number));
    let input = rustix::stdio::stdin();
    missing
        .map(|number| rustix::io::fcntl_dupfd_cloexec(input, number.cast_signed()).map_err(failed))
        .collect()
}

/// How many listening sockets the caller passes on (sd_listen_fds(3)).
pub(super) fn sockets() -> u32 {
    std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0).min(64)
}

/// Tells the program of them.
pub(super) fn pass_sockets(mut process: Process) -> Process {
    let count = sockets();
    if count > 0 {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
        process.set_env(Some(env));
    }
    process
}

/// The process of the spec, which everything but `create` of an idle container needs.
pub(super) fn process<'a>(id: &str, spec: &'a Spec) -> Result<&'a oci_spec::runtime::Process> {
    spec.process().as_ref().ok_or_else(|| {
        Failure::new(FailureKind::Invalid, format!("container `{id}` has nothing to run"))
            .fact("reason", "config.json has no section `process`")
    })
}
