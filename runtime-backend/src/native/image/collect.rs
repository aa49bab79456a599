//! Gives disk space back: images by age and size, and what no image has any more. Nothing that is in use is removed.
//!
//! Whoever makes an image holds the lock `store` with others, whoever collects holds it alone: what belongs to an image
//! that is only half there is never seen. Whoever uses an image holds its lock with others; a collector takes it alone,
//! or leaves the image. Names go before images, images before layers and blobs: killed anywhere, no record names what is
//! not there. A tree is moved to `tmp` at once and removed from there, where the next sweep finds it.

use super::digest::Digest;
use super::disk::{Scratch, remove_file};
use super::failures::opening;
use super::store::{Shared, Store};
use super::upkeep::{Entry, Freed, Inventory, Piece, digest_in_name, shown};
use shakedown_spec::Failure;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

/// How often garbage is collected by itself.
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// Which images go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneRules {
    /// Those that have no name.
    pub nameless: bool,
    /// All.
    pub all: bool,
    /// Those that nobody has asked for within this time.
    pub older_than: Option<Duration>,
    /// Those that nobody has asked for the longest, until what is left has at most so many bytes.
    pub max_size: Option<u64>,
    /// Nothing is removed, only told.
    pub dry_run: bool,
}

impl PruneRules {
    /// Whether this image goes. `size` is that of the whole store as it is now.
    fn cover(&self, entry: &Entry, used: SystemTime, size: impl Fn() -> u64) -> bool {
        let old = |limit: Duration| used.elapsed().is_ok_and(|age| age >= limit);
        self.all
            || (self.nameless && entry.references.is_empty())
            || self.older_than.is_some_and(old)
            || self.max_size.is_some_and(|limit| size() > limit)
    }
}

/// How much the store may keep: what is collected by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Bytes; 20 GB.
    pub max_size: u64,
    /// Time since an image was last asked for; 30 days.
    pub max_age: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { max_size: 20_000_000_000, max_age: Duration::from_secs(30 * 24 * 3600) }
    }
}

/// What is on its way out: moved aside in an instant, removed after the locks are free.
pub(super) struct Trash<'a> {
    shared: &'a Shared,
    scratch: Scratch,
    moved: u64,
    /// What could not be moved stays, and does not keep the rest.
    failed: Option<io::Error>,
}

impl Store {
    /// Removes images as the rules say, and what belongs to no image. Waits until nobody makes an image.
    ///
    /// # Errors
    ///
    /// The store cannot be read or written to.
    pub async fn prune(&self, rules: &PruneRules) -> Result<Freed, Failure> {
        let shared = &self.shared;
        let lock = shared.disk.lock("store").await.map_err(|error| shared.reading(&error))?;
        shared.prune(rules, lock).await.map_err(|error| shared.reading(&error))
    }

    /// Keeps the store within its limits, at most once a day for all processes; `None` if it is not time, or somebody
    /// is making an image.
    ///
    /// # Errors
    ///
    /// The store cannot be read or written to.
    pub async fn keep_within(&self, limits: &StoreLimits) -> Result<Option<Freed>, Failure> {
        let shared = &self.shared;
        let done = async || {
            let stamp = shared.disk.root().join("collected");
            let age = fs::metadata(&stamp).and_then(|stat| stat.modified()).map(|time| time.elapsed());
            if age.is_ok_and(|age| age.is_ok_and(|age| age < EVERY)) {
                return Ok(None);
            }
            let Some(lock) = shared.disk.try_lock("store")? else { return Ok(None) };
            fs::write(&stamp, "")?;
            let (max_size, older_than) = (Some(limits.max_size), Some(limits.max_age));
            let rules = PruneRules { max_size, older_than, ..PruneRules::default() };
            shared.prune(&rules, lock).await.map(Some)
        };
        done().await.map_err(|error: io::Error| opening(shared.disk.root(), &error))
    }
}

impl Shared {
    /// The name of the lock that the users of an image share.
    pub(super) fn image_lock(&self, id: Digest) -> String {
        format!("image-{}-{}", self.unpacker.form(), id.hex())
    }

