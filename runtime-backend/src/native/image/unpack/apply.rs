//! Carries out a layer's entries in the target directory.

use super::error::UnpackError;
use super::lower::{Below, Lower, kind, opaque_name};
use super::path::EntryPath;
use super::root::Root;
use super::tar::{Archive, Header, Kind};
use super::{Contents, Owners, UnpackOptions, Unsettled};
use crate::native::image::remove::remove_at;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What a layer did.
pub(crate) struct Applied {
    pub(crate) entries: u64,
    pub(crate) opaque: bool,
    pub(crate) unsettled: Vec<Unsettled>,
    pub(crate) notes: Vec<String>,
    /// What was written to files.
    pub(crate) contents: Contents,
}

/// Owner, rights, times: what is set after the content.
#[derive(Clone, Debug)]
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

struct Applier<'a> {
    root: Root<'a>,
    options: &'a UnpackOptions,
    lower: Option<Lower>,
    /// The ids new files get by themselves.
    own: (u32, u32),
    /// Directories get their rights and times last: a directory without write permission could not be filled, and
    /// filling it changes its time.
    directories: HashMap<EntryPath, Meta>,
    /// Deletions are of the layers below only, wherever they stand in the archive, so they are done at its end.
    whiteouts: BTreeSet<EntryPath>,
    opaque: BTreeSet<EntryPath>,
    unsettled: Vec<Unsettled>,
    notes: BTreeMap<&'static str, (u64, String)>,
    contents: Contents,
}

const CREATE: OFlags =
    OFlags::CREATE.union(OFlags::EXCL).union(OFlags::WRONLY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Carries out all entries of `archive`.
pub(crate) fn apply(
    mut archive: Archive<'_>,
    target: BorrowedFd<'_>,
    options: &UnpackOptions,
) -> Result<Applied, UnpackError> {
    let lower = options.lower.as_ref().map(|layers| Lower::open(layers, options.userxattr)).transpose()?;
    // A store below a directory with the set-group-id bit inherited it, and new files would inherit the group.
    rustix::fs::fchmod(target, Mode::from_raw_mode(0o700))
        .map_err(|error| UnpackError::system("chmod the target", error))?;
    let mut applier = Applier {
        root: Root::new(target, options.resolver),
        options,
        lower,
        own: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        directories: HashMap::from([(EntryPath::default(), Meta::implied())]),
        whiteouts: BTreeSet::new(),
        opaque: BTreeSet::new(),
        unsettled: Vec::new(),
        notes: BTreeMap::new(),
        contents: Contents::new(),
    };
    let mut entries = 0;
    while let Some(header) = archive.next()? {
        entries += 1;
        if entries > options.limits.entries {
            return Err(UnpackError::limit("entries", options.limits.entries));
        }
        applier.entry(&header, &mut archive)?;
    }
    applier.hide_deleted()?;
    applier.finish_directories()?;
    let opaque = applier.opaque.contains(&EntryPath::default());
    let Applier { unsettled, contents, .. } = applier;
    Ok(Applied { entries, opaque, unsettled, notes: notes(applier.notes), contents })
}

fn notes(notes: BTreeMap<&'static str, (u64, String)>) -> Vec<String> {
    let line = |(what, (count, first)): (&str, (u64, String))| format!("{what}: {count}, `{first}` first");
    notes.into_iter().map(line).collect()
}

impl Meta {
    fn of(header: &Header) -> Self {
        let Header { mode, uid, gid, mtime, .. } = *header;
        Self { mode, uid, gid, mtime, xattrs: header.xattrs.clone() }
    }

    /// For a directory that has no entry of its own.
    fn implied() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: BTreeMap::new() }
    }

    fn below(below: &Below, xattrs: BTreeMap<Vec<u8>, Vec<u8>>) -> Self {
        let stat = &below.stat;
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        Self { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime, xattrs }
    }

    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.0, tv_nsec: self.mtime.1.into() };
        Timestamps { last_access: time, last_modification: time }
    }

    fn mode(&self) -> Mode {
        Mode::from_raw_mode(self.mode & 0o7777)
    }
}

