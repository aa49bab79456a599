//! What is known of a container between two commands: its directory below `--root`.

use super::{Result, invalid};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};
use shakedown_spec::{Failure, FailureKind};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// `status`, as crun names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) oci_version: String,
    pub(super) id: String,
    /// The first process, as the host counts; 0 while there is none.
    pub(super) pid: i32,
    /// When it began, in clock ticks since boot: process ids are used again.
    pub(super) began: u64,
    pub(super) bundle: PathBuf,
    pub(super) annotations: HashMap<String, String>,
    /// Its control groups.
    pub(super) groups: Vec<PathBuf>,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// What its first process has as standard input, output and error, in the form and by the name that crun gives it: a
    /// JSON array within a string, which is read when a container is restored.
    #[serde(default)]
    pub(super) external_descriptors: String,
}

/// The states of the OCI runtime specification, and the one that all runtimes add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container's directory.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) id: String,
    pub(super) path: PathBuf,
}

impl Place {
    /// The place of a container, whether it is there or not.
    pub(super) fn new(root: &Path, id: &str) -> Result<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        if id.is_empty() || id.len() > 1024 || matches!(id, "." | "..") || !id.chars().all(fits) {
            return Err(invalid(format!("`{id}` is not a container id"))
                .fact("reason", "an id has letters, digits, and `_`, `+`, `-`, `.`"));
        }
        Ok(Self { id: id.to_owned(), path: root.join(id) })
    }

    /// Makes the directory; the id must be free.
    pub(super) fn make(&self) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let made = builder.recursive(true).mode(0o711).create(parent);
        made.and_then(|()| builder.recursive(false).create(&self.path)).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => invalid(format!("container `{}` exists", self.id))
                .fact("directory", self.path.display().to_string()),
            _ => self.broken(&error),
        })
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the first process waits to be told to execute its program.
    pub(super) fn start_socket(&self) -> PathBuf {
        self.file("start.sock")
    }

    /// Where the container's notify socket is, if it has one.
    pub(super) fn notify_directory(&self) -> PathBuf {
        self.file("notify")
    }

    pub(super) fn write(&self, record: &Record) -> Result<()> {
        let new = self.file("status.new");
        let text = serde_json::to_vec(record).map_err(|error| self.broken(&error.into()))?;
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, self.file("status")))
            .map_err(|error| self.broken(&error))
    }

    pub(super) fn read(&self) -> Result<Record> {
        let text = fs::read(self.file("status")).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::new(FailureKind::NoSuchContainer, format!("container `{}` does not exist", self.id))
            }
            _ => self.broken(&error),
        })?;
        serde_json::from_slice(&text).map_err(|error| self.broken(&error.into()))
    }

    pub(super) fn broken(&self, error: &io::Error) -> Failure {
        Failure::new(FailureKind::Other, format!("the state of container `{}` cannot be kept", self.id))
            .fact("directory", self.path.display().to_string())
            .fact("reason", error.to_string())
    }

    /// One command at a time changes a container.
    pub(super) fn lock(&self) -> Result<File> {
        let file = File::options().create(true).append(true).open(self.file("lock"));
        let locked = file.and_then(|file| file.lock().map(|()| file));
        locked.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::new(FailureKind::NoSuchContainer, format!("container `{}` does not exist", self.id))
            }
            _ => self.broken(&error),
        })
    }

    pub(super) fn status(&self, record: &Record) -> Status {
        if record.pid == 0 {
            return Status::Creating;
        }
        if record.process().is_none() {
            return Status::Stopped;
        }
        if self.start_socket().exists() {
            return Status::Created;
        }
        if super::groups::is_frozen(&record.groups) { Status::Paused } else { Status::Running }
    }

    /// Removes the directory with everything in it, which is files and the directory of the notify socket.
    pub(super) fn remove(&self) -> Result<()> {
        // Nobody but this program can write to it, so that the socket is all there is.
        let notify = self.notify_directory();
        let _ = fs::remove_file(notify.join("notify"));
        let _ = fs::remove_dir(notify);
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            fs::remove_file(entry.path()).map_err(|error| self.broken(&error))?;
        }
        fs::remove_dir(&self.path).map_err(|error| self.broken(&error))
    }
}

/// Where the standard streams of this process lead, which are those of the container.
pub(super) fn standard_streams() -> String {
    let lead = |number: u32| {
        let path = fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
        path.to_string_lossy().into_owned()
    };
    serde_json::json!((0..3).map(lead).collect::<Vec<String>>()).to_string()
}

impl Record {
    /// The first process, if it lives.
    pub(super) fn process(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.pid)?;
        // First the descriptor, then the look: what the descriptor names cannot change any more.
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let (state, began) = look(self.pid)?;
        (began == self.began && !matches!(state, 'Z' | 'X')).then_some(process)
    }
}

/// A process's state and the time it began: fields 3 and 22 of `/proc/PID/stat` (proc_pid_stat(5)).
pub(super) fn look(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may contain anything, closing brackets included.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}
