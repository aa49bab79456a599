//! Unpacks an archive among files that are there: what is copied into a container, and what `ADD` unpacks.
//!
//! The reader and its limits are those of layers. An archive is no layer, though: it deletes nothing, and a link of the
//! place may be on its way.

use crate::native::image::{Archive, Header, Kind, Limits, UnpackError, decompress};
use crate::native::launch::Trouble;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

/// What an archive may bring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extraction {
    /// Whether files belong to whom the archive says.
    pub(crate) owners: bool,
    /// Whether devices are made where that is possible, or refused.
    pub(crate) devices: bool,
    /// How much it may ask for.
    pub(crate) limits: Limits,
}

/// Unpacks a tar stream in `directory`; the root of this process must be the container's.
pub(crate) fn extract(
    data: impl Read + Send,
    directory: &Path,
    extraction: Extraction,
) -> Result<(), Trouble> {
    let limits = extraction.limits;
    let mut extractor = Extractor { directory, extraction, directories: Vec::new() };
    // To its end, so that the sender is not cut off, but not further than the limits.
    let read = decompress(data, &limits, |plain| {
        let mut archive = Archive::new(plain, limits);
        let mut entries = 0;
        while let Some(header) = archive.next()? {
            entries += 1;
            if entries > limits.entries {
                return Err(UnpackError::limit("entries", limits.entries));
            }
            extractor.entry(header, &mut archive)?;
        }
        extractor.finish_directories()
    });
    read.map(drop).map_err(trouble)
}

/// The same in the words of an archive, which need not be a layer.
fn trouble(error: UnpackError) -> Trouble {
    let (doing, reason) = match error {
        UnpackError::System { action, reason, .. } => (action, reason),
        UnpackError::Refused { path, reason } => (format!("write {path}"), reason),
        UnpackError::Compression { reason } => ("read the archive".to_owned(), reason),
        UnpackError::Broken { reason, offset } => {
            ("read the archive".to_owned(), format!("{reason} (byte {offset})"))
        }
        UnpackError::Limit { what, limit } => {
            ("read the archive".to_owned(), format!("it has more than {limit} {what}"))
        }
    };
    Trouble::new(doing, reason)
}

struct Extractor<'a> {
    directory: &'a Path,
    extraction: Extraction,
    /// Directories get their rights and times last: what is made in one needs the one and changes the other.
    directories: Vec<(PathBuf, Header)>,
}

impl Extractor<'_> {
    fn entry(&mut self, header: Header, archive: &mut Archive<'_>) -> Result<(), UnpackError> {
        let path = self.inside(&header.path)?;
        let failed = |error| UnpackError::system(format!("write {}", path.display()), error);
        let kind = header.kind;
        if kind == Kind::File {
            clear(&path).and_then(|()| File::create(&path)).map_err(failed).and_then(|mut file| {
                loop {
                    let bytes = archive.data()?;
                    let length = bytes.len();
                    if length == 0 {
                        return Ok(());
                    }
                    file.write_all(bytes).map_err(failed)?;
                    archive.consume(length);
                }
            })?;
        } else if !self.make(&path, &header)? {
            return Ok(());
        }
        self.finish(&path, &header).map_err(failed)?;
        if kind == Kind::Directory {
            self.directories.push((path, header));
        }
        Ok(())
    }

    /// Makes what is no file; false if it is left out.
    fn make(&self, path: &Path, header: &Header) -> Result<bool, UnpackError> {
        let failed = |error: io::Error| UnpackError::system(format!("write {}", path.display()), error);
        let refused = |reason: &str| Err(UnpackError::refused(&header.path, reason));
        let device = matches!(header.kind, Kind::CharDevice | Kind::BlockDevice);
        if device && !self.extraction.devices {
            return refused("devices are not copied");
        }
        if header.kind == Kind::CharDevice && header.device == (0, 0) {
            return refused("a character device 0:0 is how overlayfs marks a deletion");
        }
        if header.kind == Kind::Directory {
            parent(path).map_err(failed)?;
            let made = match fs::create_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
                other => other,
            };
            return made.map(|()| true).map_err(failed);
        }
        clear(path).map_err(failed)?;
        let node = |kind| {
            let number = rustix::fs::makedev(header.device.0, header.device.1);
            match rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), number) {
                // In a user namespace nobody may make devices.
                Err(Errno::PERM) if device => Ok(false),
                result => result.map(|()| true).map_err(io::Error::from),
            }
        };
        let made = match header.kind {
            Kind::Symlink => symlink(OsStr::from_bytes(&header.link), path).map(|()| true),
            Kind::HardLink => {
                let link = self.inside(&header.link)?;
                fs::hard_link(link, path).map(|()| true)
            }
            Kind::CharDevice => node(FileType::CharacterDevice),
            Kind::BlockDevice => node(FileType::BlockDevice),
            Kind::Fifo => node(FileType::Fifo),
            Kind::File | Kind::Directory => Ok(true),
        };
        made.map_err(failed)
    }

    /// The path of an entry in the target; `..` is refused.
    fn inside(&self, name: &[u8]) -> Result<PathBuf, UnpackError> {
        let mut kept = self.directory.to_owned();
        for component in Path::new(OsStr::from_bytes(name)).components() {
            match component {
                Component::Normal(name) => kept.push(name),
                Component::CurDir | Component::RootDir => {}
                _ => return Err(UnpackError::refused(name, "`..` may not stand in an archive's path")),
            }
        }
        Ok(kept)
    }

    /// Owner first, then attributes and mode: a change of owner takes capabilities and set-user-id bits away.
    fn finish(&self, path: &Path, header: &Header) -> io::Result<()> {
        if header.kind == Kind::HardLink {
            return Ok(());
        }
        if self.extraction.owners {
            // All bits set means "unchanged" to the kernel.
            if header.uid == u32::MAX || header.gid == u32::MAX {
                return Err(io::Error::other(format!("there is no id {}", u32::MAX)));
            }
            let (uid, gid) = (Uid::from_raw(header.uid), Gid::from_raw(header.gid));
            rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if header.kind == Kind::Symlink {
            return Ok(());
        }
        let kept = |name: &[u8]| name == b"security.capability" || name.starts_with(b"user.");
        for (name, value) in header.xattrs.iter().filter(|(name, _)| kept(name)) {
            match rustix::fs::lsetxattr(path, &name[..], value, XattrFlags::empty()) {
                // This user, this file system or this kind of file has none.
                Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let fillable = if header.kind == Kind::Directory { 0o700 } else { 0 };
        fs::set_permissions(path, fs::Permissions::from_mode(header.mode & 0o7777 | fillable))?;
        set_time(path, header);
        Ok(())
    }

    fn finish_directories(&self) -> Result<(), UnpackError> {
        for (path, header) in self.directories.iter().rev() {
            // A later entry may have put something else there.
            if !fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
                continue;
            }
            fs::set_permissions(path, fs::Permissions::from_mode(header.mode & 0o7777))
                .map_err(|error| UnpackError::system(format!("write {}", path.display()), error))?;
            set_time(path, header);
        }
        Ok(())
    }
}

fn parent(path: &Path) -> io::Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        // The umask of a worker is empty.
        Some(parent) => fs::DirBuilder::new().recursive(true).mode(0o755).create(parent),
        None => Ok(()),
    }
}

