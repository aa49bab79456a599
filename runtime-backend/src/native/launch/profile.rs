//! The AppArmor profile that a program is executed under.

use super::{Trouble, Trying, mounts};
use crate::native::sys::{CallError, Called};
use rustix::fs::OFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Has the kernel change to the profile when this process executes its program.
///
/// It is told through a procfs of this process's own, on which a container cannot have mounted anything.
pub(super) fn enter_at_exec(profile: &str) -> Result<(), Trouble> {
    let doing = || format!("enter the AppArmor profile `{profile}`");
    let proc = mounts::private_proc().call(|| "fsmount(proc)".to_owned()).trying(doing)?;
    let file = open(&proc).trying(doing)?;
    let text = format!("exec {profile}");
    rustix::io::write(&file, text.as_bytes())
        .map(drop)
        .call(|| format!("write(attr/apparmor/exec, {text:?})"))
        .trying(doing)
        .map_err(|trouble| {
            let unknown = trouble.call.as_ref().is_some_and(|call| call.ends_with("ENOENT"));
            Trouble { reason: unknown.then(|| "no profile of this name is loaded".to_owned()), ..trouble }
        })
}

fn open(proc: &OwnedFd) -> Result<OwnedFd, CallError> {
    // The second is the place of kernels before 5.8.
    let open = |path: &str| mounts::resolve(proc.as_fd(), Path::new(path), OFlags::WRONLY | OFlags::CLOEXEC);
    let pid = rustix::process::getpid().as_raw_nonzero();
    let [new, old] = ["apparmor/exec", "exec"].map(|file| format!("{pid}/attr/{file}"));
    open(&new).or_else(|_| open(&old)).call(|| format!("openat2(proc, {new:?})"))
}
