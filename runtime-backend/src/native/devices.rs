//! Devices of the host that a container gets, and the rules that keep it from all others.
//!
//! A container finds device nodes dead: what it writes to is mounted `nodev`. Who may mount could bring them to life, so
//! such a container is in a control group whose processes the kernel lets open only what is allowed.

use super::sys::DeviceRule;
use crate::driver::Result;
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use rustix::fs::FileType;
use shakedown_spec::{Device, Failure, FailureKind};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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

/// What the processes of a container with these devices may use.
pub(crate) fn rules(devices: &[HostDevice]) -> Vec<DeviceRule> {
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
}
