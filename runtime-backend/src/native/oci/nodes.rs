//! Rules for devices where the machine has no controller for them: with version 2 of control groups alone, the kernel asks
//! a BPF program, which this runtime does not have. Instead, device nodes are dead in all mounts but the container's own
//! `/dev`, and in there nobody can make any.

use super::groups::hierarchies;
use oci_spec::runtime::{Capability, LinuxDeviceType, Process, Spec};

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
