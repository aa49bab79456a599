//! Prepare stage: image layers and an empty upper layer become a root file system that only its descriptor names.
//!
//! The upper layer is a tmpfs that is never attached anywhere: nobody else can reach it by a path, and it is gone with
//! the last descriptor, whatever happens to the processes that hold it.

use super::launch::mounts::clone_mount;
use super::launch::{Trouble, Trying};
use super::sys::{CallError, Called};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A mounted root file system.
#[derive(Debug)]
pub(crate) struct Rootfs {
    /// A detached mount of it.
    root: OwnedFd,
}

impl Rootfs {
    /// Mounts `layers` (lowest first) with an empty upper layer. `scratch` is a directory to mount on where the kernel
    /// needs a path.
    pub(crate) fn mount(layers: &[PathBuf], user_namespace: bool, scratch: &Path) -> Result<Self, Trouble> {
        let doing = || "mount the container's file system".to_owned();
        let root = match Self::by_descriptor(layers, user_namespace) {
            // Linux before 6.8 knows no single `lowerdir+`, before 6.13 no upper layer by descriptor, before 6.15 none
            // by O_PATH descriptor: EINVAL, ENOSYS or EBADF.
            Err(CallError { errno: Errno::INVAL | Errno::NOSYS | Errno::BADF, .. }) => {
                Self::by_path(layers, user_namespace, scratch)
            }
            result => result,
        };
        root.map(|root| Self { root }).trying(doing)
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
            Err(Errno::INVAL) => {
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                move_mount(&self.root, "", CWD, scratch, flags).and_then(|()| {
                    let copied = clone_mount(self.root.as_fd());
                    let _ = rustix::mount::unmount(scratch, UnmountFlags::DETACH);
                    copied
                })
            }
            result => result,
        };
        copied.call(|| "open_tree(root, \"\", OPEN_TREE_CLONE|AT_EMPTY_PATH)".to_owned()).trying(doing)
    }

    fn by_descriptor(layers: &[PathBuf], user_namespace: bool) -> Result<OwnedFd, CallError> {
        let upper = new_upper()?;
        let overlay =
            fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).call(|| "fsopen(\"overlay\")".to_owned())?;
        for layer in layers.iter().rev() {
            fsconfig_set_string(&overlay, "lowerdir+", layer.as_path())
                .call(|| format!("fsconfig(overlay, \"lowerdir+\", {layer:?})"))?;
        }
        for (key, name) in [("upperdir", "upper"), ("workdir", "work")] {
            let directory = open_directory(&upper, name)?;
            fsconfig_set_fd(&overlay, key, &directory).call(|| format!("fsconfig(overlay, {key:?}, fd)"))?;
        }
        if user_namespace {
            fsconfig_set_flag(&overlay, "userxattr")
                .call(|| "fsconfig(overlay, \"userxattr\")".to_owned())?;
        }
        fsconfig_create(&overlay).call(|| "fsconfig(overlay, FSCONFIG_CMD_CREATE)".to_owned())?;
        // The upper layer's own descriptor may be closed only now: closed earlier, the line above answers EINVAL.
        drop(upper);
        fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .call(|| "fsmount(overlay)".to_owned())
    }

    /// The same by mount(2), attached for a moment in the launcher's own mount namespace.
    fn by_path(layers: &[PathBuf], user_namespace: bool, scratch: &Path) -> Result<OwnedFd, CallError> {
        let upper = new_upper()?;
        rustix::fs::mkdirat(&upper, "root", Mode::from_raw_mode(0o700))
            .call(|| "mkdirat(\"root\")".to_owned())?;
        move_mount(&upper, "", CWD, scratch, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .call(|| format!("move_mount(tmpfs, {scratch:?})"))?;
        let mounted = mount_overlay(layers, user_namespace, scratch);
        let root = mounted.and_then(|at| {
            let flags = rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE
                | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let root = rustix::mount::open_tree(CWD, &at, flags)
                .call(|| format!("open_tree({at:?}, OPEN_TREE_CLONE)"));
            let _ = rustix::mount::unmount(&at, UnmountFlags::DETACH);
            root
        });
        let _ = rustix::mount::unmount(scratch, UnmountFlags::DETACH);
        root
    }
}

fn mount_overlay(layers: &[PathBuf], user_namespace: bool, scratch: &Path) -> Result<PathBuf, CallError> {
    let mut options = b"lowerdir=".to_vec();
    for (number, layer) in layers.iter().rev().enumerate() {
        if number > 0 {
            options.push(b':');
        }
        options.extend(escaped(layer));
    }
    for (key, name) in [("upperdir", "upper"), ("workdir", "work")] {
        options.extend(format!(",{key}=").bytes().chain(escaped(&scratch.join(name))));
    }
    if user_namespace {
        options.extend(b",userxattr");
    }
    let at = scratch.join("root");
    let text =
        || format!("mount(\"overlay\", {at:?}, \"overlay\", 0, {:?})", String::from_utf8_lossy(&options));
    let data = CString::new(options.clone()).map_err(|_| CallError { call: text(), errno: Errno::INVAL })?;
    rustix::mount::mount("overlay", &at, "overlay", MountFlags::empty(), data.as_c_str()).call(text)?;
    Ok(at)
}

/// A path in the option string of overlayfs, where `:` separates layers and `,` options.
fn escaped(path: &Path) -> impl Iterator<Item = u8> + '_ {
    path.as_os_str().as_bytes().iter().flat_map(|byte| {
        let escape = matches!(byte, b':' | b',' | b'\\').then_some(b'\\');
        escape.into_iter().chain([*byte])
    })
}

/// A detached tmpfs with the two directories an overlay writes to.
fn new_upper() -> Result<OwnedFd, CallError> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).call(|| "fsopen(\"tmpfs\")".to_owned())?;
    fsconfig_set_string(&context, "mode", "0755")
        .call(|| "fsconfig(tmpfs, \"mode\", \"0755\")".to_owned())?;
    fsconfig_create(&context).call(|| "fsconfig(tmpfs, FSCONFIG_CMD_CREATE)".to_owned())?;
    let upper = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .call(|| "fsmount(tmpfs)".to_owned())?;
    for name in ["upper", "work"] {
        rustix::fs::mkdirat(&upper, name, Mode::from_raw_mode(0o755))
            .call(|| format!("mkdirat({name:?})"))?;
    }
    Ok(upper)
}

fn open_directory(at: &OwnedFd, name: &str) -> Result<OwnedFd, CallError> {
    rustix::fs::openat(at, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("openat({name:?}, O_PATH|O_DIRECTORY)"))
}
