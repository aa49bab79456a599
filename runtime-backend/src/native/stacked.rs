//! Root file systems where the kernel's overlayfs is refused: by the kernel to a user, or by the store's file system.
//!
//! `fuse-overlayfs`, where it is installed, stacks the layers in a process for each container; else they are copied on top
//! of each other, into memory.

use super::launch::{Trouble, Trying};
use super::reap::collect;
use super::sys::{self, CallError, Called};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::FdFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The environment variable that chooses how layers are stacked.
pub(crate) const VARIABLE: &str = "SHAKEDOWN_OVERLAY";

/// By what layers are stacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stacking {
    /// The kernel's overlayfs.
    Kernel,
    /// A process of fuse-overlayfs for each container.
    Fuse,
    /// A copy of all files in memory for each container.
    Copy,
}

impl Stacking {
    /// What the variable demands, if it is set.
    pub(crate) fn demanded() -> Result<Option<Self>, String> {
        Self::named(&std::env::var(VARIABLE).unwrap_or_default())
    }

    fn named(text: &str) -> Result<Option<Self>, String> {
        match text {
            "" => Ok(None),
            "kernel" => Ok(Some(Self::Kernel)),
            "fuse" => Ok(Some(Self::Fuse)),
            "copy" => Ok(Some(Self::Copy)),
            _ => Err(format!("{VARIABLE} is `{text}`, which is none of `kernel`, `fuse` and `copy`")),
        }
    }

    /// What takes the place of the kernel's overlayfs here.
    pub(crate) fn instead() -> Self {
        let device =
            rustix::fs::access("/dev/fuse", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK);
        if device.is_ok() && program().is_some() { Self::Fuse } else { Self::Copy }
    }

    /// What it is, for who looks at it.
    pub(crate) fn described(self) -> &'static str {
        match self {
            Self::Kernel => "overlayfs",
            Self::Fuse => "fuse-overlayfs",
            Self::Copy => "a copy of the image's files in memory for each container",
        }
    }
}

/// Whether another way of stacking may do what this call could not: not if a layer is missing, say.
pub(crate) fn is_refusal(trouble: &Trouble) -> bool {
    const ERRORS: [&str; 7] = ["EPERM", "EACCES", "EINVAL", "ENODEV", "ENOSYS", "EOPNOTSUPP", "ESTALE"];
    trouble.call.as_ref().is_some_and(|call| ERRORS.iter().any(|error| call.ends_with(error)))
}

/// The program, if it is installed.
pub(crate) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|directory| directory.join("fuse-overlayfs")).find(|file| file.is_file())
}

/// The process that serves one file system. Dropped, it ends: whoever has something of it open gets an error.
#[derive(Debug)]
pub(crate) struct FuseServer {
    process: sys::Clone,
}

impl Drop for FuseServer {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.process.pidfd, Signal::KILL);
        collect(&self.process.pidfd);
    }
}

