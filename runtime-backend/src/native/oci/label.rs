//! What the security module of the machine is told before the program is executed.
//!
//! It is written through the host's `/proc`, which no container can have changed (CVE-2019-16884, CVE-2025-52881).

use crate::native::launch::{Trouble, Trying};
use crate::native::sys::Called;
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// A label, and where it is written.
#[derive(Debug)]
pub(super) struct Label {
    text: String,
    files: &'static [&'static str],
    proc: OwnedFd,
}

/// A label whose file is open; it is this process's own.
#[derive(Debug)]
pub(super) struct Prepared {
    text: String,
    file: OwnedFd,
}

impl Label {
    /// The label of a container's process.
    pub(super) fn of(spec: &Spec) -> Result<Option<Self>, Trouble> {
        spec.process().as_ref().map_or(Ok(None), Self::of_process)
    }

    /// The label of a process.
    pub(super) fn of_process(process: &Process) -> Result<Option<Self>, Trouble> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (text, files): (_, &[&str]) =
            match (given(process.apparmor_profile()), given(process.selinux_label())) {
                (Some(profile), _) => {
                    (format!("exec {profile}"), &["thread-self/attr/apparmor/exec", "thread-self/attr/exec"])
                }
                (None, Some(label)) => (label, &["thread-self/attr/exec"]),
                (None, None) => return Ok(None),
            };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::openat(CWD, "/proc", flags, Mode::empty())
            .call(|| "open(\"/proc\", O_PATH)".to_owned())
            .trying(|| "set the security label".to_owned())?;
        Ok(Some(Self { text, files, proc }))
    }

    /// What must not be closed.
    pub(super) fn proc(&self) -> std::os::fd::BorrowedFd<'_> {
        self.proc.as_fd()
    }

    /// Opens the file of the calling process.
    pub(super) fn prepare(&self) -> Result<Prepared, Trouble> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let mut last = Errno::NOENT;
        for file in self.files {
            match rustix::fs::openat(&self.proc, *file, flags, Mode::empty()) {
                Ok(file) => return Ok(Prepared { text: self.text.clone(), file }),
                Err(errno) => last = errno,
            }
        }
        Err(last)
            .call(|| format!("openat(/proc, {:?})", self.files))
            .trying(|| format!("set the security label `{}`", self.text))
    }
}

impl Prepared {
    /// Makes it the label of the next program.
    pub(super) fn apply(self) -> Result<(), Trouble> {
        rustix::io::write(&self.file, self.text.as_bytes())
            .map(drop)
            .call(|| format!("write(attr/exec, {:?})", self.text))
            .trying(|| format!("set the security label `{}`", self.text))
    }
}

/// Whether the machine has AppArmor.
pub(super) fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Whether the machine has SELinux.
pub(super) fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}
