//! What an image consists of, for whoever passes it on (save, push, bundle) or builds on it (build, commit).

use super::digest::Digest;
use super::disk::read_json;
use super::failures::{plain, unusable};
use super::files::{describe, digest_of};
use super::manifest::Descriptor;
use super::obtain::FoundImage;
use super::store::{ImageRecord, LayerPart, Question, ReferenceRecord, Shared, Store, StoredImage};
use super::unpacker::Blob;
use shakedown_spec::{Failure, FailureKind, ImageSource};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// What an image consists of.
#[derive(Clone, Debug)]
pub struct Content {
    /// Its configuration, as its maker wrote it.
    pub config: Vec<u8>,
    /// Its manifest, if it came with one.
    pub manifest: Option<Vec<u8>>,
    /// Its layers, lowest first, as many as the configuration names.
    pub layers: Vec<ContentLayer>,
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub struct ContentLayer {
    /// The digest of the uncompressed archive.
    pub diff_id: Digest,
    /// What the layer is as it is stored, compressed or not.
    pub descriptor: Descriptor,
    /// Its bytes: in the store, or in the file that the image came from.
    pub blob: Blob,
    /// Where it is unpacked. Not every layer is part of the image's tree: one above may hide it altogether.
    pub tree: PathBuf,
}

/// The file that an image came from, opened again.
struct Again {
    question: Question,
    found: FoundImage,
}

impl Store {
    /// What an image consists of. The layers of an image that came from a file are read from that file, and verified.
    ///
    /// # Errors
    ///
    /// The file that the image came from is not there any more, or the store is damaged.
    pub async fn content(&self, image: &StoredImage) -> Result<Content, Failure> {
        let shared = &self.shared;
        let broken = |reason: String| failed(image, "cannot be read from the store").fact("reason", reason);
        let io_broken = |error: io::Error| broken(plain(&error));
        // What is found at a source is written down, and must not be collected before it is read.
        let _collector_waits = shared.disk.lock_shared("store").await.map_err(io_broken)?;
        let id: Digest = image.image.id.parse().map_err(broken)?;
        let record: Option<ImageRecord> = read_json(&shared.disk.image(shared.unpacker.form(), id));
        let record = record.ok_or_else(|| broken("its record is not there".to_owned()))?;
        let config = std::fs::read(shared.disk.blob(id)).map_err(io_broken)?;
        let manifest = record.manifest.map(|manifest| std::fs::read(shared.disk.blob(manifest)));
        let manifest = manifest.transpose().map_err(io_broken)?;
        let mut again = None;
        let mut layers = Vec::new();
        for (index, part) in record.parts.iter().enumerate() {
            let (descriptor, blob) = match shared.kept(part) {
                Some(kept) => kept,
                None => {
                    if again.is_none() {
                        again = Some(shared.open_again(image, id).await?);
                    }
                    let Some(again) = &again else { return Err(broken("its source is gone".to_owned())) };
                    shared.read_at_source(again, index, part).await?
                }
            };
            let tree = shared.disk.layer(shared.unpacker.form(), &part.key).join("tree");
            layers.push(ContentLayer { diff_id: part.diff_id, descriptor, blob, tree });
        }
        Ok(Content { config, manifest, layers })
    }
}

fn failed(image: &StoredImage, what: &str) -> Failure {
    Failure::new(FailureKind::ImageUnusable, format!("image {} {what}", image.image.reference))
}

impl Shared {
    /// The layer's blob, if the store has it: as the manifest names it, or the plain archive.
    fn kept(&self, part: &LayerPart) -> Option<(Descriptor, Blob)> {
        let descriptor = part.blob.clone()?;
        let blob = Blob::whole(std::fs::File::open(self.disk.blob(descriptor.digest)).ok()?).ok()?;
        (blob.length == descriptor.size).then_some((descriptor, blob))
    }

    /// Opens the file that the image came from: any that still has it.
    async fn open_again(&self, image: &StoredImage, id: Digest) -> Result<Again, Failure> {
        let mut gone = Vec::new();
        let mut first = None;
        for record in self.disk.list("refs").unwrap_or_default() {
            let record: ReferenceRecord = match read_json(&record) {
                Some(record) => record,
                None => continue,
            };
            let Ok(source) = record.source.parse::<ImageSource>() else { continue };
            if record.config != id || matches!(source, ImageSource::Registry(_)) {
                continue;
            }
            gone.push(record.source);
            match self.look_again(&source, id).await {
                Ok(again) => return Ok(again),
                Err(failure) => {
                    first.get_or_insert(failure);
                }
            }
        }
        let failure =
            failed(image, "cannot be passed on: the store has its files, but not its layers as archives");
        if gone.is_empty() {
            return Err(failure.fact("reason", "nothing that it could be read from is known"));
        }
        let failure = failure.fact("came from", gone.join(", "));
        let reason = first.map_or_else(|| "it is gone".to_owned(), |failure| failure.title);
        Err(failure.fact("reason", reason))
    }

    async fn look_again(&self, source: &ImageSource, id: Digest) -> Result<Again, Failure> {
        let question = Question::new(source, Arc::new(|_, _, _| {}))?;
        let found = self.locate(&question).await?;
        if Digest::of(&found.config) != id {
            return Err(unusable(source, "is another one by now"));
        }
        Ok(Again { question, found })
    }

    async fn read_at_source(
        &self,
        again: &Again,
        index: usize,
        part: &LayerPart,
    ) -> Result<(Descriptor, Blob), Failure> {
        let Again { question, found } = again;
        let blob = self.blob(question, &found.origin, index).await?;
        if let Some(descriptor) = found.origin.descriptor(index) {
            return Ok((descriptor, blob));
        }
        let diff_id = part.diff_id;
        let work = tokio::task::spawn_blocking(move || {
            let descriptor = describe(&blob, diff_id)?;
            // Of a plain archive nothing has been read yet.
            let same = descriptor.digest != diff_id || digest_of(&blob)? == diff_id;
            Ok(same.then_some((descriptor, blob)))
        });
        let result = work.await.map_err(io::Error::other).and_then(|result| result);
        let read = result.map_err(|error: io::Error| {
            unusable(&question.source, "could not be read").fact("reason", plain(&error))
        })?;
        read.ok_or_else(|| unusable(&question.source, "is another one by now"))
    }
}
