//! What was written to a container's root file system, as an image layer.
//!
//! The upper directory of an overlay is read, in a worker of the launcher: there the ids are those of the image, and the
//! attributes of overlayfs can be seen. Deletions become `.wh.NAME`, directories that hide what is below them get
//! `.wh..wh..opq` (image-spec, "layer.md"). What this driver puts into containers itself is left out.

use super::select::followed;
use super::tape::{Entry, Meta, Tape};
use crate::native::image::{EntryPath, Lower, UnpackError};
use crate::native::launch::mounts::resolve;
use crate::native::launch::{Trouble, Trying};
use crate::native::launcher::Shift;
use crate::native::sys::Called;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How an upper directory is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CaptureOptions {
    /// The layers below, lowest first.
    pub(crate) lower: Vec<PathBuf>,
    /// Whether overlayfs's attributes are `user.overlay.*`.
    pub(crate) userxattr: bool,
    /// Paths that are left out: what something was mounted on, and files the driver wrote.
    pub(crate) left_out: Vec<PathBuf>,
    /// No time is later than this one, in seconds since 1970.
    pub(crate) latest: Option<i64>,
    /// Which ids of the host those of the container are, if they are others.
    pub(crate) shift: Option<Shift>,
}

/// What an upper directory held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Captured {
    /// Entries of the layer.
    pub(crate) entries: u64,
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How many directories deep a layer may be: each of them is open while it is read.
const DEEPEST: usize = 500;

/// Writes what `upper` holds to `out`. `root` is the whole file system, with what is below `upper`.
pub(crate) fn capture(
    upper: &OwnedFd,
    root: Option<&OwnedFd>,
    options: &CaptureOptions,
    out: impl Write,
) -> Result<Captured, Trouble> {
    let lower = Lower::open(&options.lower, options.userxattr)
        .map_err(|error: UnpackError| Trouble::new("read the layers below", error.to_string()))?;
    // What is mounted behind a symbolic link leaves its trace where the link leads.
    let behind_links = options.left_out.iter().filter_map(|path| behind_links(root?, path));
    let left_out: BTreeSet<EntryPath> =
        options.left_out.iter().cloned().chain(behind_links).filter_map(|path| entry_path(&path)).collect();
    let parents = left_out.iter().flat_map(|path| path.directory().and_above().collect::<Vec<_>>()).collect();
    let mut capture = Capture {
        tape: Tape::new(out),
        lower,
        options,
        left_out,
        parents,
        links: HashMap::new(),
        entries: 0,
    };
    let top = rustix::fs::openat(upper, c".", DIRECTORY, Mode::empty())
        .call(|| "openat(upper, \".\")".to_owned())
        .trying(|| "read what was written".to_owned())?;
    capture.directory(top.as_fd(), &EntryPath::default()).map_err(Failed::told)?;
    let entries = capture.entries;
    capture.tape.finish().map_err(|error| Trouble::new("write the layer", error.to_string()))?;
    Ok(Captured { entries })
}

fn behind_links(root: &OwnedFd, path: &Path) -> Option<PathBuf> {
    let found = resolve(root.as_fd(), path, OFlags::PATH | OFlags::CLOEXEC).ok()?;
    followed(root.as_fd(), &found).ok()
}

fn entry_path(path: &Path) -> Option<EntryPath> {
    EntryPath::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())).ok()
}

struct Capture<'a, W> {
    tape: Tape<W>,
    lower: Lower,
    options: &'a CaptureOptions,
    left_out: BTreeSet<EntryPath>,
    /// The directories of what is left out.
    parents: BTreeSet<EntryPath>,
    /// Files with several names, by inode: the first of them.
    links: HashMap<(u64, u64), EntryPath>,
    entries: u64,
}

/// What failed, and where.
struct Failed(EntryPath, io::Error);

impl Failed {
    fn told(Self(path, error): Self) -> Trouble {
        Trouble::new(format!("read `{path}` of what was written"), error.to_string())
    }
}

