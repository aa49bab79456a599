//! The store: which images are there.

use super::digest::Digest;
use super::disk::{Disk, read_json};
use super::failures::{self, not_found, plain, unusable};
use super::fetch::Fetch;
use super::registry::Registry;
use super::unpacker::Unpacker;
use crate::driver::{Image, ImageConfig, Progress};
use serde::{Deserialize, Serialize};
use shakedown_spec::{Failure, ImageReference, ImageSource, PullPolicy};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::Semaphore;

/// As Docker with its defaults, doubled: layers come from caches near the user nowadays.
const FETCHED_AT_ONCE: usize = 6;

/// The images of one user on one machine, shared by all of the user's processes. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) disk: Disk,
    pub(super) unpacker: Arc<dyn Unpacker>,
    pub(super) registry: Arc<Registry>,
    /// As many layers are unpacked at once as there are processors; more would only take memory.
    pub(super) unpacking: Semaphore,
    /// Registries throttle clients that ask for more at once.
    pub(super) fetching: Semaphore,
    /// Images in use by this process, by source.
    pub(super) known: Mutex<HashMap<String, Known>>,
}

/// An image whose layers are unpacked.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// What it says about its containers.
    pub image: Image,
    /// The directories of its layers, lowest first: overlayfs's lower directories, in reverse order.
    pub layers: Vec<PathBuf>,
    /// Keeps the image from being removed by any process, for as long as it lives.
    pub in_use: InUse,
}

/// A share of an image. While one exists in any process, no process removes the image.
#[derive(Clone, Debug)]
pub struct InUse {
    _lock: Arc<File>,
}

#[derive(Debug)]
pub(super) struct Known {
    fingerprint: String,
    image: Image,
    layers: Vec<PathBuf>,
    in_use: Weak<File>,
}

/// What `refs/` says: what a source meant when it was last looked at.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ReferenceRecord {
    pub(super) source: String,
    /// What tells that the source has changed since.
    pub(super) fingerprint: String,
    pub(super) config: Digest,
    /// Of a registry: the manifest or index that the reference named.
    pub(super) manifest: Option<Digest>,
}

/// What `images/` says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub(super) config: ImageConfig,
    /// Keys of the layers, lowest first.
    pub(super) layers: Vec<String>,
}

/// One question to the store.
pub(super) struct Question {
    pub(super) source: ImageSource,
    /// The source's text with an absolute path, the name of its records.
    pub(super) text: String,
    pub(super) fingerprint: String,
    pub(super) progress: Progress,
}

impl Store {
    /// Opens the store at `root`, making it if need be, and removes what dead processes left unfinished.
    ///
    /// Passwords of registries are taken from Docker's configuration (`$DOCKER_CONFIG`, `~/.docker`).
    ///
    /// # Errors
    ///
    /// The directory cannot be made or read.
    pub async fn open(root: &Path, unpacker: Arc<dyn Unpacker>) -> Result<Self, Failure> {
        Self::open_with(root, unpacker, docker_config()).await
    }

