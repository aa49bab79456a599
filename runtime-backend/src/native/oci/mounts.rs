//! What the launch code is told of a `config.json`'s mounts and devices: those of control groups spelt out, default devices
//! added, sources opened and their owners mapped.

use super::groups::{Hierarchy, hierarchies};
use crate::native::launch::mounts;
use crate::native::launch::{Trouble, Trying};
use crate::native::sys::{self, Called};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, MountBuilder, Spec};
use rustix::mount::{OpenTreeFlags, open_tree};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The container's root and the sources of its bind mounts, as detached trees.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) root: OwnedFd,
    pub(super) binds: Vec<OwnedFd>,
    /// Device nodes that were made outside of the container.
    pub(super) nodes: Vec<OwnedFd>,
}

impl Sources {
    /// Opens them; `users` is the container's user namespace, which mounts may be mapped to.
    pub(super) fn open(spec: &Spec, users: Option<&OwnedFd>) -> Result<Self, Trouble> {
        let root = open_root(spec)?;
        let binds = spec.mounts().iter().flatten().filter(|mount| mounts::is_bind(mount));
        let binds = binds.map(|mount| open_bind(mount, users)).collect::<Result<_, _>>()?;
        Ok(Self { root, binds, nodes: Vec::new() })
    }
}

fn open_root(spec: &Spec) -> Result<OwnedFd, Trouble> {
    let doing = || "open the container's root".to_owned();
    let path = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let root = open_tree(rustix::fs::CWD, &path, flags)
        .call(|| format!("open_tree({path:?}, OPEN_TREE_CLONE|AT_RECURSIVE)"))
        .trying(doing)?;
    let wanted = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    // What is mounted in the container is never shown outside, unless that is asked for; and the other way round.
    let propagation = match wanted {
        Some("slave" | "rslave") => libc::MS_SLAVE,
        Some("shared" | "rshared") => return Ok(root),
        _ => libc::MS_PRIVATE,
    };
    sys::mount_change(root.as_fd(), 0, 0, propagation, true)
        .call(|| format!("mount_setattr(root, {propagation:#x}, AT_RECURSIVE)"))
        .trying(doing)?;
    Ok(root)
}

fn open_bind(mount: &Mount, users: Option<&OwnedFd>) -> Result<OwnedFd, Trouble> {
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    let options = mount.options().as_deref().unwrap_or_default();
    let has = |name: &str| options.iter().any(|option| option == name);
    let tree = if has("rbind") { mounts::open_bind(source)? } else { mounts::open_single_bind(source)? };
    let mapped = mount.uid_mappings().as_ref().zip(mount.gid_mappings().as_ref());
    if mapped.is_none() && !has("idmap") && !has("ridmap") {
        return Ok(tree);
    }
    let doing = || format!("map the owners of the mount at {}", mount.destination().display());
    let made = mapped.map(|(uids, gids)| user_namespace(uids, gids)).transpose()?;
    let Some(namespace) = made.as_ref().or(users) else {
        return Err(Trouble::new(doing(), "the container has no user namespace, and the mount no mappings"));
    };
    sys::mount_map_ids(tree.as_fd(), namespace.as_fd(), has("ridmap"))
        .call(|| "mount_setattr(…, MOUNT_ATTR_IDMAP)".to_owned())
        .trying(doing)?;
    Ok(tree)
}

/// A user namespace with these mappings, held by a process only until it is open here.
fn user_namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd, Trouble> {
    let doing = || "make a user namespace for a mount".to_owned();
    let (waits, ends) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .call(|| "pipe2()".to_owned())
        .trying(doing)?;
    let holder = sys::fork_namespaces(libc::CLONE_NEWUSER, || {
        sys::close_other_than(&[waits.as_fd()]);
        let _ = rustix::io::read(&waits, &mut [0_u8; 1][..]);
        0
    });
    let holder = holder.call(|| "clone3(CLONE_NEWUSER)".to_owned()).trying(doing)?;
    let written = super::ids::write(holder.pid, uids, gids).and_then(|()| {
        let path = format!("/proc/{}/ns/user", holder.pid);
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, rustix::fs::Mode::empty())
            .call(|| format!("open({path:?})"))
            .trying(doing)
    });
    drop(ends);
    crate::native::reap::collect(&holder.pidfd);
    written
}