impl<W: Write> Capture<'_, W> {
    fn directory(&mut self, directory: BorrowedFd<'_>, path: &EntryPath) -> Result<(), Failed> {
        let names = names(directory).map_err(|error| Failed(path.clone(), error.into()))?;
        for name in names {
            let inner = path.child(name.to_bytes());
            if self.left_out.contains(&inner) {
                continue;
            }
            self.entry(directory, &name, &inner).map_err(|error| match error {
                Stop::Here(error) => Failed(inner, error),
                Stop::Below(failed) => failed,
            })?;
        }
        Ok(())
    }

    fn entry(&mut self, at: BorrowedFd<'_>, name: &CStr, path: &EntryPath) -> Result<(), Stop> {
        let stat = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return Ok(self.deleted(path, &stat)?);
        }
        let mut meta = self.meta(&stat);
        match kind {
            FileType::Directory => return self.inner_directory(at, name, path, &stat),
            FileType::RegularFile => return Ok(self.file(at, name, path, &stat)?),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(at, name, Vec::new())?;
                meta.mode = 0o777;
                self.tape.entry(path.as_bytes(), Entry::Symlink(target.as_bytes()), &meta)?;
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                let entry = Entry::Device { block: kind == FileType::BlockDevice, number };
                self.tape.entry(path.as_bytes(), entry, &meta)?;
            }
            FileType::Fifo => self.tape.entry(path.as_bytes(), Entry::Fifo, &meta)?,
            // A socket is of no use without the process that made it.
            _ => return Ok(()),
        }
        self.entries += 1;
        Ok(())
    }

    fn meta(&self, stat: &Stat) -> Meta {
        let mtime = self.options.latest.map_or(stat.st_mtime, |latest| stat.st_mtime.min(latest));
        let (uid, gid) = self.owner(stat);
        Meta { mode: stat.st_mode & 0o7777, uid, gid, mtime, xattrs: Vec::new() }
    }

    /// As the image counts.
    fn owner(&self, stat: &Stat) -> (u32, u32) {
        let found = (stat.st_uid, stat.st_gid);
        self.options.shift.map_or(found, |shift| shift.inner(found.0, found.1))
    }

    fn deleted(&mut self, path: &EntryPath, stat: &Stat) -> io::Result<()> {
        let (_, name) = path.split();
        let mark = path.sibling(&[b".wh.", name].concat());
        let meta = Meta { mode: 0o600, uid: 0, gid: 0, ..self.meta(stat) };
        self.entries += 1;
        self.tape.entry(mark.as_bytes(), Entry::File(0), &meta)
    }

    fn inner_directory(
        &mut self,
        at: BorrowedFd<'_>,
        name: &CStr,
        path: &EntryPath,
        stat: &Stat,
    ) -> Result<(), Stop> {
        if path.depth() > DEEPEST {
            return Err(io::Error::other(format!("it is more than {DEEPEST} directories deep")).into());
        }
        let directory = open_directory(at, name, stat)?;
        if self.parents.contains(path) && self.holds_nothing(directory.as_fd(), path, stat)? {
            return Ok(());
        }
        let xattrs = attributes(directory.as_fd());
        let hides = self.hides_what_is_below(directory.as_fd(), path);
        let meta = Meta { xattrs, ..self.meta(stat) };
        self.tape.entry(path.as_bytes(), Entry::Directory, &meta)?;
        self.entries += 1;
        if hides {
            let mark = path.child(b".wh..wh..opq");
            let meta = Meta { mode: 0o600, mtime: meta.mtime, ..Meta::default() };
            self.tape.entry(mark.as_bytes(), Entry::File(0), &meta)?;
        }
        self.directory(directory.as_fd(), path).map_err(Stop::Below)
    }

    /// Whether a directory is there only because of what is left out: made for it, or copied up to hold it.
    fn holds_nothing(&self, directory: BorrowedFd<'_>, path: &EntryPath, stat: &Stat) -> io::Result<bool> {
        if let Ok(Some(below)) = self.lower.find(path) {
            let same = below.stat.st_mode == stat.st_mode
                && (below.stat.st_uid, below.stat.st_gid) == self.owner(stat);
            if !same || self.hides_what_is_below(directory, path) {
                return Ok(false);
            }
        }
        for name in names(directory)? {
            let inner = path.child(name.to_bytes());
            if self.left_out.contains(&inner) {
                continue;
            }
            let stat = rustix::fs::statat(directory, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_directory || !self.parents.contains(&inner) {
                return Ok(false);
            }
            let deeper = open_directory(directory, &name, &stat)?;
            if !self.holds_nothing(deeper.as_fd(), &inner, &stat)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// overlayfs marks every new directory, because that spares it a look below; a layer says it where it means something.
    fn hides_what_is_below(&self, directory: BorrowedFd<'_>, path: &EntryPath) -> bool {
        self.lower.is_opaque(directory) && self.lower.has_directory(path)
    }

    fn file(&mut self, at: BorrowedFd<'_>, name: &CStr, path: &EntryPath, stat: &Stat) -> io::Result<()> {
        let mut meta = self.meta(stat);
        if stat.st_nlink > 1 {
            let first = self.links.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.clone());
            if first != path {
                let entry = Entry::HardLink(first.as_bytes());
                self.tape.entry(path.as_bytes(), entry, &meta)?;
                self.entries += 1;
                return Ok(());
            }
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(at, name, flags, Mode::empty()) {
            Ok(file) => file,
            // Without CAP_DAC_OVERRIDE over its owner: a container that maps its user to another one's.
            Err(Errno::ACCESS) => open_closed(at, name, stat)?,
            Err(error) => return Err(error.into()),
        };
        meta.xattrs = attributes(file.as_fd());
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.entries += 1;
        self.tape.file(path.as_bytes(), size, File::from(file), &meta)
    }
}

/// Why an entry could not be captured.
enum Stop {
    Here(io::Error),
    Below(Failed),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Here(error)
    }
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Here(error.into())
    }
}

