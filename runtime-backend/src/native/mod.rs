//! The native driver: OCI images, overlayfs, namespaces, cgroups and seccomp, as root or as an ordinary user.
//!
//! The stages *resolve* ([`image`]), *prepare* (`rootfs`, `network`) and *launch* (`launch`), and *reap*. The keeper's
//! side is `driver`; everything that needs namespaces happens in the process of `launcher`.

pub mod image;
mod rootfs;
mod network;
mod bundle;
mod users;
mod launch;
mod seccomp;
mod launcher;
mod cgroup;
mod driver;
mod instance;
mod streams;
mod reap;
mod sys;

pub use driver::{NativeDriver, store_directory, sweep};
pub use launcher::{Launcher, launcher_main};
