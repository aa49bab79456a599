//! Everything between a source and an image in the store: locate it, fetch what is missing, unpack it.

use super::config::{self, Parsed};
use super::digest::Digest;
use super::disk::{self, Scratch};
use super::failures::{self, not_found, unusable, wrong_digest};
use super::fetch::{Arrival, Fetch, FetchedManifest};
use super::files::{self, Files, FoundInFiles, LayerFile};
use super::manifest::Descriptor;
use super::store::{ImageRecord, LayerPart, Question, ReferenceRecord, Shared, StoredImage};
use super::unpack::{Lower, Unpacked, Unsettled};
use super::unpacker::Blob;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use shakedown_spec::{Failure, ImageReference, ImageSource, Platform};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// overlayfs stacks no more (`OVL_MAX_STACK` in the kernel's `fs/overlayfs`).
const MOST_LAYERS: usize = 500;

/// What lies next to an unpacked tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) unpacked: Unpacked,
    /// In which boot of the machine it was unpacked.
    pub(super) boot: String,
}

/// Where an image's layers come from.
pub(super) enum Origin {
    Files(Arc<Files>, Vec<LayerFile>),
    Registry(Box<Fetch>, Vec<Descriptor>),
    /// Blobs that are in the store already.
    Stored(Vec<Descriptor>),
}

/// An image found at its source, before its layers are unpacked.
pub(super) struct FoundImage {
    pub(super) config: Vec<u8>,
    /// Its manifest, which is in the store.
    pub(super) manifest: Option<Digest>,
    /// What the source means: the manifest, or an index that led to it.
    pub(super) top: Option<Digest>,
    pub(super) origin: Origin,
}

/// One layer to be unpacked.
struct LayerJob<'a> {
    question: &'a Question,
    index: usize,
    diff_id: Digest,
    lower: Option<Vec<PathBuf>>,
    scratch: &'a Scratch,
}

impl Origin {
    fn layers(&self) -> usize {
        match self {
            Self::Files(_, layers) => layers.len(),
            Self::Registry(_, layers) | Self::Stored(layers) => layers.len(),
        }
    }

    pub(super) fn descriptor(&self, index: usize) -> Option<Descriptor> {
        match self {
            Self::Files(_, layers) => layers[index].expected.clone(),
            Self::Registry(_, layers) | Self::Stored(layers) => Some(layers[index].clone()),
        }
    }
}

impl Shared {
    /// Everything from the source to the unpacked layers.
    pub(super) async fn obtain(&self, question: &Question) -> Result<StoredImage, Failure> {
        let source = &question.source;
        let storing = |error: io::Error| self.storing(source, &error);
        // A collection of garbage takes this lock alone, so it never sees an image of which half is there.
        let _collector_waits = self.disk.lock_shared("store").await.map_err(storing)?;
        let found = self.locate(question).await?;
        let id = self.complete(question, &found).await?;
        let opened = self.open_image(question, id).await;
        opened.ok_or_else(|| unusable(source, "could not be stored: another process removed it"))
    }

    /// Makes what the store lacks of an image, and its records; gives the digest of its configuration.
    async fn complete(&self, question: &Question, found: &FoundImage) -> Result<Digest, Failure> {
        let storing = |error: io::Error| self.storing(&question.source, &error);
        let id = Digest::of(&found.config);
        fits(question, &self.configuration(&question.source, found)?.platform)?;
        if self.open_image(question, id).await.is_none() {
            self.keep(question, found).await?;
        }
        let (text, fingerprint) = (question.text.clone(), question.fingerprint.clone());
        let record = ReferenceRecord::new(text, question.platform.clone(), fingerprint, id, found.top);
        self.disk.write_json(&self.disk.reference(&question.name()), &record).map_err(storing)?;
        Ok(id)
    }

