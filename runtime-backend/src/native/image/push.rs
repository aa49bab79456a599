//! Sends an image of the store to a registry.
//!
//! What the registry has is not sent. A layer that lies here as a plain archive, because it was made here, is compressed
//! for the way, and the manifest says so.

use super::content::{Content, ContentLayer};
use super::digest::Digest;
use super::disk::{Scratch, read_json};
use super::manifest::{CONFIG, Descriptor, Document, LAYER, MANIFEST};
use super::refusal::not_pushed;
use super::registry::{Parcel, ParcelContent, RegistryError};
use super::store::{ReferenceRecord, Shared, Store, StoredImage};
use super::unpacker::Blob;
use crate::driver::Progress;
use flate2::{Compression, GzBuilder};
use futures_util::future::join_all;
use shakedown_spec::{Failure, ImageReference, ImageSource};
use std::fs::File;
use std::io;
use std::path::PathBuf;

const COMPRESSED: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image on its way out.
struct Pushing<'a> {
    shared: &'a Shared,
    source: ImageSource,
    to: &'a ImageReference,
    /// Another repository of the registry that has the image.
    mount: Option<String>,
    progress: Progress,
    scratch: &'a Scratch,
}

impl Store {
    /// Sends the image to a registry, under the reference's tag. Gives the digest of the manifest there, which differs
    /// from the one here if layers had to be compressed.
    ///
    /// # Errors
    ///
    /// The registry refuses it, or the image's layers are not at hand any more.
    pub async fn push(
        &self,
        image: &StoredImage,
        to: &ImageReference,
        progress: Progress,
    ) -> Result<String, Failure> {
        let shared = &self.shared;
        let content = self.content(image).await?;
        let source = ImageSource::Registry(to.clone());
        let scratch = shared.disk.scratch().map_err(|error| shared.storing(&source, &error))?;
        let mount = shared.elsewhere(image, to);
        let pushing = Pushing { shared, source, to, mount, progress, scratch: &scratch };
        let result = pushing.push(content).await;
        // What was compressed; should this fail, the next sweep does it.
        let _ = scratch.discard(&*shared.unpacker).await;
        result.map(|digest| digest.to_string())
    }
}

impl Shared {
    /// Another repository of the same registry that this image came from or went to.
    fn elsewhere(&self, image: &StoredImage, to: &ImageReference) -> Option<String> {
        let records = self.disk.list("refs").unwrap_or_default();
        let records = records.iter().filter_map(|record| read_json::<ReferenceRecord>(record));
        let mut sources = records.filter(|record| record.config.to_string() == image.image.id);
        sources.find_map(|record| match record.source.parse() {
            Ok(ImageSource::Registry(from))
                if from.registry == to.registry && from.repository != to.repository =>
            {
                Some(from.repository)
            }
            _ => None,
        })
    }
}

impl Pushing<'_> {
    async fn push(&self, content: Content) -> Result<Digest, Failure> {
        let config = content.config.clone().into();
        let id = Digest::of(&content.config);
        let config =
            Parcel { digest: id, size: content.config.len() as u64, content: ParcelContent::Bytes(config) };
        let layers = content.layers.iter().enumerate().map(|(index, layer)| self.layer(index, layer));
        // All are waited for, so that nobody writes into the scratch any more when it is discarded.
        let (sent, layers) = tokio::join!(self.send(&config, "configuration"), join_all(layers));
        sent?;
        let layers = layers.into_iter().collect::<Result<Vec<_>, _>>()?;
        let (media_type, manifest) = manifest(&content, id, &layers);
        let pushed = self.shared.registry.push_manifest(self.to, &media_type, &manifest).await;
        pushed.map_err(|error| self.refused(&error))
    }

    /// Sends a layer; gives what the manifest has to say about it.
    async fn layer(&self, index: usize, layer: &ContentLayer) -> Result<Descriptor, Failure> {
        let _turn = self.shared.fetching.acquire().await;
        let (descriptor, blob) = (layer.descriptor.clone(), layer.blob.clone());
        let plain = descriptor.media_type == LAYER || descriptor.media_type.ends_with(".diff.tar");
        if !plain || self.has(descriptor.digest).await? {
            let content = ParcelContent::Blob(blob);
            let parcel = Parcel { digest: descriptor.digest, size: descriptor.size, content };
            self.send(&parcel, &parcel.digest.hex()[..12]).await?;
            return Ok(descriptor);
        }
        let path = self.scratch.path().join(format!("layer-{index}"));
        let storing = |error: io::Error| self.shared.storing(&self.source, &error);
        let work = tokio::task::spawn_blocking(move || compressed(&blob, path));
        let (digest, blob) =
            work.await.map_err(io::Error::other).and_then(|result| result).map_err(storing)?;
        let parcel = Parcel { digest, size: blob.length, content: ParcelContent::Blob(blob) };
        self.send(&parcel, &digest.hex()[..12]).await?;
        Ok(Descriptor::new(COMPRESSED, digest, parcel.size))
    }

    async fn has(&self, digest: Digest) -> Result<bool, Failure> {
        self.shared.registry.has_blob(self.to, digest).await.map_err(|error| self.refused(&error))
    }

    async fn send(&self, parcel: &Parcel, name: &str) -> Result<(), Failure> {
        let step = format!("push {name}");
        (self.progress)(&step, 0, parcel.size);
        let sent = self.shared.registry.push_blob(self.to, parcel, self.mount.as_deref()).await;
        sent.map_err(|error| self.refused(&error))?;
        (self.progress)(&step, parcel.size, parcel.size);
        Ok(())
    }

    fn refused(&self, error: &RegistryError) -> Failure {
        not_pushed(&self.source, self.to, error)
    }
}

/// The manifest as the image has it, if it still fits; otherwise one that does.
fn manifest(content: &Content, config: Digest, layers: &[Descriptor]) -> (String, Vec<u8>) {
    if let Some(bytes) = &content.manifest
        && let Ok(Document::Manifest(manifest)) = Document::parse(bytes)
        && manifest.layers.iter().map(|layer| layer.digest).eq(layers.iter().map(|layer| layer.digest))
    {
        let own = serde_json::from_slice::<serde_json::Value>(bytes).unwrap_or_default();
        let kind = own["mediaType"].as_str().unwrap_or(MANIFEST).to_owned();
        return (kind, bytes.clone());
    }
    let layers: Vec<_> = layers.iter().map(in_oci_terms).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": Descriptor::new(CONFIG, config, content.config.len() as u64),
        "layers": layers,
    });
    (MANIFEST.to_owned(), manifest.to_string().into_bytes())
}

/// Registries refuse manifests that mix Docker's words with OCI's.
fn in_oci_terms(layer: &Descriptor) -> Descriptor {
    let kind = match layer.media_type.rsplit(['.', '+']).next() {
        Some("gzip") => COMPRESSED,
        Some("zstd") => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => LAYER,
    };
    Descriptor { media_type: kind.to_owned(), ..layer.clone() }
}

/// The blob, compressed into a file at `path`. The same bytes give the same digest: no time goes into it.
fn compressed(blob: &Blob, path: PathBuf) -> io::Result<(Digest, Blob)> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    let mut encoder =
        GzBuilder::new().write(io::BufWriter::with_capacity(1 << 18, &file), Compression::default());
    io::copy(&mut io::BufReader::with_capacity(1 << 18, blob.reader()), &mut encoder)?;
    encoder.finish()?.into_inner()?;
    let blob = Blob::whole(file)?;
    Ok((super::files::digest_of(&blob)?, blob))
}
