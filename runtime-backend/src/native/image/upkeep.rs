//! What the store has: list, look at, name, remove.

use super::digest::Digest;
use super::disk::{read_json, remove_file};
use super::failures::opening;
use super::manifest::Descriptor;
use super::obtain::LayerRecord;
use super::store::{ImageRecord, ReferenceRecord, Shared, Store};
use crate::driver::ImageConfig;
use serde::Serialize;
use shakedown_spec::{Failure, FailureKind, ImageReference, ImageSource};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The shortest beginning of an id that names an image.
const SHORTEST_PREFIX: usize = 4;
/// Letters of a short id.
const SHORT: usize = 12;

/// One image of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ImageSummary {
    /// The digest of its configuration: Docker's image id.
    pub id: Digest,
    /// The references and files it was asked for by, in short form.
    pub names: Vec<String>,
    /// When it was made, as it says (RFC 3339).
    pub created: Option<String>,
    /// What it runs on, as `linux/amd64`.
    pub platform: String,
    /// When it was last asked for, to the hour: seconds since 1970.
    pub used: u64,
    /// Bytes on disk, of its unpacked layers and of what the store keeps of its archives.
    pub size: u64,
    /// The part of it that other images have, too.
    pub shared: u64,
    /// The part that goes when it does.
    pub own: u64,
}

/// All there is to say about an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ImageDetails {
    /// What a list has of it.
    #[serde(flatten)]
    pub summary: ImageSummary,
    /// The digest of its manifest, if it came with one.
    pub manifest: Option<Digest>,
    /// Its layers, lowest first.
    pub layers: Vec<LayerDetails>,
    /// What it says about its containers.
    pub config: ImageConfig,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LayerDetails {
    /// The digest of the uncompressed archive.
    pub diff_id: Digest,
    /// What its manifest says about the archive.
    pub blob: Option<Descriptor>,
    /// Whether the store keeps the archive.
    pub stored: bool,
    /// Where it is unpacked.
    pub tree: PathBuf,
    /// Bytes on disk of the unpacked layer.
    pub disk: u64,
}

/// What was given back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Freed {
    /// Names that mean nothing any more.
    pub untagged: Vec<String>,
    /// Images removed.
    pub images: Vec<Digest>,
    /// Images that would have gone, and are in use.
    pub in_use: Vec<Digest>,
    /// Unpacked layers removed.
    pub layers: u64,
    /// Blobs removed.
    pub blobs: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// One image and what is known about it.
pub(super) struct Entry {
    pub(super) record: ImageRecord,
    pub(super) used: SystemTime,
    /// The records in `refs/` that mean it.
    pub(super) references: Vec<(PathBuf, ReferenceRecord)>,
}

/// Everything that the records say. Damaged ones are left out: `verify` is for them.
pub(super) struct Inventory {
    pub(super) images: BTreeMap<Digest, Entry>,
    /// Images of other forms: their blobs are in use, their trees are none of this process's.
    pub(super) foreign: Vec<(Digest, ImageRecord)>,
    /// References to images that are not there in this form.
    pub(super) dangling: Vec<(PathBuf, ReferenceRecord)>,
    /// Whether the record of an image cannot be read: nobody knows what belongs to it.
    pub(super) damaged: bool,
}

/// A part of an image on disk, and how big it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Piece {
    Blob(Digest),
    Layer(String),
}

/// What a user named.
pub(super) struct Selected {
    pub(super) id: Digest,
    /// The record of the name, if it was one.
    pub(super) reference: Option<PathBuf>,
}

impl Entry {
    /// Its names in short form.
    pub(super) fn names(&self) -> Vec<String> {
        self.references.iter().map(|(_, record)| shown(record)).collect()
    }
}

/// A reference as the user would write it.
pub(super) fn shown(record: &ReferenceRecord) -> String {
    let name = match record.source.parse() {
        Ok(ImageSource::Registry(reference)) => reference.familiar(),
        _ => record.source.clone(),
    };
    record.platform.as_ref().map_or_else(|| name.clone(), |platform| format!("{name} ({platform})"))
}

impl ImageRecord {
    /// What it consists of. A layer that comes twice is there once.
    pub(super) fn pieces(&self, id: Digest) -> BTreeSet<Piece> {
        let blobs = self.parts.iter().filter(|part| part.stored).filter_map(|part| part.blob.as_ref());
        let blobs = blobs.map(|blob| blob.digest).chain(self.manifest).chain([id]);
        let layers = self.parts.iter().map(|part| Piece::Layer(part.key.clone()));
        blobs.map(Piece::Blob).chain(layers).collect()
    }
}

/// The digest that a record's file is named for.
pub(super) fn digest_in_name(path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok()
}

