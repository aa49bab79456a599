//! Images on their way to a machine without network: one archive with an OCI layout, and back into a store.
//!
//! ```text
//! reference ─► index ─► manifests of a platform, or of all ─► configuration, layers ─► oci-layout, index.json, blobs/
//! ```
//! Indexes and manifests are those that the registry gave, byte for byte, so that the digests of a lock file hold on the
//! other side. An index names the manifests of all its platforms, also where the archive has those of one.

use super::digest::Digest;
use super::failures::{plain, unusable};
use super::fetch::Fetch;
use super::files::{Files, for_platform, parse};
use super::ingest::Ingest;
use super::manifest::{Descriptor, Document, LARGEST_DOCUMENT};
use super::store::{Question, Store};
use super::unpacker::Blob;
use crate::driver::Progress;
use crate::wanted::Wanted;
use serde_json::{Value, json};
use shakedown_spec::{Failure, FailureKind, ImageReference, ImageSource, PullPolicy};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// How deep indexes may nest.
const DEEPEST_INDEX: usize = 4;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The annotations that name an image of a layout: the specification's, and the one that containerd and Docker read.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// An image that is to be carried.
#[derive(Clone, Debug)]
pub struct Carried {
    /// What it is called in the bundle: as tests ask for it.
    pub name: ImageReference,
    /// Where it is taken from; by digest, if it is locked.
    pub wanted: Wanted,
}

/// An image of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundled {
    /// What it is called.
    pub name: ImageReference,
    /// The digest of its index or manifest.
    pub digest: String,
}

/// What goes into an archive: blobs by digest, which are in the store, and the entries of `index.json`.
#[derive(Default)]
struct Parcel {
    blobs: BTreeMap<String, Blob>,
    entries: Vec<Value>,
}

impl Store {
    /// Writes these images into one archive: the same bytes for the same images. What the store lacks is fetched.
    ///
    /// # Errors
    ///
    /// An image cannot be obtained, or `out` cannot be written to.
    pub async fn export_bundle(
        &self,
        images: &[Carried],
        all_platforms: bool,
        out: impl Write + Send + 'static,
        progress: Progress,
    ) -> Result<Vec<Bundled>, Failure> {
        // What has been gathered must not be collected before it is written.
        let lock = self.shared.disk.lock_shared("store").await;
        let _collector_waits = lock.map_err(|error| writing(&error))?;
        let (mut parcel, mut bundled) = (Parcel::default(), Vec::new());
        for image in images {
            let question = Question::of(&image.wanted, Arc::clone(&progress))?;
            let ImageSource::Registry(reference) = &image.wanted.source else {
                return Err(unusable(
                    &image.wanted.source,
                    "cannot be put into a bundle: it is not of a registry",
                ));
            };
            let fetch = self.shared.fetch(&question, reference);
            let digest = fetch.gather(&image.name, all_platforms, &mut parcel).await?;
            bundled.push(Bundled { name: image.name.clone(), digest: digest.to_string() });
        }
        let written = tokio::task::spawn_blocking(move || parcel.write(out)).await;
        written.map_err(io::Error::other).and_then(|result| result).map_err(|error| writing(&error))?;
        Ok(bundled)
    }

    /// Puts the images of a bundle into the store, under their names and their digests. Everything is verified on the
    /// way.
    ///
    /// # Errors
    ///
    /// The file is no bundle, has wrong bytes in it, or has nothing for this machine; or the store cannot be written to.
    pub async fn import_bundle(&self, file: &Path, progress: Progress) -> Result<Vec<Bundled>, Failure> {
        let source = ImageSource::OciArchive { path: file.to_owned(), tag: None };
        let (files, entries) = open(file).await?;
        let files = Arc::new(files);
        let ingest = self.ingest(&source, Arc::clone(&progress)).await?;
        let mut bundled = Vec::new();
        for (name, entry) in entries {
            let digest = entry.digest;
            take(&ingest, &files, &source, entry).await?;
            let pinned = ImageReference { digest: Some(digest.to_string()), ..name.clone() };
            let wanted =
                Wanted { offline: true, ..Wanted::new(ImageSource::Registry(pinned), PullPolicy::Missing) };
            let image = self.obtain(&wanted, Arc::clone(&progress)).await?;
            self.shared.rename(&name, &image, digest)?;
            bundled.push(Bundled { name, digest: digest.to_string() });
        }
        Ok(bundled)
    }
}

