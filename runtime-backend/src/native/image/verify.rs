//! Looks at everything the store has: bytes against their digests, trees against what was unpacked, records against
//! what they name. Work in progress and free locks are not damage: the next process to open the store removes them.

use super::config;
use super::digest::Digest;
use super::disk::{Record, read_record, remove_file};
use super::failures::plain;
use super::files::digest_of;
use super::obtain::LayerRecord;
use super::store::{ImageRecord, ReferenceRecord, Shared, Store};
use super::unpacker::Blob;
use super::upkeep::{Piece, digest_in_name};
use serde::Serialize;
use shakedown_spec::Failure;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Something in the store that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// Where, relative to the store.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
    /// What became of it.
    pub remedy: Remedy,
}

/// What became of something damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// It is still there.
    None,
    /// It was removed.
    Removed,
    /// It is still there, because an image in use needs it.
    InUse,
}

/// What a look at the store gives.
#[derive(Debug, Default)]
struct Look {
    findings: BTreeMap<PathBuf, String>,
    /// Records and blobs that are good for nothing, and what belongs to such.
    bad: BTreeSet<PathBuf>,
    images: BTreeMap<Digest, ImageRecord>,
    references: Vec<(PathBuf, Digest)>,
    /// Images of which something is missing or damaged.
    broken: BTreeSet<Digest>,
}

impl Store {
    /// Checks everything. With `remove`, what is damaged is removed, and what needs it: it is made anew when it is asked
    /// for the next time. What an image in use needs is left.
    ///
    /// # Errors
    ///
    /// The store cannot be read, or not be written to.
    pub async fn verify(&self, remove: bool) -> Result<Vec<Finding>, Failure> {
        let shared = &self.shared;
        let done = async || {
            let lock = match remove {
                true => shared.disk.lock("store").await?,
                false => shared.disk.lock_shared("store").await?,
            };
            let mut look = shared.look().await?;
            let mut used = BTreeSet::new();
            if remove {
                used = shared.clear(&mut look).await?;
            }
            drop(lock);
            let remedy = |path: &Path| match remove {
                false => Remedy::None,
                true if used.contains(path) => Remedy::InUse,
                true => Remedy::Removed,
            };
            let finding = |(path, problem): (PathBuf, String)| {
                let remedy = remedy(&path);
                let path = path.strip_prefix(shared.disk.root()).map(Path::to_owned).unwrap_or(path);
                Finding { path, problem, remedy }
            };
            Ok(look.findings.into_iter().map(finding).collect())
        };
        done().await.map_err(|error: io::Error| shared.reading(&error))
    }
}

impl Look {
    fn find(&mut self, path: &Path, problem: impl Into<String>) {
        self.findings.entry(path.to_owned()).or_insert_with(|| problem.into());
        self.bad.insert(path.to_owned());
    }
}

impl Shared {
    async fn look(&self) -> io::Result<Look> {
        let mut look = Look::default();
        self.look_at_blobs(&mut look).await?;
        self.look_at_layers(&mut look).await?;
        let mut everywhere = BTreeSet::new();
        for form in self.disk.list("images")? {
            let own = form.ends_with(self.unpacker.form());
            for path in self.disk.list(&form)? {
                let Some(id) = digest_in_name(&path) else {
                    look.find(&path, "is no record: its name is not a digest");
                    continue;
                };
                everywhere.insert(id);
                match read_record::<ImageRecord>(&path) {
                    Record::Good(record) if own => self.look_at_image(&mut look, &path, id, record),
                    Record::Good(_) => {}
                    Record::Absent | Record::Damaged => {
                        look.find(&path, "is damaged: it is not the record that was written");
                        look.broken.insert(id);
                    }
                }
            }
        }
        self.look_at_references(&mut look, &everywhere)?;
        Ok(look)
    }

    async fn look_at_blobs(&self, look: &mut Look) -> io::Result<()> {
        for path in self.disk.list("blobs/sha256")? {
            let Some(expected) = digest_in_name(&path) else {
                look.find(&path, "is no blob: its name is not a digest");
                continue;
            };
            let file = path.clone();
            let work = tokio::task::spawn_blocking(move || digest_of(&Blob::whole(File::open(file)?)?));
            match work.await.map_err(io::Error::other)? {
                Ok(actual) if actual == expected => {}
                Ok(actual) => look.find(&path, format!("is damaged: its digest is {actual}")),
                Err(error) => look.find(&path, format!("cannot be read: {}", plain(&error))),
            }
        }
        Ok(())
    }

    async fn look_at_layers(&self, look: &mut Look) -> io::Result<()> {
        for path in self.disk.list(self.disk.layers(self.unpacker.form()))? {
            let record = match read_record::<LayerRecord>(&path.join("layer.json")) {
                Record::Good(record) => record.unpacked,
                Record::Absent => {
                    look.find(&path, "is damaged: it has no record");
                    continue;
                }
                Record::Damaged => {
                    look.find(&path, "is damaged: its record is not the one that was written");
                    continue;
                }
            };
            match self.unpacker.sum(&path.join("tree")).await {
                Ok(sum) if sum.digest == record.sum.digest => {}
                Ok(_) => look.find(&path, "is damaged: its files are not those that were unpacked"),
                Err(error) => look.find(&path, format!("cannot be read: {}", plain(&error))),
            }
        }
        Ok(())
    }

