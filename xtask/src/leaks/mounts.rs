//! Mounts: root file systems of containers, in the mount namespace of any process.

use std::collections::BTreeMap;
use std::fs;

use super::Found;
use super::processes::Process;

/// The file systems that containers are made of. Others are bound from what is there anyway, and a mount of the
/// directory in which somebody works on Shakedown is not ours.
const FILE_SYSTEMS: &[&str] = &["overlay", "tmpfs"];

/// One line of `/proc/<pid>/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    device: &'a str,
    point: &'a str,
    file_system: &'a str,
    source: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// proc_pid_mountinfo(5): the optional fields end with a hyphen of its own.
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, super_block) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let device = mount.next()?;
        let point = mount.nth(1)?;
        let mut super_block = super_block.split(' ');
        Some(Self {
            device,
            point,
            file_system: super_block.next()?,
            source: super_block.next()?,
            options: super_block.next().unwrap_or_default(),
        })
    }

    fn is_ours(&self) -> bool {
        FILE_SYSTEMS.contains(&self.file_system)
            && [self.point, self.source, self.options].iter().any(|text| text.contains("shakedown"))
    }
}

pub(super) fn look(processes: &[Process], found: &mut Found) {
    // Most processes share a namespace: each mount is told once, with the first process that sees it.
    let mut ours: BTreeMap<(String, String), (String, usize)> = BTreeMap::new();
    let mut hidden = 0;
    for process in processes {
        let Ok(text) = fs::read_to_string(format!("/proc/{}/mountinfo", process.pid)) else {
            hidden += 1;
            continue;
        };
        for mount in text.lines().filter_map(Mount::parse).filter(Mount::is_ours) {
            let seen = ours.entry((mount.point.to_owned(), mount.device.to_owned())).or_insert_with(|| {
                (
                    format!(
                        "{} {}, seen by {} ({})",
                        mount.file_system, mount.source, process.pid, process.comm
                    ),
                    0,
                )
            });
            seen.1 += 1;
        }
    }
    for ((point, _), (detail, seen)) in ours {
        let others = if seen > 1 { format!(" and {} more", seen - 1) } else { String::new() };
        found.add("mount", point, detail + &others);
    }
    if hidden > 0 {
        found.unseen(format!("the mounts of {hidden} processes of other users (look as root for these)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, ours: bool) {
        assert_eq!(Mount::parse(line).map(|mount| mount.is_ours()), Some(ours), "{line}");
    }

    /// A container's root is found by the layers it is made of, a directory of ours by its path.
    #[test]
    fn mounts_of_ours_are_recognised() {
        check("97 27 0:42 / / rw shared:3 - overlay none rw,lowerdir=/root/.cache/shakedown/layers/1f", true);
        check("97 27 0:43 / /run/shakedown/sessions/run-1/x rw - tmpfs none rw", true);
    }

    /// A checkout of this repository that is mounted into a virtual machine is no leak.
    #[test]
    fn other_mounts_are_not() {
        check("97 27 254:0 /home /home/me/shakedown rw,relatime master:1 - ext4 /dev/vda rw", false);
        check("97 27 0:44 / /var/lib/docker/overlay2/1f/merged rw - overlay overlay rw,lowerdir=l/A", false);
    }

    /// A line with several optional fields, or none, has its fields where they belong.
    #[test]
    fn optional_fields_are_skipped() {
        let mount = Mount::parse("1 2 0:5 / /mnt rw shared:1 master:2 - tmpfs src size=4k").unwrap();
        let expected =
            Mount { device: "0:5", point: "/mnt", file_system: "tmpfs", source: "src", options: "size=4k" };
        assert_eq!(mount, expected);
    }
}