impl Shared {
    pub(super) fn inventory(&self) -> io::Result<Inventory> {
        let (mut images, mut foreign, mut dangling) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut damaged = false;
        for form in self.disk.list("images")? {
            let own = form.ends_with(self.unpacker.form());
            for path in self.disk.list(form)? {
                let Some(id) = digest_in_name(&path) else { continue };
                let Some(record) = read_json(&path) else {
                    damaged = true;
                    continue;
                };
                if own {
                    let used = fs::metadata(&path).and_then(|stat| stat.modified()).unwrap_or(UNIX_EPOCH);
                    images.insert(id, Entry { record, used, references: Vec::new() });
                } else {
                    foreign.push((id, record));
                }
            }
        }
        for path in self.disk.list("refs")? {
            let Some(record) = read_json::<ReferenceRecord>(&path) else { continue };
            match images.get_mut(&record.config) {
                Some(entry) => entry.references.push((path, record)),
                None => dangling.push((path, record)),
            }
        }
        for entry in images.values_mut() {
            entry.references.sort_by_cached_key(|(_, record)| shown(record));
        }
        Ok(Inventory { images, foreign, dangling, damaged })
    }

    /// Bytes on disk.
    pub(super) fn weigh(&self, piece: &Piece) -> u64 {
        match piece {
            Piece::Blob(digest) => fs::metadata(self.disk.blob(*digest)).map_or(0, |blob| on_disk(&blob)),
            Piece::Layer(key) => {
                let record = self.disk.layer(self.unpacker.form(), key).join("layer.json");
                read_json::<LayerRecord>(&record).map_or(0, |record| record.unpacked.sum.disk)
            }
        }
    }

    pub(super) fn reading(&self, error: &io::Error) -> Failure {
        opening(self.disk.root(), error)
    }

    /// The image that a user means by a name, an id, or the beginning of an id.
    pub(super) fn select(&self, inventory: &Inventory, text: &str) -> Result<Selected, Failure> {
        let written = match text.parse::<ImageSource>() {
            Ok(ImageSource::Id(id)) => id,
            Ok(source) => source.beneath(&std::env::current_dir().unwrap_or_default()).to_string(),
            Err(_no_source) => text.to_owned(),
        };
        let mut platforms = Vec::new();
        for (id, entry) in &inventory.images {
            for (path, record) in &entry.references {
                if record.name() == written || shown(record) == text {
                    return Ok(Selected { id: *id, reference: Some(path.clone()) });
                }
                if record.source == written {
                    platforms.push(Selected { id: *id, reference: Some(path.clone()) });
                }
            }
        }
        // Only for another platform than this machine's.
        if let (Some(only), true) = (platforms.pop(), platforms.is_empty()) {
            return Ok(only);
        }
        let prefix = written.strip_prefix("sha256:").unwrap_or(text);
        let hex = prefix.len() >= SHORTEST_PREFIX && prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
        let ids: Vec<_> = inventory.images.keys().filter(|id| hex && id.hex().starts_with(prefix)).collect();
        match ids[..] {
            [id] => Ok(Selected { id: *id, reference: None }),
            [] => Err(not_there(inventory, text)),
            _ => {
                let ids: Vec<_> =
                    ids.iter().map(|id| id.hex()[..SHORT.max(prefix.len() + 1)].to_owned()).collect();
                Err(Failure::new(FailureKind::Invalid, format!("`{text}` is the beginning of several ids"))
                    .fact("images", ids.join(", ")))
            }
        }
    }

    fn summary(&self, inventory: &Inventory, id: Digest, entry: &Entry) -> ImageSummary {
        let (mut shared, mut own) = (0, 0);
        let others = inventory.images.iter().filter(|(other, _)| **other != id);
        let others = others.map(|(other, entry)| (*other, &entry.record));
        let others = others.chain(inventory.foreign.iter().map(|(other, record)| (*other, record)));
        let others: BTreeSet<_> = others.flat_map(|(other, record)| record.pieces(other)).collect();
        for piece in entry.record.pieces(id) {
            let sum = if others.contains(&piece) { &mut shared } else { &mut own };
            *sum += self.weigh(&piece);
        }
        ImageSummary {
            id,
            names: entry.names(),
            created: entry.record.created.clone(),
            platform: entry.record.platform.clone(),
            used: entry.used.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
            size: shared + own,
            shared,
            own,
        }
    }
}

/// Bytes of a file's blocks.
fn on_disk(stat: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(stat) * 512
}