/// The images of a bundle, by name.
///
/// # Errors
///
/// The file is no bundle.
pub async fn bundled(file: &Path) -> Result<Vec<Bundled>, Failure> {
    let (_, entries) = open(file).await?;
    Ok(entries.into_iter().map(|(name, entry)| Bundled { name, digest: entry.digest.to_string() }).collect())
}

impl Fetch {
    /// Brings everything of an image into the store, and notes it in the parcel.
    async fn gather(
        &self,
        name: &ImageReference,
        all_platforms: bool,
        parcel: &mut Parcel,
    ) -> Result<Digest, Failure> {
        let (top, bytes) = self.document(self.image.selector()).await?;
        let name = ImageReference { digest: None, ..name.clone() }.to_string();
        let annotations: serde_json::Map<String, Value> =
            NAMES.iter().map(|key| ((*key).to_owned(), Value::from(name.clone()))).collect();
        parcel.entries.push(json!({
            "mediaType": media_type(&bytes),
            "digest": top.to_string(),
            "size": bytes.len(),
            "annotations": annotations,
        }));
        let mut documents = vec![(top, bytes, DEEPEST_INDEX)];
        // Indexes may name the same ones many times, and those again.
        let mut seen = BTreeSet::from([top]);
        while let Some((digest, bytes, depth)) = documents.pop() {
            self.note(parcel, digest)?;
            match parse(&self.source, &format!("manifests/{digest}"), &bytes)? {
                Document::Index(_) if depth == 0 => {
                    return Err(unusable(&self.source, "cannot be used: its indexes are nested too deep"));
                }
                Document::Index(entries) => {
                    let wanted = if all_platforms {
                        entries.iter().collect()
                    } else {
                        vec![for_platform(&self.source, &entries, &self.platform)?]
                    };
                    for entry in wanted.into_iter().filter(|entry| seen.insert(entry.digest)) {
                        let (digest, bytes) = self.document(&entry.digest.to_string()).await?;
                        documents.push((digest, bytes, depth - 1));
                    }
                }
                Document::Manifest(manifest) => {
                    for (blob, number) in [&manifest.config].into_iter().chain(&manifest.layers).zip(0..) {
                        let what =
                            if number == 0 { "the configuration".into() } else { format!("layer {number}") };
                        let stored = self.blob(blob, &what).await?;
                        parcel.blobs.insert(blob.digest.hex(), stored);
                    }
                }
            }
        }
        Ok(top)
    }

    fn note(&self, parcel: &mut Parcel, document: Digest) -> Result<(), Failure> {
        let blob = File::open(self.disk.blob(document)).and_then(Blob::whole);
        let blob = blob.map_err(|error| super::failures::store(&self.source, self.disk.root(), &error))?;
        parcel.blobs.insert(document.hex(), blob);
        Ok(())
    }
}

impl Parcel {
    /// Sorted, and without times and owners: the same images make the same bytes.
    fn write(mut self, out: impl Write) -> io::Result<()> {
        self.entries
            .sort_by_key(|entry| entry["annotations"][NAMES[0]].as_str().unwrap_or_default().to_owned());
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": self.entries });
        let mut tar = tar::Builder::new(out);
        put(&mut tar, "oci-layout", &br#"{"imageLayoutVersion":"1.0.0"}"#[..], 30)?;
        let index = serde_json::to_vec(&index)?;
        put(&mut tar, "index.json", &index[..], index.len() as u64)?;
        for (hex, blob) in &self.blobs {
            put(&mut tar, &format!("blobs/sha256/{hex}"), blob.reader(), blob.length)?;
        }
        tar.into_inner()?.flush()
    }
}

fn put(tar: &mut tar::Builder<impl Write>, name: &str, content: impl Read, size: u64) -> io::Result<()> {
    // A layer may be larger than the 8 GiB that the number of a plain header can say.
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content)
}

/// What a document says that it is; older ones say nothing.
fn media_type(document: &[u8]) -> String {
    let value: Value = serde_json::from_slice(document).unwrap_or_default();
    let usual = if value["manifests"].is_array() { INDEX } else { super::manifest::MANIFEST };
    value["mediaType"].as_str().unwrap_or(usual).to_owned()
}