/// Writes into the spec what it means without saying it; gives the mounts that become read-only in the end, because
/// others are mounted in them before.
pub(super) fn complete(spec: &mut Spec, groups: &[PathBuf]) -> Vec<PathBuf> {
    let mut late = Vec::new();
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let hidden = namespaces.iter().any(|one| one.typ() == LinuxNamespaceType::Cgroup);
    let label = linux.and_then(|linux| linux.mount_label().clone()).filter(|label| !label.is_empty());
    let mut list = Vec::new();
    for mut mount in spec.mounts().iter().flatten().cloned() {
        if let Some(at) =
            mount.destination().strip_prefix("/").is_err().then(|| Path::new("/").join(mount.destination()))
        {
            mount.set_destination(at);
        }
        let options = mount.options().clone().unwrap_or_default();
        let writable: Vec<String> = options.iter().filter(|option| *option != "ro").cloned().collect();
        if matches!(mount.typ().as_deref(), Some("tmpfs" | "cgroup")) && writable.len() < options.len() {
            late.push(mount.destination().clone());
            if mount.typ().as_deref() == Some("tmpfs") {
                mount.set_options(Some(writable));
            }
        }
        if mount.typ().as_deref() == Some("cgroup") {
            list.extend(control_groups(&mount, groups, hidden));
            continue;
        }
        if let Some(label) = label.as_ref().filter(|_| takes_label(&mount)) {
            let mut options = mount.options().clone().unwrap_or_default();
            options.push(format!("context=\"{label}\""));
            mount.set_options(Some(options));
        }
        list.push(mount);
    }
    spec.set_mounts(Some(list));
    let Some(linux) = spec.linux_mut() else { return late };
    let mut devices = linux.devices().clone().unwrap_or_default();
    for device in mounts::default_devices().unwrap_or_default() {
        if !devices.iter().any(|own| own.path() == device.path()) {
            devices.push(device);
        }
    }
    linux.set_devices(Some(devices));
    late
}

fn takes_label(mount: &Mount) -> bool {
    matches!(mount.typ().as_deref(), Some("tmpfs" | "devpts" | "mqueue"))
}

/// A mount of the type `cgroup`: what a container sees of its control groups. Version 1 is a directory with a mount for
/// every hierarchy.
fn control_groups(mount: &Mount, groups: &[PathBuf], hidden: bool) -> Vec<Mount> {
    let all = hierarchies();
    let options = mount.options().clone().unwrap_or_default();
    let at = mount.destination();
    if let [only] = &all[..]
        && only.v2
    {
        return hierarchy(only, at, groups, hidden, &options).into_iter().collect();
    }
    // The hierarchies are mounted in it, so it can be made read-only only afterwards.
    let base: Vec<String> = options.iter().filter(|option| *option != "ro").cloned().collect();
    let small = base.iter().cloned().chain(["mode=755", "size=1024k"].map(str::to_owned)).collect();
    let mut list = Vec::from_iter(build(at, "tmpfs", Path::new("tmpfs"), small));
    for one in &all {
        let Some(name) = one.mount.file_name() else { continue };
        list.extend(hierarchy(one, &at.join(name), groups, hidden, &options));
    }
    list
}

/// With a cgroup namespace its own mount of a hierarchy, of which it sees its own group and those below; else its group.
fn hierarchy(
    one: &Hierarchy,
    at: &Path,
    groups: &[PathBuf],
    hidden: bool,
    options: &[String],
) -> Option<Mount> {
    let mut options = options.to_vec();
    if hidden {
        let kind = if one.v2 { "cgroup2" } else { "cgroup" };
        // A hierarchy without a controller is found by its name alone.
        if one.controllers.iter().all(|name| name.starts_with("name=")) && !one.v2 {
            options.push("none".to_owned());
        }
        options.extend(one.controllers.iter().cloned());
        return build(at, kind, Path::new("cgroup"), options);
    }
    let source = groups.iter().find(|group| group.starts_with(&one.mount)).unwrap_or(&one.mount);
    options.push("rbind".to_owned());
    build(at, "bind", source, options)
}

fn build(at: &Path, kind: &str, source: &Path, options: Vec<String>) -> Option<Mount> {
    MountBuilder::default().destination(at).typ(kind).source(source).options(options).build().ok()
}
