//! The mounts of a container, each put in place by descriptor: no path is resolved twice, and none outside the root.

use super::{Trouble, Trying};
use crate::native::sys::{self, Called};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use rustix::process::{Gid, Uid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The devices every container has (OCI runtime spec, "Default Devices"): path, major and minor number.
pub(crate) const DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// What may be mounted on in `/proc`: figures that a container may be told otherwise. Everything else there is what the
/// kernel, and who starts programs in the container, is told through (CVE-2019-19921, CVE-2025-52881). The list is runc's.
const MAY_COVER: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Makes the default devices in `directory`, which this mounts a small file system on: nodes of the session's own, so
/// that a container that changes their mode changes nobody else's.
pub(crate) fn make_devices(directory: &Path) -> Result<(), Trouble> {
    let doing = || "make the devices of containers".to_owned();
    let options = ["nosuid", "noexec", "size=64k", "mode=755"].map(str::to_owned);
    let mounted = new_file_system("tmpfs", &Options::parse(&options)).trying(doing)?;
    for (path, major, minor) in DEVICES {
        let name = path.trim_start_matches("/dev/");
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(
            &mounted,
            name,
            FileType::CharacterDevice,
            mode,
            rustix::fs::makedev(major, minor),
        )
        .call(|| format!("mknodat({name:?}, S_IFCHR|0666, {major}:{minor})"))
        .trying(doing)?;
    }
    move_mount(&mounted, "", CWD, directory, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .call(|| format!("move_mount(tmpfs, {directory:?})"))
        .trying(doing)
}

/// The options of a mount, sorted into what the kernel wants to be told where.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options<'a> {
    attributes: u32,
    read_only: bool,
    recursive: bool,
    bind: bool,
    data: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> Options<'a> {
    fn parse(options: &'a [String]) -> Self {
        let mut parsed = Self::default();
        for option in options {
            match option.as_str() {
                "ro" => parsed.read_only = true,
                "nosuid" => parsed.attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID.bits(),
                "nodev" => parsed.attributes |= MountAttrFlags::MOUNT_ATTR_NODEV.bits(),
                "noexec" => parsed.attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC.bits(),
                "noatime" => parsed.attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME.bits(),
                "strictatime" => parsed.attributes |= MountAttrFlags::MOUNT_ATTR_STRICTATIME.bits(),
                "rbind" => (parsed.bind, parsed.recursive) = (true, true),
                "bind" => parsed.bind = true,
                // Defaults, and propagation: the container's mounts are private anyway.
                "rw" | "suid" | "dev" | "exec" | "relatime" | "private" | "rprivate" | "slave" | "rslave" => {
                }
                other => parsed.data.push(match other.split_once('=') {
                    Some((key, value)) => (key, Some(value)),
                    None => (other, None),
                }),
            }
        }
        if parsed.read_only {
            parsed.attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY.bits();
        }
        parsed
    }
}

/// Whether the spec's mount shows a part of the host; its source is opened by the launcher.
pub(crate) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || Options::parse(mount.options().as_deref().unwrap_or_default()).bind
}

/// Opens the source of a bind mount as a detached tree.
pub(crate) fn open_bind(source: &Path) -> Result<OwnedFd, Trouble> {
    // Recursive, because what is mounted below the source may hide what must not be seen; the kernel insists on it
    // for mounts inherited from a more privileged namespace (mount_namespaces(7), "locked together").
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, source, flags)
        .call(|| format!("open_tree(AT_FDCWD, {source:?}, OPEN_TREE_CLONE|AT_RECURSIVE)"))
        .trying(|| format!("mount `{}` of the host", source.display()))
}

/// A second, independent mount of the same file system.
pub(crate) fn clone_mount(mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(mount, "", flags)
}

/// The container's root, as the process that builds it sees it.
#[derive(Debug)]
pub(super) struct Root<'a> {
    fd: BorrowedFd<'a>,
}

impl<'a> Root<'a> {
    pub(super) fn new(fd: BorrowedFd<'a>) -> Self {
        Self { fd }
    }

