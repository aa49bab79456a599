//! The mounts of a container, each put in place by descriptor: no path is resolved twice, and none outside the root.

use super::{Trouble, Trying};
use crate::native::sys::{self, Called};
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, Mount};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
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

/// The same as a spec lists them.
pub(crate) fn default_devices() -> Result<Vec<LinuxDevice>, OciSpecError> {
    let device = |(path, major, minor): (&str, u32, u32)| {
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(LinuxDeviceType::C)
            .major(i64::from(major))
            .minor(i64::from(minor))
            .file_mode(0o666_u32)
            .build()
    };
    DEVICES.into_iter().map(device).collect()
}

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
/// that a container that changes their mode changes nobody else's. Returns the mount.
pub(crate) fn make_devices(directory: &Path) -> Result<OwnedFd, Trouble> {
    let doing = || "make the devices of containers".to_owned();
    let options = ["nosuid", "noexec", "size=64k", "mode=755"].map(str::to_owned);
    let mounted = new_file_system("tmpfs", None, &Options::parse(&options)).trying(doing)?;
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
        .trying(doing)?;
    Ok(mounted)
}

/// The options of a mount, sorted into what the kernel wants to be told where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options<'a> {
    /// What is set and cleared on the mount itself.
    pub(crate) own: Flags,
    /// The same on it and all mounts below it.
    pub(crate) below: Flags,
    /// How it is connected to others, if that is asked for; `MS_REC` with those below it.
    pub(crate) propagation: MountPropagationFlags,
    pub(crate) bind: bool,
    /// Whether a new file system begins with what was in its place.
    pub(crate) copy_up: bool,
    /// What the file system itself is told.
    pub(crate) data: Vec<(&'a str, Option<&'a str>)>,
}

/// Attributes of a mount, as `mount_setattr(2)` takes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) set: u32,
    pub(crate) clear: u32,
}

impl Flags {
    fn put(&mut self, flag: u32, on: bool) {
        let (set, clear) =
            if on { (&mut self.set, &mut self.clear) } else { (&mut self.clear, &mut self.set) };
        *set |= flag;
        *clear &= !flag;
    }

    /// When the time of access is written is one choice of several, so the others have to go.
    fn put_access_time(&mut self, choice: u32) {
        let all = MountAttrFlags::MOUNT_ATTR__ATIME.bits();
        self.set = self.set & !all | choice;
        self.clear |= all;
    }

    /// Sets or clears what an option stands for; false if it stands for no attribute.
    fn apply(&mut self, option: &str) -> bool {
        use MountAttrFlags as Attr;
        let (flag, on) = match option {
            "ro" => (Attr::MOUNT_ATTR_RDONLY, true),
            "rw" => (Attr::MOUNT_ATTR_RDONLY, false),
            "nosuid" => (Attr::MOUNT_ATTR_NOSUID, true),
            "suid" => (Attr::MOUNT_ATTR_NOSUID, false),
            "nodev" => (Attr::MOUNT_ATTR_NODEV, true),
            "dev" => (Attr::MOUNT_ATTR_NODEV, false),
            "noexec" => (Attr::MOUNT_ATTR_NOEXEC, true),
            "exec" => (Attr::MOUNT_ATTR_NOEXEC, false),
            "nodiratime" => (Attr::MOUNT_ATTR_NODIRATIME, true),
            "diratime" => (Attr::MOUNT_ATTR_NODIRATIME, false),
            "nosymfollow" => (Attr::from_bits_retain(NO_SYMLINKS), true),
            "symfollow" => (Attr::from_bits_retain(NO_SYMLINKS), false),
            _ => {
                let choice = match option {
                    "noatime" => Attr::MOUNT_ATTR_NOATIME,
                    "strictatime" | "norelatime" => Attr::MOUNT_ATTR_STRICTATIME,
                    "atime" | "relatime" | "nostrictatime" => Attr::MOUNT_ATTR_RELATIME,
                    _ => return false,
                };
                self.put_access_time(choice.bits());
                return true;
            }
        };
        self.put(flag.bits(), on);
        true
    }
}

/// `MOUNT_ATTR_NOSYMFOLLOW` of linux/mount.h.
const NO_SYMLINKS: u32 = 0x0020_0000;

