//! Prepare stage: image layers and an empty upper layer become a root file system that only its descriptor names.
//!
//! The upper layer of a container is a tmpfs that is never attached anywhere: nobody else can reach it by a path, and it
//! is gone with the last descriptor, whatever happens to the processes that hold it. That of a build's step is a
//! directory of the store, because what a step writes may be larger than the memory.

use super::launch::mounts::{clone_mount, resolve};
use super::launch::{Trouble, Trying};
use super::launcher::Users;
use super::stacked::{self, FuseServer};
use super::sys::{self, CallError, Called};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree,
};
use std::cell::RefCell;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The layers of a stack, lowest first.
#[derive(Clone, Copy, Debug)]
enum Lower<'a> {
    /// Directories of the store.
    Paths(&'a [PathBuf]),
    /// Detached mounts of them.
    Mapped(&'a [OwnedFd]),
}

/// A mounted root file system.
#[derive(Debug)]
pub(crate) struct Rootfs {
    /// A detached mount of it.
    root: OwnedFd,
    /// Another one, from which copies are made where the kernel copies attached mounts only.
    seed: RefCell<Option<OwnedFd>>,
    /// Where what is written ends up, where overlayfs has such a place.
    upper: Option<Upper>,
    /// The process that serves it, if the kernel does not. It ends with this.
    server: Option<FuseServer>,
}

/// Where what is written ends up.
#[derive(Debug)]
struct Upper {
    directory: OwnedFd,
    work: OwnedFd,
    place: Place,
}

/// What an upper layer is a part of.
#[derive(Debug)]
enum Place {
    /// A tmpfs that lives as long as its descriptor.
    Memory(OwnedFd),
    /// A directory, which somebody else removes.
    Disk(PathBuf),
}

impl Rootfs {
    /// As [`mount`](Self::mount), in memory; the files belong to the ids that `users` have for those of the layers.
    pub(crate) fn mount_for(users: &Users, layers: &[PathBuf], scratch: &Path) -> Result<Self, Trouble> {
        let mapped =
            distinct(layers).iter().map(|layer| mapped(layer, users)).collect::<Result<Vec<_>, _>>()?;
        Upper::in_memory()
            .and_then(|upper| {
                upper.give(users)?;
                Self::over(upper, Lower::Mapped(&mapped), false, scratch)
            })
            .trying(|| "mount the container's file system".to_owned())
    }

    /// Mounts `layers` (lowest first) with an empty upper layer, in the empty directory `disk` if there is one and its
    /// file system serves. `scratch` is a directory to mount on where the kernel needs a path.
    pub(crate) fn mount(
        layers: &[PathBuf],
        user_namespace: bool,
        scratch: &Path,
        disk: Option<&Path>,
    ) -> Result<Self, Trouble> {
        let doing = || "mount the container's file system".to_owned();
        let layers = &distinct(layers)[..];
        let Some(disk) = disk else {
            return Upper::in_memory()
                .and_then(|upper| Self::over(upper, Lower::Paths(layers), user_namespace, scratch))
                .trying(doing);
        };
        let upper = Upper::on_disk(disk).trying(doing)?;
        // overlayfs takes no stack without a lower layer.
        let nothing = [disk.join(EMPTY)];
        let layers = if layers.is_empty() { &nothing[..] } else { layers };
        let mounted = Self::over(upper, Lower::Paths(layers), user_namespace, scratch).or_else(|error| {
            // Not every file system can be the upper one: one without extended attributes cannot, nor can another
            // overlay.
            let memory = Upper::in_memory()?;
            Self::over(memory, Lower::Paths(layers), user_namespace, scratch).map_err(|_second| error)
        });
        mounted.trying(doing)
    }

    fn over(
        upper: Upper,
        layers: Lower<'_>,
        user_namespace: bool,
        scratch: &Path,
    ) -> Result<Self, CallError> {
        let root = match by_descriptor(layers, &upper, user_namespace) {
            // Linux before 6.8 knows no single `lowerdir+`, before 6.13 no upper layer by descriptor, before 6.15 none
            // by O_PATH descriptor: EINVAL, ENOSYS or EBADF. Before 6.5 overlayfs takes all options as one string, and
            // descriptors not at all: EOPNOTSUPP.
            Err(CallError {
                errno: Errno::INVAL | Errno::NOSYS | Errno::BADF | Errno::OPNOTSUPP, ..
            }) => by_path(layers, &upper, user_namespace, scratch)?,
            result => result?,
        };
        Ok(Self::of(root, Some(upper), None))
    }

    fn of(root: OwnedFd, upper: Option<Upper>, server: Option<FuseServer>) -> Self {
        Self { root, seed: RefCell::new(None), upper, server }
    }

    /// As [`mount`](Self::mount) in memory, by fuse-overlayfs.
    pub(crate) fn fused(layers: &[PathBuf], scratch: &Path) -> Result<Self, Trouble> {
        let doing = || "mount the container's file system with fuse-overlayfs".to_owned();
        let memory = new_tmpfs().trying(doing)?;
        for name in [UPPER, WORK] {
            make_directory(memory.as_fd(), name).trying(doing)?;
        }
        // The program needs paths, until it has opened what is there.
        move_mount(&memory, "", CWD, scratch, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .call(|| format!("move_mount(tmpfs, {scratch:?})"))
            .trying(doing)?;
        let stacked = stacked::stack(&distinct(layers), scratch);
        let _ = rustix::mount::unmount(scratch, UnmountFlags::DETACH);
        let (root, server) = stacked?;
        Ok(Self::of(root, None, Some(server)))
    }

    /// An empty one in memory, into which the files are copied.
    pub(crate) fn empty() -> Result<Self, Trouble> {
        let root = new_tmpfs().trying(|| "make the container's file system".to_owned())?;
        Ok(Self::of(root, None, None))
    }

    /// A mount of the file or directory at `path` of it.
    pub(crate) fn part(&self, path: &Path, scratch: &Path) -> Result<OwnedFd, Trouble> {
        let doing = || format!("mount `{}` of another root", path.display());
        let text = || format!("open_tree({path:?}, OPEN_TREE_CLONE|AT_EMPTY_PATH)");
        let find = |root: BorrowedFd<'_>| resolve(root, path, OFlags::PATH | OFlags::CLOEXEC);
        let found = find(self.root.as_fd()).call(|| format!("openat2({path:?})")).trying(doing)?;
        let copied = match clone_mount(found.as_fd()) {
            // Linux before 6.15 copies attached mounts only.
            Err(Errno::INVAL) => self.copy_attached(scratch, |root| clone_mount(find(root)?.as_fd())),
            result => result,
        };
        copied.call(text).trying(doing)
    }

    /// The upper layer, if overlayfs keeps one: what was written since.
    pub(crate) fn upper(&self) -> Option<&OwnedFd> {
        self.upper.as_ref().map(|upper| &upper.directory)
    }

    /// What it consists of, if all of it is descriptors: the last one that is closed takes it away.
    pub(crate) fn into_descriptors(self) -> Vec<OwnedFd> {
        match (self.upper, self.server) {
            (Some(Upper { directory, work, place: Place::Memory(memory) }), None) => {
                [self.root, directory, work, memory].into_iter().chain(self.seed.into_inner()).collect()
            }
            // Somebody waits for these: for the process to end, or to remove the directory.
            _ => Vec::new(),
        }
    }

    /// The mount that stays with the launcher.
    pub(crate) fn own(&self) -> &OwnedFd {
        &self.root
    }

    /// A second mount of it, for the container.
    pub(crate) fn share(&self, scratch: &Path) -> Result<OwnedFd, Trouble> {
        let doing = || "mount the container's file system a second time".to_owned();
        let copied = match clone_mount(self.root.as_fd()) {
            // Linux before 6.15 copies attached mounts only.
            Err(Errno::INVAL) => self.copy_attached(scratch, clone_mount),
            result => result,
        };
        copied.call(|| "open_tree(root, \"\", OPEN_TREE_CLONE|AT_EMPTY_PATH)".to_owned()).trying(doing)
    }

    /// What `copy` makes of it while it is attached for a moment.
    ///
    /// A mount that was attached once can be used by its descriptor, but not be attached again. So each time it leaves
    /// a copy for the next.
    fn copy_attached(
        &self,
        scratch: &Path,
        copy: impl FnOnce(BorrowedFd<'_>) -> Result<OwnedFd, Errno>,
    ) -> Result<OwnedFd, Errno> {
        let mut seed = self.seed.borrow_mut();
        let root = seed.as_ref().unwrap_or(&self.root).as_fd();
        move_mount(root, "", CWD, scratch, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        let (next, copied) = (clone_mount(root), copy(root));
        let _ = rustix::mount::unmount(scratch, UnmountFlags::DETACH);
        *seed = Some(next?);
        copied
    }
}

impl Upper {
    fn in_memory() -> Result<Self, CallError> {
        let memory = new_tmpfs()?;
        let place = Place::Memory(memory);
        let at = |name: &str| match &place {
            Place::Memory(memory) => make_directory(memory.as_fd(), name),
            Place::Disk(_) => Err(CallError { call: String::new(), errno: Errno::INVAL }),
        };
        Ok(Self { directory: at(UPPER)?, work: at(WORK)?, place })
    }

    /// The root directory is as its upper layer's is.
    fn give(&self, users: &Users) -> Result<(), CallError> {
        let owner = (Some(users.shift().uid(0)), Some(users.shift().gid(0)));
        rustix::fs::chownat(&self.directory, "", owner.0, owner.1, AtFlags::EMPTY_PATH)
            .call(|| "fchownat(upper, \"\")".to_owned())
    }

    fn on_disk(path: &Path) -> Result<Self, CallError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let disk = rustix::fs::open(path, flags, Mode::empty()).call(|| format!("open({path:?})"))?;
        let at = |name: &str| make_directory(disk.as_fd(), name);
        at(EMPTY)?;
        Ok(Self { directory: at(UPPER)?, work: at(WORK)?, place: Place::Disk(path.to_owned()) })
    }
}

const UPPER: &str = "upper";
const WORK: &str = "work";
const EMPTY: &str = "empty";

/// Features of overlayfs that leave in the upper layer what only overlayfs understands: names of renamed directories,
/// files without their content. The kernel may be built to have them on; a user namespace has none of them.
const OFF: [&str; 2] = ["redirect_dir", "metacopy"];

/// The layers without repetition. overlayfs refuses a layer that comes twice (ELOOP), which images may have: two steps
/// of a build that write the same. The upper place alone is enough, for it covers everything of the lower one.
fn distinct(layers: &[PathBuf]) -> Vec<PathBuf> {
    let again = |number: usize| layers[number + 1..].contains(&layers[number]);
    (0..layers.len()).filter(|number| !again(*number)).map(|number| layers[number].clone()).collect()
}

/// A mount of a layer whose files belong to the ids that `users` have for theirs.
fn mapped(layer: &Path, users: &Users) -> Result<OwnedFd, Trouble> {
    let doing = || "map the image's files to the container's users".to_owned();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, layer, flags).call(|| format!("open_tree({layer:?}, OPEN_TREE_CLONE)"));
    let mount = mount.trying(doing)?;
    let refused = |trouble: Trouble| {
        let reason = "the file system of the image store has no idmapped mounts: ext4 and xfs have them, btrfs since \
             Linux 5.15, f2fs since 5.18, tmpfs since 6.3";
        let unfit = trouble.call.as_ref().is_some_and(|call| call.ends_with("EINVAL"));
        Trouble { reason: unfit.then(|| reason.to_owned()), ..trouble }
    };
    sys::mount_map_ids(mount.as_fd(), users.namespace(), false)
        .call(|| format!("mount_setattr({layer:?}, MOUNT_ATTR_IDMAP)"))
        .trying(doing)
        .map_err(refused)?;
    Ok(mount)
}

fn by_descriptor(layers: Lower<'_>, upper: &Upper, user_namespace: bool) -> Result<OwnedFd, CallError> {
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).call(|| "fsopen(\"overlay\")".to_owned())?;
    match layers {
        Lower::Paths(layers) => layers.iter().rev().try_for_each(|layer| {
            fsconfig_set_string(&overlay, "lowerdir+", layer.as_path())
                .call(|| format!("fsconfig(overlay, \"lowerdir+\", {layer:?})"))
        })?,
        Lower::Mapped(layers) => layers.iter().rev().try_for_each(|layer| {
            fsconfig_set_fd(&overlay, "lowerdir+", layer)
                .call(|| "fsconfig(overlay, \"lowerdir+\", fd)".to_owned())
        })?,
    }
    for (key, directory) in [("upperdir", &upper.directory), ("workdir", &upper.work)] {
        fsconfig_set_fd(&overlay, key, directory).call(|| format!("fsconfig(overlay, {key:?}, fd)"))?;
    }
    let flag = |name: &str| fsconfig_set_flag(&overlay, name).call(|| format!("fsconfig(overlay, {name:?})"));
    if user_namespace {
        flag("userxattr")?;
    } else {
        for name in OFF {
            fsconfig_set_string(&overlay, name, "off")
                .call(|| format!("fsconfig(overlay, {name:?}, \"off\")"))?;
        }
    }
    if matches!(upper.place, Place::Disk(_)) {
        // What is in there is either captured whole or thrown away: nothing has to be on the disk before that.
        flag("volatile")?;
    }
    fsconfig_create(&overlay).call(|| "fsconfig(overlay, FSCONFIG_CMD_CREATE)".to_owned())?;
    fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .call(|| "fsmount(overlay)".to_owned())
}

/// The same by mount(2), attached for a moment in the launcher's own mount namespace.
fn by_path(
    layers: Lower<'_>,
    upper: &Upper,
    user_namespace: bool,
    scratch: &Path,
) -> Result<OwnedFd, CallError> {
    let spare;
    let (attached, place) = match &upper.place {
        Place::Memory(memory) => (memory, scratch),
        // Something is needed to mount on.
        Place::Disk(path) => {
            spare = new_tmpfs()?;
            (&spare, path.as_path())
        }
    };
    rustix::fs::mkdirat(attached, "root", Mode::from_raw_mode(0o700))
        .call(|| "mkdirat(\"root\")".to_owned())?;
    move_mount(attached, "", CWD, scratch, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .call(|| format!("move_mount(tmpfs, {scratch:?})"))?;
    let at = scratch.join("root");
    let mounted = match layers {
        Lower::Paths(layers) => mount_overlay(layers, place, user_namespace, &at),
        Lower::Mapped(layers) => attach_layers(layers, scratch)
            .and_then(|layers| mount_overlay(&layers, place, user_namespace, &at)),
    };
    let root = mounted.and_then(|()| {
        let flags =
            rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let root =
            rustix::mount::open_tree(CWD, &at, flags).call(|| format!("open_tree({at:?}, OPEN_TREE_CLONE)"));
        let _ = rustix::mount::unmount(&at, UnmountFlags::DETACH);
        root
    });
    let _ = rustix::mount::unmount(scratch, UnmountFlags::DETACH);
    root
}

/// Attaches mounts of layers in `scratch`, on which something is mounted; returns where.
fn attach_layers(layers: &[OwnedFd], scratch: &Path) -> Result<Vec<PathBuf>, CallError> {
    let attach = |(number, layer): (usize, &OwnedFd)| {
        let place = scratch.join(number.to_string());
        rustix::fs::mkdir(&place, Mode::from_raw_mode(0o700)).call(|| format!("mkdir({place:?})"))?;
        move_mount(layer, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .call(|| format!("move_mount(layer, {place:?})"))?;
        Ok(place)
    };
    layers.iter().enumerate().map(attach).collect()
}

fn mount_overlay(layers: &[PathBuf], place: &Path, user_namespace: bool, at: &Path) -> Result<(), CallError> {
    let mut options = b"lowerdir=".to_vec();
    for (number, layer) in layers.iter().rev().enumerate() {
        if number > 0 {
            options.push(b':');
        }
        options.extend(escaped(layer));
    }
    for (key, name) in [("upperdir", UPPER), ("workdir", WORK)] {
        options.extend(format!(",{key}=").bytes().chain(escaped(&place.join(name))));
    }
    if user_namespace {
        options.extend(b",userxattr");
    } else {
        options.extend(OFF.iter().flat_map(|name| format!(",{name}=off").into_bytes()));
    }
    let text =
        || format!("mount(\"overlay\", {at:?}, \"overlay\", 0, {:?})", String::from_utf8_lossy(&options));
    let data = CString::new(options.clone()).map_err(|_| CallError { call: text(), errno: Errno::INVAL })?;
    rustix::mount::mount("overlay", at, "overlay", MountFlags::empty(), data.as_c_str()).call(text)
}

/// A path in the option string of overlayfs, where `:` separates layers and `,` options.
fn escaped(path: &Path) -> impl Iterator<Item = u8> + '_ {
    path.as_os_str().as_bytes().iter().flat_map(|byte| {
        let escape = matches!(byte, b':' | b',' | b'\\').then_some(b'\\');
        escape.into_iter().chain([*byte])
    })
}

/// A detached tmpfs.
fn new_tmpfs() -> Result<OwnedFd, CallError> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).call(|| "fsopen(\"tmpfs\")".to_owned())?;
    fsconfig_set_string(&context, "mode", "0755")
        .call(|| "fsconfig(tmpfs, \"mode\", \"0755\")".to_owned())?;
    fsconfig_create(&context).call(|| "fsconfig(tmpfs, FSCONFIG_CMD_CREATE)".to_owned())?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .call(|| "fsmount(tmpfs)".to_owned())
}

/// Makes a directory and opens it.
fn make_directory(at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, CallError> {
    rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755)).call(|| format!("mkdirat({name:?})"))?;
    rustix::fs::openat(at, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("openat({name:?}, O_PATH|O_DIRECTORY)"))
}
