//! Everything between a source and an image in the store: locate it, fetch what is missing, unpack it.

use super::config::{self, Parsed};
use super::digest::Digest;
use super::disk::{Scratch, read_json};
use super::failures::{self, not_found, plain, unusable, wrong_digest};
use super::fetch::Fetch;
use super::files::{Files, FoundInFiles, LayerFile, find_in_docker_archive, find_in_layout};
use super::manifest::Descriptor;
use super::store::{ImageRecord, Question, ReferenceRecord, Shared, StoredImage};
use super::unpack::{Limits, Lower, Unpacked, Unsettled, decompress};
use super::unpacker::Blob;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use shakedown_spec::{Failure, ImageReference, ImageSource};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// overlayfs stacks no more (`OVL_MAX_STACK` in the kernel's `fs/overlayfs`).
const MOST_LAYERS: usize = 500;

/// What lies next to an unpacked tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct LayerRecord {
    unpacked: Unpacked,
}

/// Where an image's layers come from.
enum Origin {
    Files(Arc<Files>, Vec<LayerFile>),
    Registry(Box<Fetch>, Vec<Descriptor>),
}

/// An image found at its source, before its layers are unpacked.
struct FoundImage {
    config: Vec<u8>,
    manifest: Option<Digest>,
    origin: Origin,
}

impl Shared {
    /// Everything from the source to the unpacked layers.
    pub(super) async fn obtain(&self, question: &Question) -> Result<StoredImage, Failure> {
        let source = &question.source;
        let storing = |error: io::Error| self.storing(source, &error);
        // A collection of garbage takes this lock alone, so it never sees an image of which half is there.
        let _collector_waits = self.disk.lock_shared("store").await.map_err(storing)?;
        let (found, scratch) = self.locate(question).await?;
        let result = match found {
            Ok(found) => self.complete(question, &found).await,
            Err(failure) => Err(failure),
        };
        if let Some(scratch) = scratch {
            scratch.discard(&*self.unpacker).await.map_err(storing)?;
        }
        let id = result?;
        let opened = self.open_image(question, id).await;
        opened.ok_or_else(|| unusable(source, "could not be stored: another process removed it"))
    }

    /// Makes what the store lacks of an image, and its records; gives the digest of its configuration.
    async fn complete(&self, question: &Question, found: &FoundImage) -> Result<Digest, Failure> {
        let storing = |error: io::Error| self.storing(&question.source, &error);
        let id = Digest::of(&found.config);
        if self.open_image(question, id).await.is_none() {
            let record = self.unpack_all(question, found).await?;
            self.disk.write(&self.disk.blob(id), &found.config).map_err(storing)?;
            self.disk.write_json(&self.disk.image(self.unpacker.form(), id), &record).map_err(storing)?;
        }
        let (text, fingerprint) = (question.text.clone(), question.fingerprint.clone());
        let record = ReferenceRecord { source: text, fingerprint, config: id, manifest: found.manifest };
        self.disk.write_json(&self.disk.reference(&question.text), &record).map_err(storing)?;
        Ok(id)
    }

    async fn unpack_all(&self, question: &Question, found: &FoundImage) -> Result<ImageRecord, Failure> {
        let Parsed { config, diff_ids } = self.configuration(&question.source, found)?;
        let layers = self.layers(question, &found.origin, &diff_ids).await?;
        Ok(ImageRecord { config, layers })
    }

    fn configuration(&self, source: &ImageSource, found: &FoundImage) -> Result<Parsed, Failure> {
        let parsed = config::parse(&found.config)
            .map_err(|reason| unusable(source, "cannot be used").fact("reason", reason))?;
        let layers = match &found.origin {
            Origin::Files(_, layers) => layers.len(),
            Origin::Registry(_, layers) => layers.len(),
        };
        if layers > MOST_LAYERS {
            return Err(unusable(
                source,
                &format!("has {layers} layers; overlayfs takes {MOST_LAYERS} at most"),
            ));
        }
        if parsed.diff_ids.len() != layers {
            return Err(unusable(source, "contradicts itself")
                .fact("layers in its manifest", layers.to_string())
                .fact("layers in its configuration", parsed.diff_ids.len().to_string()));
        }
        Ok(parsed)
    }

