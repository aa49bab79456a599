//! Work with many files, in a process of its own: the launcher never stands still for it.
//!
//! A worker on a container's files makes the container's root its own first, so whatever a link in there says, it
//! cannot leave. It executes nothing and loads nothing from there (CVE-2019-14271).

use super::extract::{Extraction, extract};
use super::protocol::{Job, Target};
use super::{Identity, become_root};
use crate::native::build::{CaptureOptions, Captured, capture, digest, make_directories, place};
use crate::native::image::{
    Blob, Limits, Owners, copy_trees, merge_trees, remove_tree, sum_tree, unpack_into,
};
use crate::native::launch::{Trouble, Trying};
use crate::native::sys::Called;
use rustix::fs::Mode;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files of containers that a job works on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Roots<'a> {
    /// What it is about.
    pub(super) target: Option<&'a OwnedFd>,
    /// Where it takes files from.
    pub(super) source: Option<&'a OwnedFd>,
    /// The user namespace whose root it does that as, if that is not the launcher's.
    pub(super) users: Option<BorrowedFd<'a>>,
}

/// Does the job and writes its outcome; returns the exit code.
pub(super) fn run(job: Job, roots: &Roots<'_>, mut descriptors: Vec<OwnedFd>, identity: Identity) -> i32 {
    rustix::process::umask(Mode::empty());
    let Some(outcome) = descriptors.pop() else { return 2 };
    let mut descriptors = descriptors.into_iter();
    let Some(data) = descriptors.next() else { return 2 };
    let (root, users) = (roots.target, roots.users);
    let result = match job {
        Job::CopyIn { path, .. } => told(enter(root, users, &path).and_then(|()| {
            let owners = identity != Identity::Single;
            let extraction = Extraction { owners, devices: false, limits: Limits::default() };
            extract(File::from(data), Path::new(""), extraction)
        })),
        Job::CopyOut { path, .. } => {
            told(enter(root, users, Path::new("/")).and_then(|()| copy_out(&path, File::from(data))))
        }
        Job::Unpack { target, offset, length, growing, options } => {
            let ticks = descriptors.next().filter(|_| growing);
            let blob = Blob::followed(Arc::new(File::from(data)), offset, length, ticks);
            told(Ok(unpack_into(&blob, &target, &options)))
        }
        Job::Digest { selection, .. } => told(Ok(digest(roots.source.unwrap_or(&data).as_fd(), &selection))),
        Job::Place { placing, to, .. } => {
            let source = roots.source.unwrap_or(&data);
            told(place(source, &placing, || match &to {
                Target::Container(_) => enter(root, None, Path::new("/")),
                Target::Directory(path) => {
                    let directory = File::open(path)
                        .map_err(|error| failed(format!("open {}", path.display()), &error))?;
                    enter(Some(&directory.into()), None, Path::new("/"))
                }
            }))
        }
        Job::MakeCache { path, owner, mode } => told(
            make_cache(&path, Some(owner).filter(|_| identity != Identity::Single), mode)
                .map_err(|error| failed(format!("make the directory {}", path.display()), &error)),
        ),
        Job::MakeDirectory { path, owner, .. } => {
            let owner = owner.filter(|_| identity != Identity::Single);
            told(enter(root, users, Path::new("/")).and_then(|()| {
                make_directories(&path, owner, 0o755)
                    .map_err(|error| failed(format!("make the directory {}", path.display()), &error))
            }))
        }
        Job::Capture { options, .. } => told(captured(roots, &options, File::from(data))),
        Job::RemoveTree { path } => {
            told(remove_tree(&path).map_err(|error| failed(format!("remove {}", path.display()), &error)))
        }
        Job::MergeTrees { trees, target } => {
            let merged = merge_trees(&trees, &target, true);
            told(merged.map_err(|error| failed(format!("merge layers in {}", target.display()), &error)))
        }
        Job::Fill { trees, .. } => {
            let filled =
                root.map_or(Ok(()), |root| copy_trees(&trees, root.as_fd(), identity.user_namespace()));
            told(filled.map_err(|error| failed("copy the image's files".to_owned(), &error)))
        }
        Job::Gather { .. } => told(super::gather::gather(root, roots.source, &data)),
        Job::SumTree { path } => {
            let sum = sum_tree(&path, Owners::Keep);
            told(sum.map_err(|error| failed(format!("read {}", path.display()), &error)))
        }
    };
    let text = result.unwrap_or_default();
    i32::from(File::from(outcome).write_all(&text).is_err())
}

/// In place of one that somebody who was killed had begun.
fn make_cache(path: &Path, owner: Option<(u32, u32)>, mode: u32) -> io::Result<()> {
    remove_tree(path)?;
    fs::create_dir(path)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn captured(roots: &Roots<'_>, options: &CaptureOptions, data: File) -> Result<Captured, Trouble> {
    let upper = roots.target.ok_or_else(|| Trouble::new("read what was written", "it has no place"))?;
    capture(upper, roots.source, options, io::BufWriter::with_capacity(1 << 18, data))
}

fn told<T: Serialize>(outcome: Result<T, Trouble>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&outcome)
}

/// Makes the container's root this process's root, and `directory` its working directory.
fn enter(root: Option<&OwnedFd>, users: Option<BorrowedFd<'_>>, directory: &Path) -> Result<(), Trouble> {
    let doing = || "enter the container's files".to_owned();
    users.map_or(Ok(()), become_root).trying(doing)?;
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
