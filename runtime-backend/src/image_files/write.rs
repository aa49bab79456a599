//! Images on their way into files: the archive that `docker save` writes, OCI archives and layouts.
//!
//! A Docker archive is an OCI layout as well, as Docker's own are since version 25: older engines read `manifest.json`,
//! newer ones `index.json`, and both name the same blobs. Each blob is written once, however many of the images have
//! it, and its digest is checked while it passes: a wrong one breaks the archive off before its end.

use super::blob::{Blob, inflated};
use super::digest::{Digest, Hasher};
use super::manifest::{CONFIG, Descriptor, Document, LAYER, MANIFEST};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shakedown_spec::ImageReference;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// An image to be written.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    /// Its configuration, as its maker wrote it.
    pub(crate) config: Vec<u8>,
    /// Its manifest, if it came with one.
    pub(crate) manifest: Option<Vec<u8>>,
    /// Its layers, lowest first.
    pub(crate) layers: Vec<OutgoingLayer>,
    /// What it is called in the archive; only names with a tag are written.
    pub(crate) names: Vec<ImageReference>,
}

/// One layer of an [`Outgoing`] image.
#[derive(Clone, Debug)]
pub(crate) struct OutgoingLayer {
    /// The digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// What its bytes are.
    pub(crate) descriptor: Descriptor,
    /// Its bytes.
    pub(crate) blob: Blob,
}

/// The form of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveForm {
    /// What `docker save` writes.
    #[default]
    Docker,
    /// An OCI image layout in a tar file.
    Oci,
}

/// Called with the blob, the bytes of it that are written, and all its bytes.
type Steps<'a> = &'a dyn Fn(&str, u64, u64);

/// Writes the images as one tar archive.
///
/// # Errors
///
/// A blob cannot be read or is not what its digest says, or `out` cannot be written to.
pub(crate) fn archive(
    images: &[Outgoing],
    form: ArchiveForm,
    out: impl Write,
    progress: Steps<'_>,
) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    let mut writer = Writer::new(&mut tar, form, progress);
    images.iter().try_for_each(|image| writer.image(image))?;
    writer.finish()?;
    tar.finish()
}

