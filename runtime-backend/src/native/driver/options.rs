//! What a container gets besides its own files: volumes, other images, other containers' mounts, devices.

use super::NativeDriver;
use super::check::{OTHER_USERS, unsupported};
use super::failures::launch_failed;
use crate::driver::{Create, Result};
use crate::native::devices::{self, HostDevice};
use crate::native::image::StoredImage;
use crate::native::instance::Instance;
use crate::native::launcher::{Connection, Part, PartKind, Reply, Request};
use crate::native::sys::DeviceRule;
use crate::native::users::User;
use shakedown_spec::{
    Container, Failure, FailureKind, File, Mount, MountSource, NamespaceMode, Volume, VolumesFrom,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What was found, made or borrowed for a container.
#[derive(Debug, Default)]
pub(crate) struct Extras {
    /// Which of its mounts show a part of another root.
    pub(crate) parts: Vec<Part>,
    /// Devices of the host.
    pub(crate) devices: Vec<HostDevice>,
    /// Keeps images from being removed.
    _images: Vec<Arc<StoredImage>>,
}

/// The session's volumes by key.
#[derive(Debug, Default)]
pub(super) struct Volumes(BTreeMap<String, MadeVolume>);

/// A volume: a root file system of the image that it was first mounted over, of which one directory is shown.
#[derive(Debug)]
struct MadeVolume {
    path: PathBuf,
    /// Whether its files belong to the users of containers whose root is not the host's.
    remapped: bool,
    /// Keeps the image from being removed.
    _image: Arc<StoredImage>,
}

/// What the launcher knows a volume by. No container's id has a slash.
fn volume_root(key: &str) -> String {
    format!("volume/{key}")
}

impl NativeDriver {
    /// Finds and makes what the declaration names, and leaves in it what can be mounted.
    pub(super) async fn extras(&self, create: &mut Create, image: &Arc<StoredImage>) -> Result<Extras> {
        let mut extras = Extras::default();
        for device in &create.container.devices {
            extras.devices.extend(HostDevice::find(device)?);
        }
        super::cdi::apply(&mut create.container, &mut extras.devices)?;
        let mut mounts = std::mem::take(&mut create.container.mounts);
        for (number, mount) in mounts.iter_mut().enumerate() {
            let (id, path, kind) = match &mount.source {
                MountSource::Bind { .. } | MountSource::Tmpfs { .. } => continue,
                MountSource::Volume { volume } => {
                    let path = self.volume(create, volume, &mount.target, image).await?;
                    (volume_root(&volume.key), path, PartKind::Made)
                }
                MountSource::Image { image, subpath } => {
                    let (id, stored) = self.shown_image(create, image, number).await?;
                    extras._images.push(stored);
                    let path = Path::new("/").join(subpath.as_deref().unwrap_or("").trim_start_matches('/'));
                    mount.read_only = true;
                    (id, path, PartKind::Found)
                }
            };
            mount.source = MountSource::host(path.to_string_lossy());
            extras.parts.push(Part { target: mount.target.clone().into(), id, path, kind });
        }
        for from in &create.container.volumes_from {
            self.borrow(&create.container, from, &mut mounts, &mut extras.parts)?;
        }
        // What is mounted in a directory that is mounted itself comes after it.
        mounts.sort_by_key(|mount| Path::new(&mount.target).components().count());
        create.container.mounts = mounts;
        if let NamespaceMode::Container(id) = &create.container.ipc {
            let path = PathBuf::from("/dev/shm");
            extras.parts.push(Part { target: path.clone(), id: id.clone(), path, kind: PartKind::Mounted });
        }
        Ok(extras)
    }

    /// Makes a volume if it is not there; says where in its root it is. It begins as what the image has at the place.
    async fn volume(
        &self,
        create: &Create,
        volume: &Volume,
        target: &str,
        image: &Arc<StoredImage>,
    ) -> Result<PathBuf> {
        let mut volumes = self.volumes.lock().await;
        let remapped = self.shift(&create.container).is_some();
        if let Some(made) = volumes.0.get(&volume.key) {
            if made.remapped != remapped {
                return Err(unsupported(&create.container, OTHER_USERS.to_owned()));
            }
            return Ok(made.path.clone());
        }
        self.mount_layers(create, volume_root(&volume.key), image).await?;
        let path = PathBuf::from(target);
        let made = MadeVolume { path: path.clone(), remapped, _image: Arc::clone(image) };
        volumes.0.insert(volume.key.clone(), made);
        Ok(path)
    }

    /// Removes a volume; one that is not there is no error. What a container still has mounted lives as long as that.
    pub(super) async fn drop_volume(&self, key: &str) -> Result<()> {
        let mut volumes = self.volumes.lock().await;
        let removed = self.launcher.ask(Request::Remove { id: volume_root(key) }).await;
        volumes.0.remove(key);
        removed.map(drop).map_err(|trouble| super::failure(&format!("volume {key}"), "removed", trouble))
    }

    async fn shown_image(
        &self,
        create: &Create,
        name: &str,
        number: usize,
    ) -> Result<(String, Arc<StoredImage>)> {
        let image = create.mounted.get(name).ok_or_else(|| {
            let title = format!("{} could not be created", create.container.display_name());
            Failure::new(FailureKind::Invalid, title).fact("reason", format!("image {name} was not resolved"))
        })?;
        let stored = self.stored(image)?;
        // The launcher forgets it with the container.
        let id = format!("{}/{number}", create.id);
        self.mount_layers(create, id.clone(), &stored).await?;
        Ok((id, stored))
    }

    async fn mount_layers(&self, create: &Create, id: String, image: &Arc<StoredImage>) -> Result<()> {
        let (layers, root) = (image.layers.clone(), id.clone());
        let (connection, shift) = (Connection::Unused, self.shift(&create.container));
        let paths = Vec::new();
        let request = Request::Prepare { id, layers, upper: None, shift, connection, paths, otherwise: true };
        let made = self.launcher.ask(request).await;
        let reply = made.map_err(|trouble| launch_failed(&create.container, trouble))?;
        if let Reply::Prepared { instead, .. } = reply {
            self.complete(&create.container, &root, image.layers.clone(), instead).await?;
        }
        Ok(())
    }

    /// Adds what another container has mounted, as Docker does: parts of the host, volumes, and the places that its
    /// image declares as volumes. What is declared here stands.
    fn borrow(
        &self,
        container: &Container,
        from: &VolumesFrom,
        mounts: &mut Vec<Mount>,
        parts: &mut Vec<Part>,
    ) -> Result<()> {
        let other = self.instance(&from.id)?;
        self.check_same_users(container, &other.create.container)?;
        let there = |mounts: &[Mount], target: &str| mounts.iter().any(|mount| mount.target == target);
        let own = other.create.container.mounts.iter();
        for mount in own.filter(|mount| matches!(mount.source, MountSource::Bind { .. })) {
            if !there(mounts, &mount.target) {
                mounts.push(Mount { read_only: mount.read_only || from.read_only, ..mount.clone() });
                let shown = other.extras.parts.iter().find(|part| part.target == Path::new(&mount.target));
                parts.extend(shown.cloned());
            }
        }
        for target in &other.create.image.config.volumes {
            if !there(mounts, target) {
                let source = MountSource::host(target);
                mounts.push(Mount { target: target.clone(), source, read_only: from.read_only });
                let (target, id) = (PathBuf::from(target), from.id.clone());
                parts.push(Part { path: target.clone(), target, id, kind: PartKind::Made });
            }
        }
        Ok(())
    }

    /// What keeps a container from devices, where something depends on it.
    pub(super) fn device_rules(
        &self,
        create: &Create,
        extras: &Extras,
        user: &User,
    ) -> Option<Vec<DeviceRule>> {
        let restricted = extras.devices.iter().any(HostDevice::is_restricted);
        let needed = restricted || self.facts(create, extras, user).could_use_nodes();
        needed.then(|| devices::rules(&extras.devices))
    }
}

/// The declared files by the root into which they are put, with their paths in there: the container's own (`None`), or a
/// volume.
pub(super) fn files_by_root(
    container: &Container,
    extras: &Extras,
) -> Result<BTreeMap<Option<String>, Vec<File>>> {
    let mut sorted: BTreeMap<Option<String>, Vec<File>> = BTreeMap::new();
    for file in &container.files {
        let covers = |mount: &&Mount| Path::new(&file.path).starts_with(&mount.target);
        let Some(mount) = container.mounts.iter().rev().find(covers) else {
            sorted.entry(None).or_default().push(file.clone());
            continue;
        };
        let part = extras.parts.iter().find(|part| part.target == Path::new(&mount.target));
        let part = part.filter(|part| part.kind == PartKind::Made && part.id.starts_with("volume/"));
        let Some(part) = part else {
            let title = format!("the files for {} could not be copied", container.display_name());
            let reason = format!("the native driver puts no files into what is mounted at {}", mount.target);
            return Err(Failure::new(FailureKind::Unsupported, title)
                .fact("file", &file.path)
                .fact("reason", reason)
                .hint("put them into what is mounted before the start, or elsewhere"));
        };
        let rest = Path::new(&file.path).strip_prefix(&mount.target).unwrap_or(Path::new(""));
        let path = if rest.as_os_str().is_empty() { part.path.clone() } else { part.path.join(rest) };
        let path = path.to_string_lossy().into_owned();
        sorted.entry(Some(part.id.clone())).or_default().push(File { path, ..file.clone() });
    }
    Ok(sorted)
}

/// The user with the declared groups.
pub(super) fn with_groups(instance: &Instance, mut user: User) -> Result<User> {
    let container = &instance.create.container;
    for group in &container.group_add {
        let id = instance.accounts.group(group).map_err(|reason| {
            let title = format!("{} could not be launched: unknown group", container.display_name());
            Failure::new(FailureKind::LaunchFailed, title).fact("group", group).fact("reason", reason)
        })?;
        if !user.groups.contains(&id) {
            user.groups.push(id);
        }
    }
    Ok(user)
}