/// What a name that begins with `.wh.` says.
enum Mark {
    /// Nothing: an ordinary name.
    None,
    /// This name of the layers below is deleted.
    Deleted(EntryPath),
    /// Everything the layers below have in this directory is deleted.
    Opaque(EntryPath),
    /// Book-keeping of AUFS, which old images carry.
    Aufs,
}

fn mark(path: &EntryPath) -> Result<Mark, UnpackError> {
    let (_, name) = path.split();
    if path
        .components()
        .any(|part| part.starts_with(b".wh..wh.") && !(part == name && name == b".wh..wh..opq"))
    {
        return Ok(Mark::Aufs);
    }
    if path.directory().components().any(|part| part.starts_with(b".wh.")) {
        return Err(UnpackError::refused(
            path.as_bytes(),
            "it lies in a directory that is marked as deleted",
        ));
    }
    match name.strip_prefix(b".wh.") {
        None => Ok(Mark::None),
        Some(b".wh..opq") => Ok(Mark::Opaque(path.directory())),
        Some(b"" | b"." | b"..") => {
            Err(UnpackError::refused(path.as_bytes(), "it deletes nothing that has a name"))
        }
        Some(deleted) => Ok(Mark::Deleted(path.sibling(deleted))),
    }
}

impl Applier<'_> {
    fn entry(&mut self, header: &Header, archive: &mut Archive<'_>) -> Result<(), UnpackError> {
        let path = EntryPath::new(&header.path)?;
        if path.is_root() {
            return self.root_entry(header);
        }
        match mark(&path)? {
            Mark::None => {}
            Mark::Deleted(path) => {
                self.whiteouts.insert(path);
                return Ok(());
            }
            Mark::Opaque(path) => {
                self.opaque.insert(path);
                return Ok(());
            }
            Mark::Aufs => {
                self.note("book-keeping of AUFS was left out", &path);
                return Ok(());
            }
        }
        match header.kind {
            Kind::File => self.file(&path, header, archive),
            Kind::HardLink => self.hard_link(&path, header),
            Kind::Symlink => self.symlink(&path, &header.link, &Meta::of(header)),
            Kind::Directory => self.directory(path, header),
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.node(&path, header),
        }
    }

    fn root_entry(&mut self, header: &Header) -> Result<(), UnpackError> {
        if header.kind != Kind::Directory {
            return Err(UnpackError::refused(&header.path, "only a directory can be the root"));
        }
        self.directories.insert(EntryPath::default(), Meta::of(header));
        Ok(())
    }

    fn note(&mut self, what: &'static str, path: &EntryPath) {
        self.notes.entry(what).or_insert_with(|| (0, path.to_string())).0 += 1;
    }

    /// The directory an entry goes to. One that has to be made gets what the layers below say about it.
    fn parent(&mut self, path: &EntryPath) -> Result<std::rc::Rc<OwnedFd>, UnpackError> {
        let found = self.root.parent(path)?;
        for made in found.made {
            // Behind a symlink the spelling may contain `..`; such a directory keeps the rights it was made with.
            let Ok(made) = EntryPath::new(&made) else { continue };
            let meta = match &self.lower {
                Some(lower) => below_directory(lower, &made)?,
                None => {
                    self.unsettled.push(Unsettled::Directory(made.as_bytes().to_vec()));
                    None
                }
            };
            self.directories.insert(made, meta.unwrap_or_else(Meta::implied));
        }
        Ok(found.fd)
    }

    /// Makes something new at `path` with `make`, in place of what an earlier entry made there: the last one counts.
    fn place<T>(
        &mut self,
        path: &EntryPath,
        call: &str,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let parent = self.parent(path)?;
        let (_, name) = path.split();
        let result = match make(parent.as_fd(), name) {
            Err(Errno::EXIST) => {
                self.displace(parent.as_fd(), path)?;
                make(parent.as_fd(), name)
            }
            result => result,
        };
        result.map_err(|error| UnpackError::system(format!("{call} `{path}`"), error))
    }

    fn displace(&mut self, parent: BorrowedFd<'_>, path: &EntryPath) -> Result<(), UnpackError> {
        let (_, name) = path.split();
        let error = |error: Errno| UnpackError::system(format!("replace `{path}`"), error);
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(error)?;
        if matches!(kind(&stat), FileType::Directory | FileType::Symlink) {
            self.root.forget();
        }
        let name = CString::new(name).map_err(|_nul| error(Errno::INVAL))?;
        remove_at(parent, &name).map_err(error)
    }

    fn file(
        &mut self,
        path: &EntryPath,
        header: &Header,
        archive: &mut Archive<'_>,
    ) -> Result<(), UnpackError> {
        let file = self.place(path, "create", |parent, name| {
            rustix::fs::openat(parent, name, CREATE, Mode::from_raw_mode(0o600))
        })?;
        let mut content = flate2::Crc::new();
        loop {
            let bytes = archive.data()?;
            if bytes.is_empty() {
                break;
            }
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, bytes))
                .map_err(|error| UnpackError::system(format!("write `{path}`"), error))?;
            content.update(&bytes[..written]);
            archive.consume(written);
        }
        self.contents.insert(inode(path, file.as_fd())?, content.sum());
        self.settle(path, file.as_fd(), &Meta::of(header))
    }

    /// Owner first: changing it clears the set-user-id bit and the capabilities (chown(2), capabilities(7)).
    fn settle(&mut self, path: &EntryPath, file: BorrowedFd<'_>, meta: &Meta) -> Result<(), UnpackError> {
        let failed = |call: &str, error| UnpackError::system(format!("{call} `{path}`"), error);
        if self.options.owners == Owners::Keep && (meta.uid, meta.gid) != self.own {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(|error| unmapped(path, meta, error))?;
        }
        for (name, value) in &meta.xattrs {
            let result = rustix::fs::fsetxattr(file, &name[..], value, XattrFlags::empty());
            self.xattr_result(path, name, result)?;
        }
        rustix::fs::fchmod(file, meta.mode()).map_err(|error| failed("chmod", error))?;
        rustix::fs::futimens(file, &meta.times()).map_err(|error| failed("set the time of", error))
    }

    /// The same for what cannot be opened: symlinks, devices, fifos.
    fn settle_at(&mut self, path: &EntryPath, meta: &Meta, rights: bool) -> Result<(), UnpackError> {
        let parent = self.parent(path)?;
        let (_, name) = path.split();
        let failed = |call: &str, error| UnpackError::system(format!("{call} `{path}`"), error);
        if self.options.owners == Owners::Keep && (meta.uid, meta.gid) != self.own {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            rustix::fs::chownat(&*parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| unmapped(path, meta, error))?;
        }
        // The magic link leads to exactly this directory; the name behind it is not followed.
        let by_path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat();
        for (key, value) in &meta.xattrs {
            let result = rustix::fs::lsetxattr(&by_path[..], &key[..], value, XattrFlags::empty());
            self.xattr_result(path, key, result)?;
        }
        if rights {
            let node = rustix::fs::openat(
                &*parent,
                name,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|error| failed("open", error))?;
            rustix::fs::chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), meta.mode())
                .map_err(|error| failed("chmod", error))?;
        }
        rustix::fs::utimensat(&*parent, name, &meta.times(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed("set the time of", error))
    }

    /// Attributes that this user, this file system or this kind of file cannot have are left out with a note.
    fn xattr_result(
        &mut self,
        path: &EntryPath,
        name: &[u8],
        result: Result<(), Errno>,
    ) -> Result<(), UnpackError> {
        match result {
            Ok(()) => Ok(()),
            Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL) => {
                self.note("extended attributes this user or file system cannot set were left out", path);
                Ok(())
            }
            Err(error) => Err(UnpackError::system(
                format!("set the attribute {} of `{path}`", name.escape_ascii()),
                error,
            )),
        }
    }

    fn symlink(&mut self, path: &EntryPath, target: &[u8], meta: &Meta) -> Result<(), UnpackError> {
        if target.is_empty() || target.contains(&0) {
            return Err(UnpackError::refused(path.as_bytes(), "it is a symlink to nowhere"));
        }
        self.place(path, "symlink", |parent, name| rustix::fs::symlinkat(target, parent, name))?;
        self.settle_at(path, meta, false)
    }

    fn directory(&mut self, path: EntryPath, header: &Header) -> Result<(), UnpackError> {
        let parent = self.parent(&path)?;
        let (_, name) = path.split();
        match rustix::fs::mkdirat(&*parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| UnpackError::system(format!("stat `{path}`"), error))?;
                // A symlink is replaced, not followed (CVE-2026-33056).
                if kind(&stat) != FileType::Directory {
                    self.place(&path, "mkdir", |parent, name| {
                        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))
                    })?;
                }
            }
            Err(error) => return Err(UnpackError::system(format!("mkdir `{path}`"), error)),
        }
        self.directories.insert(path, Meta::of(header));
        Ok(())
    }

    fn node(&mut self, path: &EntryPath, header: &Header) -> Result<(), UnpackError> {
        let (kind, device) = match header.kind {
            Kind::CharDevice => (FileType::CharacterDevice, true),
            Kind::BlockDevice => (FileType::BlockDevice, true),
            _ => (FileType::Fifo, false),
        };
        if header.kind == Kind::CharDevice && header.device == (0, 0) {
            let reason = "a character device 0:0 is how overlayfs marks a deletion, which a layer writes as `.wh.` names";
            return Err(UnpackError::refused(path.as_bytes(), reason));
        }
        if device && self.options.owners == Owners::Squash {
            self.note("device nodes were left out", path);
            return Ok(());
        }
        let number = rustix::fs::makedev(header.device.0, header.device.1);
        let made = self.place(path, "mknod", |parent, name| {
            match rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), number) {
                // In a user namespace nobody may make devices.
                Err(Errno::PERM) if device => Ok(false),
                result => result.map(|()| true),
            }
        })?;
        if !made {
            self.note("device nodes were left out", path);
            return Ok(());
        }
        self.settle_at(path, &Meta::of(header), true)
    }

    fn hard_link(&mut self, path: &EntryPath, header: &Header) -> Result<(), UnpackError> {
        let target = EntryPath::new(&header.link)?;
        let refused =
            |reason: &str| UnpackError::refused(path.as_bytes(), format!("it is a hard link to {reason}"));
        if target.is_root() || target == *path {
            return Err(refused(if target == *path { "itself" } else { "the root directory" }));
        }
        if self.stat(&target)?.is_none() && !self.copy_up(path, &target)? {
            return Ok(());
        }
        let Some(stat) = self.stat(&target)? else { return Err(refused("a name that does not exist")) };
        if kind(&stat) == FileType::Directory {
            return Err(refused(&format!("the directory `{target}`")));
        }
        if self.stat(path)?.is_some_and(|own| (own.st_dev, own.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        let Some(from) = self.root.existing_parent(&target)? else {
            return Err(refused("a name that does not exist"));
        };
        let (_, target_name) = target.split();
        // Without AT_SYMLINK_FOLLOW a symlink is linked itself (link(2)).
        self.place(path, "link", |parent, name| {
            rustix::fs::linkat(&*from, target_name, parent, name, AtFlags::empty())
        })
    }

    fn stat(&mut self, path: &EntryPath) -> Result<Option<rustix::fs::Stat>, UnpackError> {
        let Some(parent) = self.root.existing_parent(path)? else { return Ok(None) };
        match rustix::fs::statat(&*parent, path.split().1, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(UnpackError::system(format!("stat `{path}`"), error)),
        }
    }

    /// Brings a file of the layers below into this one, so that it can be linked, as overlayfs itself does it for
    /// `link(2)`. False if the layers below are not known yet.
    fn copy_up(&mut self, path: &EntryPath, target: &EntryPath) -> Result<bool, UnpackError> {
        let Some(lower) = &self.lower else {
            self.unsettled.push(Unsettled::Link(target.as_bytes().to_vec()));
            return Ok(false);
        };
        let failed = |error| UnpackError::system(format!("copy `{target}` from the layer below"), error);
        let Some(below) = lower.find(target).map_err(failed)? else {
            let reason =
                format!("it is a hard link to `{target}`, which neither this layer nor one below has");
            return Err(UnpackError::refused(path.as_bytes(), reason));
        };
        let (_, name) = target.split();
        match kind(&below.stat) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let from = rustix::fs::openat(&below.parent, name, flags, Mode::empty()).map_err(failed)?;
                let meta = Meta::below(&below, read_xattrs(from.as_fd()));
                let to = self.place(target, "create", |parent, name| {
                    rustix::fs::openat(parent, name, CREATE, Mode::from_raw_mode(0o600))
                })?;
                // A file that was replaced may have left it its inode.
                self.contents.remove(&inode(target, to.as_fd())?);
                let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
                std::io::copy(&mut from, &mut to).map_err(|error| {
                    UnpackError::system(format!("copy `{target}` from the layer below"), error)
                })?;
                self.settle(target, to.as_fd(), &meta)?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(&below.parent, name, Vec::new()).map_err(failed)?;
                self.symlink(target, link.as_bytes(), &Meta::below(&below, BTreeMap::new()))?;
            }
            _ => {
                let reason = format!("it is a hard link to `{target}` below, which is no file");
                return Err(UnpackError::refused(path.as_bytes(), reason));
            }
        }
        Ok(true)
    }

    /// Writes the deletions in overlayfs's form.
    fn hide_deleted(&mut self) -> Result<(), UnpackError> {
        let deleted = std::mem::take(&mut self.whiteouts);
        for path in deleted.clone() {
            let directory = path.directory();
            // Below a directory that hides everything, or is deleted itself, there is nothing left to delete.
            if directory.and_above().any(|above| self.opaque.contains(&above) || deleted.contains(&above)) {
                continue;
            }
            match &self.lower {
                Some(lower) if !lower.has_directory(&directory) => continue,
                Some(_) => {}
                None => self.unsettled.push(Unsettled::Whiteout(directory.as_bytes().to_vec())),
            }
            match self.stat(&path)?.map(|stat| kind(&stat)) {
                // The layer has something new of this name: of a directory, the old content is deleted.
                Some(FileType::Directory) => self.set_opaque(&path)?,
                Some(_) => {}
                None => self.place(&path, "mark as deleted (mknod char 0:0)", |parent, name| {
                    rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)
                })?,
            }
        }
        for path in self.opaque.clone() {
            self.hide_below(&path)?;
        }
        Ok(())
    }

    fn hide_below(&mut self, path: &EntryPath) -> Result<(), UnpackError> {
        // What that means for a whole layer is the store's affair.
        if path.is_root() {
            return Ok(());
        }
        match self.stat(path)?.map(|stat| kind(&stat)) {
            Some(FileType::Directory) => {}
            Some(_) => return Ok(()),
            None => {
                // Inside of a name that does not exist, so that the directory is made as every missing one is.
                self.parent(&path.child(b"x"))?;
            }
        }
        self.set_opaque(path)
    }

    fn open_directory(&mut self, path: &EntryPath) -> Result<Option<OwnedFd>, UnpackError> {
        let open =
            |parent: BorrowedFd<'_>, name: &[u8]| rustix::fs::openat(parent, name, DIRECTORY, Mode::empty());
        let result = if path.is_root() {
            open(self.root.fd(), b".")
        } else {
            let Some(parent) = self.root.existing_parent(path)? else { return Ok(None) };
            open(parent.as_fd(), path.split().1)
        };
        match result {
            Ok(fd) => Ok(Some(fd)),
            // Replaced by a later entry.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(UnpackError::system(format!("open the directory `{path}`"), error)),
        }
    }

    fn set_opaque(&mut self, path: &EntryPath) -> Result<(), UnpackError> {
        let Some(directory) = self.open_directory(path)? else { return Ok(()) };
        let name = opaque_name(self.options.userxattr);
        rustix::fs::fsetxattr(&directory, name, b"y", XattrFlags::empty()).map_err(|error| {
            UnpackError::system(format!("mark `{path}` as replaced (setxattr {name})"), error)
        })
    }

    /// Deepest first, so that a directory without rights does not stand in the way of those in it.
    fn finish_directories(&mut self) -> Result<(), UnpackError> {
        let mut directories: Vec<_> = std::mem::take(&mut self.directories).into_iter().collect();
        directories.sort_by_cached_key(|(path, _)| (std::cmp::Reverse(path.depth()), path.clone()));
        for (path, meta) in directories {
            // Looked up anew, without following its last component: a later entry may have put a symlink there.
            let Some(directory) = self.still_there(&path)? else { continue };
            self.settle(&path, directory.as_fd(), &meta)?;
        }
        Ok(())
    }

    fn still_there(&mut self, path: &EntryPath) -> Result<Option<OwnedFd>, UnpackError> {
        match self.open_directory(path) {
            // A directory on the way became a file.
            Err(UnpackError::Refused { .. }) => Ok(None),
            result => result,
        }
    }
}

