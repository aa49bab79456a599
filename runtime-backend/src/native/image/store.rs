//! The store: which images are there.

use super::digest::Digest;
use super::disk::{Disk, read_json, touch};
use super::failures::{self, not_found, plain, unusable};
use super::fetch::Fetch;
use super::manifest::Descriptor;
use super::options::{RegistriesConfig, StoreOptions};
use super::registry::Registry;
use super::survival::this_boot;
use super::unpacker::Unpacker;
use crate::driver::{Image, ImageConfig, Progress};
use crate::wanted::Wanted;
use serde::{Deserialize, Serialize};
use shakedown_spec::{Failure, ImageReference, ImageSource, Platform, PullPolicy};
use std::collections::HashMap;
use std::fmt;
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
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) disk: Disk,
    /// Which boot of the machine this is.
    pub(super) boot: String,
    pub(super) unpacker: Arc<dyn Unpacker>,
    pub(super) registry: Arc<Registry>,
    options: StoreOptions,
    /// Clients for what projects declare about registries, one for each declaration.
    declared: Mutex<Vec<(RegistriesConfig, Arc<Registry>)>>,
    /// As many layers are unpacked at once as there are processors; more would only take memory.
    pub(super) unpacking: Semaphore,
    pub(super) fetching: Arc<Semaphore>,
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
    /// The platform that was asked for, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    /// What tells that the source has changed since.
    pub(super) fingerprint: String,
    pub(super) config: Digest,
    /// Of a registry: the manifest or index that the reference named.
    pub(super) manifest: Option<Digest>,
    /// When the source was last asked, in seconds since 1970.
    #[serde(default)]
    pub(super) asked: u64,
}

impl ReferenceRecord {
    /// What a source means, asked just now.
    pub(super) fn new(
        source: String,
        platform: Option<Platform>,
        fingerprint: String,
        config: Digest,
        manifest: Option<Digest>,
    ) -> Self {
        Self { source, platform, fingerprint, config, manifest, asked: now() }
    }
}

fn now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}

/// What `images/` says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub(super) config: ImageConfig,
    /// Keys of the layers that make up the tree, lowest first.
    pub(super) layers: Vec<String>,
    /// All layers of its configuration, lowest first; some may be hidden altogether by those above.
    pub(super) parts: Vec<LayerPart>,
    /// Its manifest, a blob of the store; what came in a Docker archive has none.
    pub(super) manifest: Option<Digest>,
    /// When it was made, as it says (RFC 3339).
    pub(super) created: Option<String>,
    /// What it runs on, as `linux/amd64`.
    pub(super) platform: String,
    /// In which boot of the machine it was written; none once it is known to be on the disk.
    pub(super) boot: Option<String>,
}

/// One layer of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LayerPart {
    pub(super) diff_id: Digest,
    pub(super) key: String,
    /// What the manifest says about its blob.
    pub(super) blob: Option<Descriptor>,
    /// Whether the store has that blob: if it came from a registry or was made here.
    pub(super) stored: bool,
}

/// One question to the store.
pub(super) struct Question {
    pub(super) source: ImageSource,
    /// The source's text with an absolute path, the name of its records.
    pub(super) text: String,
    pub(super) fingerprint: String,
    /// The platform that was asked for; this machine's if none was.
    pub(super) platform: Option<Platform>,
    /// Whether only the store is looked at.
    pub(super) offline: bool,
    pub(super) registries: RegistriesConfig,
    pub(super) progress: Progress,
}

impl Store {
    /// Opens the store at `root`, making it if need be, and removes what dead processes left unfinished.
    ///
    /// Passwords of registries are those that Docker's and Podman's command lines use.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or read.
    pub async fn open(root: &Path, unpacker: Arc<dyn Unpacker>) -> Result<Self, Failure> {
        Self::open_with(root, unpacker, StoreOptions::of_environment()).await
    }