/// Opens a bundle: its files, and its named images.
async fn open(file: &Path) -> Result<(Files, Vec<(ImageReference, Descriptor)>), Failure> {
    let path = file.to_owned();
    let opened = tokio::task::spawn_blocking(move || Files::archive(File::open(path)?)).await;
    let files = opened.map_err(io::Error::other).and_then(|result| result);
    let files = files.map_err(|error| no_bundle(file, &plain(&error)))?;
    let source = ImageSource::OciArchive { path: file.to_owned(), tag: None };
    let index = match files.open("index.json") {
        Ok(Some(blob)) if blob.length <= LARGEST_DOCUMENT => {
            read(&blob).map_err(|error| no_bundle(file, &plain(&error)))?
        }
        _ => return Err(no_bundle(file, "it has no usable `index.json`")),
    };
    let Document::Index(entries) = parse(&source, "index.json", &index)? else {
        return Err(no_bundle(file, "its `index.json` is no index"));
    };
    let name_of = |entry: Descriptor| {
        let name = NAMES.iter().find_map(|key| entry.annotations.get(*key)?.parse::<ImageReference>().ok());
        name.map(|name| (ImageReference { digest: None, ..name }, entry))
    };
    let images: Vec<_> = entries.into_iter().filter_map(name_of).collect();
    if images.is_empty() { Err(no_bundle(file, "it names no image")) } else { Ok((files, images)) }
}

/// Copies what an entry leads to into the store, as far as the bundle has it: a bundle of one platform has an index that
/// names others.
async fn take(
    ingest: &Ingest,
    files: &Arc<Files>,
    source: &ImageSource,
    entry: Descriptor,
) -> Result<(), Failure> {
    let (mut wanted, mut seen) = (vec![(entry, 0, true)], BTreeSet::new());
    while let Some((descriptor, depth, is_document)) = wanted.pop() {
        // Indexes may name the same ones many times, and those again.
        if !seen.insert((descriptor.digest, is_document)) {
            continue;
        }
        let Some(blob) = member(files, source, &descriptor)? else {
            // The top has to be there, and everything below a manifest that is.
            if depth == 0 || !is_document {
                return Err(unusable(source, "is incomplete").fact("missing", descriptor.digest.to_string()));
            }
            continue;
        };
        ingest.copy(&blob, &descriptor).await?;
        if !is_document {
            continue;
        }
        let bytes = read(&blob)
            .map_err(|error| unusable(source, "could not be read").fact("reason", plain(&error)))?;
        match parse(source, &descriptor.digest.to_string(), &bytes)? {
            Document::Index(_) if depth == DEEPEST_INDEX => {
                return Err(unusable(source, "cannot be used: its indexes are nested too deep"));
            }
            Document::Index(entries) => {
                wanted.extend(entries.into_iter().map(|entry| (entry, depth + 1, true)));
            }
            Document::Manifest(manifest) => {
                wanted.push((manifest.config, depth, false));
                wanted.extend(manifest.layers.into_iter().map(|layer| (layer, depth, false)));
            }
        }
    }
    Ok(())
}

fn member(files: &Files, source: &ImageSource, wanted: &Descriptor) -> Result<Option<Blob>, Failure> {
    let name = format!("blobs/sha256/{}", wanted.digest.hex());
    let blob = files.open(&name).map_err(|error| {
        unusable(source, "could not be read").fact("file", name).fact("reason", plain(&error))
    })?;
    match blob {
        Some(blob) if blob.length != wanted.size => {
            let what = format!("the blob {}", wanted.digest);
            Err(super::failures::wrong_size(source, &what, wanted.size, blob.length))
        }
        blob => Ok(blob),
    }
}

/// A document, bounded.
fn read(blob: &Blob) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    blob.reader().take(LARGEST_DOCUMENT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn no_bundle(file: &Path, reason: &str) -> Failure {
    Failure::new(FailureKind::ImageUnusable, format!("{} is no bundle of images", file.display()))
        .fact("reason", reason)
        .hint("`shakedown bundle export` writes one; archives of other tools go in with `shakedown images load`")
}

fn writing(error: &io::Error) -> Failure {
    Failure::new(FailureKind::Other, "the bundle could not be written").fact("reason", plain(error))
}
