//! What of a container's world is not its own, and what more it gets: devices, volumes, namespaces, security options.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

/// Files that outlive a container and that several can share.
///
/// A volume is a declaration, like a [`Network`](crate::Network): it is made when the first container that mounts it
/// starts, and removed with the test process that made it. It begins with what the image of that container has at the
/// mount's place. Clones are the same volume; two calls of [`Volume::new`] are two volumes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// What tells this volume from the others of the session.
    pub key: String,
    /// Labels for tools that list volumes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Volume {
    /// A volume of its own, with a random key.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "each call makes a different volume; a default value would not"
    )]
    pub fn new() -> Self {
        Self::named(format!("vol-{:016x}", RandomState::new().hash_one(())))
    }

    /// The volume of this name in the session: tests that name it equally share it.
    pub fn named(key: impl Into<String>) -> Self {
        Self { key: key.into(), labels: BTreeMap::new() }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
}

/// The mounts of another container, shown at the same places.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumesFrom {
    /// The id of the container.
    pub id: String,
    /// Whether they may only be read here.
    #[serde(default)]
    pub read_only: bool,
}

/// A device of the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Where it is on the host, such as `/dev/fuse`.
    pub source: String,
    /// Where it is in the container; the same place when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What may be done with it: `r`ead, `w`rite, `m`knod; all of it when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
}

impl Device {
    /// Where it is in the container.
    #[must_use]
    pub fn target(&self) -> &str {
        self.target.as_deref().unwrap_or(&self.source)
    }

    /// What may be done with it.
    #[must_use]
    pub fn permissions(&self) -> &str {
        self.permissions.as_deref().unwrap_or("rwm")
    }
}

/// `/dev/fuse`, `/dev/fuse:/dev/other` or `/dev/fuse:/dev/other:rw`, as `docker run --device` takes it.
impl From<&str> for Device {
    fn from(text: &str) -> Self {
        let mut parts = text.splitn(3, ':').map(str::to_owned);
        let source = parts.next().unwrap_or_default();
        let (second, third) = (parts.next(), parts.next());
        // Two parts are a device and its permissions, unless the second is a path.
        match (second, third) {
            (Some(second), None) if !second.starts_with('/') => {
                Self { source, target: None, permissions: Some(second) }
            }
            (target, permissions) => Self { source, target, permissions },
        }
    }
}

impl From<String> for Device {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// Whose namespace of one kind a container has.
///
/// In JSON a text: `private`, `shareable`, `host` or `container:ID`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NamespaceMode {
    /// Its own.
    #[default]
    Private,
    /// Its own, which others may join; Docker insists on this for `ipc`.
    Shareable,
    /// The host's.
    Host,
    /// That of the running container with this id.
    Container(String),
}

impl NamespaceMode {
    /// Whether this is the mode of a container that declares none.
    #[must_use]
    pub fn is_private(&self) -> bool {
        *self == Self::Private
    }
}

impl TryFrom<String> for NamespaceMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "private" => Ok(Self::Private),
            "shareable" => Ok(Self::Shareable),
            "host" => Ok(Self::Host),
            other => match other.strip_prefix("container:") {
                Some(id) if !id.is_empty() => Ok(Self::Container(id.to_owned())),
                _ => Err(format!("`{text}` is none of `private`, `shareable`, `host`, `container:ID`")),
            },
        }
    }
}

impl From<NamespaceMode> for String {
    fn from(mode: NamespaceMode) -> Self {
        mode.to_string()
    }
}

impl fmt::Display for NamespaceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private => f.write_str("private"),
            Self::Shareable => f.write_str("shareable"),
            Self::Host => f.write_str("host"),
            Self::Container(id) => write!(f, "container:{id}"),
        }
    }
}