    /// As [`open`](Self::open), reaching registries as `options` say.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or read.
    pub async fn open_with(
        root: &Path,
        unpacker: Arc<dyn Unpacker>,
        options: StoreOptions,
    ) -> Result<Self, Failure> {
        let disk = Disk::open(root, unpacker.form()).map_err(|error| failures::opening(root, &error))?;
        disk.sweep(&*unpacker).await.map_err(|error| failures::opening(root, &error))?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Shared {
            disk,
            boot: this_boot(),
            unpacker,
            registry: Arc::new(Registry::new(options.clone())),
            options,
            declared: Mutex::default(),
            unpacking: Semaphore::new(processors),
            fetching: Arc::new(Semaphore::new(FETCHED_AT_ONCE)),
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
        self.obtain(&Wanted::new(source.clone(), policy), progress).await
    }

    /// As [`resolve`](Self::resolve), on terms.
    ///
    /// # Errors
    ///
    /// See [`resolve`](Self::resolve).
    pub async fn obtain(&self, wanted: &Wanted, progress: Progress) -> Result<StoredImage, Failure> {
        let source = &wanted.source;
        let offline = wanted.offline && matches!(source, ImageSource::Debian(_));
        if offline {
            // Packages come over the network; what was built of them before is here.
            let question = Question::of(wanted, progress)?;
            let here = self.shared.find(&question, None).await;
            return here.ok_or_else(|| failures::offline(source, self.shared.disk.root()));
        }
        // Boxed: few callers need the space that all this takes.
        if let Some(made) = Box::pin(self.made(source, wanted.policy, &progress)).await? {
            return Ok(made);
        }
        let question = Question::of(wanted, progress)?;
        let mut current = None;
        // What is named by its digest cannot have changed.
        if let ImageSource::Registry(image @ ImageReference { digest: None, .. }) = source
            && !wanted.offline
            && self.shared.is_stale(&question, wanted.policy)
        {
            current = self.shared.fetch(&question, image).current().await?;
            if current.is_none() {
                return self.resolve_anew(question).await;
            }
        }
        if let Some(found) = self.shared.find(&question, current).await {
            if current.is_some() {
                self.shared.asked_now(&question)?;
            }
            return Ok(found);
        }
        if matches!(source, ImageSource::Registry(_)) && wanted.policy == PullPolicy::Never && !wanted.offline
        {
            return Err(not_found(source)
                .fact("store", self.shared.disk.root().display().to_string())
                .fact("reason", "it is not in the local store, and the pull policy is `never`"));
        }
        self.resolve_anew(question).await
    }

    /// The digests by which the image of this reference can be asked for here; nothing, if it is not here.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn digests(&self, reference: &ImageReference) -> Result<Vec<Digest>, Failure> {
        let source = ImageSource::Registry(reference.clone());
        let question = Question::new(&source, Arc::new(|_, _, _| {}))?;
        let Some(record) = self.shared.record(&question) else { return Ok(Vec::new()) };
        let there = self.shared.open_image(&question, record.config).await.is_some();
        Ok(record.manifest.filter(|_| there).into_iter().collect())
    }

    /// What the registry means by a reference now; `None` if it does not say.
    ///
    /// # Errors
    ///
    /// The registry cannot be reached.
    pub async fn current(
        &self,
        reference: &ImageReference,
        registries: &RegistriesConfig,
    ) -> Result<Option<Digest>, Failure> {
        let source = ImageSource::Registry(reference.clone());
        let mut question = Question::new(&source, Arc::new(|_, _, _| {}))?;
        question.registries = registries.clone();
        self.shared.fetch(&question, reference).current().await
    }