    fn look_at_image(&self, look: &mut Look, path: &Path, id: Digest, record: ImageRecord) {
        let missing: Vec<_> = record.pieces(id).iter().map(|piece| self.piece(piece)).collect();
        let missing = missing.iter().find(|piece| look.bad.contains(*piece) || !piece.exists());
        if let Some(piece) = missing {
            let piece = piece.strip_prefix(self.disk.root()).unwrap_or(piece).display().to_string();
            look.find(path, format!("names what is missing or damaged: {piece}"));
            look.broken.insert(id);
        } else {
            let bytes = std::fs::read(self.disk.blob(id)).unwrap_or_default();
            let diff_ids: Vec<_> = record.parts.iter().map(|part| part.diff_id).collect();
            if config::parse(&bytes).is_ok_and(|parsed| parsed.diff_ids != diff_ids) {
                look.find(path, "has other layers than the configuration of its image");
                look.broken.insert(id);
            }
        }
        look.images.insert(id, record);
    }

    fn look_at_references(&self, look: &mut Look, everywhere: &BTreeSet<Digest>) -> io::Result<()> {
        for path in self.disk.list("refs")? {
            let record = match read_record::<ReferenceRecord>(&path) {
                Record::Good(record) => record,
                Record::Absent | Record::Damaged => {
                    look.find(&path, "is damaged: it is not the record that was written");
                    continue;
                }
            };
            look.references.push((path.clone(), record.config));
            let manifest = record.manifest.map(|manifest| self.disk.blob(manifest));
            if self.disk.reference(&record.name()) != path {
                look.find(&path, format!("is misplaced: it is the record of {}", record.source));
            } else if !everywhere.contains(&record.config) {
                look.find(&path, format!("names an image that is not there: {}", record.source));
            } else if look.broken.contains(&record.config) {
                look.find(&path, format!("names a damaged image: {}", record.source));
            } else if manifest.is_some_and(|blob| look.bad.contains(&blob) || !blob.exists()) {
                look.find(&path, format!("names a manifest that is missing or damaged: {}", record.source));
            }
        }
        Ok(())
    }

    fn piece(&self, piece: &Piece) -> PathBuf {
        match piece {
            Piece::Blob(digest) => self.disk.blob(*digest),
            Piece::Layer(key) => self.disk.layer(self.unpacker.form(), key),
        }
    }

    /// Removes what is bad: names first, then images, then what they are made of. Gives what was left, because an image
    /// in use needs it.
    async fn clear(&self, look: &mut Look) -> io::Result<BTreeSet<PathBuf>> {
        self.spread(look);
        let mut used = BTreeSet::new();
        let mut alone = Vec::new();
        for id in &look.broken {
            match self.disk.try_lock(&self.image_lock(*id))? {
                Some(lock) => alone.push(lock),
                None => {
                    used.insert(self.disk.image(self.unpacker.form(), *id));
                    let pieces = look.images.get(id).map(|record| record.pieces(*id)).unwrap_or_default();
                    used.extend(pieces.iter().map(|piece| self.piece(piece)));
                    let names = look.references.iter().filter(|(_, config)| config == id);
                    used.extend(names.map(|(path, _)| path.clone()));
                }
            }
        }
        let mut trash = self.trash()?;
        let (layers, refs) = (self.disk.root().join("layers"), self.disk.root().join("refs"));
        let images = self.disk.root().join("images");
        let rank = |path: &PathBuf| match path {
            path if path.starts_with(&refs) => 0,
            path if path.starts_with(&images) => 1,
            _ => 2,
        };
        let mut order: Vec<_> = look.bad.iter().filter(|path| !used.contains(*path)).collect();
        order.sort_by_key(|path| rank(path));
        for path in order {
            if path.starts_with(&layers) || path.is_dir() {
                trash.throw(path);
            } else {
                remove_file(path)?;
            }
        }
        drop(alone);
        trash.empty().await?;
        Ok(used)
    }

    /// What has to go with what is bad: a layer whose archive is gone would never get it back, because nobody fetches
    /// what is unpacked.
    fn spread(&self, look: &mut Look) {
        for id in &look.broken {
            let Some(record) = look.images.get(id) else { continue };
            for part in record.parts.iter().filter(|part| part.stored) {
                let blob = part.blob.as_ref().map(|blob| self.disk.blob(blob.digest));
                if blob.is_some_and(|blob| look.bad.contains(&blob) || !blob.exists()) {
                    look.bad.insert(self.piece(&Piece::Layer(part.key.clone())));
                    look.bad.insert(self.piece(&Piece::Layer(part.diff_id.hex())));
                }
            }
        }
        let images: Vec<_> = look.images.iter().collect();
        let lost = |record: &ImageRecord, id: Digest| {
            record.pieces(id).iter().any(|piece| look.bad.contains(&self.piece(piece)))
        };
        let more: Vec<_> =
            images.iter().filter(|(id, record)| lost(record, **id)).map(|(id, _)| **id).collect();
        look.broken.extend(more);
        let broken: Vec<_> =
            look.broken.iter().map(|id| self.disk.image(self.unpacker.form(), *id)).collect();
        look.bad.extend(broken);
        let names = look.references.iter().filter(|(_, config)| look.broken.contains(config));
        look.bad.extend(names.map(|(path, _)| path.clone()).collect::<Vec<_>>());
    }
}