    /// Opens a path of the container as the container would see it, never leaving its root.
    pub(super) fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        resolve(self.fd, path, flags)
    }

    /// The place where something is to be mounted, made if it is missing: a directory, or an empty file.
    fn target(&self, path: &Path, directory: bool) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlags::PATH | OFlags::CLOEXEC) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        let mut made = PathBuf::new();
        for component in path.parent().into_iter().flat_map(Path::components) {
            made.push(component);
            self.make_directory(&made)?;
        }
        if directory {
            self.make_directory(path)?;
        } else {
            let (parent, name) = self.parent(path)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
        }
        self.open(path, OFlags::PATH | OFlags::CLOEXEC)
    }

    fn make_directory(&self, path: &Path) -> Result<(), Errno> {
        let Ok((parent, name)) = self.parent(path) else { return Ok(()) };
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) | Ok(()) => Ok(()),
            Err(other) => Err(other),
        }
    }

    fn parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p std::ffi::OsStr), Errno> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
        Ok((self.open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)?, name))
    }

    /// Puts a detached mount in place.
    fn attach(&self, mount: &OwnedFd, path: &Path, directory: bool) -> Result<(), Trouble> {
        let doing = || format!("mount {} in the container", path.display());
        let target = self
            .target(path, directory)
            .call(|| format!("openat2({path:?}, RESOLVE_IN_ROOT)"))
            .trying(doing)?;
        if is_proc(target.as_fd())
            && !is_proc(mount.as_fd())
            && !MAY_COVER.iter().any(|known| Path::new(known) == path)
        {
            return Err(Trouble::new(doing(), "it would cover what the kernel shows in /proc"));
        }
        move_onto(mount.as_fd(), target.as_fd()).call(|| format!("move_mount(…, {path:?})")).trying(doing)
    }

    fn is_link(&self, path: &Path) -> bool {
        let found = self.open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC);
        let kind = found.and_then(rustix::fs::fstat).map(|stat| FileType::from_raw_mode(stat.st_mode));
        kind == Ok(FileType::Symlink)
    }

    /// Carries out one mount of the spec; `bind` is the opened source of a bind mount.
    pub(super) fn mount(&self, mount: &Mount, bind: Option<&OwnedFd>) -> Result<(), Trouble> {
        let path = mount.destination();
        let options = Options::parse(mount.options().as_deref().unwrap_or_default());
        if let Some(source) = bind {
            // Private as well: what the host mounts below the source later is not shown.
            sys::mount_set_attributes(source.as_fd(), options.attributes.into(), true)
                .call(|| format!("mount_setattr({path:?}, {:#x})", options.attributes))
                .trying(|| format!("set the options of the mount at {}", path.display()))?;
            let directory = rustix::fs::fstat(source)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
            return self.attach(source, path, directory);
        }
        let kind = mount.typ().as_deref().unwrap_or("none");
        // What is masked is looked for by name afterwards: it has to be where the name says.
        if matches!(kind, "proc" | "sysfs") && self.is_link(path) {
            let doing = format!("mount {} in the container", path.display());
            return Err(Trouble::new(doing, "it is a link, and not a directory, in the container's files"));
        }
        let made = new_file_system(kind, &options)
            .trying(|| format!("mount {} in the container", path.display()))
            .map_err(|trouble| explain(kind, trouble))?;
        self.attach(&made, path, true)
    }

    /// Shows a device of `ready`, or makes a node, or shows the host's where nodes may not be made (in a user
    /// namespace).
    pub(super) fn device(&self, device: &LinuxDevice, ready: Option<&Path>) -> Result<(), Trouble> {
        let path = device.path();
        let ready_directory = ready;
        let ready = ready.zip(path.file_name()).map(|(directory, name)| directory.join(name));
        if let Some(node) = ready.filter(|_| DEVICES.iter().any(|(name, ..)| Path::new(name) == path)) {
            return self.attach(&open_bind(&node)?, path, false);
        }
        let doing = || format!("make the device {} in the container", path.display());
        if let Some(directory) = ready_directory {
            return self.fresh_node(device, directory);
        }
        let (parent, name) = self.parent(path).call(|| format!("openat2({path:?})")).trying(doing)?;
        let (kind, mode, major, minor) = node_of(device);
        match rustix::fs::mknodat(&parent, name, kind, mode, rustix::fs::makedev(major, minor)) {
            Ok(()) => {}
            Err(Errno::PERM) => return self.attach(&open_bind(path)?, path, false),
            Err(errno) => {
                return Err(errno)
                    .call(|| format!("mknodat({path:?}, {mode:?}, {major}:{minor})"))
                    .trying(doing);
            }
        }
        // The umask of this process has taken bits away.
        rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())
            .call(|| format!("fchmodat({path:?})"))
            .trying(doing)
    }

    /// Shows a node of its own, which lives as long as it is mounted somewhere: `directory` is on a file system that the
    /// launcher made for nodes, unlike the container's own files, in which they are dead.
    fn fresh_node(&self, device: &LinuxDevice, directory: &Path) -> Result<(), Trouble> {
        let node = directory.join("new");
        let made = make_node(device, &node);
        // Its name goes last: what has none is not mounted.
        let shown = made.and_then(|()| self.attach(&open_bind(&node)?, device.path(), false));
        let _ = rustix::fs::unlink(&node);
        shown
    }

    /// Covers a path so that nothing of it can be read; one that is not there needs no cover. `empty` is the directory
    /// that others were covered with.
    pub(super) fn mask(&self, path: &Path, empty: &mut Option<OwnedFd>) -> Result<(), Trouble> {
        let doing = || format!("mask {}", path.display());
        let target = match self.open(path, OFlags::PATH | OFlags::CLOEXEC) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(()),
            Err(errno) => return Err(errno).call(|| format!("openat2({path:?})")).trying(doing),
        };
        let directory = rustix::fs::fstat(&target)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        let cover = match empty.as_ref().filter(|_| directory) {
            Some(empty) => clone_mount(empty.as_fd())
                .call(|| "open_tree(empty, \"\", OPEN_TREE_CLONE|AT_EMPTY_PATH)".to_owned())
                .trying(doing)?,
            None if directory => empty_directory()?,
            None => {
                self.null().call(|| "open_tree(\"/dev/null\", OPEN_TREE_CLONE)".to_owned()).trying(doing)?
            }
        };
        move_onto(cover.as_fd(), target.as_fd()).call(|| format!("move_mount(…, {path:?})")).trying(doing)?;
        // In place, it can be copied on every kernel; one that is not attached only since Linux 6.15.
        if directory && empty.is_none() {
            *empty = Some(cover);
        }
        Ok(())
    }

    /// The container's own `/dev/null`, which has to be the real one: a fake would be shown in place of what is
    /// masked (CVE-2025-31133).
    fn null(&self) -> Result<OwnedFd, Errno> {
        let null = self.open(Path::new("/dev/null"), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
        let stat = rustix::fs::fstat(&null)?;
        let real = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3);
        if real { clone_mount(null.as_fd()) } else { Err(Errno::NODEV) }
    }

    /// Makes a path read-only; one that is not there needs nothing.
    pub(super) fn protect(&self, path: &Path) -> Result<(), Trouble> {
        let doing = || format!("make {} read-only", path.display());
        let target = match self.open(path, OFlags::PATH | OFlags::CLOEXEC) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(()),
            Err(errno) => return Err(errno).call(|| format!("openat2({path:?})")).trying(doing),
        };
        let copy = clone_mount(target.as_fd()).call(|| format!("open_tree({path:?})")).trying(doing)?;
        sys::mount_set_attributes(copy.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(), true)
            .call(|| format!("mount_setattr({path:?}, MOUNT_ATTR_RDONLY)"))
            .trying(doing)?;
        move_onto(copy.as_fd(), target.as_fd()).call(|| format!("move_mount(…, {path:?})")).trying(doing)
    }

    /// Makes the symbolic links that every `/dev` has (OCI runtime spec, "Default Devices").
    pub(super) fn default_links(&self) -> Result<(), Trouble> {
        const LINKS: [(&str, &str); 5] = [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ];
        let doing = || "make the links in the container's /dev".to_owned();
        let dev = self
            .open(Path::new("/dev"), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)
            .call(|| "openat2(\"/dev\")".to_owned())
            .trying(doing)?;
        for (name, target) in LINKS {
            match rustix::fs::symlinkat(target, &dev, name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => {
                    return Err(errno).call(|| format!("symlinkat({target:?}, {name:?})")).trying(doing);
                }
            }
        }
        Ok(())
    }
}

