//! The native driver: OCI images, overlayfs, namespaces, cgroups and seccomp, as root or as an ordinary user.
//!
//! The stages *resolve* ([`image`]), *prepare* (`rootfs`, `network`) and *launch* (`launch`), and *reap*. The keeper's
//! side is `driver`; everything that needs namespaces happens in the process of `launcher`.

pub mod image;
mod rootfs;
mod stacked;
mod network;
mod bundle;
mod devices;
mod users;
mod yardstick;
mod launch;
mod seccomp;
mod launcher;
pub mod oci;
mod cgroup;
mod build;
mod driver;
mod outbound;
mod instance;
mod console;
mod streams;
mod transfer;
mod reap;
mod own;
mod sys;

pub use driver::{NativeDriver, limits, open_store, store_directory, sweep, trees_need_launcher};
pub use launcher::{Launcher, launcher_main};
#[doc(hidden)]
pub use yardstick::bare_clone;
