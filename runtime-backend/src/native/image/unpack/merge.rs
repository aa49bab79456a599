//! Puts unpacked layers on top of each other in one directory, as overlayfs would show them.
//!
//! Files are linked, not copied, where the layers lie on the same file system; a layer may come twice. Directories are made
//! anew. One directory of each side is open at a time, however deep the trees are.

use super::apply::read_xattrs;
use super::lower::{is_opaque, kind};
use crate::native::image::remove::{enter, remove_at};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory of the layer that is being gone through: its rights, and the names left in it.
struct Level {
    stat: Stat,
    left: Vec<CString>,
}

/// How a file comes into the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// As a further name of the layer's.
    Linked,
    /// As a file of its own: for who may write to it, or on another file system.
    Copied,
}

/// Puts the unpacked layer `tree` on top of what is in `target`.
///
/// # Errors
///
/// The system refuses a call. `target` is then in no useful state.
pub(crate) fn merge(
    tree: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    userxattr: bool,
    files: Files,
) -> io::Result<()> {
    let mut from = rustix::fs::openat(tree, c".", DIRECTORY, Mode::empty())?;
    let mut to = rustix::fs::openat(target, c".", DIRECTORY, Mode::empty())?;
    let stat = rustix::fs::fstat(&from)?;
    let mut levels = vec![Level::of(&from, stat)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.left.pop() else {
            let stat = level.stat;
            levels.pop();
            let above = [&from, &to].map(|here| rustix::fs::openat(here, c"..", DIRECTORY, Mode::empty()));
            // After what is in it, for filling a directory changes its time; and after the way up is open, for its
            // rights may not allow to go it.
            settle(&from, &to, &stat)?;
            if !levels.is_empty() {
                let [from_above, to_above] = above;
                (from, to) = (from_above?, to_above?);
            }
            continue;
        };
        let stat = rustix::fs::statat(&from, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        match kind(&stat) {
            FileType::CharacterDevice if stat.st_rdev == 0 => remove_at(to.as_fd(), &name)?,
            FileType::Directory => {
                from = enter(from.as_fd(), &name)?.ok_or(Errno::NOTDIR)?;
                to = directory(to.as_fd(), &name, is_opaque(from.as_fd(), userxattr))?;
                levels.push(Level::of(&from, stat)?);
            }
            _ if files == Files::Linked => link(from.as_fd(), to.as_fd(), &name)?,
            _ => {
                remove_at(to.as_fd(), &name)?;
                copy(from.as_fd(), to.as_fd(), &name, &stat)?;
            }
        }
    }
    Ok(())
}

impl Level {
    fn of(directory: &OwnedFd, stat: Stat) -> Result<Self, Errno> {
        let mut left = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                left.push(entry.file_name().to_owned());
            }
        }
        Ok(Self { stat, left })
    }
}

/// The directory `name` of the target: as the layers below left it, or a new one.
fn directory(parent: BorrowedFd<'_>, name: &CStr, opaque: bool) -> Result<OwnedFd, Errno> {
    let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    let kept = matches!(&there, Ok(stat) if kind(stat) == FileType::Directory) && !opaque;
    if !kept {
        remove_at(parent, name)?;
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
    }
    enter(parent, name)?.ok_or(Errno::NOTDIR)
}

fn link(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::linkat(from, name, to, name, AtFlags::empty()) {
        Err(Errno::EXIST) => {
            remove_at(to, name)?;
            rustix::fs::linkat(from, name, to, name, AtFlags::empty())
        }
        result => result,
    }
}

/// Copies what is no directory. Files of several names become several files, as they would when they are written to in a
/// container.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    let (unread, mode) = (Mode::from_raw_mode(0o600), Mode::from_raw_mode(stat.st_mode & 0o7777));
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let give = |to: BorrowedFd<'_>| match own == (stat.st_uid, stat.st_gid) {
        true => Ok(()),
        false => rustix::fs::chownat(to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW),
    };
    match kind(stat) {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&*target, to, name)?;
            give(to)?;
        }
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = rustix::fs::openat(from, name, flags | OFlags::RDONLY, Mode::empty())?;
            let made = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let target = rustix::fs::openat(to, name, made, unread)?;
            let (mut source, mut target) = (File::from(source), File::from(target));
            io::copy(&mut source, &mut target)?;
            // After the content and the owner, which take attributes away.
            settle(&source.into(), &target.into(), stat)?;
            return Ok(());
        }
        other => {
            rustix::fs::mknodat(to, name, other, unread, stat.st_rdev)?;
            give(to)?;
            rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
        }
    }
    Ok(rustix::fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(stat: &Stat) -> Timestamps {
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Gives a directory or file the owner, attributes, rights and time of the layer's.
fn settle(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    let here = rustix::fs::fstat(to)?;
    if (here.st_uid, here.st_gid) != (stat.st_uid, stat.st_gid) {
        rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    }
    for (name, value) in read_xattrs(from.as_fd()) {
        rustix::fs::fsetxattr(to, &name[..], &value, XattrFlags::empty())?;
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    rustix::fs::futimens(to, &times(stat))
}
