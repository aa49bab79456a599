//! Devices of the host that a container gets, and the control group that keeps it from all others.
//!
//! A container finds device nodes dead: what it writes to is mounted `nodev`. Who may mount could bring them to life, so
//! such a container is in a group whose processes the kernel lets open only what is allowed: the `devices` hierarchy of
//! cgroup v1, else a BPF program at a group of v2.

use super::sys::{self, DeviceRule};
use crate::driver::Result;
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use rustix::fs::{FileType, Mode, OFlags};
use shakedown_spec::{Device, Failure, FailureKind};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A declared device, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostDevice {
    /// Where it is on the host.
    pub(crate) source: String,
    /// Where it is in the container.
    pub(crate) target: String,
    /// `r`, `w`, `m`.
    pub(crate) permissions: String,
    block: bool,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl HostDevice {
    /// The device, or all that are in the directory that is named.
    pub(crate) fn find(device: &Device) -> Result<Vec<Self>> {
        let invalid = |reason: String| {
            Failure::new(FailureKind::Invalid, format!("the device {} cannot be given", device.source))
                .fact("reason", reason)
        };
        if !device.permissions().bytes().all(|b| b"rwm".contains(&b)) || device.permissions().is_empty() {
            return Err(invalid(format!(
                "`{}` is not of the letters `r`, `w` and `m`",
                device.permissions()
            )));
        }
        let (source, target) = (Path::new(&device.source), Path::new(device.target()));
        if !source.is_absolute() || !target.is_absolute() {
            return Err(invalid("its paths have to be absolute".to_owned()));
        }
        let mut found = Vec::new();
        Self::collect(source, target, device.permissions(), &mut found)
            .map_err(|error| invalid(error.to_string()))?;
        if found.is_empty() {
            return Err(invalid("it is neither a device nor a directory of devices".to_owned()));
        }
        Ok(found)
    }

    fn collect(source: &Path, target: &Path, permissions: &str, found: &mut Vec<Self>) -> io::Result<()> {
        let stat = fs::metadata(source)?;
        let kind = FileType::from_raw_mode(stat.mode());
        if kind == FileType::Directory {
            for entry in fs::read_dir(source)? {
                let name = entry?.file_name();
                Self::collect(&source.join(&name), &target.join(&name), permissions, found)?;
            }
        } else if matches!(kind, FileType::BlockDevice | FileType::CharacterDevice) {
            found.push(Self {
                source: source.to_string_lossy().into_owned(),
                target: target.to_string_lossy().into_owned(),
                permissions: permissions.to_owned(),
                block: kind == FileType::BlockDevice,
                major: rustix::fs::major(stat.rdev()),
                minor: rustix::fs::minor(stat.rdev()),
                mode: stat.mode() & 0o777,
                uid: stat.uid(),
                gid: stat.gid(),
            });
        }
        Ok(())
    }

    /// As a runtime spec has it.
    pub(crate) fn in_spec(&self) -> std::result::Result<LinuxDevice, OciSpecError> {
        LinuxDeviceBuilder::default()
            .path(&self.target)
            .typ(if self.block { LinuxDeviceType::B } else { LinuxDeviceType::C })
            .major(i64::from(self.major))
            .minor(i64::from(self.minor))
            .file_mode(self.mode)
            .uid(self.uid)
            .gid(self.gid)
            .build()
    }

    /// Whether less than everything may be done with it.
    pub(crate) fn is_restricted(&self) -> bool {
        !(self.permissions.contains('r') && self.permissions.contains('w'))
    }
}

/// What every container may do, as under Docker: make any node, use the harmless ones and terminals.
const USUAL: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

fn rules(devices: &[HostDevice]) -> Vec<DeviceRule> {
    let make = |block| DeviceRule { block, major: None, minor: None, access: "m".to_owned() };
    let usual = |(major, minor): (u32, Option<u32>)| DeviceRule {
        block: false,
        major: Some(major),
        minor,
        access: "rwm".to_owned(),
    };
    let declared = |device: &HostDevice| DeviceRule {
        block: device.block,
        major: Some(device.major),
        minor: Some(device.minor),
        access: device.permissions.clone(),
    };
    [make(false), make(true)]
        .into_iter()
        .chain(USUAL.into_iter().map(usual))
        .chain(devices.iter().map(declared))
        .collect()
}

/// A hierarchy in which devices can be allowed and denied.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchy {
    V1(PathBuf),
    V2(PathBuf),
}

/// Where groups are made, or why there are none.
fn hierarchy() -> std::result::Result<Hierarchy, String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    find(&mounts, &own)
}

fn find(mounts: &str, own: &str) -> std::result::Result<Hierarchy, String> {
    let mounted = |kind: &str, option: Option<&str>| {
        mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut fields = after.split_ascii_whitespace();
            let fits = fields.next()? == kind
                && option.is_none_or(|wanted| {
                    fields.nth(1).is_some_and(|options| options.split(',').any(|option| option == wanted))
                });
            fits.then(|| before.split_ascii_whitespace().nth(4).map(PathBuf::from))?
        })
    };
    // Below the own group: what it is denied stays denied.
    let below = |mount: PathBuf, wanted: &dyn Fn(&str) -> bool| {
        let fields = own.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let path =
            fields.filter(|fields| fields.len() == 3 && wanted(fields[1])).map(|fields| fields[2]).next();
        let place = mount.join(path.unwrap_or_default().trim_start_matches('/'));
        if place.is_dir() { place } else { mount }
    };
    if let Some(mount) = mounted("cgroup", Some("devices")) {
        return Ok(Hierarchy::V1(below(mount, &|names| names.split(',').any(|name| name == "devices"))));
    }
    match mounted("cgroup2", None) {
        Some(mount) => Ok(Hierarchy::V2(below(mount, &str::is_empty))),
        None => Err("no cgroup hierarchy is mounted".to_owned()),
    }
}

