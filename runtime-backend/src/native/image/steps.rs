//! What builds keep in the store: the layers that their steps made, and the directories of `--mount=type=cache`.
//!
//! ```text
//! build/HEX.json         the layer that a step made; HEX is the digest of everything the step depends on
//! cache/FORM/HEX-N/tree  a directory that RUN steps share; HEX is the digest of its name
//! ```
//! The time of a record is when it was used last: a collection of garbage goes by it, and keeps the layers that the
//! records it leaves name.

use super::collect::Trash;
use super::digest::Digest;
use super::disk::{Scratch, read_json, remove_file};
use super::manifest::Descriptor;
use super::store::{Store, StoredImage};
use super::unpacker::Blob;
use super::upkeep::Piece;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The layer that a step of a build made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    /// The layer's blob, which is not compressed.
    pub(crate) layer: Descriptor,
    /// When the step was done, as RFC 3339 has it.
    pub(crate) created: String,
}

impl StepRecord {
    /// The digest by which a configuration names the layer.
    pub(crate) fn diff_id(&self) -> Digest {
        self.layer.digest
    }
}

impl Store {
    /// A new place for work.
    pub(crate) fn scratch(&self) -> io::Result<Scratch> {
        self.shared.disk.scratch()
    }

    /// Removes a place for work with everything in it.
    pub(crate) async fn discard(&self, scratch: Scratch) -> io::Result<()> {
        scratch.discard(&*self.shared.unpacker).await
    }

    /// The configuration of an image, as its maker wrote it.
    pub(crate) fn configuration(&self, image: &StoredImage) -> io::Result<Vec<u8>> {
        let id: Digest = image.image.id.parse().map_err(io::Error::other)?;
        fs::read(self.shared.disk.blob(id))
    }

    /// What the step of this key made, if it was done before and its layer is there.
    pub(crate) fn step(&self, key: Digest) -> Option<StepRecord> {
        let path = self.shared.disk.step(key);
        let record: StepRecord = read_json(&path)?;
        let blob = File::open(self.shared.disk.blob(record.layer.digest)).and_then(Blob::whole).ok()?;
        if blob.length != record.layer.size {
            return None;
        }
        // A record whose time cannot be set only goes earlier.
        let _ = File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(record)
    }

    /// Notes what the step of this key made.
    pub(crate) fn remember_step(&self, key: Digest, record: &StepRecord) -> io::Result<()> {
        let path = self.shared.disk.step(key);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        self.shared.disk.write_json(&path, record)
    }

    /// Waits until no other build does the step of this key.
    pub(crate) async fn lock_step(&self, key: Digest) -> io::Result<File> {
        self.shared.disk.lock(&format!("build-{}", key.hex())).await
    }

    /// The directory of the cache `name`, which may not be there yet, and the lock that keeps others out of it.
    pub(crate) async fn cache(&self, name: &str, sharing: Shared) -> io::Result<(PathBuf, File)> {
        let (disk, form) = (&self.shared.disk, self.shared.unpacker.form());
        let name = Digest::of(name.as_bytes()).hex();
        let parent = disk.root().join("cache").join(form);
        fs::create_dir_all(&parent)?;
        let mut number = 0;
        loop {
            let lock = format!("cache-{form}-{name}-{number}");
            let held = match sharing {
                Shared::Anybody => disk.lock_shared(&lock).await?,
                Shared::OneByOne => disk.lock(&lock).await?,
                Shared::Never => match disk.try_lock(&lock)? {
                    Some(held) => held,
                    None => {
                        number += 1;
                        continue;
                    }
                },
            };
            let path = parent.join(format!("{name}-{number}"));
            File::create(path.with_extension(USED))?.set_modified(SystemTime::now())?;
            // The tree may belong to an id that only a worker can act for. What contains it can be moved away.
            fs::create_dir_all(&path)?;
            return Ok((path.join("tree"), held));
        }
    }
}

impl super::store::Shared {
    /// What the layers of steps consist of.
    pub(super) fn step_pieces(&self) -> io::Result<BTreeSet<Piece>> {
        let mut pieces = BTreeSet::new();
        for path in self.listed("build")? {
            let Some(record) = read_json::<StepRecord>(&path) else { continue };
            pieces.insert(Piece::Blob(record.layer.digest));
            pieces.insert(Piece::Layer(record.diff_id().hex()));
        }
        Ok(pieces)
    }

    /// Removes the records of steps, and the caches, that no build has used within this time. A cache that a build uses
    /// at this moment stays.
    pub(super) fn forget_steps(&self, trash: &mut Trash<'_>, limit: Duration) -> io::Result<()> {
        let old = |path: &Path| {
            let used = fs::metadata(path).and_then(|stat| stat.modified());
            used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age >= limit))
        };
        for path in self.listed("build")?.iter().filter(|path| old(path)) {
            remove_file(path)?;
        }
        let form = self.unpacker.form();
        for mark in self.listed(&format!("cache/{form}"))? {
            let name = mark.file_stem().and_then(|name| name.to_str());
            let Some(name) = name.filter(|_| mark.extension().is_some_and(|kind| kind == USED) && old(&mark))
            else {
                continue;
            };
            let Some(_alone) = self.disk.try_lock(&format!("cache-{form}-{name}"))? else { continue };
            if trash.throw(&mark.with_extension("")) {
                remove_file(&mark)?;
            }
        }
        Ok(())
    }

    /// What is in a directory that only a build makes.
    fn listed(&self, directory: &str) -> io::Result<Vec<PathBuf>> {
        if self.disk.root().join(directory).is_dir() { self.disk.list(directory) } else { Ok(Vec::new()) }
    }
}

/// The ending of the file beside a cache whose time says when the cache was used last.
const USED: &str = "used";

/// Who may use a cache at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shared {
    /// Everybody.
    Anybody,
    /// One after the other.
    OneByOne,
    /// Each has one of its own.
    Never,
}