/// What a device's node is: kind, mode, and the device's number.
fn node_of(device: &LinuxDevice) -> (FileType, Mode, u32, u32) {
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        _ => FileType::CharacterDevice,
    };
    let mode = Mode::from_raw_mode(device.file_mode().unwrap_or(0o666));
    (kind, mode, device.major() as u32, device.minor() as u32)
}

/// Makes a node; its mode and owner are the device's.
fn make_node(device: &LinuxDevice, node: &Path) -> Result<(), Trouble> {
    let doing = || format!("make the device {} in the container", device.path().display());
    let (kind, mode, major, minor) = node_of(device);
    rustix::fs::mknodat(CWD, node, kind, mode, rustix::fs::makedev(major, minor))
        .call(|| format!("mknodat({node:?}, {mode:?}, {major}:{minor})"))
        .trying(doing)?;
    let owner = device.uid().map(Uid::from_raw).zip(device.gid().map(Gid::from_raw));
    let owned = match owner {
        Some((uid, gid)) => rustix::fs::chown(node, Some(uid), Some(gid)),
        None => Ok(()),
    };
    // The umask of this process has taken bits away.
    owned.and_then(|()| rustix::fs::chmod(node, mode)).call(|| format!("chown({node:?})")).trying(doing)
}

/// Opens a path beneath `root` as a process whose `/` it is would see it.
pub(crate) fn resolve(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: something was renamed meanwhile and the kernel could not prove that the path stays beneath. Who renames for
    // ever is not waited for.
    for _ in 0..128 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), how) {
            Err(Errno::AGAIN) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

fn move_onto(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// The type of a procfs, as statfs(2) names it.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

fn is_proc(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|kind| u64::try_from(kind.f_type) == Ok(PROC_SUPER_MAGIC))
}

/// A procfs of this process's own, which is nowhere: one that a container could have mounted something on would lead
/// what is written elsewhere (CVE-2019-19921, CVE-2025-52881).
pub(super) fn private_proc() -> Result<OwnedFd, Errno> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Puts the container's root over the launcher's `/`, from where it is made the only root.
pub(super) fn attach_root(root: BorrowedFd<'_>) -> Result<(), Errno> {
    move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn new_file_system(kind: &str, options: &Options<'_>) -> Result<OwnedFd, sys::CallError> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).call(|| format!("fsopen({kind:?})"))?;
    for (key, value) in &options.data {
        match value {
            Some(value) => fsconfig_set_string(&context, *key, *value),
            None => fsconfig_set_flag(&context, *key),
        }
        .call(|| format!("fsconfig({kind}, {key:?}, {value:?})"))?;
    }
    fsconfig_create(&context).call(|| format!("fsconfig({kind}, FSCONFIG_CMD_CREATE)"))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(options.attributes))
        .call(|| format!("fsmount({kind}, {:#x})", options.attributes))
}

/// An empty read-only directory to cover others with.
fn empty_directory() -> Result<OwnedFd, Trouble> {
    let options = ["ro", "nosuid", "nodev", "noexec", "size=0k", "mode=555"].map(str::to_owned);
    new_file_system("tmpfs", &Options::parse(&options))
        .trying(|| "make an empty directory for masks".to_owned())
}

/// Finds out why a file system could not be mounted.
fn explain(kind: &str, trouble: Trouble) -> Trouble {
    let refused = trouble.call.as_ref().is_some_and(|call| call.ends_with("EPERM"));
    let reason = match kind {
        "proc" if refused => {
            "part of the outer /proc is covered by other mounts, so the kernel refuses a fresh one; in a container, \
             run it with `--security-opt systempaths=unconfined`"
        }
        "sysfs" if refused => "the network namespace belongs to another user namespace",
        _ => return trouble,
    };
    Trouble { reason: Some(reason.to_owned()), ..trouble }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Options of a spec end up where the kernel wants them.
    #[test]
    fn options_are_sorted() {
        let options = ["nosuid", "ro", "size=64k", "newinstance", "rprivate"].map(str::to_owned);
        let parsed = Options::parse(&options);
        assert!(parsed.read_only && !parsed.bind);
        assert_eq!(parsed.data, [("size", Some("64k")), ("newinstance", None)]);
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_RDONLY;
        assert_eq!(parsed.attributes, flags.bits());
    }
}