/// Makes the directory for `path`, and room for it in there.
fn clear(path: &Path) -> io::Result<()> {
    parent(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A file that is mounted there is written through.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        other => other,
    }
}

fn set_time(path: &Path, header: &Header) {
    let time = Timespec { tv_sec: header.mtime.0, tv_nsec: header.mtime.1.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    let _ = rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(archive: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, data: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o500 } else { 0o644 });
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        archive.append_data(&mut header, name, data).unwrap();
    }

    fn extracted(archive: tar::Builder<Vec<u8>>, limits: Limits) -> (tempfile::TempDir, Result<(), String>) {
        let place = tempfile::tempdir().unwrap();
        let extraction = Extraction { owners: false, devices: false, limits };
        let bytes = archive.into_inner().unwrap();
        let result = extract(&bytes[..], place.path(), extraction);
        (place, result.map_err(|trouble| trouble.to_string()))
    }

    /// What `git archive` writes begins with a header for all entries, and attributes are a part of a file.
    #[test]
    fn global_headers_are_skipped_and_attributes_kept() {
        let mut archive = tar::Builder::new(Vec::new());
        entry(&mut archive, tar::EntryType::XGlobalHeader, "pax_global_header", b"16 comment=abcd\n");
        entry(&mut archive, tar::EntryType::Directory, "closed/", b"");
        archive.append_pax_extensions([("SCHILY.xattr.user.shop", &b"open"[..])]).unwrap();
        entry(&mut archive, tar::EntryType::Regular, "closed/file", b"text");
        let (place, result) = extracted(archive, Limits::default());
        assert_eq!(result, Ok(()));
        let file = place.path().join("closed/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
        let mode = fs::metadata(place.path().join("closed")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o500);
        let mut value = [0; 8];
        match rustix::fs::getxattr(&file, "user.shop", &mut value) {
            // The file system has none.
            Err(Errno::NOTSUP) => {}
            length => assert_eq!(&value[..length.unwrap()], b"open"),
        }
    }

    /// An archive that nobody trusts must not fill the memory or the disk, nor bring devices into a container.
    #[test]
    fn limits_hold() {
        let one = |kind, name: &str, data: &[u8], limits| {
            let mut archive = tar::Builder::new(Vec::new());
            entry(&mut archive, kind, name, data);
            entry(&mut archive, tar::EntryType::Regular, "second", b"");
            extracted(archive, limits).1.unwrap_err()
        };
        let (file, limits) = (tar::EntryType::Regular, Limits::default());
        insta::assert_snapshot!(one(file, "file", b"", Limits { entries: 1, ..limits }), @"cannot read the archive: it has more than 1 entries");
        insta::assert_snapshot!(one(file, "file", b"text", Limits { bytes: 3, ..limits }), @"cannot read the archive: it has more than 3 uncompressed bytes");
        let name = tar::EntryType::GNULongName;
        insta::assert_snapshot!(one(name, "name", &[b'x'; 512], Limits { header: 99, ..limits }), @"cannot read the archive: it has more than 99 bytes in an extended header");
        insta::assert_snapshot!(one(tar::EntryType::Char, "null", b"", limits), @"cannot write null: devices are not copied");
    }
}
