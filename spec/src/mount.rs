//! Files put into a container before it starts, and mounts.

use crate::serial;
use serde::{Deserialize, Serialize};

/// A file or directory put into the container before its first process starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute path in the container; missing parents are made, mode 0755, owner root.
    pub path: String,
    /// What is put there.
    pub content: FileContent,
    /// Permission bits; 0644 for bytes, the source's own for a host path, when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Owner's user id in the container; 0 when unset.
    #[serde(default)]
    pub uid: u32,
    /// Owner's group id in the container; 0 when unset.
    #[serde(default)]
    pub gid: u32,
}

impl File {
    /// A regular file with these bytes, mode 0644, owner root.
    pub fn bytes(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), content: FileContent::Bytes(bytes.into()), mode: None, uid: 0, gid: 0 }
    }

    /// A copy of a file or directory tree of the host.
    pub fn host(path: impl Into<String>, source: impl Into<String>) -> Self {
        Self { path: path.into(), content: FileContent::Host(source.into()), mode: None, uid: 0, gid: 0 }
    }

    /// Permission bits, such as `0o755`.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Owner in the container.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }
}

/// Where the content of a [`File`] comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileContent {
    /// These bytes (base64 in JSON).
    Bytes(#[serde(with = "serial::base64")] Vec<u8>),
    /// The file or directory at this path of the host, symbolic links kept.
    Host(String),
}

/// Something mounted into the container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Absolute path in the container.
    pub target: String,
    /// What is mounted.
    pub source: MountSource,
    /// Whether the container may only read.
    #[serde(default)]
    pub read_only: bool,
}

impl Mount {
    /// The host's file or directory `source` at `target`.
    pub fn bind(source: impl Into<String>, target: impl Into<String>) -> Self {
        Self { target: target.into(), source: MountSource::Bind { source: source.into() }, read_only: false }
    }

    /// An empty file system in memory at `target`.
    pub fn tmpfs(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            source: MountSource::Tmpfs { size: None, mode: None },
            read_only: false,
        }
    }

    /// Makes the mount read-only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }
}

/// What a [`Mount`] shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A file or directory of the host.
    Bind {
        /// Absolute path on the host; it has to exist.
        source: String,
    },
    /// A file system in memory, gone with the container.
    Tmpfs {
        /// Size in bytes; half of the machine's memory when unset.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
        /// Permission bits of its root; 1777 when unset.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
}
