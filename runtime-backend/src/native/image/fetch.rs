//! Brings images from a registry into the store: verified, once for all processes.
//!
//! A layer is unpacked while it arrives: its bytes go to a file of the work in progress, which a [`Blob`] follows as it
//! grows. Neither file nor tree leaves the work in progress before the digest of every byte is known to be right.

use super::digest::{Digest, Hasher};
use super::disk::{Disk, Scratch};
use super::failures::{self, unusable, wrong_digest, wrong_size};
use super::files::{for_platform, parse};
use super::manifest::{Descriptor, Document, LARGEST_DOCUMENT, Manifest};
use super::refusal::refused;
use super::registry::{BlobStream, Reason, Registry, RegistryError};
use super::unpacker::Blob;
use crate::driver::Progress;
use crate::image_files::blob::Growth;
use bytes::Bytes;
use shakedown_spec::{Failure, ImageReference, ImageSource, Platform};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, channel};

/// How deep indexes may nest.
const DEEPEST_INDEX: usize = 4;
/// How many pieces may wait for the disk; a piece has at most some 400 KiB.
const WAITING: usize = 16;

/// One image at one registry.
#[derive(Clone)]
pub(crate) struct Fetch {
    pub(crate) disk: Disk,
    pub(crate) registry: Arc<Registry>,
    pub(crate) source: ImageSource,
    pub(crate) image: ImageReference,
    pub(crate) platform: Platform,
    /// Whether only the store is looked at.
    pub(crate) offline: bool,
    pub(crate) progress: Progress,
    /// Registries throttle clients that ask for more at once.
    pub(crate) turns: Arc<Semaphore>,
}

/// The manifest for the platform, which is in the store now.
pub(crate) struct FetchedManifest {
    pub(crate) manifest: Manifest,
    pub(crate) digest: Digest,
    /// What the reference means: an index, usually.
    pub(crate) top: Digest,
}

/// A blob that is there, or will be.
pub(crate) enum Arrival {
    There(Blob),
    Coming(Box<Download>),
}

/// A blob on its way to the store. Nobody else fetches it as long as this lives.
pub(crate) struct Download {
    fetch: Fetch,
    wanted: Descriptor,
    what: String,
    path: PathBuf,
    growth: Growth,
    blob: Blob,
    mirrors: bool,
    _lock: File,
}

/// Why a download failed.
pub(crate) struct Broken {
    pub(crate) failure: Failure,
    /// A mirror gave wrong bytes: the registry itself may have the right ones.
    pub(crate) blames_mirror: bool,
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self { failure, blames_mirror: false }
    }
}

impl Fetch {
    /// The manifest for the platform.
    pub(crate) async fn manifest(&self) -> Result<FetchedManifest, Failure> {
        let mut selector = self.image.selector().to_owned();
        let mut top = None;
        for _ in 0..DEEPEST_INDEX {
            let (digest, bytes) = self.document(&selector).await?;
            let top = *top.get_or_insert(digest);
            match parse(&self.source, &format!("manifests/{selector}"), &bytes)? {
                Document::Manifest(manifest) => return Ok(FetchedManifest { manifest, digest, top }),
                Document::Index(entries) => {
                    selector = for_platform(&self.source, &entries, &self.platform)?.digest.to_string();
                }
            }
        }
        Err(unusable(&self.source, "cannot be used: its indexes are nested too deep"))
    }

    /// A manifest or index: one that is named by its digest from the store if it is there, else from the registry. It is
    /// in the store then.
    pub(crate) async fn document(&self, selector: &str) -> Result<(Digest, Vec<u8>), Failure> {
        if let Ok(digest) = selector.parse::<Digest>()
            && let Some(bytes) = self.disk.document(digest)
        {
            return Ok((digest, bytes));
        }
        if self.offline {
            return Err(failures::offline(&self.source, self.disk.root()));
        }
        let fetched = match self.registry.manifest(&self.image, selector).await {
            Ok(fetched) => fetched,
            Err(error) => return Err(self.refused("the manifest", &error).await),
        };
        self.disk.keep(&fetched.bytes).map_err(|error| self.storing(&error))?;
        Ok((fetched.digest, fetched.bytes))
    }

