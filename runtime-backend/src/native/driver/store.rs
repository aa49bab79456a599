//! Where this user's images are.

use super::connect;
use crate::driver::Result;
use crate::native::image::{LocalUnpacker, RegistriesConfig, Store, StoreOptions, Unpacker};
use crate::native::launcher::{Handle, Identity, Launcher, MappedUnpacker};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) fn unpacker(launcher: Option<&Handle>) -> Arc<dyn Unpacker> {
    match launcher {
        Some(launcher) if launcher.identity() == Identity::Ranges => {
            Arc::new(MappedUnpacker::new(launcher.clone()))
        }
        _ => Arc::new(LocalUnpacker::of_this_process()),
    }
}

/// Whether the files of this user's unpacked images belong to ids that only a launcher may touch.
#[must_use]
pub fn trees_need_launcher() -> bool {
    Identity::detect() == Identity::Ranges
}

/// Opens the image store without a driver, reaching registries as is declared. Must be called within a tokio runtime.
///
/// # Errors
///
/// The store cannot be used.
pub async fn open_store(
    launcher: Option<Launcher>,
    root: &Path,
    registries: RegistriesConfig,
) -> Result<Store> {
    let launcher = launcher.map(connect).transpose()?;
    let options = StoreOptions { registries, ..StoreOptions::of_environment() };
    Store::open_with(root, unpacker(launcher.as_ref()), options).await
}

/// The directory of this user's image store: `$SHAKEDOWN_STORE`, else `/var/lib/shakedown` for root, else
/// `$XDG_DATA_HOME/shakedown`, else `~/.local/share/shakedown`, else one in `/var/tmp`.
#[must_use]
pub fn store_directory() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let uid = rustix::process::geteuid();
    if let Some(chosen) = variable("SHAKEDOWN_STORE") {
        return chosen;
    }
    if uid.is_root() && rustix::fs::access("/var/lib", rustix::fs::Access::WRITE_OK).is_ok() {
        return PathBuf::from("/var/lib/shakedown");
    }
    let data = variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    let usable = |path: &PathBuf| path.is_absolute() && std::fs::create_dir_all(path).is_ok();
    data.filter(usable).map_or_else(
        || PathBuf::from(format!("/var/tmp/shakedown-{}", uid.as_raw())),
        |data| data.join("shakedown"),
    )
}