    /// Finds the image at its source and reads what describes it. The scratch holds what the image's layers are read
    /// from, if that had to be decompressed; it is given in failure too.
    async fn locate(
        &self,
        question: &Question,
    ) -> Result<(Result<FoundImage, Failure>, Option<Scratch>), Failure> {
        let source = &question.source;
        let (files, scratch) = match source {
            ImageSource::Registry(image) => {
                return Ok((self.locate_in_registry(question, image).await, None));
            }
            ImageSource::OciLayout { path, .. } => (Files::Directory(path.clone()), None),
            ImageSource::OciArchive { path, .. } | ImageSource::DockerArchive { path, .. } => {
                self.open_archive(source, path).await?
            }
        };
        let found = match source {
            ImageSource::DockerArchive { reference, .. } => {
                find_in_docker_archive(&files, source, reference.as_deref())
            }
            ImageSource::OciLayout { tag, .. } | ImageSource::OciArchive { tag, .. } => {
                find_in_layout(&files, source, tag.as_deref())
            }
            ImageSource::Registry(_) => Err(not_found(source)),
        };
        let found = found.map(|FoundInFiles { config, manifest, layers }| {
            let origin = Origin::Files(Arc::new(files), layers);
            FoundImage { config, manifest, origin }
        });
        Ok((found, scratch))
    }

    async fn locate_in_registry(
        &self,
        question: &Question,
        image: &ImageReference,
    ) -> Result<FoundImage, Failure> {
        let fetch = self.fetch(question, image);
        let (manifest, top) = fetch.manifest().await?;
        let config = fetch.config(&manifest.config).await?;
        let origin = Origin::Registry(Box::new(fetch), manifest.layers);
        Ok(FoundImage { config, manifest: Some(top), origin })
    }

    /// An archive's members; a compressed archive is decompressed first, because its members are read in any order.
    async fn open_archive(
        &self,
        source: &ImageSource,
        path: &Path,
    ) -> Result<(Files, Option<Scratch>), Failure> {
        let scratch = self.disk.scratch().map_err(|error| self.storing(source, &error))?;
        let (path, plain_path) = (path.to_owned(), scratch.path().join("archive"));
        let work = tokio::task::spawn_blocking(move || {
            let file = File::open(&path)?;
            let mut magic = [0; 4];
            let read = std::os::unix::fs::FileExt::read_at(&file, &mut magic, 0)?;
            if !matches!(magic[..read], [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd]) {
                return Files::archive(file).map(|files| (files, false));
            }
            inflate(&file, &plain_path)?;
            Files::archive(File::open(&plain_path)?).map(|files| (files, true))
        });
        match work.await.map_err(io::Error::other).and_then(|result| result) {
            Ok((files, decompressed)) => Ok((files, decompressed.then_some(scratch))),
            Err(error) => {
                let _ = scratch.discard(&*self.unpacker).await;
                Err(unusable(source, "could not be read").fact("reason", plain(&error)))
            }
        }
    }

    /// Unpacks what is missing, all layers at once, and gives the keys of the layers that make up the tree.
    async fn layers(
        &self,
        question: &Question,
        origin: &Origin,
        diff_ids: &[Digest],
    ) -> Result<Vec<String>, Failure> {
        let jobs = diff_ids.iter().enumerate();
        let jobs =
            jobs.map(
                |(index, id)| async move { self.layer(question, origin, index, *id, &id.hex(), None).await },
            );
        // All are waited for, also after a failure, so that each removes its own half-done work.
        let records = join_all(jobs).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut keys: Vec<String> = Vec::new();
        for (index, (diff_id, record)) in diff_ids.iter().zip(records).enumerate() {
            let mut key = diff_id.hex();
            if !record.unpacked.unsettled.is_empty() {
                key =
                    self.settle(question, origin, index, *diff_id, &record.unpacked.unsettled, &keys).await?;
            }
            if record.unpacked.opaque {
                keys.clear();
            }
            keys.push(key);
        }
        Ok(keys)
    }

    /// Unpacks a layer again that cannot be understood without those below; gives its key.
    async fn settle(
        &self,
        question: &Question,
        origin: &Origin,
        index: usize,
        diff_id: Digest,
        unsettled: &[Unsettled],
        below: &[String],
    ) -> Result<String, Failure> {
        let trees: Vec<_> =
            below.iter().map(|key| self.disk.layer(self.unpacker.form(), key).join("tree")).collect();
        let lower = Lower::open(&trees, self.unpacker.userxattr()).map_err(|error| {
            failures::unpack(&question.source, &diff_id.to_string(), self.disk.root(), &error)
        })?;
        if !unsettled.iter().any(|one| lower.matters_for(one)) {
            return Ok(diff_id.hex());
        }
        // As the specification's ChainID: what is below is part of the name.
        let key = Digest::of(format!("{} {}", below.join(" "), diff_id.hex()).as_bytes()).hex();
        self.layer(question, origin, index, diff_id, &key, Some(trees)).await?;
        Ok(key)
    }