    /// Which manifest the reference means now, if the registry says so. A refusal is no answer here: the request for
    /// the manifest itself is refused with words, this one without.
    pub(crate) async fn current(&self) -> Result<Option<Digest>, Failure> {
        match self.registry.current(&self.image).await {
            Ok(digest) => Ok(digest),
            Err(RegistryError { reason: Reason::Status { .. }, .. }) => Ok(None),
            Err(error) => Err(self.refused("the manifest", &error).await),
        }
    }

    /// The image's configuration.
    pub(crate) async fn config(&self, config: &Descriptor) -> Result<Vec<u8>, Failure> {
        let blob = self.blob(config, "the configuration").await?;
        if blob.length > LARGEST_DOCUMENT {
            return Err(wrong_size(&self.source, "the configuration", config.size, blob.length));
        }
        let read = || {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut blob.reader(), &mut bytes).map(|_| bytes)
        };
        read().map_err(|error| self.storing(&error))
    }

    /// A blob: from the store, else from the registry, for all processes once.
    pub(crate) async fn blob(&self, wanted: &Descriptor, what: &str) -> Result<Blob, Failure> {
        if let Some(blob) = self.stored(wanted) {
            return Ok(blob);
        }
        let scratch = self.disk.scratch().map_err(|error| self.storing(&error))?;
        let mut mirrors = true;
        loop {
            let download = match self.arrival(wanted, what, &scratch, mirrors).await? {
                Arrival::There(blob) => return Ok(blob),
                Arrival::Coming(download) => download,
            };
            match download.run().await {
                Ok(fetched) => return fetched.keep(),
                Err(broken) if broken.blames_mirror => mirrors = false,
                Err(broken) => return Err(broken.failure),
            }
        }
    }

    /// The blob, if the store has it; otherwise its download, to a file in `scratch`.
    pub(crate) async fn arrival(
        &self,
        wanted: &Descriptor,
        what: &str,
        scratch: &Scratch,
        mirrors: bool,
    ) -> Result<Arrival, Failure> {
        if let Some(blob) = self.stored(wanted) {
            return Ok(Arrival::There(blob));
        }
        let lock = format!("blob-{}", wanted.digest.hex());
        let lock = self.disk.lock(&lock).await.map_err(|error| self.storing(&error))?;
        if let Some(blob) = self.stored(wanted) {
            return Ok(Arrival::There(blob));
        }
        if self.offline {
            return Err(failures::offline(&self.source, self.disk.root()).fact("missing", what));
        }
        let path = scratch.path().join("blob");
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let begin = file.and_then(|file| Blob::growing(file, wanted.size));
        let (blob, growth) = begin.map_err(|error| self.storing(&error))?;
        let (fetch, wanted, what) = (self.clone(), wanted.clone(), what.to_owned());
        Ok(Arrival::Coming(Box::new(Download {
            fetch,
            wanted,
            what,
            path,
            growth,
            blob,
            mirrors,
            _lock: lock,
        })))
    }

    fn stored(&self, wanted: &Descriptor) -> Option<Blob> {
        let blob = Blob::whole(File::open(self.disk.blob(wanted.digest)).ok()?).ok()?;
        (blob.length == wanted.size).then_some(blob)
    }

    fn storing(&self, error: &io::Error) -> Failure {
        failures::store(&self.source, self.disk.root(), error)
    }

    async fn refused(&self, what: &str, error: &RegistryError) -> Failure {
        refused(&self.registry, &self.source, &self.image, what, error).await
    }
}

