//! What an unpacked tree adds up to: one digest over every name, its rights, times, attributes and content, and the
//! space on disk. A tree that was changed, cut short or lost a file adds up to something else.
//!
//! The content of a file counts as a CRC-32, which is taken while the file is written: reading everything back after
//! unpacking would cost a tenth of the time of unpacking. The sum finds damage; whoever may write to the store could
//! also write another sum.

use super::Owners;
use crate::native::image::digest::{Digest, Hasher};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What an unpacked tree adds up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeSum {
    /// Over names, types, rights, owners, sizes, times, attributes and content.
    pub digest: Digest,
    /// Bytes on disk.
    pub disk: u64,
}

/// The CRC-32 of the content of files, by inode.
pub(crate) type Contents = HashMap<u64, u32>;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory that is being read: the names left, last one first.
struct Level {
    path: Vec<u8>,
    left: Vec<CString>,
    inode: (u64, u64),
}

struct Summing<'a> {
    hasher: Hasher,
    /// Space is counted once for each inode.
    counted: HashSet<u64>,
    disk: u64,
    owners: Owners,
    contents: &'a Contents,
}

/// Adds up the tree in `directory`. The content of files that are not in `contents` is read.
///
/// One directory is open at a time, however deep the tree is.
///
/// # Errors
///
/// Something cannot be read.
pub(crate) fn sum(directory: BorrowedFd<'_>, owners: Owners, contents: &Contents) -> io::Result<TreeSum> {
    let mut summing = Summing { hasher: Hasher::new(), counted: HashSet::new(), disk: 0, owners, contents };
    let mut here = rustix::fs::openat(directory, c".", DIRECTORY, Mode::empty())?;
    let stat = rustix::fs::fstat(&here)?;
    summing.entry(here.as_fd(), c".", b".", &stat)?;
    let mut levels = vec![Level { path: Vec::new(), left: names(here.as_fd())?, inode: inode(&stat) }];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.left.pop() else {
            levels.pop();
            if let Some(above) = levels.last() {
                here = rustix::fs::openat(&here, c"..", DIRECTORY, Mode::empty())?;
                // Someone who moves directories meanwhile must not lead this out of the tree.
                if inode(&rustix::fs::fstat(&here)?) != above.inode {
                    return Err(io::Error::other("a directory was moved while it was read"));
                }
            }
            continue;
        };
        let mut path = level.path.clone();
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
        let stat = rustix::fs::statat(&here, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        summing.entry(here.as_fd(), &name, &path, &stat)?;
        if kind(&stat) == FileType::Directory && summing.may(&stat, 0o500) {
            here = rustix::fs::openat(&here, &*name, DIRECTORY, Mode::empty())?;
            levels.push(Level { path, left: names(here.as_fd())?, inode: inode(&stat) });
        }
    }
    Ok(TreeSum { digest: summing.hasher.finish(), disk: summing.disk })
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn inode(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn names(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found.push(entry.file_name().to_owned());
        }
    }
    found.sort_by(|one, other| other.cmp(one));
    Ok(found)
}

impl Summing<'_> {
    /// Whether what is behind these rights can be looked at. Where everything belongs to one user without privileges,
    /// a file without rights is one that nobody can read, now or later.
    fn may(&self, stat: &Stat, rights: u32) -> bool {
        self.owners == Owners::Keep || stat.st_mode & rights == rights
    }

    fn entry(&mut self, directory: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &Stat) -> io::Result<()> {
        let kind = kind(stat);
        if self.counted.insert(stat.st_ino) {
            self.disk += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        }
        let mut numbers = vec![u64::from(stat.st_mode), stat.st_uid.into(), stat.st_gid.into()];
        let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        numbers.extend([stat.st_mtime.cast_unsigned(), nanos.into()]);
        self.field(path);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            // A deletion: overlayfs looks at nothing else of it, and it has the time of unpacking.
            self.field(b"deleted");
            return Ok(());
        }
        match kind {
            FileType::RegularFile => {
                let content = match self.contents.get(&stat.st_ino) {
                    Some(content) => *content,
                    None if self.may(stat, 0o400) => content_of(directory, name)?,
                    None => 0,
                };
                let known = if self.may(stat, 0o400) { content.into() } else { 0 };
                numbers.extend([u64::try_from(stat.st_size).unwrap_or(0), known]);
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
                self.field(target.to_bytes());
            }
            FileType::CharacterDevice | FileType::BlockDevice => numbers.push(stat.st_rdev),
            _ => {}
        }
        for number in numbers {
            self.hasher.update(&number.to_le_bytes());
        }
        if matches!(kind, FileType::RegularFile | FileType::Directory) && self.may(stat, 0o400) {
            self.attributes(directory, name)?;
        }
        Ok(())
    }

    /// Its length first, so that no two sequences of fields look alike.
    fn field(&mut self, bytes: &[u8]) {
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }

    fn attributes(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        // The magic link leads to exactly this directory; the name behind it is not followed.
        let path = [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
        // The first call asks for the length: nearly every file has none.
        let length = match rustix::fs::llistxattr_query(&path[..]) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
            Ok(length) => length,
            Err(error) => return Err(error.into()),
        };
        let mut list = vec![0_u8; length];
        let length = rustix::fs::llistxattr(&path[..], &mut list[..])?;
        let mut keys: Vec<_> = list[..length].split(|byte| *byte == 0).filter(|key| counts(key)).collect();
        keys.sort_unstable();
        let mut value = vec![0_u8; 64 << 10];
        for key in keys {
            let length = rustix::fs::lgetxattr(&path[..], key, &mut value[..])?;
            self.field(key);
            self.field(&value[..length]);
        }
        Ok(())
    }
}

/// What a security module writes by itself, at any time, is none of a layer's.
fn counts(key: &[u8]) -> bool {
    !key.is_empty() && !matches!(key, b"security.selinux" | b"security.ima" | b"security.evm")
}

fn content_of(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<u32> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let (mut file, mut crc, mut buffer) = (File::from(file), flate2::Crc::new(), vec![0; 128 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crc.sum()),
            read => crc.update(&buffer[..read]),
        }
    }
}