/// Stacks `layers` (lowest first) under what is in `upper`, which has the directories `upper` and `work`.
///
/// The file system is made here, and its descriptor given to the program: nothing has to be waited for, because the
/// kernel holds back whoever looks into it until the program answers.
pub(crate) fn stack(layers: &[PathBuf], upper: &Path) -> Result<(OwnedFd, FuseServer), Trouble> {
    let doing = || "mount the container's file system with fuse-overlayfs".to_owned();
    let program = program().ok_or_else(|| Trouble::new(doing(), "it is not installed"))?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty());
    let device = device.call(|| "open(\"/dev/fuse\")".to_owned()).trying(doing)?;
    let root = mount(&device).trying(doing)?;
    let complaints = rustix::fs::memfd_create("fuse-overlayfs", MemfdFlags::CLOEXEC);
    let complaints = complaints.call(|| "memfd_create()".to_owned()).trying(doing)?;
    let argv =
        arguments(layers, upper, &device).ok_or_else(|| Trouble::new(doing(), "a path has a zero byte"))?;
    let path = CString::new(program.as_os_str().as_bytes()).unwrap_or_default();
    let process = sys::fork_namespaces(0, || {
        sys::close_other_than(&[device.as_fd(), complaints.as_fd()]);
        let _ = rustix::stdio::dup2_stdout(&complaints);
        let _ = rustix::stdio::dup2_stderr(&complaints);
        let _ = rustix::io::fcntl_setfd(&device, FdFlags::empty());
        sys::exec(&path, &argv, &[]);
        127
    });
    let process = process.call(|| "clone3(0)".to_owned()).trying(doing)?;
    drop(device);
    let server = FuseServer { process };
    // The first answer comes when it has opened its directories.
    let answered = rustix::fs::statat(&root, ".", rustix::fs::AtFlags::empty());
    answered.call(|| "fstatat(root)".to_owned()).trying(doing).map_err(|trouble| {
        let mut said = String::new();
        let mut complaints = File::from(complaints);
        let _ = complaints.rewind().and_then(|()| complaints.read_to_string(&mut said));
        Trouble { reason: Some(said.trim().to_owned()).filter(|said| !said.is_empty()), ..trouble }
    })?;
    Ok((root, server))
}

fn mount(device: &OwnedFd) -> Result<OwnedFd, CallError> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).call(|| "fsopen(\"fuse\")".to_owned())?;
    let number = device.as_raw_fd().to_string();
    let options = [
        ("source", "fuse-overlayfs"),
        ("fd", &*number),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    for (key, value) in options {
        fsconfig_set_string(&context, key, value).call(|| format!("fsconfig(fuse, {key:?}, {value:?})"))?;
    }
    for flag in ["allow_other", "default_permissions"] {
        fsconfig_set_flag(&context, flag).call(|| format!("fsconfig(fuse, {flag:?})"))?;
    }
    fsconfig_create(&context).call(|| "fsconfig(fuse, FSCONFIG_CMD_CREATE)".to_owned())?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .call(|| "fsmount(fuse)".to_owned())
}

fn arguments(layers: &[PathBuf], upper: &Path, device: &OwnedFd) -> Option<Vec<CString>> {
    let mut options = b"lowerdir=".to_vec();
    for (number, layer) in layers.iter().rev().enumerate() {
        if number > 0 {
            options.push(b':');
        }
        options.extend(escaped(layer));
    }
    for (key, name) in [("upperdir", "upper"), ("workdir", "work")] {
        options.extend(format!(",{key}=").bytes().chain(escaped(&upper.join(name))));
    }
    let place = format!("/dev/fd/{}", device.as_raw_fd());
    let words =
        ["fuse-overlayfs".into(), "-f".into(), "-o".into(), OsString::from_vec(options), place.into()];
    words.into_iter().map(|word| CString::new(word.into_vec()).ok()).collect()
}

/// A path in the options, where `:` separates layers and `,` options.
fn escaped(path: &Path) -> impl Iterator<Item = u8> + '_ {
    path.as_os_str().as_bytes().iter().flat_map(|byte| {
        let escape = matches!(byte, b':' | b',' | b'\\').then_some(b'\\');
        escape.into_iter().chain([*byte])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A misspelt choice is told, and the layers are given topmost first.
    #[test]
    fn choices_and_arguments_are_read_and_written() {
        assert_eq!(Stacking::named(""), Ok(None));
        assert_eq!(Stacking::named("fuse"), Ok(Some(Stacking::Fuse)));
        insta::assert_snapshot!(Stacking::named("fuze").unwrap_err(),
            @"SHAKEDOWN_OVERLAY is `fuze`, which is none of `kernel`, `fuse` and `copy`");
        let device: OwnedFd = File::open("/dev/null").unwrap().into();
        let layers = ["/store/a".into(), "/store/b:c".into()];
        let words = arguments(&layers, Path::new("/scratch"), &device).unwrap();
        assert_eq!(
            words[3].to_str().unwrap(),
            "lowerdir=/store/b\\:c:/store/a,upperdir=/scratch/upper,workdir=/scratch/work"
        );
    }
}