fn inode(path: &EntryPath, file: BorrowedFd<'_>) -> Result<u64, UnpackError> {
    let stat = rustix::fs::fstat(file);
    stat.map(|stat| stat.st_ino).map_err(|error| UnpackError::system(format!("stat `{path}`"), error))
}

fn unmapped(path: &EntryPath, meta: &Meta, error: Errno) -> UnpackError {
    let action = match error {
        // user_namespaces(7): an id without a mapping cannot be given away.
        Errno::INVAL => {
            format!("chown `{path}` to {}:{}, which this user namespace does not map", meta.uid, meta.gid)
        }
        _ => format!("chown `{path}` to {}:{}", meta.uid, meta.gid),
    };
    UnpackError::system(action, error)
}

fn below_directory(lower: &Lower, path: &EntryPath) -> Result<Option<Meta>, UnpackError> {
    let failed = |error| UnpackError::system(format!("look at `{path}` in the layer below"), error);
    let below = lower.find(path).map_err(failed)?;
    let Some(below) = below.filter(|below| kind(&below.stat) == FileType::Directory) else { return Ok(None) };
    let xattrs = match rustix::fs::openat(&below.parent, path.split().1, DIRECTORY, Mode::empty()) {
        Ok(directory) => read_xattrs(directory.as_fd()),
        Err(_unreadable) => BTreeMap::new(),
    };
    Ok(Some(Meta::below(&below, xattrs)))
}

/// All attributes but overlayfs's own. What cannot be read is not copied.
pub(crate) fn read_xattrs(file: BorrowedFd<'_>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (mut names, mut value) = (vec![0_u8; 64 << 10], vec![0_u8; 64 << 10]);
    let length = rustix::fs::flistxattr(file, &mut names[..]).unwrap_or(0);
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        if let Ok(length) = rustix::fs::fgetxattr(file, name, &mut value[..]) {
            found.insert(name.to_vec(), value[..length].to_vec());
        }
    }
    found
}