/// The names in a directory, sorted: what one writes must not depend on the file system's order.
pub(super) fn names(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found.push(entry.file_name().to_owned());
        }
    }
    found.sort();
    Ok(found)
}

fn open_directory(at: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<OwnedFd, Errno> {
    match rustix::fs::openat(at, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ACCESS) => open_closed(at, name, stat),
        opened => opened,
    }
}

/// Opens what its mode closes even to its owner: with the right to read for as long as it takes.
fn open_closed(at: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<OwnedFd, Errno> {
    let handle =
        rustix::fs::openat(at, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    rustix::fs::chmod(&*link, mode | Mode::RUSR | Mode::XUSR)?;
    let opened =
        rustix::fs::openat(at, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    rustix::fs::chmod(&*link, mode)?;
    opened
}

/// The attributes a layer carries, as Docker chooses them: capabilities, and the user's own.
pub(super) fn attributes(file: BorrowedFd<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list = vec![0_u8; 64 << 10];
    let length = rustix::fs::flistxattr(file, &mut list[..]).unwrap_or(0);
    let mut names: Vec<&[u8]> = list[..length].split(|byte| *byte == 0).collect();
    names.sort_unstable();
    let kept = |name: &&[u8]| {
        *name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
    };
    let read = |name: &[u8]| {
        let mut value = vec![0_u8; 64 << 10];
        let length = rustix::fs::fgetxattr(file, name, &mut value[..]).ok()?;
        value.truncate(length);
        let value = if name == b"security.capability" { without_root_id(value) } else { value };
        Some((name.to_vec(), value))
    };
    names.into_iter().filter(kept).filter_map(read).collect()
}

/// Revision 3 of the attribute names the root of a user namespace (capabilities(7)), which means nothing elsewhere.
fn without_root_id(mut value: Vec<u8>) -> Vec<u8> {
    const REVISION: usize = 3;
    if value.len() == 24 && value[REVISION] == 3 {
        value[REVISION] = 2;
        value.truncate(20);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

    /// Captures `upper`, and lists what the layer has: kind, path, and what a link leads to.
    fn listed(upper: &Path, options: &CaptureOptions) -> Vec<String> {
        let upper = OwnedFd::from(File::open(upper).unwrap());
        let mut bytes = Vec::new();
        capture(&upper, None, options, &mut bytes).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let line = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let entry = entry.unwrap();
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let link = entry.link_name_bytes().map(|link| format!(" -> {}", String::from_utf8_lossy(&link)));
            format!("{:?} {path}{}", entry.header().entry_type(), link.unwrap_or_default())
        };
        archive.entries().unwrap().map(line).collect()
    }

    /// What a step changed becomes a layer in the same order every time, whatever the file system's order.
    #[test]
    fn files_links_and_pipes_are_captured() {
        let upper = tempfile::tempdir().unwrap();
        let at = |name: &str| upper.path().join(name);
        fs::create_dir(at("b")).unwrap();
        fs::write(at("b/file"), "text").unwrap();
        fs::hard_link(at("b/file"), at("again")).unwrap();
        symlink("/elsewhere", at("link")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert!(fs::metadata(at("socket")).unwrap().file_type().is_socket());
        fs::set_permissions(at("b"), fs::Permissions::from_mode(0o500)).unwrap();
        let expected =
            ["Regular again", "Directory b/", "Link b/file -> again", "Symlink link -> /elsewhere"];
        assert_eq!(listed(upper.path(), &CaptureOptions::default()), expected);
    }

    /// Files that the driver mounts or writes itself never get into an image, nor the directories made for them.
    #[test]
    fn what_the_driver_made_is_left_out() {
        let (upper, lower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| upper.path().join(name);
        for directory in ["etc", "run/secrets", "kept/cache", "changed"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        for file in ["etc/hosts", "run/secrets/token", "kept/new", "changed/mounted"] {
            fs::write(at(file), "").unwrap();
        }
        for directory in ["etc", "kept", "changed"] {
            fs::create_dir(lower.path().join(directory)).unwrap();
        }
        fs::set_permissions(at("changed"), fs::Permissions::from_mode(0o700)).unwrap();
        let left_out = ["/etc/hosts", "/run/secrets/token", "/kept/cache", "/changed/mounted"];
        let options = CaptureOptions {
            lower: vec![lower.path().to_owned()],
            left_out: left_out.map(PathBuf::from).into(),
            ..CaptureOptions::default()
        };
        assert_eq!(
            listed(upper.path(), &options),
            ["Directory changed/", "Directory kept/", "Regular kept/new"]
        );
    }

    /// What is mounted at `/var/run/token`, where `/var/run` is a link to `/run`, leaves nothing in `/run` either.
    #[test]
    fn what_is_mounted_behind_a_link_is_left_out() {
        let (upper, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for top in [upper.path(), root.path()] {
            fs::create_dir(top.join("run")).unwrap();
            fs::write(top.join("run/token"), "").unwrap();
        }
        fs::write(upper.path().join("run/kept"), "").unwrap();
        fs::create_dir(root.path().join("var")).unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        let options = CaptureOptions { left_out: vec!["/var/run/token".into()], ..CaptureOptions::default() };
        let root = OwnedFd::from(File::open(root.path()).unwrap());
        let upper = OwnedFd::from(File::open(upper.path()).unwrap());
        let mut bytes = Vec::new();
        capture(&upper, Some(&root), &options, &mut bytes).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
        assert_eq!(names.collect::<Vec<_>>(), [Path::new("run/"), Path::new("run/kept")]);
    }

    /// A capability given to a file as an ordinary user is one of every machine's root in the image.
    #[test]
    fn capabilities_do_not_name_a_user_namespace() {
        let mut value = vec![0; 24];
        value[3] = 3;
        let kept = without_root_id(value);
        assert_eq!((kept.len(), kept[3]), (20, 2));
    }
}