    pub(super) fn trash(&self) -> io::Result<Trash<'_>> {
        Ok(Trash { shared: self, scratch: self.disk.scratch()?, moved: 0, failed: None })
    }

    async fn prune(&self, rules: &PruneRules, store_lock: fs::File) -> io::Result<Freed> {
        let mut freed = Freed::default();
        let mut trash = self.trash()?;
        let mut inventory = self.inventory()?;
        let mut order: Vec<_> = inventory.images.iter().map(|(id, entry)| (entry.used, *id)).collect();
        order.sort();
        let weights = inventory.pieces().into_iter().map(|piece| (piece.clone(), self.weigh(&piece)));
        let weights = weights.collect::<BTreeMap<_, _>>();
        for (used, id) in order {
            let Some(entry) = inventory.images.get(&id) else { continue };
            let size = || inventory.pieces().iter().filter_map(|piece| weights.get(piece)).sum();
            if !rules.cover(entry, used, size) {
                continue;
            }
            let Some(_alone) = self.disk.try_lock(&self.image_lock(id))? else {
                freed.in_use.push(id);
                continue;
            };
            if rules.dry_run {
                freed.untagged.extend(entry.names());
                freed.images.push(id);
            } else {
                trash.forget(id, entry, true, &mut freed)?;
            }
            inventory.images.remove(&id);
        }
        if rules.dry_run {
            self.garbage(&inventory)?.iter().for_each(|piece| freed.count(piece, self.weigh(piece)));
        } else {
            let limit = rules.older_than.unwrap_or(StoreLimits::default().max_age);
            self.forget_steps(&mut trash, if rules.all { Duration::ZERO } else { limit })?;
            trash.collect(&mut freed)?;
            self.disk.sweep_locks()?;
        }
        drop(store_lock);
        trash.empty().await?;
        Ok(freed)
    }

    /// What is on disk and belongs to no image and no step of a build. Nothing, while a record cannot be read: what it names may be in use.
    fn garbage(&self, inventory: &Inventory) -> io::Result<Vec<Piece>> {
        if inventory.damaged {
            return Ok(Vec::new());
        }
        let mut kept = inventory.pieces();
        kept.extend(self.step_pieces()?);
        let layers = self.disk.list(self.disk.layers(self.unpacker.form()))?;
        let name = |path: &std::path::PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        let layers = layers.iter().filter_map(name).map(Piece::Layer);
        let blobs = self.disk.list("blobs/sha256")?;
        let blobs = blobs.iter().filter_map(|path| digest_in_name(path)).map(Piece::Blob);
        Ok(layers.chain(blobs).filter(|piece| !kept.contains(piece)).collect())
    }
}

impl Inventory {
    /// What belongs to an image.
    fn pieces(&self) -> BTreeSet<Piece> {
        let own = self.images.iter().flat_map(|(id, entry)| entry.record.pieces(*id));
        let named = self.images.values().flat_map(|entry| &entry.references).chain(&self.dangling);
        let named = named.filter_map(|(_, record)| record.manifest).map(Piece::Blob);
        // Of other forms only the blobs: a layer of the same name in this form is another one.
        let foreign = self.foreign.iter().flat_map(|(id, record)| record.pieces(*id));
        let foreign = foreign.filter(|piece| matches!(piece, Piece::Blob(_)));
        own.chain(named).chain(foreign).collect()
    }
}

impl Freed {
    fn count(&mut self, piece: &Piece, bytes: u64) {
        match piece {
            Piece::Blob(_) => self.blobs += 1,
            Piece::Layer(_) => self.layers += 1,
        }
        self.bytes += bytes;
    }
}

impl Trash<'_> {
    /// Takes the names from an image, and removes its record if nobody uses it.
    pub(super) fn forget(
        &mut self,
        id: Digest,
        entry: &Entry,
        unused: bool,
        freed: &mut Freed,
    ) -> io::Result<()> {
        for (path, record) in &entry.references {
            remove_file(path)?;
            freed.untagged.push(shown(record));
        }
        if unused {
            remove_file(&self.shared.disk.image(self.shared.unpacker.form(), id))?;
            freed.images.push(id);
        }
        Ok(())
    }

    /// Removes what belongs to no image.
    pub(super) fn collect(&mut self, freed: &mut Freed) -> io::Result<()> {
        let shared = self.shared;
        let inventory = shared.inventory()?;
        for (path, record) in &inventory.dangling {
            if !inventory.damaged && !inventory.foreign.iter().any(|(id, _)| *id == record.config) {
                remove_file(path)?;
            }
        }
        for piece in shared.garbage(&shared.inventory()?)? {
            let bytes = shared.weigh(&piece);
            let gone = match &piece {
                Piece::Blob(digest) => remove_file(&shared.disk.blob(*digest)).map(|()| true)?,
                Piece::Layer(key) => self.throw(&shared.disk.layer(shared.unpacker.form(), key)),
            };
            if gone {
                freed.count(&piece, bytes);
            }
        }
        Ok(())
    }

    /// Moves a tree aside; false if that fails, which [`empty`](Self::empty) tells at the end.
    pub(super) fn throw(&mut self, path: &std::path::Path) -> bool {
        self.moved += 1;
        match fs::rename(path, self.scratch.path().join(self.moved.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("{} cannot be moved: {error}", path.display());
                self.failed.get_or_insert(io::Error::new(error.kind(), message));
                false
            }
            _ => true,
        }
    }

    /// Removes what was moved aside; no lock is needed for that.
    pub(super) async fn empty(self) -> io::Result<()> {
        self.scratch.discard(&*self.shared.unpacker).await?;
        self.failed.map_or(Ok(()), Err)
    }
}