    /// As [`open`](Self::open), with passwords from this Docker configuration file, or without any.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or read.
    pub async fn open_with(
        root: &Path,
        unpacker: Arc<dyn Unpacker>,
        docker_config: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let disk = Disk::open(root, unpacker.form()).map_err(|error| failures::opening(root, &error))?;
        disk.sweep(&*unpacker).await.map_err(|error| failures::opening(root, &error))?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Shared {
            disk,
            unpacker,
            registry: Arc::new(Registry::new(docker_config)),
            unpacking: Semaphore::new(processors),
            fetching: Semaphore::new(FETCHED_AT_ONCE),
            known: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Finds the image, fetching and unpacking it if need be. An image that is there is found without reading any of
    /// its content.
    ///
    /// The work goes on if the caller stops waiting: the next caller finds it done.
    ///
    /// # Errors
    ///
    /// The image is not found, or cannot be fetched, verified, unpacked or stored.
    pub async fn resolve(
        &self,
        source: &ImageSource,
        policy: PullPolicy,
        progress: Progress,
    ) -> Result<StoredImage, Failure> {
        let question = Question::new(source, progress)?;
        let mut current = None;
        if let (ImageSource::Registry(image), PullPolicy::Always) = (source, policy) {
            current = self.shared.fetch(&question, image).current().await?;
            if current.is_none() {
                return self.resolve_anew(question).await;
            }
        }
        if let Some(found) = self.shared.find(&question, current).await {
            return Ok(found);
        }
        if matches!(source, ImageSource::Registry(_)) && policy == PullPolicy::Never {
            return Err(not_found(source)
                .fact("store", self.shared.disk.root().display().to_string())
                .fact("reason", "it is not in the local store, and the pull policy is `never`"));
        }
        self.resolve_anew(question).await
    }

    async fn resolve_anew(&self, question: Question) -> Result<StoredImage, Failure> {
        let shared = Arc::clone(&self.shared);
        let source = question.source.clone();
        let work = tokio::spawn(async move { shared.obtain(&question).await });
        work.await
            .map_err(|error| unusable(&source, "could not be resolved").fact("reason", error.to_string()))?
    }
}

/// Where Docker's command line keeps passwords.
fn docker_config() -> Option<PathBuf> {
    let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    directory.or_else(home).map(|directory| directory.join("config.json"))
}

impl Question {
    fn new(source: &ImageSource, progress: Progress) -> Result<Self, Failure> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_empty| path.to_owned());
        let unreadable = |path: &Path, error: &io::Error| {
            let failure = match error.kind() {
                io::ErrorKind::NotFound => not_found(source),
                _ => unusable(source, "could not be read"),
            };
            failure.fact("file", path.display().to_string()).fact("reason", plain(error))
        };
        let mut source = source.clone();
        let fingerprint = match &mut source {
            ImageSource::Registry(_) => String::new(),
            ImageSource::OciLayout { path, .. } => {
                *path = absolute(path);
                let index = path.join("index.json");
                // Everything in a layout is named by its digest but the index, so the index stands for all of it.
                let bytes = bounded(&index).map_err(|error| unreadable(&index, &error))?;
                Digest::of(&bytes).to_string()
            }
            ImageSource::OciArchive { path, .. } | ImageSource::DockerArchive { path, .. } => {
                *path = absolute(path);
                let stat = std::fs::metadata(&*path).map_err(|error| unreadable(path, &error))?;
                let (dev, ino, size) = (stat.dev(), stat.ino(), stat.size());
                format!(
                    "{dev}:{ino}:{size}:{}.{}:{}.{}",
                    stat.mtime(),
                    stat.mtime_nsec(),
                    stat.ctime(),
                    stat.ctime_nsec()
                )
            }
        };
        let text = source.to_string();
        Ok(Self { source, text, fingerprint, progress })
    }
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(super::manifest::LARGEST_DOCUMENT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Shared {
    pub(super) fn fetch(&self, question: &Question, image: &ImageReference) -> Fetch {
        Fetch {
            disk: self.disk.clone(),
            registry: Arc::clone(&self.registry),
            source: question.source.clone(),
            image: image.clone(),
            progress: Arc::clone(&question.progress),
        }
    }

    pub(super) fn storing(&self, source: &ImageSource, error: &io::Error) -> Failure {
        failures::store(source, self.disk.root(), error)
    }

    /// The image, if it is there already. `current` is what a registry says the reference means now.
    async fn find(&self, question: &Question, current: Option<Digest>) -> Option<StoredImage> {
        if current.is_none()
            && let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&question.text)
            && known.fingerprint == question.fingerprint
            && let Some(in_use) = known.in_use.upgrade()
        {
            let (image, layers) = (known.image.clone(), known.layers.clone());
            return Some(StoredImage { image, layers, in_use: InUse { _lock: in_use } });
        }
        let record: ReferenceRecord = read_json(&self.disk.reference(&question.text))?;
        let same = record.source == question.text && record.fingerprint == question.fingerprint;
        if !same || (current.is_some() && current != record.manifest) {
            return None;
        }
        self.open_image(question, record.config).await
    }

    /// The image with this configuration, if all its layers are there.
    pub(super) async fn open_image(&self, question: &Question, id: Digest) -> Option<StoredImage> {
        let form = self.unpacker.form();
        // First the lock, then the look: an image that is seen under the lock stays.
        let lock = self.disk.lock_shared(&format!("image-{form}-{}", id.hex())).await.ok()?;
        let record: ImageRecord = read_json(&self.disk.image(form, id))?;
        let layers: Vec<_> = record.layers.iter().map(|key| self.disk.layer(form, key)).collect();
        if !layers.iter().all(|layer| layer.join("layer.json").exists()) {
            return None;
        }
        let layers: Vec<_> = layers.into_iter().map(|layer| layer.join("tree")).collect();
        let image =
            Image { id: id.to_string(), reference: failures::name(&question.source), config: record.config };
        let in_use = Arc::new(lock);
        let known = Known {
            fingerprint: question.fingerprint.clone(),
            image: image.clone(),
            layers: layers.clone(),
            in_use: Arc::downgrade(&in_use),
        };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(question.text.clone(), known);
        Some(StoredImage { image, layers, in_use: InUse { _lock: in_use } })
    }
}
