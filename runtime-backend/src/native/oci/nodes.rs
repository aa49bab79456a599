//! Device nodes that the launch code alone cannot make or deny.
//!
//! Rules for devices where the machine has no controller for them: with version 2 of control groups alone, the kernel asks
//! a BPF program, which is not attached here. Instead, device nodes are dead in all mounts but the container's own
//! `/dev`, and in there nobody can make any.
//!
//! In a user namespace no node can be made that works, so that root makes them outside of it.

use super::groups::hierarchies;
use super::ids;
use super::talk::{Line, Word};
use crate::native::launch::mounts::{self, DEVICES};
use crate::native::launch::{Trouble, Trying};
use crate::native::sys::{self, Called};
use oci_spec::runtime::{Capability, LinuxDevice, LinuxDeviceType, Process, Spec};
use rustix::mount::MountPropagationFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Whether devices are to be denied, and no controller does so.
pub(super) fn are_dead(spec: &Spec) -> bool {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let all = |kind: Option<LinuxDeviceType>| matches!(kind, None | Some(LinuxDeviceType::A));
    let denied = rules.iter().any(|rule| !rule.allow() && all(rule.typ()));
    denied && !hierarchies().iter().any(|hierarchy| hierarchy.has("devices"))
}

/// Marks every mount but `/dev`.
pub(super) fn kill_in_mounts(spec: &mut Spec) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in mounts.iter_mut().filter(|mount| mount.destination() != std::path::Path::new("/dev")) {
        let mut options = mount.options().clone().unwrap_or_default();
        options.retain(|option| option != "dev" && option != "rdev");
        options.extend(["nodev", "rnodev"].map(str::to_owned));
        mount.set_options(Some(options));
    }
    spec.set_mounts(Some(mounts));
}

/// Takes the right to make nodes.
pub(super) fn forbid(process: &mut Process) {
    let Some(mut sets) = process.capabilities().clone() else { return };
    let without = |set: &Option<oci_spec::runtime::Capabilities>| {
        set.as_ref().map(|set| set.iter().copied().filter(|one| *one != Capability::Mknod).collect())
    };
    let (bounding, effective, permitted) =
        (without(sets.bounding()), without(sets.effective()), without(sets.permitted()));
    let (inheritable, ambient) = (without(sets.inheritable()), without(sets.ambient()));
    sets.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted)
        .set_inheritable(inheritable)
        .set_ambient(ambient);
    process.set_capabilities(Some(sets));
}

/// Takes the devices from the spec that are to be made outside of the container: all but the default ones, of which the
/// host's are shown.
pub(super) fn take_apart(spec: &mut Spec) -> Vec<LinuxDevice> {
    let Some(linux) = spec.linux_mut() else { return Vec::new() };
    let is_default = |device: &LinuxDevice| DEVICES.iter().any(|(path, ..)| device.path() == Path::new(path));
    let (usual, apart) = linux.devices().clone().unwrap_or_default().into_iter().partition(is_default);
    linux.set_devices(Some(usual));
    apart
}

/// Makes nodes for a container in a user namespace, and gives a mount of each. `directory` is any directory.
pub(super) fn make(spec: &Spec, devices: &[LinuxDevice], directory: &Path) -> Result<Vec<OwnedFd>, Trouble> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let (ours, theirs) = Line::pair()?;
    // In a mount namespace of its own: what is not attached anywhere can be shown in parts only since Linux 6.15, and the
    // host is to see nothing of it.
    let helper = sys::fork_namespaces(libc::CLONE_NEWNS, || {
        let given = show(spec, devices, directory).and_then(|nodes| {
            theirs.say(&Word::Ready)?;
            nodes.iter().try_for_each(|node| theirs.give(node.as_fd()))
        });
        given.err().map_or(0, |trouble| i32::from(theirs.say(&Word::Trouble(trouble)).is_ok()))
    });
    let helper = helper
        .call(|| "clone3(CLONE_NEWNS)".to_owned())
        .trying(|| "make the container's devices".to_owned())?;
    drop(theirs);
    let given = ours.hear().and_then(|word| match word {
        Word::Trouble(trouble) => Err(trouble),
        _ => devices.iter().map(|_| ours.take()).collect(),
    });
    crate::native::reap::collect(&helper.pidfd);
    given
}

fn show(spec: &Spec, devices: &[LinuxDevice], directory: &Path) -> Result<Vec<OwnedFd>, Trouble> {
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .call(|| "mount(NULL, \"/\", NULL, MS_REC|MS_SLAVE, NULL)".to_owned())
        .trying(|| "make the container's devices".to_owned())?;
    mounts::make_devices(directory)?;
    let one = |(number, device): (usize, &LinuxDevice)| {
        let node = directory.join(number.to_string());
        let mut device = device.clone();
        let owner = ids::outside(spec, device.uid().unwrap_or(0), device.gid().unwrap_or(0));
        device.set_uid(owner.map(|(uid, _)| uid)).set_gid(owner.map(|(_, gid)| gid));
        mounts::make_node(&device, &node).and_then(|()| mounts::open_bind(&node))
    };
    devices.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nothing denies devices, nobody in the container can make one.
    #[test]
    fn the_right_and_the_mounts_are_taken() {
        let mut spec = Spec::default();
        let mut process = spec.process().clone().unwrap();
        let all = [Capability::Mknod, Capability::Kill].into_iter().collect();
        let mut sets = process.capabilities().clone().unwrap_or_default();
        sets.set_bounding(Some(all));
        process.set_capabilities(Some(sets));
        forbid(&mut process);
        let left = process.capabilities().as_ref().unwrap().bounding().clone().unwrap();
        assert_eq!(Vec::from_iter(left), [Capability::Kill]);
        kill_in_mounts(&mut spec);
        let dead = |mount: &oci_spec::runtime::Mount| {
            mount.options().iter().flatten().any(|option| option == "rnodev")
        };
        for mount in spec.mounts().iter().flatten() {
            assert_eq!(dead(mount), mount.destination() != std::path::Path::new("/dev"), "{mount:?}");
        }
    }
}