impl<'a> Options<'a> {
    pub(crate) fn parse(options: &'a [String]) -> Self {
        let mut parsed = Self {
            own: Flags::default(),
            below: Flags::default(),
            propagation: MountPropagationFlags::empty(),
            bind: false,
            copy_up: false,
            data: Vec::new(),
        };
        for option in options {
            let option = option.as_str();
            if parsed.own.apply(option) || parsed.propagates(option) {
                continue;
            }
            if option.strip_prefix('r').is_some_and(|below| parsed.below.apply(below)) {
                continue;
            }
            match option {
                // Whether with what is mounted below is read where the source is opened.
                "bind" | "rbind" => parsed.bind = true,
                "tmpcopyup" => parsed.copy_up = true,
                // Read where the source is opened; or they ask for nothing.
                "idmap" | "ridmap" | "defaults" | "remount" | "loud" | "notmpcopyup" => {}
                other => parsed.data.push(match other.split_once('=') {
                    // The context of SELinux is written in quotes, because it may have commas.
                    Some((key, value)) => (key, Some(value.trim_matches('"'))),
                    None => (other, None),
                }),
            }
        }
        parsed
    }

    fn propagates(&mut self, option: &str) -> bool {
        use MountPropagationFlags as Kind;
        self.propagation = match option {
            "private" => Kind::PRIVATE,
            "rprivate" => Kind::PRIVATE | Kind::REC,
            "slave" => Kind::DOWNSTREAM,
            "rslave" => Kind::DOWNSTREAM | Kind::REC,
            "shared" => Kind::SHARED,
            "rshared" => Kind::SHARED | Kind::REC,
            "unbindable" => Kind::UNBINDABLE,
            "runbindable" => Kind::UNBINDABLE | Kind::REC,
            _ => return false,
        };
        true
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
    open_tree_of(source, OpenTreeFlags::AT_RECURSIVE)
}

/// Opens the source of a bind mount without what is mounted below it.
pub(crate) fn open_single_bind(source: &Path) -> Result<OwnedFd, Trouble> {
    open_tree_of(source, OpenTreeFlags::empty())
}

fn open_tree_of(source: &Path, recursive: OpenTreeFlags) -> Result<OwnedFd, Trouble> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursive;
    open_tree(CWD, source, flags)
        .call(|| {
            let below = if recursive.is_empty() { "" } else { "|AT_RECURSIVE" };
            format!("open_tree(AT_FDCWD, {source:?}, OPEN_TREE_CLONE{below})")
        })
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
        let (parent, name) = match self.parent(path) {
            Err(Errno::NOENT) => {
                let mut made = PathBuf::new();
                for component in path.parent().into_iter().flat_map(Path::components) {
                    made.push(component);
                    self.make_directory(&made)?;
                }
                self.parent(path)?
            }
            found => found?,
        };
        if !directory {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            return rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644));
        }
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&parent, name, flags, Mode::empty())
            }
            // A link that leads nowhere.
            Err(Errno::EXIST) => Err(Errno::NOENT),
            Err(errno) => Err(errno),
        }
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

    /// Carries out one mount of the spec; `bind` is the opened source of a bind mount.
    pub(super) fn mount(&self, mount: &Mount, bind: Option<&OwnedFd>) -> Result<(), Trouble> {
        let path = mount.destination();
        let options = Options::parse(mount.options().as_deref().unwrap_or_default());
        if let Some(source) = bind {
            change(source.as_fd(), &options)
                .trying(|| format!("set the options of the mount at {}", path.display()))?;
            let directory = rustix::fs::fstat(source)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
            self.attach(source, path, directory)?;
            return expose(source.as_fd(), &options, path);
        }
        let kind = mount.typ().as_deref().unwrap_or("none");
        if matches!(kind, "proc" | "sysfs") {
            self.expect_directory(path)?;
        }
        let made = new_file_system(kind, mount.source().as_deref(), &options)
            .trying(|| format!("mount {} in the container", path.display()))
            .map_err(|trouble| explain(kind, trouble))?;
        if options.copy_up {
            self.copy_up(path, &made)?;
        }
        self.attach(&made, path, true)?;
        expose(made.as_fd(), &options, path)
    }

    /// Puts a detached or attached mount of a new file system in its place.
    pub(super) fn put(&self, mount: &OwnedFd, path: &Path) -> Result<(), Trouble> {
        // Other than of `/dev`, parts of it have been masked.
        if path != Path::new("/dev") {
            self.expect_directory(path)?;
        }
        self.attach(mount, path, true)
    }

    /// What is masked is looked for by name afterwards: it has to be where the name says. A link in the place of `/proc`
    /// would lead the writes of runtimes astray as well (CVE-2019-19921, CVE-2023-27561).
    fn expect_directory(&self, path: &Path) -> Result<(), Trouble> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(found) = self.open(path, flags) else { return Ok(()) };
        let ordinary = rustix::fs::fstat(&found)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if ordinary {
            return Ok(());
        }
        let reason = format!("{} in the container's root is not a directory", path.display());
        Err(Trouble::new(format!("mount {} in the container", path.display()), reason))
    }

    /// Copies what is in the place of a new file system into it.
    fn copy_up(&self, path: &Path, made: &OwnedFd) -> Result<(), Trouble> {
        match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC) {
            Ok(old) => copy_directory(&old, made)
                .map_err(|error| Trouble::new(format!("copy {} up", path.display()), error.to_string())),
            Err(_nothing_there) => Ok(()),
        }
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
        let mut made = PathBuf::new();
        for component in path.parent().into_iter().flat_map(Path::components) {
            made.push(component);
            self.make_directory(&made).call(|| format!("mkdirat({made:?})")).trying(doing)?;
        }
        let (parent, name) = self.parent(path).call(|| format!("openat2({path:?})")).trying(doing)?;
        let (kind, mode, major, minor) = node_of(device);
        match rustix::fs::mknodat(&parent, name, kind, mode, rustix::fs::makedev(major, minor)) {
            Ok(()) => {}
            // In a root without a /dev of its own, it may have been made before.
            Err(Errno::EXIST) => return Ok(()),
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
            .trying(doing)?;
        let (uid, gid) = (device.uid().map(Uid::from_raw), device.gid().map(Gid::from_raw));
        if uid.is_none() && gid.is_none() {
            return Ok(());
        }
        rustix::fs::chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .call(|| format!("fchownat({path:?})"))
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
pub(crate) fn make_node(device: &LinuxDevice, node: &Path) -> Result<(), Trouble> {
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

/// Puts a detached mount of a file in its place in the container.
pub(crate) fn attach(root: BorrowedFd<'_>, mount: &OwnedFd, path: &Path) -> Result<(), Trouble> {
    Root::new(root).attach(mount, path, false)
}

/// Makes mounts of the container read-only that others have been mounted in.
pub(crate) fn make_read_only(root: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<(), Trouble> {
    paths.iter().try_for_each(|path| {
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into();
        resolve(root, path, OFlags::PATH | OFlags::CLOEXEC)
            .and_then(|mount| sys::mount_change(mount.as_fd(), read_only, 0, 0, false))
            .call(|| format!("mount_setattr({path:?}, MOUNT_ATTR_RDONLY)"))
            .trying(|| format!("make {} read-only", path.display()))
    })
}

/// Makes a directory of the container and those above it.
pub(crate) fn make_directories(root: BorrowedFd<'_>, path: &Path) -> Result<(), Errno> {
    Root::new(root).target(path, true).map(drop)
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

/// Sets the attributes of a detached tree. Unless something else is asked for it is private: what the host mounts below
/// the source later is not shown.
fn change(tree: BorrowedFd<'_>, options: &Options<'_>) -> Result<(), sys::CallError> {
    let set = |flags: Flags, propagation: MountPropagationFlags, recursive: bool| {
        let change =
            |clear| sys::mount_change(tree, flags.set.into(), clear, propagation.bits().into(), recursive);
        match change(flags.clear.into()) {
            // A flag that a user namespace has inherited is locked (mount_namespaces(7)), and stays.
            Err(Errno::PERM) if flags.clear != 0 => change(atime(flags)),
            other => other,
        }
        .call(|| format!("mount_setattr({:#x}, {:#x}, {propagation:?})", flags.set, flags.clear))
    };
    let shown = MountPropagationFlags::SHARED | MountPropagationFlags::DOWNSTREAM;
    let connected = options.propagation.intersects(shown);
    let cut = if connected { MountPropagationFlags::empty() } else { MountPropagationFlags::PRIVATE };
    set(options.below, cut, true)?;
    if options.own != Flags::default() {
        set(options.own, MountPropagationFlags::empty(), false)?;
    }
    Ok(())
}

/// The one clearing that setting needs: of the choice that was there before.
fn atime(flags: Flags) -> u64 {
    let all = MountAttrFlags::MOUNT_ATTR__ATIME.bits();
    (if flags.clear & all == 0 { 0 } else { all }).into()
}

/// Connects a mount with others, if that is asked for.
fn expose(mount: BorrowedFd<'_>, options: &Options<'_>, path: &Path) -> Result<(), Trouble> {
    let recursive =
        options.propagation.intersects(MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM);
    let kind = options.propagation - MountPropagationFlags::REC;
    if kind.is_empty() || kind == MountPropagationFlags::PRIVATE {
        return Ok(());
    }
    sys::mount_change(mount, 0, 0, kind.bits().into(), recursive)
        .call(|| format!("mount_setattr({path:?}, {:?})", options.propagation))
        .trying(|| format!("set the propagation of the mount at {}", path.display()))
}

pub(crate) fn new_file_system(
    kind: &str,
    source: Option<&Path>,
    options: &Options<'_>,
) -> Result<OwnedFd, sys::CallError> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).call(|| format!("fsopen({kind:?})"))?;
    if let Some(source) = source {
        fsconfig_set_string(&context, "source", source)
            .call(|| format!("fsconfig({kind}, \"source\", {source:?})"))?;
    }
    for (key, value) in &options.data {
        match value {
            Some(value) => fsconfig_set_string(&context, *key, *value),
            None => fsconfig_set_flag(&context, *key),
        }
        .call(|| format!("fsconfig({kind}, {key:?}, {value:?})"))?;
    }
    fsconfig_create(&context).call(|| format!("fsconfig({kind}, FSCONFIG_CMD_CREATE)"))?;
    let attributes = options.own.set | options.below.set;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(attributes))
        .call(|| format!("fsmount({kind}, {attributes:#x})"))
}

/// Copies directories, files and links with owner and mode, by descriptors: nothing is followed out of the tree.
fn copy_directory(from: &OwnedFd, to: &OwnedFd) -> std::io::Result<()> {
    use rustix::fs::{fchmod, fchown, fstat, mkdirat, openat, readlinkat, symlinkat};
    let stat = fstat(from)?;
    let give = |file: &OwnedFd, stat: &rustix::fs::Stat| {
        fchown(file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        fchmod(file, Mode::from_raw_mode(stat.st_mode))
    };
    give(to, &stat)?;
    for entry in rustix::fs::Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let (read, write) = (OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::from_raw_mode(0o700));
        match entry.file_type() {
            FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
            FileType::Directory => {
                mkdirat(to, name, write)?;
                let made = openat(to, name, read | OFlags::DIRECTORY, Mode::empty())?;
                copy_directory(&openat(from, name, read | OFlags::DIRECTORY, Mode::empty())?, &made)?;
            }
            FileType::RegularFile => {
                let mut old = std::fs::File::from(openat(from, name, read, Mode::empty())?);
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut new = std::fs::File::from(openat(to, name, flags, write)?);
                std::io::copy(&mut old, &mut new)?;
                give(&new.into(), &fstat(&old)?)?;
            }
            // Devices, sockets and pipes belong to whoever made them.
            _ => {}
        }
    }
    Ok(())
}

/// An empty read-only directory to cover others with.
fn empty_directory() -> Result<OwnedFd, Trouble> {
    let options = ["ro", "nosuid", "nodev", "noexec", "size=0k", "mode=555"].map(str::to_owned);
    new_file_system("tmpfs", None, &Options::parse(&options))
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
        assert!(!parsed.bind);
        assert_eq!(parsed.data, [("size", Some("64k")), ("newinstance", None)]);
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_RDONLY;
        assert_eq!(parsed.own, Flags { set: flags.bits(), clear: 0 });
        assert_eq!(parsed.propagation, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
    }

    /// The last of two that contradict each other counts, and a leading `r` means the mounts below as well.
    #[test]
    fn the_last_option_counts() {
        let options = ["ro", "rw", "rro", "nodev", "noatime", "relatime"].map(str::to_owned);
        let parsed = Options::parse(&options);
        let bits = |flags: MountAttrFlags| flags.bits();
        assert_eq!(parsed.own.set, bits(MountAttrFlags::MOUNT_ATTR_NODEV));
        let cleared = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR__ATIME;
        assert_eq!(parsed.own.clear, bits(cleared));
        assert_eq!(parsed.below, Flags { set: bits(MountAttrFlags::MOUNT_ATTR_RDONLY), clear: 0 });
    }
}
