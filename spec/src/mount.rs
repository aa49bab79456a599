//! Files put into a container before it starts, and mounts.

use crate::{Volume, serial};
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
        Self { target: target.into(), source: MountSource::host(source), read_only: false }
    }

    /// A volume at `target`.
    pub fn volume(volume: &Volume, target: impl Into<String>) -> Self {
        let source = MountSource::Volume { volume: volume.clone() };
        Self { target: target.into(), source, read_only: false }
    }

    /// The files of an image at `target`; they can only be read.
    pub fn image(image: impl Into<String>, target: impl Into<String>) -> Self {
        let source = MountSource::Image { image: image.into(), subpath: None };
        Self { target: target.into(), source, read_only: true }
    }

    /// Shows only the file or directory at this path of the image.
    #[must_use]
    pub fn subpath(mut self, path: impl Into<String>) -> Self {
        if let MountSource::Image { subpath, .. } = &mut self.source {
            *subpath = Some(path.into());
        }
        self
    }

    /// Whether what is mounted on one side of a bind mount later is seen on the other.
    #[must_use]
    pub fn propagation(mut self, propagation: Propagation) -> Self {
        if let MountSource::Bind { options, .. } = &mut self.source {
            options.propagation = Some(propagation);
        }
        self
    }

    /// Gives the source of a bind mount an SELinux label by which containers may use it: Docker's `:z` and `:Z`.
    #[must_use]
    pub fn relabel(mut self, relabel: Relabel) -> Self {
        if let MountSource::Bind { options, .. } = &mut self.source {
            options.relabel = Some(relabel);
        }
        self
    }

    /// An empty file system in memory at `target`.
    pub fn tmpfs(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            source: MountSource::Tmpfs { size: None, mode: None },
            read_only: false,
        }
    }

    /// Limits the size of a file system in memory, in bytes.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        if let MountSource::Tmpfs { size, .. } = &mut self.source {
            *size = Some(bytes);
        }
        self
    }

    /// Sets the permission bits of the root of a file system in memory, such as `0o700`.
    #[must_use]
    pub fn mode(mut self, bits: u32) -> Self {
        if let MountSource::Tmpfs { mode, .. } = &mut self.source {
            *mode = Some(bits);
        }
        self
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
        /// How.
        #[serde(default, flatten)]
        options: BindOptions,
    },
    /// A volume.
    Volume {
        /// The volume.
        volume: Volume,
    },
    /// The files of an image, read-only.
    Image {
        /// The image, as of a container: a reference or a source.
        image: String,
        /// The file or directory in it that is shown; all of it when unset.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subpath: Option<String>,
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

impl MountSource {
    /// A file or directory of the host, with everything else as usual.
    pub fn host(source: impl Into<String>) -> Self {
        Self::Bind { source: source.into(), options: BindOptions::default() }
    }
}

/// How a part of the host is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct BindOptions {
    /// Whether later mounts are passed on; not at all when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation: Option<Propagation>,
    /// Which SELinux label the source gets; it keeps its own when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relabel: Option<Relabel>,
}

/// Whether what is mounted below a bind mount later is seen on its other side (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// In neither direction.
    Rprivate,
    /// What the host mounts is seen in the container.
    Rslave,
    /// In both directions.
    Rshared,
}

/// For whom the source of a bind mount is labelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relabel {
    /// For all containers (`z`).
    Shared,
    /// For this container alone (`Z`).
    Private,
}
