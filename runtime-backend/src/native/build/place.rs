//! Puts copied files into the image under construction, in a worker whose root is the image's.
//!
//! With the image's root as its own the worker cannot leave it, whatever the links in there say; it executes and loads
//! nothing from there (CVE-2019-14271). Where files end up is decided as BuildKit decides it.

use super::archive;
use super::mode::ModeChange;
use super::select::{NotSelected, Selection, Source, open_inside, select};
use crate::native::image::Limits;
use crate::native::launch::{Trouble, Trying};
use crate::native::launcher::{Extraction, extract};
use crate::native::sys::Called;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// What is copied, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placing {
    /// What is taken.
    pub(crate) selection: Selection,
    /// Where it goes: absolute, in the image.
    pub(crate) destination: PathBuf,
    /// Whether that is a directory even if it is not there yet.
    pub(crate) into_directory: bool,
    /// Whether the directories of a source are made below it, too.
    pub(crate) parents: bool,
    /// Who owns the copies and the directories made for them; as at the source if unset.
    pub(crate) owner: Option<(u32, u32)>,
    /// Permissions, if they are not those of the source.
    pub(crate) mode: Option<ModeChange>,
    /// Whether an archive is unpacked in place of being copied.
    pub(crate) unpack: bool,
    /// Whether owners can be given at all: not where there is one id only.
    pub(crate) owners: bool,
}

/// How a copy went, when nothing went wrong on the way.
pub(crate) type Placed = Result<(), NotSelected>;

/// Chooses the files in `source`, makes the image's root this process's with `enter`, and copies them.
pub(crate) fn place(
    source: &OwnedFd,
    placing: &Placing,
    enter: impl FnOnce() -> Result<(), Trouble>,
) -> Result<Placed, Trouble> {
    let sources = match select(source.as_fd(), &placing.selection) {
        Ok(sources) => sources,
        Err(not_selected) => return Ok(Err(not_selected)),
    };
    enter()?;
    let mut placer =
        Placer { source: source.as_fd(), placing, links: HashMap::new(), directories: Vec::new() };
    for source in &sources {
        placer.source(source)?;
    }
    placer.finish_directories()?;
    Ok(Ok(()))
}

/// Makes the directory `path` and those above it, for `owner` each that has to be made.
pub(crate) fn make_directories(path: &Path, owner: Option<(u32, u32)>, mode: u32) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(parent) = path.parent() {
        make_directories(parent, owner, 0o755)?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => owner.map_or(Ok(()), |owner| own(path, owner)),
        // A link to a directory that is not there.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let target = path.parent().unwrap_or(Path::new("/")).join(fs::read_link(path)?);
            make_directories(&target, owner, mode)
        }
        Err(error) => Err(error),
    }
}

fn own(path: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

struct Placer<'a> {
    source: BorrowedFd<'a>,
    placing: &'a Placing,
    /// Files with several names, by inode: where the first one is now.
    links: HashMap<(u64, u64), PathBuf>,
    /// Directories get their times last: filling one changes its time.
    directories: Vec<(PathBuf, Stat)>,
}

fn failed(doing: String) -> impl Fn(io::Error) -> Trouble {
    move |error| Trouble::new(doing.clone(), error.to_string())
}