    /// One unpacked layer, made if it is not there: by one process, the others wait.
    async fn layer(
        &self,
        question: &Question,
        origin: &Origin,
        index: usize,
        diff_id: Digest,
        key: &str,
        lower: Option<Vec<PathBuf>>,
    ) -> Result<LayerRecord, Failure> {
        let form = self.unpacker.form();
        let place = self.disk.layer(form, key);
        let there = || read_json::<LayerRecord>(&place.join("layer.json"));
        if let Some(record) = there() {
            return Ok(record);
        }
        let lock = self.disk.lock(&format!("layer-{form}-{key}")).await;
        let _lock = lock.map_err(|error| self.storing(&question.source, &error))?;
        if let Some(record) = there() {
            return Ok(record);
        }
        let blob = self.blob(question, origin, index).await?;
        let scratch = self.disk.scratch().map_err(|error| self.storing(&question.source, &error))?;
        let result = self.unpack(question, blob, diff_id, lower, &scratch, &place).await;
        if result.is_err() {
            // The first failure is the one to report.
            let _ = scratch.discard(&*self.unpacker).await;
        }
        result
    }

    async fn unpack(
        &self,
        question: &Question,
        blob: Blob,
        diff_id: Digest,
        lower: Option<Vec<PathBuf>>,
        scratch: &Scratch,
        place: &Path,
    ) -> Result<LayerRecord, Failure> {
        let source = &question.source;
        let storing = |error: io::Error| self.storing(source, &error);
        let _turn = self.unpacking.acquire().await.map_err(|error| storing(io::Error::other(error)))?;
        let step = format!("unpack {}", &diff_id.hex()[..12]);
        let length = blob.length;
        (question.progress)(&step, 0, length);
        let whole = scratch.path().join("layer");
        std::fs::create_dir(&whole).map_err(storing)?;
        let unpacked = self.unpacker.unpack(blob, &whole.join("tree"), lower).await;
        let unpacked = unpacked
            .map_err(|error| failures::unpack(source, &diff_id.to_string(), self.disk.root(), &error))?;
        if unpacked.diff_id != diff_id {
            return Err(wrong_digest(source, "an unpacked layer", diff_id, unpacked.diff_id));
        }
        let record = LayerRecord { unpacked };
        let mut file = File::create_new(whole.join("layer.json")).map_err(storing)?;
        file.write_all(&serde_json::to_vec(&record).map_err(|error| storing(error.into()))?)
            .map_err(storing)?;
        if place.exists() {
            // Without its record it is of no use: someone meddled with it.
            std::fs::rename(place, scratch.path().join("old")).map_err(storing)?;
            self.unpacker.remove(&scratch.path().join("old")).await.map_err(storing)?;
        }
        std::fs::rename(&whole, place).map_err(storing)?;
        (question.progress)(&step, length, length);
        Ok(record)
    }

    async fn blob(&self, question: &Question, origin: &Origin, index: usize) -> Result<Blob, Failure> {
        let what = format!("layer {}", index + 1);
        match origin {
            Origin::Registry(fetch, layers) => {
                let _turn = self.fetching.acquire().await;
                fetch.blob(&layers[index], &what).await
            }
            Origin::Files(files, layers) => {
                let (files, source, layer) =
                    (Arc::clone(files), question.source.clone(), layers[index].clone());
                let work = tokio::task::spawn_blocking(move || files.layer(&source, &layer, &what));
                work.await.map_err(|error| self.storing(&question.source, &io::Error::other(error)))?
            }
        }
    }
}

fn inflate(from: &File, to: &Path) -> io::Result<()> {
    let mut to = File::create_new(to)?;
    let result = decompress(from, &Limits::default(), |plain| {
        loop {
            let bytes = plain.peek()?;
            if bytes.is_empty() {
                return Ok(());
            }
            to.write_all(bytes)
                .map_err(|error| super::unpack::UnpackError::system("write the archive", error))?;
            let length = bytes.len();
            plain.consume(length);
        }
    });
    result.map(|_| ()).map_err(io::Error::other)
}
