//! Work with many files, in a process of its own: the launcher never stands still for it.
//!
//! A worker on a container's files makes the container's root its own first, so whatever a link in there says, it
//! cannot leave. It executes nothing and loads nothing from there (CVE-2019-14271).

use super::Identity;
use super::protocol::Job;
use crate::native::image::{Blob, remove_tree, unpack_into};
use crate::native::launch::{Trouble, Trying};
use crate::native::sys::Called;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Does the job and writes its outcome; returns the exit code.
pub(super) fn run(job: Job, root: Option<&OwnedFd>, descriptors: Vec<OwnedFd>, identity: Identity) -> i32 {
    rustix::process::umask(Mode::empty());
    let Ok([data, outcome]) = <[OwnedFd; 2]>::try_from(descriptors) else { return 2 };
    let result = match job {
        Job::CopyIn { path, .. } => {
            told(enter(root, &path).and_then(|()| copy_in(File::from(data), identity)))
        }
        Job::CopyOut { path, .. } => {
            told(enter(root, Path::new("/")).and_then(|()| copy_out(&path, File::from(data))))
        }
        Job::Unpack { target, offset, length, options } => {
            let blob = Blob { file: Arc::new(File::from(data)), offset, length };
            told(Ok(unpack_into(&blob, &target, &options)))
        }
        Job::RemoveTree { path } => {
            told(remove_tree(&path).map_err(|error| failed(format!("remove {}", path.display()), &error)))
        }
    };
    let text = result.unwrap_or_default();
    i32::from(File::from(outcome).write_all(&text).is_err())
}

fn told<T: Serialize>(outcome: Result<T, Trouble>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&outcome)
}

/// Makes the container's root this process's root, and `directory` its working directory.
fn enter(root: Option<&OwnedFd>, directory: &Path) -> Result<(), Trouble> {
    let doing = || "enter the container's files".to_owned();
    let root = root.ok_or_else(|| Trouble::new(doing(), "it has none"))?;
    rustix::process::fchdir(root).call(|| "fchdir(root)".to_owned()).trying(doing)?;
    rustix::process::chroot(".").call(|| "chroot(\".\")".to_owned()).trying(doing)?;
    give_up_privileges().call(|| "capset()".to_owned()).trying(doing)?;
    rustix::process::chdir(directory)
        .call(|| format!("chdir({directory:?})"))
        .trying(|| format!("enter the directory {}", directory.display()))
}

/// What remains is what writing other people's files needs. With `CAP_SYS_PTRACE`, a link into `/proc` would lead a
/// worker through another process's root and out (CVE-2018-15664).
fn give_up_privileges() -> Result<(), rustix::io::Errno> {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let kept = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP;
    let mut sets = capabilities(None)?;
    sets.effective &= kept;
    sets.permitted &= kept;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets)
}

fn failed(doing: String, error: &io::Error) -> Trouble {
    Trouble::new(doing, error.to_string())
}

fn copy_in(data: File, identity: Identity) -> Result<(), Trouble> {
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(1 << 18, data));
    let entries = archive.entries().map_err(|error| failed("read the archive".to_owned(), &error))?;
    let mut times = Vec::new();
    for entry in entries {
        let mut entry = entry.map_err(|error| failed("read the archive".to_owned(), &error))?;
        let path = entry
            .path()
            .map(|path| path.into_owned())
            .map_err(|error| failed("read the archive".to_owned(), &error))?;
        let path = inside(&path)?;
        let doing = || format!("write {}", path.display());
        put(&mut entry, &path).map_err(|error| failed(doing(), &error))?;
        finish(&entry, &path, identity).map_err(|error| failed(doing(), &error))?;
        if entry.header().entry_type().is_dir() {
            times.push((path.clone(), entry.header().mtime().unwrap_or(0)));
        }
    }
    // Directories last: making an entry in one changes its time.
    for (path, seconds) in times.iter().rev() {
        set_time(path, *seconds);
    }
    // What stands behind the end of the archive is read, so that the sender is not cut off.
    io::copy(&mut archive.into_inner(), &mut io::sink())
        .map_err(|error| failed("read the archive".to_owned(), &error))?;
    Ok(())
}

/// The path of an entry relative to the target; `..` is refused.
fn inside(path: &Path) -> Result<PathBuf, Trouble> {
    let mut kept = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => kept.push(name),
            Component::CurDir | Component::RootDir => {}
            _ => {
                return Err(Trouble::new(
                    format!("write {}", path.display()),
                    "`..` may not stand in an archive's path",
                ));
            }
        }
    }
    Ok(if kept.as_os_str().is_empty() { PathBuf::from(".") } else { kept })
}

fn put<R: Read>(entry: &mut tar::Entry<'_, R>, path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        // The umask of a worker is empty.
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    let kind = entry.header().entry_type();
    if kind.is_dir() {
        return match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        };
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A file that is mounted there is written through.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        other => other?,
    }
    let link = || -> io::Result<PathBuf> {
        let name = entry.link_name()?.ok_or_else(|| io::Error::other("the link has no target"))?;
        Ok(name.into_owned())
    };
    match kind {
        tar::EntryType::Symlink => symlink(link()?, path),
        tar::EntryType::Link => fs::hard_link(link()?, path),
        kind if kind.is_file() => {
            let mut file = File::create(path)?;
            io::copy(entry, &mut file).map(drop)
        }
        tar::EntryType::Fifo => {
            rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).map_err(Into::into)
        }
        other => Err(io::Error::other(format!("entries of type {other:?} are not copied"))),
    }
}

/// Owner first, then mode: a change of owner takes the set-user-id bits away.
fn finish<R: Read>(entry: &tar::Entry<'_, R>, path: &Path, identity: Identity) -> io::Result<()> {
    let header = entry.header();
    if identity != Identity::Single {
        let id = |number: u64| {
            // All bits set means "unchanged" to the kernel.
            let id = u32::try_from(number).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| io::Error::other(format!("there is no id {number}")))
        };
        let (uid, gid) = (Uid::from_raw(id(header.uid()?)?), Gid::from_raw(id(header.gid()?)?));
        rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    let kind = header.entry_type();
    if kind.is_symlink() || kind.is_hard_link() {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(header.mode()? & 0o7777))?;
    if kind.is_file() {
        set_time(path, header.mtime()?);
    }
    Ok(())
}

fn set_time(path: &Path, seconds: u64) {
    let time = rustix::fs::Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let _ = rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}

fn copy_out(path: &Path, data: File) -> Result<(), Trouble> {
    let doing = || format!("read {}", path.display());
    let metadata = fs::symlink_metadata(path).map_err(|error| failed(doing(), &error))?;
    let name = path.file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(1 << 18, data));
    archive.follow_symlinks(false);
    let added = if metadata.is_dir() {
        archive.append_dir_all(&name, path)
    } else {
        archive.append_path_with_name(path, &name)
    };
    if let Err(error) = added {
        // Dropped, the archive would be given its proper end, and pass for whole.
        std::mem::forget(archive);
        return Err(failed(doing(), &error));
    }
    let mut data = archive.into_inner().map_err(|error| failed(doing(), &error))?;
    data.flush().map_err(|error| failed(doing(), &error))
}
