//! Images made here: by a build, a commit, an import.
//!
//! ```text
//! bytes ──► BlobWriter ──► blobs/ ──► Ingest::layer, one at a time (a build's steps) ──► tree
//!                             └─────► Ingest::finish: configuration, manifest, names ──► StoredImage
//! ```

use super::digest::{Digest, Hasher};
use super::disk::{Disk, Scratch};
use super::failures::{plain, unusable, wrong_digest, wrong_size};
use super::manifest::{CONFIG, Descriptor, LAYER, MANIFEST};
use super::obtain::{FoundImage, Origin};
use super::store::{Question, ReferenceRecord, Shared, Store, StoredImage};
use super::unpacker::Blob;
use crate::driver::Progress;
use shakedown_spec::{Failure, ImageReference, ImageSource};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// An image in the making. While it lives no process collects garbage, so the blobs it has written stay.
#[derive(Debug)]
pub struct Ingest {
    shared: Arc<Shared>,
    question: Question,
    _collector_waits: File,
}

/// Writes one blob. Dropped before it is finished, it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    disk: Disk,
    file: File,
    path: PathBuf,
    hasher: Hasher,
    written: u64,
    // After what lies in it: fields are dropped in order.
    _scratch: Scratch,
}

impl Store {
    /// Begins to make an image. `source` is what it is made from, for messages.
    ///
    /// # Errors
    ///
    /// The store cannot be locked.
    pub async fn ingest(&self, source: &ImageSource, progress: Progress) -> Result<Ingest, Failure> {
        let shared = Arc::clone(&self.shared);
        let lock = shared.disk.lock_shared("store").await;
        let lock = lock.map_err(|error| shared.storing(source, &error))?;
        let question = Question::made(source, progress);
        Ok(Ingest { shared, question, _collector_waits: lock })
    }
}

impl Ingest {
    /// Begins a blob.
    ///
    /// # Errors
    ///
    /// The store cannot be written to.
    pub fn blob(&self) -> io::Result<BlobWriter> {
        BlobWriter::new(&self.shared.disk)
    }

    /// Copies a layer's blob into the store, if it is not there: one of an image that came from a file.
    ///
    /// # Errors
    ///
    /// The blob cannot be read or written, or has changed meanwhile.
    pub async fn take(&self, layer: &Descriptor, blob: &Blob) -> Result<Descriptor, Failure> {
        self.copy(blob, layer).await?;
        Ok(layer.clone())
    }

    /// Copies a blob into the store, if it is not there, and checks its digest on the way.
    pub(super) async fn copy(&self, blob: &Blob, descriptor: &Descriptor) -> Result<(), Failure> {
        let source = &self.question.source;
        if self.shared.stored_blob(source, descriptor).is_ok() {
            return Ok(());
        }
        let (disk, blob, wanted) = (self.shared.disk.clone(), blob.clone(), descriptor.clone());
        let copy = tokio::task::spawn_blocking(move || {
            let mut writer = BlobWriter::new(&disk)?;
            io::copy(&mut blob.reader(), &mut writer)?;
            let actual = writer.hasher.clone().finish();
            // Only what is right goes to its place.
            if actual == wanted.digest {
                writer.finish(&wanted.media_type).map(|_| actual)
            } else {
                Ok(actual)
            }
        });
        let actual = copy.await.map_err(io::Error::other).and_then(|result| result);
        let actual = actual.map_err(|error| self.shared.storing(source, &error))?;
        if actual == descriptor.digest {
            return Ok(());
        }
        let what = format!("the blob {}", descriptor.digest);
        Err(wrong_digest(source, &what, descriptor.digest, actual))
    }

    /// Unpacks a layer and puts it on top of `trees`, the directories of the layers below, lowest first. A layer that
    /// hides everything below it takes those out.
    ///
    /// # Errors
    ///
    /// The blob is not in the store, is no layer, or cannot be unpacked.
    pub async fn layer(
        &self,
        blob: &Descriptor,
        diff_id: Digest,
        trees: &mut Vec<PathBuf>,
    ) -> Result<(), Failure> {
        let origin = Origin::Stored(vec![blob.clone()]);
        let (shared, question) = (&self.shared, &self.question);
        let key_of = |tree: &PathBuf| Some(tree.parent()?.file_name()?.to_str()?.to_owned());
        let mut keys: Vec<_> = trees.iter().filter_map(key_of).collect();
        let record = shared.layer(question, &origin, 0, diff_id, &diff_id.hex(), None).await?;
        shared.stack(question, &origin, 0, diff_id, &record, &mut keys).await?;
        *trees = shared.trees(&keys);
        Ok(())
    }

