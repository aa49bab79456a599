//! Which devices the processes of a group may open and make: rules of the `devices` hierarchy of version 1, a BPF program
//! at a group of version 2.

use super::place::{DEVICES, Missing, Place, Surroundings};
use super::{Cgroup, Layout};
use crate::native::sys::{self, DeviceRule};
use rustix::fs::{Mode, OFlags};
use shakedown_spec::{Failure, FailureKind};
use std::fs;
use std::io;
use std::path::Path;

impl Surroundings {
    /// Where devices are allowed and denied. Version 1 is preferred: where it has them, version 2 does not ask.
    pub(super) fn devices(&self) -> Place {
        if self.root { self.place(DEVICES) } else { Place::Missing(Missing::kernel("it needs root")) }
    }
}

impl Layout {
    /// Lets the processes of a container use these devices alone: in a group of their own, or in the one with its limits.
    pub(crate) fn restrict_devices(
        &self,
        cgroup: &mut Cgroup,
        session: &str,
        id: &str,
        rules: &[DeviceRule],
    ) -> Result<(), Failure> {
        let (base, v2) = self.base(DEVICES).map_err(|missing| restricted(missing.reason))?;
        let made = cgroup.add(DEVICES, base, v2, session, id);
        made.map_err(|(file, error)| restricted(format!("{}: {error}", file.display())))?;
        let Some(group) = cgroup.group(DEVICES) else { return Ok(()) };
        let written = if group.v2 { attach(&group.path, rules) } else { write(&group.path, rules) };
        written.map_err(|error| restricted(format!("{}: {error}", group.path.display())))
    }
}

fn restricted(reason: String) -> Failure {
    Failure::new(FailureKind::Unsupported, "the devices of a container cannot be restricted here")
        .fact("reason", reason)
        .hint("leave out `SYS_ADMIN`, and the permissions of devices; or use `.privileged()`")
}

fn write(group: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    fs::write(group.join("devices.deny"), "a")?;
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    for rule in rules {
        let kind = if rule.block { 'b' } else { 'c' };
        let line = format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), rule.access);
        fs::write(group.join("devices.allow"), line)?;
    }
    Ok(())
}

fn attach(group: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let directory =
        rustix::fs::open(group, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    sys::attach_device_rules(&directory, rules).map_err(|error| io::Error::other(error.to_string()))
}