fn not_there(inventory: &Inventory, text: &str) -> Failure {
    let failure = Failure::new(FailureKind::ImageNotFound, format!("the store has no image `{text}`"));
    let names: Vec<_> = inventory.images.values().flat_map(Entry::names).collect();
    if names.is_empty() { failure } else { failure.fact("images there", names.join(", ")) }
}

impl Store {
    /// All images, by name; those without a name come last.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageSummary>, Failure> {
        let inventory = self.shared.inventory().map_err(|error| self.shared.reading(&error))?;
        let images = inventory.images.iter();
        let mut list: Vec<_> =
            images.map(|(id, entry)| self.shared.summary(&inventory, *id, entry)).collect();
        list.sort_by_cached_key(|image| (image.names.is_empty(), image.names.clone(), image.id));
        Ok(list)
    }

    /// One image, by a name, an id or the beginning of one.
    ///
    /// # Errors
    ///
    /// There is no such image, or there are several.
    pub fn inspect(&self, image: &str) -> Result<ImageDetails, Failure> {
        let shared = &self.shared;
        let inventory = shared.inventory().map_err(|error| shared.reading(&error))?;
        let Selected { id, .. } = shared.select(&inventory, image)?;
        let entry = inventory.images.get(&id).ok_or_else(|| not_there(&inventory, image))?;
        let summary = shared.summary(&inventory, id, entry);
        let ImageRecord { config, parts, manifest, .. } = &entry.record;
        let layers = parts.iter().map(|part| LayerDetails {
            diff_id: part.diff_id,
            blob: part.blob.clone(),
            stored: part.stored,
            tree: shared.disk.layer(shared.unpacker.form(), &part.key).join("tree"),
            disk: shared.weigh(&Piece::Layer(part.key.clone())),
        });
        Ok(ImageDetails { summary, manifest: *manifest, layers: layers.collect(), config: config.clone() })
    }

    /// Gives an image a further name. Another image that had the name loses it.
    ///
    /// # Errors
    ///
    /// There is no such image, or the store cannot be written to.
    pub async fn tag(&self, image: &str, name: &ImageReference) -> Result<(), Failure> {
        let shared = &self.shared;
        let reading = |error: io::Error| shared.reading(&error);
        let _collector_waits = shared.disk.lock_shared("store").await.map_err(reading)?;
        let inventory = shared.inventory().map_err(reading)?;
        let Selected { id, .. } = shared.select(&inventory, image)?;
        let manifest = inventory.images.get(&id).and_then(|entry| entry.record.manifest);
        let source = ImageSource::Registry(name.clone());
        shared.name(&source, "", id, manifest).map_err(|error| shared.storing(&source, &error))
    }

    /// Takes a name from an image, and removes the image with its last name. By its id, the image goes with its only
    /// name. With `force` it loses all its names, and goes when nobody uses it any more.
    ///
    /// # Errors
    ///
    /// There is no such image, it has several names, or it is in use.
    pub async fn remove(&self, image: &str, force: bool) -> Result<Freed, Failure> {
        let shared = &self.shared;
        let reading = |error: io::Error| shared.reading(&error);
        let lock = shared.disk.lock("store").await.map_err(reading)?;
        let inventory = shared.inventory().map_err(reading)?;
        let Selected { id, reference } = shared.select(&inventory, image)?;
        let entry = inventory.images.get(&id).ok_or_else(|| not_there(&inventory, image))?;
        let mut freed = Freed::default();
        if let Some(reference) = reference.filter(|_| entry.references.len() > 1) {
            remove_file(&reference).map_err(reading)?;
            let record = entry.references.iter().find(|(path, _)| *path == reference);
            freed.untagged.extend(record.map(|(_, record)| shown(record)));
            return Ok(freed);
        }
        if entry.references.len() > 1 && !force {
            let failure = Failure::new(FailureKind::Invalid, format!("image {image} has several names"));
            return Err(failure
                .fact("names", entry.names().join(", "))
                .hint("remove it by these names, or all at once with `--force`"));
        }
        let alone = shared.disk.try_lock(&shared.image_lock(id)).map_err(reading)?;
        if alone.is_none() && !force {
            let failure = Failure::new(FailureKind::ImageUnusable, format!("image {image} is in use"));
            return Err(failure.hint(format!(
                "end the sessions that use it, or take its name away with `shakedown images rm --force {image}`"
            )));
        }
        let mut trash = shared.trash().map_err(reading)?;
        trash.forget(id, entry, alone.is_some(), &mut freed).map_err(reading)?;
        drop(alone);
        if freed.images.is_empty() {
            freed.in_use.push(id);
        } else {
            trash.collect(&mut freed).map_err(reading)?;
        }
        drop(lock);
        trash.empty().await.map_err(reading)?;
        Ok(freed)
    }
}