/// What `security_opt` asks for, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityOptions {
    /// Set-user-id programs gain nothing.
    pub no_new_privileges: bool,
    /// Another filter of system calls than the default.
    pub seccomp: Option<Seccomp>,
    /// The AppArmor profile, or `unconfined`.
    pub apparmor: Option<String>,
    /// Parts of the SELinux label (`type:svirt_t`), or `disable`.
    pub label: Vec<String>,
    /// Nothing of `/proc` and `/sys` is masked or read-only.
    pub systempaths_unconfined: bool,
}

/// A filter of system calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// None.
    Unconfined,
    /// The driver's default.
    Default,
    /// A profile in Docker's format: the JSON text.
    Profile(String),
    /// A file of the host that has the profile.
    File(String),
}

impl SecurityOptions {
    /// Reads the options as `docker run --security-opt` takes them, a profile of seccomp as a file or as its text.
    ///
    /// # Errors
    ///
    /// The option that is none.
    pub fn read(options: &[String]) -> Result<Self, String> {
        let mut read = Self::default();
        for option in options {
            let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
            match (key, value) {
                ("no-new-privileges", "" | "true") => read.no_new_privileges = true,
                ("no-new-privileges", "false") => read.no_new_privileges = false,
                ("seccomp", "unconfined") => read.seccomp = Some(Seccomp::Unconfined),
                ("seccomp", "builtin") => read.seccomp = Some(Seccomp::Default),
                ("seccomp", text) if text.trim_start().starts_with('{') => {
                    read.seccomp = Some(Seccomp::Profile(text.to_owned()));
                }
                ("seccomp", file) if !file.is_empty() => read.seccomp = Some(Seccomp::File(file.to_owned())),
                ("apparmor", profile) if !profile.is_empty() => read.apparmor = Some(profile.to_owned()),
                ("label", part) if !part.is_empty() => read.label.push(part.to_owned()),
                ("systempaths", "unconfined") => read.systempaths_unconfined = true,
                _ => return Err(format!("`{}` is no security option", option.escape_debug())),
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn device(text: &str, target: &str, permissions: &str) {
        let device = Device::from(text);
        assert_eq!((device.target(), device.permissions()), (target, permissions), "{text}");
        assert_eq!(device.source, "/dev/fuse");
    }

    /// Devices are written as for `docker run`.
    #[test]
    fn devices_are_texts() {
        device("/dev/fuse", "/dev/fuse", "rwm");
        device("/dev/fuse:/dev/f", "/dev/f", "rwm");
        device("/dev/fuse:r", "/dev/fuse", "r");
        device("/dev/fuse:/dev/f:rw", "/dev/f", "rw");
    }

    /// Options are those of `docker run`, and a misspelt one is told.
    #[test]
    fn security_options_are_read() {
        let read = |option: &str| SecurityOptions::read(&[option.to_owned()]);
        assert!(read("no-new-privileges").unwrap().no_new_privileges);
        assert!(read("no-new-privileges:true").unwrap().no_new_privileges);
        assert_eq!(read("seccomp=unconfined").unwrap().seccomp, Some(Seccomp::Unconfined));
        assert_eq!(read("seccomp=a.json").unwrap().seccomp, Some(Seccomp::File("a.json".to_owned())));
        assert_eq!(read("seccomp={}").unwrap().seccomp, Some(Seccomp::Profile("{}".to_owned())));
        assert_eq!(read("label=type:svirt_t").unwrap().label, ["type:svirt_t"]);
        assert_eq!(read("label:disable").unwrap().label, ["disable"]);
        assert!(read("systempaths=unconfined").unwrap().systempaths_unconfined);
        for wrong in ["", "seccomp", "secomp=unconfined", "no-new-privileges=maybe", "systempaths=x"] {
            assert!(read(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }

    /// A mode that is misspelt in a request is told.
    #[test]
    fn namespace_modes_are_texts() {
        for text in ["private", "shareable", "host", "container:orders-1"] {
            assert_eq!(NamespaceMode::try_from(text.to_owned()).map(String::from), Ok(text.to_owned()));
        }
        assert!(NamespaceMode::try_from("shared".to_owned()).unwrap_err().contains("`shareable`"));
    }
}