impl Placer<'_> {
    fn owner(&self) -> Option<(u32, u32)> {
        self.placing.owner.filter(|_| self.placing.owners)
    }

    fn source(&mut self, source: &Source) -> Result<(), Trouble> {
        let (target, below) = self.target(source)?;
        let writing = || failed(format!("write {}", target.display()));
        if source.directory {
            make_directories(&target, self.owner(), 0o755).map_err(writing())?;
            for inner in &source.inner {
                self.node(&source.path.join(inner), &target.join(inner))?;
            }
            return Ok(());
        }
        if self.placing.unpack && self.unpacked(source, &target)? {
            return Ok(());
        }
        let target = if below { target.join(source.name().unwrap_or_default()) } else { target.clone() };
        if let Some(parent) = target.parent() {
            make_directories(parent, self.owner(), 0o755).map_err(writing())?;
        }
        self.node(&source.path, &target)
    }

    /// Where a source goes, without links, and whether that is a directory that the source, a file, is put in.
    fn target(&self, source: &Source) -> Result<(PathBuf, bool), Trouble> {
        let mut wanted = self.placing.destination.clone();
        let mut into = self.placing.into_directory;
        if self.placing.parents {
            let kept = source.spelled.components().filter(|c| matches!(c, std::path::Component::Normal(_)));
            let kept: PathBuf = kept.collect();
            wanted.push(
                if source.directory { Some(kept.as_path()) } else { kept.parent() }.unwrap_or(Path::new("")),
            );
            into = true;
        }
        let target = resolved(&wanted).map_err(failed(format!("find {}", wanted.display())))?;
        let is_directory = fs::metadata(&target).is_ok_and(|found| found.is_dir());
        Ok((target, !source.directory && (into || is_directory)))
    }

    /// Unpacks the source if it is an archive.
    fn unpacked(&self, source: &Source, target: &Path) -> Result<bool, Trouble> {
        let reading = || failed(format!("read {}", source.path.display()));
        let file = open_inside(self.source, &source.path, OFlags::RDONLY)
            .map_err(|error| reading()(error.into()))?;
        if kind(&rustix::fs::fstat(&file).map_err(|error| reading()(error.into()))?) != FileType::RegularFile
        {
            return Ok(false);
        }
        let limits = Limits::default();
        let Some(archive) = archive::open(File::from(file), limits).map_err(reading())? else {
            return Ok(false);
        };
        let entering = || format!("enter {}", target.display());
        make_directories(target, self.owner(), 0o755).map_err(failed(entering()))?;
        rustix::process::chdir(target).call(|| format!("chdir({target:?})")).trying(entering)?;
        let extraction = Extraction { owners: self.placing.owners, devices: true, limits };
        extract(archive, Path::new(""), extraction)?;
        Ok(true)
    }

    /// Copies one entry to where nothing of another kind may be.
    fn node(&mut self, from: &Path, to: &Path) -> Result<(), Trouble> {
        self.copy(from, to).map_err(failed(format!("copy {} to {}", from.display(), to.display())))
    }

    fn copy(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let handle = open_inside(self.source, from, OFlags::PATH)?;
        let stat = rustix::fs::fstat(&handle)?;
        let present = fs::symlink_metadata(to).ok();
        if kind(&stat) == FileType::Directory {
            match present {
                None => fs::create_dir(to)?,
                Some(found) if found.is_dir() => {}
                Some(_) => return Err(io::Error::other("a file is there, and would have to be a directory")),
            }
            self.finish(from, to, &stat)?;
            self.directories.push((to.to_owned(), stat));
            return Ok(());
        }
        match present {
            Some(found) if found.is_dir() => {
                return Err(io::Error::other("a directory is there, and would have to be a file"));
            }
            Some(_) => fs::remove_file(to)?,
            None => {}
        }
        if stat.st_nlink > 1 && kind(&stat) == FileType::RegularFile {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return fs::hard_link(first, to);
            }
            self.links.insert((stat.st_dev, stat.st_ino), to.to_owned());
        }
        self.make(&handle, from, to, &stat)?;
        self.finish(from, to, &stat)?;
        set_time(to, &stat)
    }

    fn make(&self, handle: &OwnedFd, from: &Path, to: &Path, stat: &Stat) -> io::Result<()> {
        let node = kind(stat);
        match node {
            FileType::RegularFile => {
                let mut source = File::from(open_inside(self.source, from, OFlags::RDONLY)?);
                let mut target = File::create_new(to)?;
                io::copy(&mut source, &mut target).map(drop)
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(handle, c"", Vec::new())?;
                symlink(std::ffi::OsStr::from_bytes(link.as_bytes()), to)
            }
            _ => Ok(rustix::fs::mknodat(CWD, to, node, Mode::from_raw_mode(0o600), stat.st_rdev)?),
        }
    }

    /// Owner first, then attributes and permissions: a change of owner takes capabilities and set-user-id bits away.
    fn finish(&self, from: &Path, to: &Path, stat: &Stat) -> io::Result<()> {
        if self.placing.owners {
            own(to, self.placing.owner.unwrap_or((stat.st_uid, stat.st_gid)))?;
        }
        if kind(stat) == FileType::Symlink {
            return Ok(());
        }
        if matches!(kind(stat), FileType::RegularFile | FileType::Directory) {
            let opened = open_inside(self.source, from, OFlags::RDONLY)?;
            for (name, value) in super::capture::attributes(opened.as_fd()) {
                match rustix::fs::lsetxattr(to, &name[..], &value, XattrFlags::empty()) {
                    // This user or this file system has none.
                    Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::NOTSUP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let directory = kind(stat) == FileType::Directory;
        let mode = stat.st_mode & 0o7777;
        let mode = self.placing.mode.as_ref().map_or(mode, |change| change.apply(mode, directory));
        fs::set_permissions(to, fs::Permissions::from_mode(mode))
    }

    fn finish_directories(&self) -> Result<(), Trouble> {
        for (path, stat) in self.directories.iter().rev() {
            set_time(path, stat).map_err(failed(format!("set the time of {}", path.display())))?;
        }
        Ok(())
    }
}

fn set_time(path: &Path, stat: &Stat) -> io::Result<()> {
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// A path without links, as far as it is there; what is not there is named as it will be.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let mut found = PathBuf::from("/");
    let mut todo: Vec<PathBuf> = vec![path.to_owned()];
    let mut links = 0;
    while let Some(next) = todo.pop() {
        let mut components = next.components();
        let Some(component) = components.next() else { continue };
        let rest = components.as_path().to_owned();
        todo.push(rest);
        match component {
            std::path::Component::RootDir => found = PathBuf::from("/"),
            std::path::Component::ParentDir => drop(found.pop()),
            std::path::Component::Normal(name) => {
                let here = found.join(name);
                match fs::read_link(&here) {
                    Ok(target) => {
                        links += 1;
                        // As many as the kernel follows (path_resolution(7)).
                        if links > 40 {
                            return Err(rustix::io::Errno::LOOP.into());
                        }
                        todo.push(target);
                    }
                    Err(_no_link) => found = here,
                }
            }
            _ => {}
        }
    }
    Ok(found)
}
