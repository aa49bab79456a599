//! The store's directory: what lies where, and the locks between processes.
//!
//! ```text
//! blobs/sha256/HEX           verified blobs: manifests, configurations, layers as a registry has them
//! layers/FORM/KEY/tree       unpacked layers; KEY is the digest of the uncompressed archive, with the layers
//! layers/FORM/KEY/layer.json below mixed in where the tree depends on them
//! images/FORM/HEX.json       images whose layers are all there, by the digest of their configuration
//! refs/HEX.json              which image a source meant when it was last looked at
//! tmp/NAME, tmp/NAME.lock    work in progress; the lock is free when its process is dead
//! locks/NAME                 one file for each thing that two processes might make at once
//! ```
//! Everything outside of `tmp` and `locks` appears by `rename`, complete. So whatever is there is whole, however the
//! process that wrote it ended.

use super::digest::Digest;
use super::unpacker::Unpacker;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    root: PathBuf,
}

/// A place for work in progress. What is left in it is removed by whoever opens the store after this process's death.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Disk {
    /// Makes the directories that are missing.
    pub(crate) fn open(root: &Path, form: &str) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        // Symlinks on the way to the store are the user's own; from here on every path is the store's.
        builder.create(root)?;
        let root = fs::canonicalize(root)?;
        let (layers, images) = (format!("layers/{form}"), format!("images/{form}"));
        for directory in ["blobs/sha256", &layers, &images, "refs", "tmp", "locks"] {
            builder.create(root.join(directory))?;
        }
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blob(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn layer(&self, form: &str, key: &str) -> PathBuf {
        self.root.join("layers").join(form).join(key)
    }

    pub(crate) fn image(&self, form: &str, config: Digest) -> PathBuf {
        self.root.join("images").join(form).join(format!("{}.json", config.hex()))
    }

    pub(crate) fn reference(&self, source: &str) -> PathBuf {
        self.root.join("refs").join(format!("{}.json", Digest::of(source.as_bytes()).hex()))
    }

    /// Waits until no other process (and no other task of this one) holds the lock.
    pub(crate) async fn lock(&self, name: &str) -> io::Result<File> {
        self.wait_for_lock(name, File::try_lock, File::lock).await
    }

    /// Waits until nobody holds the lock alone.
    pub(crate) async fn lock_shared(&self, name: &str) -> io::Result<File> {
        self.wait_for_lock(name, File::try_lock_shared, File::lock_shared).await
    }

    async fn wait_for_lock(
        &self,
        name: &str,
        attempt: fn(&File) -> Result<(), TryLockError>,
        wait: fn(&File) -> io::Result<()>,
    ) -> io::Result<File> {
        let file = File::options().create(true).append(true).open(self.root.join("locks").join(name))?;
        match attempt(&file) {
            Ok(()) => Ok(file),
            Err(TryLockError::Error(error)) => Err(error),
            Err(TryLockError::WouldBlock) => {
                let waiting = tokio::task::spawn_blocking(move || wait(&file).map(|()| file));
                waiting.await.map_err(io::Error::other)?
            }
        }
    }

    /// A new place for work.
    pub(crate) fn scratch(&self) -> io::Result<Scratch> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            // Process ids repeat across pid namespaces that share a home directory, hence the time.
            let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{time:x}-{number}", std::process::id());
            let (path, lock_path) =
                (self.root.join("tmp").join(&name), self.root.join(format!("tmp/{name}.lock")));
            let lock = match File::options().create_new(true).write(true).open(&lock_path) {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            // Between the two lines a sweep may have taken the file for a dead process's and removed it.
            let ours = lock.try_lock().is_ok() && lock.metadata()?.nlink() > 0;
            if !ours {
                continue;
            }
            let scratch = Scratch { path, lock_path, _lock: lock };
            fs::DirBuilder::new().mode(0o700).create(&scratch.path)?;
            return Ok(scratch);
        }
    }

    /// Removes the work of dead processes.
    pub(crate) async fn sweep(&self, unpacker: &dyn Unpacker) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("tmp"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "lock") {
                // Its lock is made before it and removed after it.
                if !lock_of(&path).exists() {
                    unpacker.remove(&path).await?;
                }
                continue;
            }
            let lock = match File::options().write(true).open(&path) {
                Ok(lock) => lock,
                // Another sweep was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if lock.try_lock().is_ok() {
                unpacker.remove(&path.with_extension("")).await?;
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Writes a small file so that it is there whole or not at all.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let scratch = self.scratch()?;
        let file = scratch.path.join("file");
        let result = write_new(&file, bytes).and_then(|()| fs::rename(&file, path));
        if result.is_err() {
            remove_file(&file)?;
        }
        result
    }

    /// Writes a record.
    pub(crate) fn write_json(&self, path: &Path, value: &impl Serialize) -> io::Result<()> {
        self.write(path, &serde_json::to_vec(value)?)
    }
}

fn lock_of(scratch: &Path) -> PathBuf {
    let mut name = scratch.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// A record, or `None` if there is none that can be read: it is then made anew.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(bytes)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what is in it. Not `Drop`, because only the unpacker may remove trees.
    pub(crate) async fn discard(self, unpacker: &dyn Unpacker) -> io::Result<()> {
        unpacker.remove(&self.path).await
    }
}

impl Drop for Scratch {
    /// The usual case: everything was moved to its place. Otherwise the next sweep does it.
    fn drop(&mut self) {
        let gone = match fs::remove_dir(&self.path) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if gone {
            let _ = fs::remove_file(&self.lock_path);
        }
    }
}