    async fn resolve_anew(&self, question: Question) -> Result<StoredImage, Failure> {
        let shared = Arc::clone(&self.shared);
        let source = question.source.clone();
        let work = tokio::spawn(async move { shared.obtain(&question).await });
        work.await
            .map_err(|error| unusable(&source, "could not be resolved").fact("reason", error.to_string()))?
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Question {
    pub(super) fn of(wanted: &Wanted, progress: Progress) -> Result<Self, Failure> {
        let mut question = Self::new(&wanted.source, progress)?;
        question.offline = wanted.offline;
        question.registries = wanted.registries.clone();
        // Asked for by name, this machine's kind is no other image than the usual one.
        question.platform = wanted.platform.clone().filter(|platform| *platform != Platform::here());
        Ok(question)
    }

    pub(super) fn new(source: &ImageSource, progress: Progress) -> Result<Self, Failure> {
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
            ImageSource::Registry(_)
            | ImageSource::Id(_)
            | ImageSource::DockerDaemon(_)
            | ImageSource::Debian(_)
            | ImageSource::Build(_) => String::new(),
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
        let registries = RegistriesConfig::default();
        Ok(Self { source, text, fingerprint, platform: None, offline: false, registries, progress })
    }

    /// The image's platform.
    pub(super) fn wanted_platform(&self) -> Platform {
        self.platform.clone().unwrap_or_else(Platform::here)
    }

    /// Under which the answer is kept.
    pub(super) fn name(&self) -> String {
        name_of(&self.text, self.platform.as_ref())
    }

    /// Of an image that is made here: the source is for messages, and is not asked for again under this name.
    pub(super) fn made(source: &ImageSource, progress: Progress) -> Self {
        let (text, fingerprint, registries) = (String::new(), String::new(), RegistriesConfig::default());
        // What is made here is made of what is here.
        Self {
            source: source.clone(),
            text,
            fingerprint,
            platform: None,
            offline: true,
            registries,
            progress,
        }
    }
}

fn name_of(text: &str, platform: Option<&Platform>) -> String {
    platform.map_or_else(|| text.to_owned(), |platform| format!("{text} {platform}"))
}

impl ReferenceRecord {
    /// What its file is named for.
    pub(super) fn name(&self) -> String {
        name_of(&self.source, self.platform.as_ref())
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
            registry: self.registry(&question.registries),
            source: question.source.clone(),
            image: image.clone(),
            platform: question.wanted_platform(),
            offline: question.offline,
            progress: Arc::clone(&question.progress),
            turns: Arc::clone(&self.fetching),
        }
    }

    /// The client that goes by this declaration.
    fn registry(&self, declaration: &RegistriesConfig) -> Arc<Registry> {
        if declaration.registries.is_empty() {
            return Arc::clone(&self.registry);
        }
        let mut declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, registry)) = declared.iter().find(|(known, _)| known == declaration) {
            return Arc::clone(registry);
        }
        let options = StoreOptions { registries: declaration.clone(), ..self.options.clone() };
        let registry = Arc::new(Registry::new(options));
        declared.push((declaration.clone(), Arc::clone(&registry)));
        registry
    }

    /// Whether the policy asks the registry about an image that is here.
    fn is_stale(&self, question: &Question, policy: PullPolicy) -> bool {
        match policy {
            PullPolicy::Always => true,
            PullPolicy::OlderThan(age) => {
                let record: Option<ReferenceRecord> = read_json(&self.disk.reference(&question.name()));
                record.is_some_and(|record| now().saturating_sub(record.asked) >= age.as_secs())
            }
            PullPolicy::Missing | PullPolicy::Never => false,
        }
    }

    /// Notes that the registry was asked just now and means what it meant before.
    fn asked_now(&self, question: &Question) -> Result<(), Failure> {
        let path = self.disk.reference(&question.name());
        let Some(record) = read_json::<ReferenceRecord>(&path) else { return Ok(()) };
        let record = ReferenceRecord { asked: now(), ..record };
        self.disk.write_json(&path, &record).map_err(|error| self.storing(&question.source, &error))
    }

    /// What the source meant when it was last looked at. A reference with a digest means the same as the tag of which
    /// that is known to be the digest.
    pub(super) fn record(&self, question: &Question) -> Option<ReferenceRecord> {
        let read = |text: &str| {
            let platform = question.platform.as_ref();
            read_json::<ReferenceRecord>(&self.disk.reference(&name_of(text, platform)))
                .filter(|record| record.source == text && record.platform.as_ref() == platform)
        };
        if let Some(record) = read(&question.text) {
            return Some(record);
        }
        let ImageSource::Registry(image) = &question.source else { return None };
        let digest: Digest = image.digest.as_deref()?.parse().ok()?;
        let bare = ImageReference { digest: None, ..image.clone() };
        let untagged = ImageReference { tag: None, ..image.clone() };
        let others = [bare, untagged].map(|image| image.to_string());
        others.iter().filter_map(|text| read(text)).find(|record| record.manifest == Some(digest))
    }

    pub(super) fn storing(&self, source: &ImageSource, error: &io::Error) -> Failure {
        failures::store(source, self.disk.root(), error)
    }

    /// The image, if it is there already. `current` is what a registry says the reference means now.
    pub(super) async fn find(&self, question: &Question, current: Option<Digest>) -> Option<StoredImage> {
        if current.is_none()
            && let Some(known) =
                self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&question.name())
            && known.fingerprint == question.fingerprint
            && let Some(in_use) = known.in_use.upgrade()
        {
            let (image, layers) = (known.image.clone(), known.layers.clone());
            return Some(StoredImage { image, layers, in_use: InUse { _lock: in_use } });
        }
        let record = self.record(question)?;
        if record.fingerprint != question.fingerprint || (current.is_some() && current != record.manifest) {
            return None;
        }
        self.open_image(question, record.config).await
    }

    /// The image with this configuration, if all its layers are there.
    pub(super) async fn open_image(&self, question: &Question, id: Digest) -> Option<StoredImage> {
        let form = self.unpacker.form();
        // First the lock, then the look: an image that is seen under the lock stays.
        let lock = self.disk.lock_shared(&self.image_lock(id)).await.ok()?;
        let path = self.disk.image(form, id);
        let mut record: ImageRecord = read_json(&path)?;
        if !self.has_layers(&path, &mut record).await {
            return None;
        }
        touch(&path);
        let layers = self.trees(&record.layers);
        let image =
            Image { id: id.to_string(), reference: failures::name(&question.source), config: record.config };
        let in_use = Arc::new(lock);
        let known = Known {
            fingerprint: question.fingerprint.clone(),
            image: image.clone(),
            layers: layers.clone(),
            in_use: Arc::downgrade(&in_use),
        };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(question.name(), known);
        Some(StoredImage { image, layers, in_use: InUse { _lock: in_use } })
    }
}