    /// Unpacks what is missing of an image and writes its record; gives the digest of its configuration.
    pub(super) async fn keep(&self, question: &Question, found: &FoundImage) -> Result<Digest, Failure> {
        let storing = |error: io::Error| self.storing(&question.source, &error);
        let Parsed { config, diff_ids, created, platform } = self.configuration(&question.source, found)?;
        let (layers, all) = self.layers(question, &found.origin, &diff_ids).await?;
        let part = |(index, (key, diff_id))| {
            let blob = found.origin.descriptor(index);
            let stored = blob.as_ref().is_some_and(|blob| self.disk.blob(blob.digest).exists());
            LayerPart { diff_id, key, blob, stored }
        };
        let parts = all.into_iter().zip(diff_ids).enumerate().map(part).collect();
        let record = ImageRecord {
            config,
            layers,
            parts,
            manifest: found.manifest,
            boot: Some(self.boot.clone()),
            created,
            platform: platform.to_string(),
        };
        let id = Digest::of(&found.config);
        self.disk.write(&self.disk.blob(id), &found.config).map_err(storing)?;
        self.disk.write_json(&self.disk.image(self.unpacker.form(), id), &record).map_err(storing)?;
        Ok(id)
    }

    fn configuration(&self, source: &ImageSource, found: &FoundImage) -> Result<Parsed, Failure> {
        let parsed = config::parse(&found.config)
            .map_err(|reason| unusable(source, "cannot be used").fact("reason", reason))?;
        let layers = found.origin.layers();
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

    /// Finds the image at its source and reads what describes it.
    pub(super) async fn locate(&self, question: &Question) -> Result<FoundImage, Failure> {
        let source = &question.source;
        match source {
            ImageSource::Registry(image) => return self.locate_in_registry(question, image).await,
            ImageSource::OciLayout { .. }
            | ImageSource::OciArchive { .. }
            | ImageSource::DockerArchive { .. } => {}
            _ => return Err(not_found(source)),
        }
        let (place, spool) = (source.clone(), self.disk.spool());
        let platform = question.wanted_platform();
        let work = tokio::task::spawn_blocking(move || {
            let files = files::open(&place, &spool)?;
            files::find(&files, &place, &platform).map(|found| (files, found))
        });
        let found = work.await.map_err(|error| self.storing(source, &io::Error::other(error)))?;
        let (files, FoundInFiles { config, manifest, layers }) = found?;
        let manifest = manifest.map(|bytes| self.disk.keep(&bytes)).transpose();
        let manifest = manifest.map_err(|error| self.storing(source, &error))?;
        let origin = Origin::Files(Arc::new(files), layers);
        Ok(FoundImage { config, manifest, top: manifest, origin })
    }

    async fn locate_in_registry(
        &self,
        question: &Question,
        image: &ImageReference,
    ) -> Result<FoundImage, Failure> {
        let fetch = self.fetch(question, image);
        let FetchedManifest { manifest, digest, top } = fetch.manifest().await?;
        let config = fetch.config(&manifest.config).await?;
        let origin = Origin::Registry(Box::new(fetch), manifest.layers);
        Ok(FoundImage { config, manifest: Some(digest), top: Some(top), origin })
    }

    /// Unpacks what is missing, all layers at once, and gives the keys of the layers that make up the tree, and those
    /// of all layers.
    async fn layers(
        &self,
        question: &Question,
        origin: &Origin,
        diff_ids: &[Digest],
    ) -> Result<(Vec<String>, Vec<String>), Failure> {
        // The biggest first, so that the others are done beside it. All are waited for, also after a failure, so that
        // each removes its own half-done work.
        let mut order: Vec<_> = diff_ids.iter().enumerate().collect();
        order.sort_by_key(|(index, _)| std::cmp::Reverse(origin.descriptor(*index).map(|layer| layer.size)));
        let job = async |(index, id): (usize, &Digest)| {
            (index, self.layer(question, origin, index, *id, &id.hex(), None).await)
        };
        let mut done = join_all(order.into_iter().map(job)).await;
        done.sort_by_key(|(index, _)| *index);
        let records = done.into_iter().map(|(_, record)| record).collect::<Result<Vec<_>, _>>()?;
        let (mut keys, mut all) = (Vec::new(), Vec::new());
        for (index, (diff_id, record)) in diff_ids.iter().zip(records).enumerate() {
            all.push(self.stack(question, origin, index, *diff_id, &record, &mut keys).await?);
        }
        Ok((keys, all))
    }

    /// Puts an unpacked layer on top of those below; gives its key.
    pub(super) async fn stack(
        &self,
        question: &Question,
        origin: &Origin,
        index: usize,
        diff_id: Digest,
        record: &LayerRecord,
        keys: &mut Vec<String>,
    ) -> Result<String, Failure> {
        let mut key = diff_id.hex();
        if !record.unpacked.unsettled.is_empty() {
            key = self.settle(question, origin, index, diff_id, &record.unpacked.unsettled, keys).await?;
        }
        if record.unpacked.opaque {
            keys.clear();
        }
        keys.push(key.clone());
        Ok(key)
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
    pub(super) async fn layer(
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
        if let Some(record) = self.unpacked_layer(&place).await {
            return Ok(record);
        }
        let lock = self.disk.lock(&format!("layer-{form}-{key}")).await;
        let _lock = lock.map_err(|error| self.storing(&question.source, &error))?;
        if let Some(record) = self.unpacked_layer(&place).await {
            return Ok(record);
        }
        let scratch = self.disk.scratch().map_err(|error| self.storing(&question.source, &error))?;
        let layer = LayerJob { question, index, diff_id, lower, scratch: &scratch };
        let unpacked = match origin {
            Origin::Registry(fetch, layers) => self.fetch_and_unpack(&layer, fetch, &layers[index]).await,
            _ => match self.blob(question, origin, index).await {
                Ok(blob) => self.unpack(&layer, blob).await,
                Err(failure) => Err(failure),
            },
        };
        let result = match unpacked {
            Ok(unpacked) => self.place(&layer, unpacked, &place).await,
            Err(failure) => Err(failure),
        };
        if result.is_err() {
            // The first failure is the one to report.
            let _ = scratch.discard(&*self.unpacker).await;
        }
        result
    }

    /// Unpacks a layer while it arrives. What the unpacking makes of bytes that turn out to be wrong is thrown away.
    async fn fetch_and_unpack(
        &self,
        layer: &LayerJob<'_>,
        fetch: &Fetch,
        wanted: &Descriptor,
    ) -> Result<Unpacked, Failure> {
        let what = format!("layer {}", layer.index + 1);
        let mut mirrors = true;
        loop {
            let download = match fetch.arrival(wanted, &what, layer.scratch, mirrors).await? {
                Arrival::There(blob) => return self.unpack(layer, blob).await,
                Arrival::Coming(download) => download,
            };
            let unpacking = self.unpack(layer, download.blob());
            match tokio::join!(download.run(), unpacking) {
                // The blob is kept only if its layer can be used: its space may be what the next attempt lacks.
                (Ok(fetched), unpacked) => {
                    return unpacked.and_then(|unpacked| fetched.keep().map(|_| unpacked));
                }
                (Err(broken), _) if broken.blames_mirror => mirrors = false,
                (Err(broken), _) => return Err(broken.failure),
            }
            let removed = self.unpacker.remove(&layer.scratch.path().join("layer")).await;
            removed.map_err(|error| self.storing(&layer.question.source, &error))?;
        }
    }

    /// Unpacks a layer among the work in progress.
    async fn unpack(&self, layer: &LayerJob<'_>, blob: Blob) -> Result<Unpacked, Failure> {
        let LayerJob { question, diff_id, lower, scratch, .. } = layer;
        let source = &question.source;
        let storing = |error: io::Error| self.storing(source, &error);
        let _turn = self.unpacking.acquire().await.map_err(|error| storing(io::Error::other(error)))?;
        let step = format!("unpack {}", &diff_id.hex()[..12]);
        let length = blob.length;
        (question.progress)(&step, 0, length);
        let whole = scratch.path().join("layer");
        std::fs::create_dir(&whole).map_err(storing)?;
        let unpacked = self.unpacker.unpack(blob, &whole.join("tree"), lower.clone()).await;
        let unpacked = unpacked
            .map_err(|error| failures::unpack(source, &diff_id.to_string(), self.disk.root(), &error))?;
        if unpacked.diff_id != *diff_id {
            return Err(wrong_digest(source, "an unpacked layer", *diff_id, unpacked.diff_id));
        }
        (question.progress)(&step, length, length);
        Ok(unpacked)
    }

    /// Gives an unpacked layer its record and puts both into the store.
    async fn place(
        &self,
        layer: &LayerJob<'_>,
        unpacked: Unpacked,
        place: &Path,
    ) -> Result<LayerRecord, Failure> {
        let storing = |error: io::Error| self.storing(&layer.question.source, &error);
        let whole = layer.scratch.path().join("layer");
        let record = LayerRecord { unpacked, boot: self.boot.clone() };
        let mut file = File::create_new(whole.join("layer.json")).map_err(storing)?;
        file.write_all(&disk::record(&record).map_err(storing)?).map_err(storing)?;
        if place.exists() {
            // One that could not be read a moment ago, for want of descriptors, may be in use: it stays.
            if let Some(there) = self.unpacked_layer(place).await {
                self.unpacker.remove(&whole).await.map_err(storing)?;
                return Ok(there);
            }
            // So does one that cannot be read now, for want of memory or descriptors.
            match std::fs::read(place.join("layer.json")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(storing(error)),
                _ => {}
            }
            // Without its record it is of no use: someone meddled with it.
            let old = layer.scratch.path().join("old");
            std::fs::rename(place, &old).map_err(storing)?;
            self.unpacker.remove(&old).await.map_err(storing)?;
        }
        std::fs::rename(&whole, place).map_err(storing)?;
        Ok(record)
    }

    pub(super) async fn blob(
        &self,
        question: &Question,
        origin: &Origin,
        index: usize,
    ) -> Result<Blob, Failure> {
        let what = format!("layer {}", index + 1);
        match origin {
            Origin::Registry(fetch, layers) => fetch.blob(&layers[index], &what).await,
            Origin::Files(files, layers) => {
                let (files, source, layer) =
                    (Arc::clone(files), question.source.clone(), layers[index].clone());
                let work = tokio::task::spawn_blocking(move || files.layer(&source, &layer, &what));
                work.await.map_err(|error| self.storing(&question.source, &io::Error::other(error)))?
            }
            Origin::Stored(layers) => self.stored_blob(&question.source, &layers[index]),
        }
    }
}

/// An image for another processor starts, if at all, by an emulator that nobody asked for.
fn fits(question: &Question, image: &Platform) -> Result<(), Failure> {
    let wanted = question.wanted_platform();
    // Those of Go. Some tools write other words where they know no platform.
    let processors = ["386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x"];
    let known =
        processors.contains(&image.architecture.as_str()) || !matches!(image.os.as_str(), "" | "linux");
    // A level that this processor lacks shows itself when the image is run; one that it has is not known here.
    let same = wanted.os == image.os && wanted.architecture == image.architecture;
    if !known || same || wanted.fit(image).is_some() {
        return Ok(());
    }
    let failure =
        unusable(&question.source, &format!("is not for {wanted}")).fact("it is for", image.to_string());
    Err(if question.platform.is_none() && image.os == "linux" {
        failure.hint(format!("ask for the platform `{image}` to use it all the same, with an emulator"))
    } else {
        failure
    })
}
