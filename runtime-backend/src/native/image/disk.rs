//! The store's directory: what lies where, and the locks between processes.
//!
//! ```text
//! blobs/sha256/HEX           verified blobs: manifests, configurations, layers as a registry has them
//! layers/FORM/KEY/tree       unpacked layers; KEY is the digest of the uncompressed archive, with the layers
//! layers/FORM/KEY/layer.json below mixed in where the tree depends on them
//! images/FORM/HEX.json       images whose layers are all there, by the digest of their configuration
//! build/HEX.json             layers that steps of builds made, by what the steps depend on
//! cache/FORM/HEX-N           directories that steps of builds share
//! refs/HEX.json              which image a source meant when it was last looked at
//! tmp/NAME, tmp/NAME.lock    work in progress; the lock is free when its process is dead
//! locks/NAME                 one file for each thing that two processes might make at once
//! ```
//! Everything outside of `tmp` and `locks` appears by `rename`, complete. So whatever is there is whole, however the
//! process that wrote it ended.

use super::digest::Digest;
use super::manifest::LARGEST_DOCUMENT;
use super::unpacker::Unpacker;
use rustix::fs::IFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

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
        spread(&root.join("tmp"));
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blob(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// A manifest or index that is here. What lies under a digest was checked when it came; a bit that fell over since is
    /// found, so that the document is fetched anew.
    pub(crate) fn document(&self, digest: Digest) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.blob(digest)).ok()?;
        io::Read::read_to_end(&mut io::Read::take(file, LARGEST_DOCUMENT), &mut bytes).ok()?;
        (Digest::of(&bytes) == digest).then_some(bytes)
    }

    pub(crate) fn layer(&self, form: &str, key: &str) -> PathBuf {
        self.layers(form).join(key)
    }

    /// Where the unpacked layers of a form are.
    pub(crate) fn layers(&self, form: &str) -> PathBuf {
        self.root.join("layers").join(form)
    }

    pub(crate) fn image(&self, form: &str, config: Digest) -> PathBuf {
        self.root.join("images").join(form).join(format!("{}.json", config.hex()))
    }

    pub(crate) fn step(&self, key: Digest) -> PathBuf {
        self.root.join("build").join(format!("{}.json", key.hex()))
    }

    pub(crate) fn reference(&self, source: &str) -> PathBuf {
        self.root.join("refs").join(format!("{}.json", Digest::of(source.as_bytes()).hex()))
    }

    /// Where files without a name are made (`image_files::spool`).
    pub(crate) fn spool(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// What is in a directory of the store, in the order of its names.
    pub(crate) fn list(&self, directory: impl AsRef<Path>) -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.root.join(directory))?;
        let mut paths =
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
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
        loop {
            let file = self.lock_file(name)?;
            let file = match attempt(&file) {
                Ok(()) => file,
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) => {
                    let waiting = tokio::task::spawn_blocking(move || wait(&file).map(|()| file));
                    waiting.await.map_err(io::Error::other)??
                }
            };
            if is_there(&file)? {
                return Ok(file);
            }
        }
    }

    /// The lock, if nobody has any share of it.
    pub(crate) fn try_lock(&self, name: &str) -> io::Result<Option<File>> {
        loop {
            let file = self.lock_file(name)?;
            match file.try_lock() {
                Ok(()) if is_there(&file)? => return Ok(Some(file)),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    fn lock_file(&self, name: &str) -> io::Result<File> {
        File::options().create(true).append(true).open(self.root.join("locks").join(name))
    }

    /// Removes the files of locks that nobody has. Whoever opened one before and locks it afterwards finds that it is
    /// not there any more, and opens it anew.
    pub(crate) fn sweep_locks(&self) -> io::Result<()> {
        for path in self.list("locks")? {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if let Some(_free) = self.try_lock(name)? {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// A new place for work.
    pub(crate) fn scratch(&self) -> io::Result<Scratch> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            // Process ids repeat across pid namespaces that share a home directory, hence the time.
            let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
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
            let ours = lock.try_lock().is_ok() && is_there(&lock)?;
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
                // What cannot be looked at now, for want of memory, may be somebody's.
                if !lock_of(&path).try_exists().unwrap_or(true) {
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

    /// Keeps a small blob; gives its digest.
    pub(crate) fn keep(&self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        let path = self.blob(digest);
        // Of the right length it is the right one: blobs appear whole. Power loss may have left an empty one.
        if fs::metadata(&path).is_ok_and(|blob| blob.len() == bytes.len() as u64) {
            return Ok(digest);
        }
        self.write(&path, bytes).map(|()| digest)
    }

    /// Writes a record.
    pub(crate) fn write_json(&self, path: &Path, value: &impl Serialize) -> io::Result<()> {
        self.write(path, &record(value)?)
    }
}

/// A file without a name was removed.
fn is_there(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.nlink() > 0)
}

/// A record's bytes: JSON, and in a line of its own the digest of that.
pub(crate) fn record(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value)?;
    let digest = Digest::of(&bytes);
    writeln!(bytes, "\n{digest}")?;
    Ok(bytes)
}

/// What became of a record.
#[derive(Debug)]
pub(crate) enum Record<T> {
    /// It is there and whole.
    Good(T),
    /// There is none.
    Absent,
    /// It cannot be read, or is not what was written.
    Damaged,
}

/// Reads a record.
pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> Record<T> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Record::Absent;
        }
        Err(_unreadable) => return Record::Damaged,
    };
    let whole = || {
        let lines = bytes.strip_suffix(b"\n")?;
        let (json, digest) = lines.split_at(lines.iter().rposition(|byte| *byte == b'\n')?);
        let same = digest[1..] == *Digest::of(json).to_string().as_bytes();
        same.then(|| serde_json::from_slice(json).ok()).flatten()
    };
    whole().map_or(Record::Damaged, Record::Good)
}

fn lock_of(scratch: &Path) -> PathBuf {
    let mut name = scratch.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// A record, or `None` if there is none that can be read: it is then made anew.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    match read_record(path) {
        Record::Good(value) => Some(value),
        Record::Absent | Record::Damaged => None,
    }
}

/// Says that something was used just now; to the hour, for it costs a write.
pub(crate) fn touch(path: &Path) {
    const OFTEN: Duration = Duration::from_secs(3600);
    let now = SystemTime::now();
    let recent = |time: SystemTime| now.duration_since(time).is_ok_and(|age| age < OFTEN);
    if fs::metadata(path).and_then(|stat| stat.modified()).is_ok_and(recent) {
        return;
    }
    // A store that cannot be written to is of use all the same.
    let _ = File::options().append(true).open(path).and_then(|file| file.set_modified(now));
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(bytes)
}

pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
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

/// Lets ext4 put each new directory in here where much is free, as it does with the ones in its root, in place of beside
/// this one. ext4 does not give the number of a removed file to another within a minute, and looks at all such numbers
/// one by one: after the removal of an image, unpacking the next one beside it would take four times as long.
fn spread(directory: &Path) {
    // Other file systems have no such flag, and need none.
    let flag = || -> io::Result<()> {
        let directory = File::open(directory)?;
        let flags = rustix::fs::ioctl_getflags(&directory)?;
        if !flags.contains(IFlags::TOPDIR) {
            rustix::fs::ioctl_setflags(&directory, flags | IFlags::TOPDIR)?;
        }
        Ok(())
    };
    let _ = flag();
}