/// Writes the images as an OCI layout into `directory`, which may have one already: its images stay.
///
/// # Errors
///
/// As [`archive`]; or the directory's `index.json` is not understood.
pub(crate) fn layout(images: &[Outgoing], directory: &Path, progress: Steps<'_>) -> io::Result<()> {
    let mut place = Directory(directory);
    let mut writer = Writer::new(&mut place, ArchiveForm::Oci, progress);
    match fs::read(directory.join("index.json")) {
        Ok(index) => {
            let index: Value = serde_json::from_slice(&index)?;
            writer.entries.clone_from(index["manifests"].as_array().unwrap_or(&Vec::new()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    images.iter().try_for_each(|image| writer.image(image))?;
    writer.finish()
}

/// Where named files are put.
trait Place {
    fn put(&mut self, name: &str, size: u64, content: &mut dyn Read) -> io::Result<()>;
}

impl<W: Write> Place for tar::Builder<W> {
    fn put(&mut self, name: &str, size: u64, content: &mut dyn Read) -> io::Result<()> {
        // Without time and owner, so that the same images make the same archive. Layers may be larger than the 8 GiB
        // that the number of a plain header can say.
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        self.append_data(&mut header, name, content)
    }
}

struct Directory<'a>(&'a Path);

impl Place for Directory<'_> {
    fn put(&mut self, name: &str, size: u64, content: &mut dyn Read) -> io::Result<()> {
        let path = self.0.join(name);
        if name.starts_with("blobs/") && fs::metadata(&path).is_ok_and(|file| file.len() == size) {
            return Ok(());
        }
        fs::create_dir_all(path.parent().unwrap_or(self.0))?;
        // Beside its place first: a reader never sees half a file.
        let half = path.with_extension("part");
        let written = File::create(&half).and_then(|mut file| io::copy(content, &mut file));
        let result = written.and_then(|_| fs::rename(&half, &path));
        if result.is_err() {
            let _ = fs::remove_file(&half);
        }
        result
    }
}

struct Writer<'a, P> {
    place: &'a mut P,
    form: ArchiveForm,
    progress: Steps<'a>,
    written: HashSet<Digest>,
    /// Of `index.json`.
    entries: Vec<Value>,
    /// Of `manifest.json`, by configuration: an image with two names is in it once.
    saved: Vec<(Digest, Value)>,
    /// Of `repositories`, which tools from before 2016 read.
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

impl<'a, P: Place> Writer<'a, P> {
    fn new(place: &'a mut P, form: ArchiveForm, progress: Steps<'a>) -> Self {
        let (entries, saved) = (Vec::new(), Vec::new());
        let (written, repositories) = (HashSet::new(), BTreeMap::new());
        Self { place, form, progress, written, entries, saved, repositories }
    }

    fn image(&mut self, image: &Outgoing) -> io::Result<()> {
        let mut layers = Vec::with_capacity(image.layers.len());
        for layer in &image.layers {
            layers.push(self.layer(layer)?);
        }
        let config = self.document(&image.config)?;
        let manifest = match &image.manifest {
            // As it came, so that its digest stays; unless a layer was changed on the way.
            Some(manifest) if names(manifest, &layers) => manifest.clone(),
            _ => serde_json::to_vec(&json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": Descriptor::new(CONFIG, config, image.config.len() as u64),
                "layers": layers,
            }))?,
        };
        let digest = self.document(&manifest)?;
        self.describe(&Descriptor::new(&kind_of(&manifest), digest, manifest.len() as u64), &image.names)?;
        self.list(config, &layers, &image.names);
        Ok(())
    }

    /// Writes the layer, unless it is there already; gives what is there.
    fn layer(&mut self, layer: &OutgoingLayer) -> io::Result<Descriptor> {
        let OutgoingLayer { diff_id, descriptor, blob } = layer;
        // Engines before 23.0 load no zstd.
        if self.form == ArchiveForm::Docker && is_zstd(blob)? {
            // The size stands before the content: it takes one pass to know it.
            let size = io::copy(&mut inflated(blob.reader())?, &mut io::sink())?;
            self.blob(*diff_id, size, &mut inflated(blob.reader())?)?;
            return Ok(Descriptor::new(LAYER, *diff_id, size));
        }
        self.blob(descriptor.digest, blob.length, &mut blob.reader())?;
        Ok(descriptor.clone())
    }

    fn document(&mut self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        self.blob(digest, bytes.len() as u64, &mut &*bytes)?;
        Ok(digest)
    }

    fn blob(&mut self, digest: Digest, size: u64, content: &mut dyn Read) -> io::Result<()> {
        if !self.written.insert(digest) {
            return Ok(());
        }
        let progress = self.progress;
        let step = format!("write {}", &digest.hex()[..12]);
        let mut checked = Checked { content, hasher: Hasher::new(), done: 0, size, expected: digest };
        let mut reported = Reported { inner: &mut checked, progress, step: &step };
        self.place.put(&blob_name(digest), size, &mut reported)
    }

    fn describe(&mut self, manifest: &Descriptor, names: &[ImageReference]) -> io::Result<()> {
        let mut entry = serde_json::to_value(manifest)?;
        let tagged: Vec<_> = names.iter().filter(|name| name.tag.is_some()).collect();
        let named = |entry: &Value| entry["annotations"][FULL_NAME].as_str().map(str::to_owned);
        if tagged.is_empty() {
            let anonymous = |other: &Value| named(other).is_none() && other["digest"] == entry["digest"];
            if !self.entries.iter().any(anonymous) {
                self.entries.push(entry);
            }
            return Ok(());
        }
        for name in tagged {
            let full = without_digest(name);
            let short = match self.form {
                // Docker writes the tag alone, Podman and Skopeo take the whole name.
                ArchiveForm::Docker => name.tag.clone().unwrap_or_default(),
                ArchiveForm::Oci => full.clone(),
            };
            entry["annotations"] = json!({ FULL_NAME: full, SHORT_NAME: short });
            self.entries.retain(|other| named(other).as_ref() != Some(&full));
            self.entries.push(entry.clone());
        }
        Ok(())
    }

    fn list(&mut self, config: Digest, layers: &[Descriptor], names: &[ImageReference]) {
        let tags: Vec<_> = names.iter().filter(|name| name.tag.is_some()).map(short_name).collect();
        if let Some(top) = layers.last() {
            for name in names {
                let Some(tag) = &name.tag else { continue };
                let full = short_name(name);
                let repository = full.strip_suffix(&format!(":{tag}")).unwrap_or(&full).to_owned();
                self.repositories.entry(repository).or_default().insert(tag.clone(), top.digest.hex());
            }
        }
        if let Some((_, image)) = self.saved.iter_mut().find(|(other, _)| *other == config)
            && let Some(known) = image["RepoTags"].as_array_mut()
        {
            known.extend(tags.into_iter().map(Value::from));
            return;
        }
        let layers: Vec<_> = layers.iter().map(|layer| blob_name(layer.digest)).collect();
        let image = json!({ "Config": blob_name(config), "RepoTags": tags, "Layers": layers });
        self.saved.push((config, image));
    }

    fn finish(self) -> io::Result<()> {
        let mut put = |name: &str, value: &Value| {
            let bytes = serde_json::to_vec(value)?;
            self.place.put(name, bytes.len() as u64, &mut &bytes[..])
        };
        let kind = "application/vnd.oci.image.index.v1+json";
        if self.form == ArchiveForm::Docker {
            put("manifest.json", &self.saved.into_iter().map(|(_, image)| image).collect())?;
            put("repositories", &json!(self.repositories))?;
        }
        put("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
        // Last in a directory, too: what it names is there.
        put("index.json", &json!({ "schemaVersion": 2, "mediaType": kind, "manifests": self.entries }))
    }
}

/// The annotation in which containerd and Docker have the whole reference.
const FULL_NAME: &str = "io.containerd.image.name";
/// The annotation of the OCI specification.
const SHORT_NAME: &str = "org.opencontainers.image.ref.name";

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn without_digest(name: &ImageReference) -> String {
    ImageReference { digest: None, ..name.clone() }.to_string()
}

/// As `docker save` writes it: `redis:7`.
fn short_name(name: &ImageReference) -> String {
    ImageReference { digest: None, ..name.clone() }.familiar()
}

/// Whether the manifest names exactly these layers.
fn names(manifest: &[u8], layers: &[Descriptor]) -> bool {
    let Ok(Document::Manifest(manifest)) = Document::parse(manifest) else { return false };
    manifest.layers.iter().map(|layer| layer.digest).eq(layers.iter().map(|layer| layer.digest))
}

/// The type that a manifest says it is of; Docker's older ones have to be called what they are.
fn kind_of(manifest: &[u8]) -> String {
    let value: Value = serde_json::from_slice(manifest).unwrap_or_default();
    value["mediaType"].as_str().unwrap_or(MANIFEST).to_owned()
}

fn is_zstd(blob: &Blob) -> io::Result<bool> {
    let mut magic = [0; 4];
    let length = usize::try_from(blob.length.min(4)).unwrap_or(4);
    let mut reader = blob.reader();
    reader.read_exact(&mut magic[..length])?;
    Ok(magic == [0x28, 0xb5, 0x2f, 0xfd])
}

/// Hashes what is read through it, and fails at its end if it is not what was expected.
struct Checked<'a> {
    content: &'a mut dyn Read,
    hasher: Hasher,
    done: u64,
    size: u64,
    expected: Digest,
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.done += read as u64;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        let actual = self.hasher.clone().finish();
        if self.done == self.size && actual == self.expected {
            return Ok(0);
        }
        Err(io::Error::other(format!("blob {} has digest {actual}", self.expected)))
    }
}

struct Reported<'a, 'b> {
    inner: &'a mut Checked<'b>,
    progress: Steps<'a>,
    step: &'a str,
}

impl Read for Reported<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        (self.progress)(self.step, self.inner.done, self.inner.size);
        Ok(read)
    }
}