/// A blob whose bytes are all there and right, still among the work in progress.
pub(crate) struct Fetched {
    download: Download,
}

impl Fetched {
    /// Puts the blob into the store.
    pub(crate) fn keep(self) -> Result<Blob, Failure> {
        let Download { fetch, wanted, path, .. } = &self.download;
        std::fs::rename(path, fetch.disk.blob(wanted.digest)).map_err(|error| fetch.storing(&error))?;
        let gone = || unusable(&fetch.source, "could not be stored: another process removed it");
        fetch.stored(wanted).ok_or_else(gone)
    }
}

impl Download {
    /// The bytes as they come. Its reader waits for those that have not, and fails if they never do.
    pub(crate) fn blob(&self) -> Blob {
        self.blob.clone()
    }

    /// Fetches all of it, and compares size and digest. What is there of a broken one is removed: its space is needed
    /// by whoever tries next.
    pub(crate) async fn run(mut self: Box<Self>) -> Result<Fetched, Broken> {
        match self.fetch_and_check().await {
            Ok(()) => Ok(Fetched { download: *self }),
            Err(broken) => {
                let _ = std::fs::remove_file(&self.path);
                Err(broken)
            }
        }
    }

    async fn fetch_and_check(&mut self) -> Result<(), Broken> {
        let Self { fetch, wanted, .. } = &*self;
        let _turn = fetch.turns.acquire().await;
        let mut stream = fetch.registry.blob(&fetch.image, wanted, self.mirrors);
        let (to_disk, pieces) = channel(WAITING);
        let (file, growth) = (Arc::clone(&self.blob.file), self.growth.clone());
        let writing = tokio::task::spawn_blocking(move || write(&file, &growth, pieces));
        let (received, written) = {
            let received = self.receive(&mut stream, to_disk);
            let (received, written) = tokio::join!(received, writing);
            (received, written.map_err(io::Error::other).and_then(|result| result))
        };
        // Whoever follows the file learns that no more will come.
        self.growth.end();
        // A disk that is full is the reason why nobody took the bytes any more.
        let digest = written.map_err(|error| self.fetch.storing(&error))?;
        let blames_mirror = stream.came_from_mirror();
        let wrong = |failure| Broken { failure, blames_mirror };
        match received {
            Err(error) => {
                let content = matches!(error.reason, Reason::Size(_) | Reason::Short);
                let failure = self.fetch.refused(&self.what, &error).await;
                Err(Broken { failure, blames_mirror: blames_mirror && content })
            }
            Ok(received) if received != wanted.size => {
                Err(wrong(wrong_size(&self.fetch.source, &self.what, wanted.size, received)))
            }
            Ok(_) if digest != self.wanted.digest => {
                Err(wrong(wrong_digest(&self.fetch.source, &self.what, self.wanted.digest, digest)))
            }
            Ok(_) => Ok(()),
        }
    }

    /// Hands on what comes; ends early with what is too much, and when nobody takes it any more.
    async fn receive(
        &self,
        stream: &mut BlobStream<'_>,
        to_disk: tokio::sync::mpsc::Sender<Bytes>,
    ) -> Result<u64, RegistryError> {
        let (mut received, of) = (0, self.wanted.size);
        let step = format!("fetch {}", &self.wanted.digest.hex()[..12]);
        (self.fetch.progress)(&step, received, of);
        while let Some(piece) = stream.next().await? {
            received += piece.len() as u64;
            if received > of || to_disk.send(piece).await.is_err() {
                break;
            }
            (self.fetch.progress)(&step, received, of);
        }
        Ok(received)
    }
}

/// Writes and hashes what comes, away from the tasks that wait for networks.
fn write(mut file: &File, growth: &Growth, mut pieces: Receiver<Bytes>) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    while let Some(piece) = pieces.blocking_recv() {
        file.write_all(&piece)?;
        growth.tick();
        hasher.update(&piece);
    }
    Ok(hasher.finish())
}
