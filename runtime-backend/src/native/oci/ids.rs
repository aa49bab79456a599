//! The ids of a user namespace: written from outside of it.

use crate::native::launch::Trouble;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use std::fs;
use std::process::Command;

/// Maps the ids of a container's new user namespace; nothing to do if it has none.
pub(super) fn map(spec: &Spec, pid: i32) -> Result<(), Trouble> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let list = linux.namespaces().as_deref().unwrap_or_default();
    let new = list.iter().any(|n| n.typ() == LinuxNamespaceType::User && n.path().is_none());
    if !new {
        return Ok(());
    }
    let (Some(uids), Some(gids)) = (linux.uid_mappings(), linux.gid_mappings()) else {
        let reason = "config.json has no `uidMappings` or `gidMappings`";
        return Err(Trouble::new("map ids into the container", reason));
    };
    write(pid, uids, gids)
}

/// Maps the ids of a process's user namespace.
pub(super) fn write(pid: i32, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<(), Trouble> {
    let root = rustix::process::geteuid().is_root();
    if !root && is_single(gids) {
        write_file(pid, "setgroups", "deny")?;
    }
    write_map(pid, "uid_map", "newuidmap", uids, root)?;
    write_map(pid, "gid_map", "newgidmap", gids, root)
}

fn is_single(mappings: &[LinuxIdMapping]) -> bool {
    matches!(mappings, [only] if only.size() == 1)
}

/// An ordinary user who maps one id may not set groups (user_namespaces(7)).
pub(super) fn groups_can_be_set(spec: &Spec) -> bool {
    let gids = spec.linux().as_ref().and_then(|linux| linux.gid_mappings().as_ref());
    rustix::process::geteuid().is_root() || !gids.is_some_and(|gids| is_single(gids))
}

/// More than one's own id needs root, or the set-user-id programs of the package uidmap.
fn write_map(
    pid: i32,
    file: &str,
    program: &str,
    mappings: &[LinuxIdMapping],
    root: bool,
) -> Result<(), Trouble> {
    let numbers =
        |m: &LinuxIdMapping| [m.container_id(), m.host_id(), m.size()].map(|number| number.to_string());
    if root || is_single(mappings) {
        let text: String = mappings.iter().map(|m| numbers(m).join(" ") + "\n").collect();
        return write_file(pid, file, &text);
    }
    let output = Command::new(program).arg(pid.to_string()).args(mappings.iter().flat_map(numbers)).output();
    let refused = |reason: String| Trouble::new("map ids into the container", reason);
    let output = output.map_err(|error| refused(format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(refused(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn write_file(pid: i32, file: &str, text: &str) -> Result<(), Trouble> {
    let path = format!("/proc/{pid}/{file}");
    fs::write(&path, text).map_err(|error| {
        Trouble::new("map ids into the container", format!("writing `{}` to {path}: {error}", text.trim()))
    })
}
