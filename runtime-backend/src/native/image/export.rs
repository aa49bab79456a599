//! Unpacks an image into a directory of the user's: for a look at it, and for others to judge.
//!
//! The directory gets a store of its own while that is done, so everything happens as in the user's store, and nothing
//! outside of the directory is touched.

use super::disk::read_json;
use super::failures::{plain, unusable};
use super::obtain::LayerRecord;
use super::options::StoreOptions;
use super::store::{Store, StoredImage};
use super::unpacker::Unpacker;
use crate::driver::Progress;
use crate::wanted::Wanted;
use shakedown_spec::{Failure, FailureKind, ImageSource, PullPolicy};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// How an image is laid out in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One tree, as a container would see it.
    Merged,
    /// A directory for each layer, `0` the lowest, as overlayfs reads them.
    Layers,
}

/// The directory, and what has to be undone in it.
struct Export<'a> {
    store: &'a Store,
    directory: &'a Path,
    /// Whether it was there before.
    existed: bool,
}

impl Store {
    /// Unpacks an image into `directory`, which is empty or does not exist. An image that this store has is taken from
    /// here, any other from its source, and not kept. Gives what was left out, for people.
    ///
    /// # Errors
    ///
    /// The image is not found or refused, or the directory cannot be used. The directory is then as it was.
    pub async fn unpack_to(
        &self,
        wanted: &Wanted,
        directory: &Path,
        shape: Shape,
        options: StoreOptions,
        progress: Progress,
    ) -> Result<Vec<String>, Failure> {
        let failed = |error: &io::Error| {
            Failure::new(FailureKind::Other, format!("{} cannot be used", directory.display()))
                .fact("reason", plain(error))
        };
        let existed = match fs::read_dir(directory) {
            Ok(mut entries) => match entries.next() {
                None => true,
                Some(_) => return Err(failed(&io::Error::other("the directory is not empty"))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed(&error)),
        };
        if !existed {
            fs::create_dir(directory).map_err(|error| failed(&error))?;
        }
        let directory = &fs::canonicalize(directory).map_err(|error| failed(&error))?;
        let export = Export { store: self, directory, existed };
        let done = export.fill(wanted, shape, options, progress).await;
        if done.is_err() {
            // The first failure is the one to report.
            let _ = export.undo().await;
        }
        done
    }
}

impl Export<'_> {
    fn unpacker(&self) -> &Arc<dyn Unpacker> {
        &self.store.shared.unpacker
    }

    async fn fill(
        &self,
        wanted: &Wanted,
        shape: Shape,
        options: StoreOptions,
        progress: Progress,
    ) -> Result<Vec<String>, Failure> {
        let source = &wanted.source;
        // No layer can name it: nobody knows the time beforehand.
        let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let inner = self.directory.join(format!(".shakedown-{}-{time:x}", std::process::id()));
        let store = Store::open_with(&inner, Arc::clone(self.unpacker()), options).await?;
        let image = match self.known(source, &progress).await? {
            Some(image) => self.copy(source, &image, &store, progress).await?,
            None => store.obtain(wanted, progress).await?,
        };
        let notes = notes(&image.layers);
        let failed = |error: io::Error| {
            unusable(source, "could not be unpacked")
                .fact("directory", self.directory.display().to_string())
                .fact("reason", plain(&error))
        };
        match shape {
            Shape::Merged => {
                self.unpacker().merge(&image.layers, self.directory).await.map_err(failed)?;
            }
            Shape::Layers => {
                for (number, layer) in image.layers.iter().enumerate() {
                    let place = self.directory.join(number.to_string());
                    // A layer that comes twice is there once.
                    match image.layers[..number].iter().position(|earlier| earlier == layer) {
                        None => fs::rename(layer, place),
                        Some(earlier) => std::os::unix::fs::symlink(earlier.to_string(), place),
                    }
                    .map_err(failed)?;
                }
            }
        }
        drop(image);
        self.clear(&inner).await.map_err(failed)?;
        Ok(notes)
    }

    /// Removes the inner store, and gives the directory back the time that the image says.
    async fn clear(&self, inner: &Path) -> io::Result<()> {
        use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
        let stat = rustix::fs::stat(self.directory)?;
        let time =
            |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: u32::try_from(nanos).unwrap_or(0).into() };
        let times = Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        };
        self.unpacker().remove(inner).await?;
        Ok(utimensat(CWD, self.directory, &times, AtFlags::empty())?)
    }

    /// The image, if the user's store has it under this name.
    async fn known(&self, source: &ImageSource, progress: &Progress) -> Result<Option<StoredImage>, Failure> {
        if !matches!(source, ImageSource::Registry(_) | ImageSource::Id(_)) {
            return Ok(None);
        }
        match self.store.resolve(source, PullPolicy::Never, Arc::clone(progress)).await {
            Ok(image) => Ok(Some(image)),
            Err(failure) if failure.kind == FailureKind::ImageNotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn copy(
        &self,
        source: &ImageSource,
        image: &StoredImage,
        store: &Store,
        progress: Progress,
    ) -> Result<StoredImage, Failure> {
        let content = self.store.content(image).await?;
        let ingest = store.ingest(source, progress).await?;
        let mut layers = Vec::new();
        for layer in &content.layers {
            layers.push(ingest.take(&layer.descriptor, &layer.blob).await?);
        }
        ingest.finish(&content.config, &layers, &[]).await
    }

    async fn undo(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.directory)? {
            self.unpacker().remove(&entry?.path()).await?;
        }
        if self.existed { Ok(()) } else { fs::remove_dir(self.directory) }
    }
}

/// What unpacking the layers left out.
fn notes(trees: &[PathBuf]) -> Vec<String> {
    let record = |tree: &PathBuf| read_json::<LayerRecord>(&tree.parent()?.join("layer.json"));
    trees.iter().filter_map(record).flat_map(|record| record.unpacked.notes).collect()
}
