//! What a user declares: containers, waits, networks, files, and what comes back (endpoints, failures).
//!
//! The first stage of the way of the data, *declare*. Everything here is plain data: it can be printed, compared,
//! hashed, stored and sent as JSON (these types are the schema of the REST API). Nothing here does input or output,
//! and nothing here knows which driver will run a declaration.

mod container;
mod configure;
mod mount;
mod options;
mod resources;
mod healthcheck;
mod restart;
mod wait;
mod network;
mod reference;
mod platform;
mod pull;
mod licence;
mod source;
mod build;
mod debian;
mod query;
mod endpoint;
mod module;
mod failure;
mod serial;

pub use build::{Build, BuildContext, BuildSecret, ContextFile, Dockerfile};
pub use configure::Configure;
pub use container::{Attachment, Container, GenericContainer};
pub use debian::DebianSource;
pub use endpoint::{Endpoints, Port, Protocol, Published};
pub use failure::{Failure, FailureKind, LogTail};
pub use healthcheck::Healthcheck;
pub use licence::Licence;
pub use module::{Connection, Module};
pub use mount::{BindOptions, File, FileContent, Mount, MountSource, Propagation, Relabel};
pub use network::{Network, NetworkMode};
pub use options::{Device, NamespaceMode, Seccomp, SecurityOptions, Volume, VolumesFrom};
pub use platform::{Platform, PlatformError};
pub use pull::PullPolicy;
pub use reference::{ImageReference, ReferenceError};
pub use resources::{Resources, Ulimit};
pub use restart::RestartPolicy;
pub use source::ImageSource;
pub use wait::{HttpCheck, Pattern, ProbeProtocol, Stream, Wait, WaitKind};