/// Why devices cannot be allowed and denied here.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    let place = match hierarchy() {
        Ok(Hierarchy::V1(place) | Hierarchy::V2(place)) => place,
        Err(reason) => return Some(reason),
    };
    let writable = rustix::fs::access(&place, rustix::fs::Access::WRITE_OK);
    writable.err().map(|error| format!("{} cannot be written to: {error}", place.display()))
}

/// The group of one container, removed when dropped (which has to be after its last process has ended).
#[derive(Debug)]
pub(crate) struct DeviceGroup {
    directory: PathBuf,
}

impl DeviceGroup {
    /// Makes a group whose processes may use these devices and the usual ones.
    pub(crate) fn create(session: &str, id: &str, devices: &[HostDevice]) -> Result<Self> {
        let failed = |reason: String| {
            Failure::new(FailureKind::Unsupported, "the devices of a container cannot be restricted here")
                .fact("reason", reason)
                .hint("leave out `SYS_ADMIN`, and the permissions of devices; or use `.privileged()`")
        };
        let hierarchy = hierarchy().map_err(failed)?;
        let (Hierarchy::V1(base) | Hierarchy::V2(base)) = &hierarchy;
        let group = Self { directory: base.join(group_name(session)).join(id) };
        let made = fs::create_dir_all(&group.directory);
        made.map_err(|error| failed(format!("{}: {error}", group.directory.display())))?;
        let rules = rules(devices);
        match hierarchy {
            Hierarchy::V1(_) => group.write_rules(&rules),
            Hierarchy::V2(_) => group.attach_program(&rules),
        }
        .map_err(|error| failed(error.to_string()))?;
        Ok(group)
    }

    fn write_rules(&self, rules: &[DeviceRule]) -> io::Result<()> {
        fs::write(self.directory.join("devices.deny"), "a")?;
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        for rule in rules {
            let kind = if rule.block { 'b' } else { 'c' };
            let line = format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), rule.access);
            fs::write(self.directory.join("devices.allow"), line)?;
        }
        Ok(())
    }

    fn attach_program(&self, rules: &[DeviceRule]) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.directory, flags, Mode::empty())?;
        sys::attach_device_rules(&directory, rules).map_err(|error| io::Error::other(error.to_string()))
    }

    /// The file to which a process writes `0` to join.
    pub(crate) fn joining(&self) -> io::Result<OwnedFd> {
        let path = self.directory.join("cgroup.procs");
        Ok(rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

impl Drop for DeviceGroup {
    fn drop(&mut self) {
        // What cannot be removed yet is removed by the sweep of the next session.
        let _ = fs::remove_dir(&self.directory);
        // The session's own group goes with its last container.
        let _ = self.directory.parent().map(fs::remove_dir);
    }
}

/// Removes the groups of a dead session. Fails with `EBUSY` while a process in one of them is still ending.
pub(crate) fn sweep(session: &str) -> io::Result<()> {
    let Ok(Hierarchy::V1(base) | Hierarchy::V2(base)) = hierarchy() else { return Ok(()) };
    let top = base.join(group_name(session));
    let remove = |path: &Path| match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    for entry in fs::read_dir(&top).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    remove(&top)
}

/// Another name than that of the groups with limits, which may be in the same hierarchy.
fn group_name(session: &str) -> String {
    format!("shakedown-{session}-devices")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that is not there, or is none, is told before anything is started.
    #[test]
    fn missing_devices_are_told() {
        let told = |device: &str| HostDevice::find(&Device::from(device)).unwrap_err().to_string();
        insta::assert_snapshot!(told("/dev/no-such-device"), @r"
        the device /dev/no-such-device cannot be given
          reason: No such file or directory (os error 2)
        ");
        insta::assert_snapshot!(told("/etc/passwd"), @r"
        the device /etc/passwd cannot be given
          reason: it is neither a device nor a directory of devices
        ");
        insta::assert_snapshot!(told("/dev/null:rx"), @r"
        the device /dev/null cannot be given
          reason: `rx` is not of the letters `r`, `w` and `m`
        ");
        let [null] = &HostDevice::find(&Device::from("/dev/null:/dev/void:r")).unwrap()[..] else { panic!() };
        assert_eq!((null.major, null.minor, &*null.target, null.is_restricted()), (1, 3, "/dev/void", true));
    }

    /// Version 1 is preferred where both are: on such a machine programs of version 2 may not be asked.
    #[test]
    fn the_hierarchy_is_found() {
        let v1 = "30 29 0:26 / /nowhere/devices rw - cgroup cgroup rw,devices\n";
        let v2 = "31 29 0:27 / /nowhere/unified rw - cgroup2 cgroup2 rw\n";
        let both = format!("{v2}{v1}");
        assert_eq!(find(&both, ""), Ok(Hierarchy::V1("/nowhere/devices".into())));
        assert_eq!(find(v2, ""), Ok(Hierarchy::V2("/nowhere/unified".into())));
        assert!(find("", "").is_err());
    }
}
