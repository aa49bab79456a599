//! The ids of a user namespace: written from outside of it.

use crate::native::launch::Trouble;
use crate::native::launcher::further_ids;
use oci_spec::runtime::{
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Spec,
};
use std::fs;
use std::process::Command;

/// Gives the container of an ordinary user, who can make nothing without it, a user namespace: with this user as its root and
/// the ids that this user has been given, if there are any. crun does the same.
pub(super) fn add_user_namespace(spec: &mut Spec) {
    let Some(linux) = spec.linux_mut() else { return };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let has = namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    if has || rustix::process::geteuid().is_root() {
        return;
    }
    let Ok(user) = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::User).build() else { return };
    namespaces.push(user);
    let mapping = |inside: u32, outside: u32, size: u32| {
        LinuxIdMappingBuilder::default().container_id(inside).host_id(outside).size(size).build().ok()
    };
    let mappings = |own: u32, further: Option<(u32, u32)>| {
        let further = further.and_then(|(first, count)| mapping(1, first, count));
        mapping(0, own, 1).into_iter().chain(further).collect::<Vec<_>>()
    };
    let further = further_ids();
    let uids = mappings(rustix::process::geteuid().as_raw(), further.map(|[uids, _]| uids));
    let gids = mappings(rustix::process::getegid().as_raw(), further.map(|[_, gids]| gids));
    linux.set_namespaces(Some(namespaces)).set_uid_mappings(Some(uids)).set_gid_mappings(Some(gids));
}

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

/// An ordinary user who maps one id may not set groups, nor who joins a namespace in which that is denied
/// (user_namespaces(7)).
pub(super) fn groups_can_be_set(spec: &Spec) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let Some(linux) = spec.linux() else { return true };
    let user = linux.namespaces().iter().flatten().find(|one| one.typ() == LinuxNamespaceType::User);
    match user.and_then(|user| user.path().as_deref()) {
        // `/proc/PID/ns/user`, and beside its directory `/proc/PID/setgroups`.
        Some(path) => path
            .ancestors()
            .nth(2)
            .and_then(|process| fs::read_to_string(process.join("setgroups")).ok())
            .is_some_and(|text| text.trim() == "allow"),
        None => !linux.gid_mappings().as_ref().is_some_and(|gids| is_single(gids)),
    }
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

/// The user and group of the container's process as they are outside of it.
pub(super) fn user_outside(spec: &Spec) -> Option<(u32, u32)> {
    let user = spec.process().as_ref()?.user();
    outside(spec, user.uid(), user.gid())
}

/// A user and a group of the container as they are outside of it.
pub(super) fn outside(spec: &Spec, uid: u32, gid: u32) -> Option<(u32, u32)> {
    let linux = spec.linux().as_ref()?;
    let mapped = |mappings: &Option<Vec<LinuxIdMapping>>, id: u32| match mappings.as_deref() {
        None => Some(id),
        Some(list) => list.iter().find_map(|m| {
            let offset = id.checked_sub(m.container_id()).filter(|offset| *offset < m.size())?;
            m.host_id().checked_add(offset)
        }),
    };
    mapped(linux.uid_mappings(), uid).zip(mapped(linux.gid_mappings(), gid))
}

fn write_file(pid: i32, file: &str, text: &str) -> Result<(), Trouble> {
    let path = format!("/proc/{pid}/{file}");
    fs::write(&path, text).map_err(|error| {
        Trouble::new("map ids into the container", format!("writing `{}` to {path}: {error}", text.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is made for the container from outside belongs to its user.
    #[test]
    fn ids_are_found_outside() {
        let mut spec = Spec::default();
        assert_eq!(outside(&spec, 7, 8), Some((7, 8)), "without a mapping");
        let list: Vec<LinuxIdMapping> = serde_json::from_str(
            r#"[{"containerID":0,"hostID":1000,"size":1},{"containerID":1,"hostID":100000,"size":9}]"#,
        )
        .unwrap();
        let linux = spec.linux_mut().as_mut().unwrap();
        linux.set_uid_mappings(Some(list.clone())).set_gid_mappings(Some(list));
        assert_eq!(outside(&spec, 0, 9), Some((1000, 100_008)));
        assert_eq!(outside(&spec, 0, 10), None, "behind the last");
    }
}