    /// Makes the image of this configuration and these layers, lowest first, whose blobs are in the store, and gives
    /// it these names. A name that another image has is taken from it.
    ///
    /// # Errors
    ///
    /// The configuration and the layers contradict each other, or the store cannot be written to.
    pub async fn finish(
        &self,
        config: &[u8],
        layers: &[Descriptor],
        names: &[ImageReference],
    ) -> Result<StoredImage, Failure> {
        let (shared, source) = (&self.shared, &self.question.source);
        let storing = |error: io::Error| shared.storing(source, &error);
        let id = Digest::of(config);
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor::new(CONFIG, id, config.len() as u64),
            "layers": layers,
        });
        let manifest = serde_json::to_vec(&manifest).map_err(|error| storing(error.into()))?;
        let manifest = shared.disk.keep(&manifest).map_err(storing)?;
        let origin = Origin::Stored(layers.to_vec());
        let (config, manifest) = (config.to_vec(), Some(manifest));
        let found = FoundImage { config, manifest, top: manifest, origin };
        shared.keep(&self.question, &found).await?;
        for name in names {
            shared.name(&ImageSource::Registry(name.clone()), "", id, manifest).map_err(storing)?;
        }
        let opened = shared.open_image(&self.question, id).await;
        let mut image =
            opened.ok_or_else(|| unusable(source, "could not be stored: another process removed it"))?;
        if let Some(name) = names.first() {
            image.image.reference = name.familiar();
        }
        Ok(image)
    }

    /// Notes that `source` means this image, for as long as `fingerprint` is what the source's is.
    ///
    /// # Errors
    ///
    /// The store cannot be written to.
    pub fn answers(
        &self,
        source: &ImageSource,
        fingerprint: &str,
        image: &StoredImage,
    ) -> Result<(), Failure> {
        let id = self.shared.id(source, image)?;
        self.shared.name(source, fingerprint, id, None).map_err(|error| self.shared.storing(source, &error))
    }
}

impl BlobWriter {
    fn new(disk: &Disk) -> io::Result<Self> {
        let scratch = disk.scratch()?;
        let path = scratch.path().join("blob");
        let file = File::create_new(&path)?;
        Ok(Self { disk: disk.clone(), file, path, hasher: Hasher::new(), written: 0, _scratch: scratch })
    }

    /// Puts the blob in its place.
    ///
    /// # Errors
    ///
    /// The store cannot be written to.
    pub fn finish(self, media_type: &str) -> io::Result<Descriptor> {
        let digest = self.hasher.clone().finish();
        std::fs::rename(&self.path, self.disk.blob(digest))?;
        Ok(Descriptor::new(media_type, digest, self.written))
    }

    /// As [`finish`](Self::finish), of a layer that was written as plain tar; with the digest that the configuration
    /// names it by.
    ///
    /// # Errors
    ///
    /// The store cannot be written to.
    pub fn finish_layer_tar(self) -> io::Result<(Descriptor, Digest)> {
        let descriptor = self.finish(LAYER)?;
        let diff_id = descriptor.digest;
        Ok((descriptor, diff_id))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for BlobWriter {
    /// A finished one is not there any more. Should this fail, the next sweep does it.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    /// Where the layers of these keys are unpacked.
    pub(super) fn trees(&self, keys: &[String]) -> Vec<PathBuf> {
        let form = self.unpacker.form();
        keys.iter().map(|key| self.disk.layer(form, key).join("tree")).collect()
    }

    /// A blob that has to be in the store.
    pub(super) fn stored_blob(&self, source: &ImageSource, wanted: &Descriptor) -> Result<Blob, Failure> {
        let what = format!("the blob {}", wanted.digest);
        let blob = File::open(self.disk.blob(wanted.digest)).and_then(Blob::whole).map_err(|error| {
            unusable(source, &format!("is incomplete: {what} cannot be read")).fact("reason", plain(&error))
        })?;
        if blob.length == wanted.size {
            Ok(blob)
        } else {
            Err(wrong_size(source, &what, wanted.size, blob.length))
        }
    }

    /// Notes that a source means an image.
    pub(super) fn name(
        &self,
        source: &ImageSource,
        fingerprint: &str,
        config: Digest,
        manifest: Option<Digest>,
    ) -> io::Result<()> {
        let (source, fingerprint) = (source.to_string(), fingerprint.to_owned());
        let path = self.disk.reference(&source);
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&source);
        self.disk.write_json(&path, &ReferenceRecord::new(source, None, fingerprint, config, manifest))
    }

    /// Gives an image that is here a name, as if a registry meant `manifest` by it.
    pub(super) fn rename(
        &self,
        name: &ImageReference,
        image: &StoredImage,
        manifest: Digest,
    ) -> Result<(), Failure> {
        let source = ImageSource::Registry(name.clone());
        let id = self.id(&source, image)?;
        self.name(&source, "", id, Some(manifest)).map_err(|error| self.storing(&source, &error))
    }

    fn id(&self, source: &ImageSource, image: &StoredImage) -> Result<Digest, Failure> {
        image.image.id.parse().map_err(|reason: String| unusable(source, "has no id").fact("reason", reason))
    }
}
