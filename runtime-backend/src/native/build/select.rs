//! Which files a `COPY`, an `ADD` or a mount takes, and what they are: the digest that tells whether they have changed.
//!
//! The files are found beneath a descriptor of their root, the build's context or the root file system of a stage.
//! Symbolic links are followed where the Dockerfile names one, inside of that root; those found in a directory are kept.

use super::capture::{attributes, names};
use super::glob::{glob, has_wildcard, unescape};
use crate::build::ignore::Patterns;
use crate::native::image::{Digest, Hasher};
use crate::native::launch::mounts::resolve;
use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Selection {
    /// Paths or globs, relative to the root.
    pub(crate) patterns: Vec<String>,
    /// Whether patterns are globs; a mount's source is not.
    pub(crate) globs: bool,
    /// Lines of `.dockerignore`: what the root does not have, whatever is on the disk.
    pub(crate) ignore: Vec<String>,
    /// `--exclude`: what is left out of each source.
    pub(crate) exclude: Vec<String>,
    /// Whether owners matter: in the context they are those of whoever builds, and mean nothing.
    pub(crate) owners: bool,
}

/// One source: a file, or a directory with what is taken of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Where it is in the root, without a leading `/` and without links.
    pub(crate) path: PathBuf,
    /// As it was asked for.
    pub(crate) spelled: PathBuf,
    /// Whether it is a directory.
    pub(crate) directory: bool,
    /// What is taken of a directory, relative to it, directories before what they hold.
    pub(crate) inner: Vec<PathBuf>,
}

impl Source {
    /// Its own name.
    pub(crate) fn name(&self) -> Option<&OsStr> {
        self.spelled.file_name()
    }
}

/// Why files could not be selected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NotSelected {
    /// Nothing is there.
    Missing {
        /// As asked for.
        pattern: String,
        /// The pattern of `.dockerignore` keeps it out: it is there, but not for the build.
        ignored: bool,
    },
    /// It could not be read.
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

const HANDLE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
const NO_FOLLOW: OFlags = HANDLE.union(OFlags::NOFOLLOW);

/// Finds what `selection` asks for beneath `root`.
pub(crate) fn select(root: BorrowedFd<'_>, selection: &Selection) -> Result<Vec<Source>, NotSelected> {
    let filter = |lines: &[String]| {
        Patterns::new(lines).map_err(|reason| NotSelected::Unreadable { path: PathBuf::new(), reason })
    };
    let finder = Finder { root, ignore: filter(&selection.ignore)?, exclude: filter(&selection.exclude)? };
    let mut found = Vec::new();
    for pattern in &selection.patterns {
        finder.pattern(pattern, selection.globs, &mut found)?;
    }
    Ok(found)
}

struct Finder<'a> {
    root: BorrowedFd<'a>,
    ignore: Patterns,
    exclude: Patterns,
}

impl Finder<'_> {
    fn pattern(&self, pattern: &str, globs: bool, found: &mut Vec<Source>) -> Result<(), NotSelected> {
        // As with Docker: a glob that stands for nothing is no error.
        if globs && has_wildcard(pattern) {
            for path in self.matches(pattern)? {
                self.source(path, found)?;
            }
            return Ok(());
        }
        let before = found.len();
        let asked = PathBuf::from(if globs { unescape(pattern) } else { pattern.to_owned() });
        let ignored = self.source(asked, found)?;
        // A directory of which everything is excluded is an empty directory; what is ignored is not there.
        if found.len() == before && (ignored || self.exclude.is_empty()) {
            return Err(NotSelected::Missing { pattern: pattern.to_owned(), ignored });
        }
        Ok(())
    }

    /// Takes one path; whether it was there, but ignored.
    fn source(&self, spelled: PathBuf, found: &mut Vec<Source>) -> Result<bool, NotSelected> {
        let unreadable = |error: Errno| unreadable(&spelled, &error.into());
        let fd = match resolve(self.root, &spelled, HANDLE) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
            Err(error) => return Err(unreadable(error)),
        };
        let path = followed(self.root, &fd).map_err(|error| unreadable_io(&spelled, &error))?;
        let directory = kind(&rustix::fs::fstat(&fd).map_err(unreadable)?) == FileType::Directory;
        let mut inner = Vec::new();
        if directory {
            self.inside(&path, Path::new(""), &mut inner)?;
        }
        if self.ignored(&path) && inner.is_empty() {
            return Ok(true);
        }
        let excluded = |name: &OsStr| self.exclude.matches(&name.to_string_lossy());
        if !directory && spelled.file_name().is_some_and(excluded) {
            return Ok(false);
        }
        found.push(Source { path, spelled, directory, inner });
        Ok(false)
    }

    fn ignored(&self, path: &Path) -> bool {
        !path.as_os_str().is_empty() && self.ignore.matches(&path.to_string_lossy())
    }

    /// Everything below `base/inner` that is neither ignored nor excluded. A directory that is, is kept for what it holds
    /// by an exception.
    fn inside(&self, base: &Path, inner: &Path, found: &mut Vec<PathBuf>) -> Result<(), NotSelected> {
        let here = base.join(inner);
        let directory = self.open(&here, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let names = names(directory.as_fd()).map_err(|error| unreadable(&here, &error.into()))?;
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            let stat = rustix::fs::statat(&directory, &*name, AtFlags::SYMLINK_NOFOLLOW);
            entries.push((OsStr::from_bytes(name.to_bytes()).to_owned(), stat));
        }
        // However deep the directories are, one is open at a time.
        drop(directory);
        for (name, stat) in entries {
            let inner = inner.join(name);
            let path = base.join(&inner);
            let out = self.ignored(&path) || self.exclude.matches(&inner.to_string_lossy());
            let stat = stat.map_err(|error| unreadable(&path, &error.into()))?;
            let is_directory = kind(&stat) == FileType::Directory;
            if out && !(is_directory && (self.ignore.has_exceptions() || self.exclude.has_exceptions())) {
                continue;
            }
            // Nobody could listen at the copy of a socket.
            if kind(&stat) == FileType::Socket {
                continue;
            }
            found.push(inner.clone());
            if is_directory {
                let before = found.len();
                self.inside(base, &inner, found)?;
                if out && found.len() == before {
                    found.pop();
                }
            }
        }
        Ok(())
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, NotSelected> {
        open_inside(self.root, path, flags).map_err(|error| unreadable(path, &error.into()))
    }

    /// The paths a glob stands for, sorted; a `*` never stands for a `/`.
    fn matches(&self, pattern: &str) -> Result<Vec<PathBuf>, NotSelected> {
        let mut here = vec![PathBuf::new()];
        for part in pattern.split('/').filter(|part| !matches!(*part, "" | ".")) {
            let mut next = Vec::new();
            for directory in here {
                if has_wildcard(part) {
                    self.matches_in(&directory, part, &mut next)?;
                } else {
                    next.push(directory.join(unescape(part)));
                }
            }
            here = next;
        }
        here.retain(|path| resolve(self.root, path, HANDLE).is_ok());
        Ok(here)
    }

    fn matches_in(&self, directory: &Path, part: &str, next: &mut Vec<PathBuf>) -> Result<(), NotSelected> {
        let opened = match resolve(self.root, directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)
        {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(unreadable(directory, &error.into())),
        };
        let names = names(opened.as_fd()).map_err(|error| unreadable(directory, &error.into()))?;
        let matching = names.iter().map(|name| OsStr::from_bytes(name.to_bytes()));
        let matching = matching.filter(|name| glob(part.as_bytes(), name.as_bytes()));
        next.extend(matching.map(|name| directory.join(name)));
        Ok(())
    }
}

/// Opens a path found before: it has no links in it, and where one is now it has been exchanged.
pub(super) fn open_inside(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    // Reading must not wait for a writer of a pipe. openat2(2) takes this with nothing that only refers to a file.
    let reading =
        if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK | OFlags::NOCTTY };
    resolve(root, path, flags | reading | OFlags::NOFOLLOW | OFlags::CLOEXEC)
}

/// Where in `root` a descriptor leads to, without links.
pub(super) fn followed(root: BorrowedFd<'_>, fd: &OwnedFd) -> io::Result<PathBuf> {
    let name = |fd: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let (root, path) = (name(root)?, name(fd.as_fd())?);
    path.strip_prefix(&root).map(Path::to_owned).map_err(|_outside| Errno::XDEV.into())
}

fn unreadable(path: &Path, error: &io::Error) -> NotSelected {
    NotSelected::Unreadable { path: path.to_owned(), reason: error.to_string() }
}

fn unreadable_io(path: &Path, error: &io::Error) -> NotSelected {
    unreadable(path, error)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The digest of all that is selected: names, kinds, permissions and content, but no times.
pub(crate) fn digest(root: BorrowedFd<'_>, selection: &Selection) -> Result<Digest, NotSelected> {
    let mut hasher = Hasher::new();
    for source in select(root, selection)? {
        part(&mut hasher, source.name().unwrap_or_default().as_bytes());
        hash(&mut hasher, root, &source.path, selection.owners)?;
        for inner in &source.inner {
            part(&mut hasher, inner.as_os_str().as_bytes());
            hash(&mut hasher, root, &source.path.join(inner), selection.owners)?;
        }
    }
    Ok(hasher.finish())
}

/// With its length, so that two lists of parts never look the same.
fn part(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn hash(hasher: &mut Hasher, root: BorrowedFd<'_>, path: &Path, owners: bool) -> Result<(), NotSelected> {
    let failed = |error: Errno| unreadable(path, &error.into());
    let handle = open_inside(root, path, NO_FOLLOW).map_err(failed)?;
    let stat = rustix::fs::fstat(&handle).map_err(failed)?;
    let (uid, gid) = if owners { (stat.st_uid, stat.st_gid) } else { (0, 0) };
    part(hasher, format!("{:o} {uid} {gid} {}", stat.st_mode, stat.st_rdev).as_bytes());
    match kind(&stat) {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&handle, c"", Vec::new()).map_err(failed)?;
            part(hasher, target.as_bytes());
        }
        FileType::RegularFile => {
            let mut file = File::from(open_inside(root, path, OFlags::RDONLY).map_err(failed)?);
            for (name, value) in attributes(file.as_fd()) {
                part(hasher, &name);
                part(hasher, &value);
            }
            let mut content = Hasher::new();
            let mut buffer = vec![0; 128 << 10];
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => content.update(&buffer[..read]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(unreadable(path, &error)),
                }
            }
            part(hasher, content.finish().to_string().as_bytes());
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn context() -> tempfile::TempDir {
        let context = tempfile::tempdir().unwrap();
        fs::create_dir_all(context.path().join("src/deep")).unwrap();
        for file in ["a.txt", "b.txt", "src/one.rs", "src/deep/two.rs"] {
            fs::write(context.path().join(file), file).unwrap();
        }
        symlink("/src", context.path().join("link")).unwrap();
        symlink("../../..", context.path().join("out")).unwrap();
        context
    }

    fn selected(selection: &Selection) -> Result<Vec<(String, Vec<String>)>, NotSelected> {
        let context = context();
        let root = File::open(context.path()).unwrap();
        let text = |path: &PathBuf| path.display().to_string();
        let found = select(root.as_fd(), selection)?;
        Ok(found.iter().map(|source| (text(&source.path), source.inner.iter().map(text).collect())).collect())
    }

    fn asking(patterns: &[&str]) -> Selection {
        let patterns = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Selection { patterns, globs: true, ..Selection::default() }
    }

    /// Sources are found as Docker finds them, and a link never leads out of the context.
    #[test]
    fn sources_are_found() {
        let of = |patterns: &[&str]| selected(&asking(patterns)).unwrap();
        let paths = |patterns: &[&str]| of(patterns).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
        assert_eq!(paths(&["*.txt"]), ["a.txt", "b.txt"]);
        assert_eq!(paths(&["/src/*.rs", "none*"]), ["src/one.rs"]);
        let inner = ["deep", "deep/two.rs", "one.rs"].map(str::to_owned).to_vec();
        assert_eq!(of(&["link/"]), [("src".to_owned(), inner)]);
        assert_eq!(paths(&["out"]), [""]);
        assert!(of(&["."]).iter().all(|(_, inner)| inner.len() == 8));
        assert!(of(&["none*"]).is_empty());
        assert!(selected(&asking(&["c.txt"])).is_err());
    }

    /// What `.dockerignore` names is not there for the build, and `--exclude` leaves out of a source.
    #[test]
    fn what_is_ignored_is_not_there() {
        let ignore = vec!["src".to_owned(), "!src/deep".to_owned()];
        let asked = Selection { ignore, ..asking(&["src"]) };
        assert_eq!(selected(&asked).unwrap()[0].1, ["deep", "deep/two.rs"]);
        let asked = Selection { ignore: vec!["a.txt".to_owned()], ..asking(&["a.txt"]) };
        let missing = NotSelected::Missing { pattern: "a.txt".to_owned(), ignored: true };
        assert_eq!(selected(&asked), Err(missing));
        let asked = Selection { exclude: vec!["*.txt".to_owned(), "src/*.rs".to_owned()], ..asking(&["."]) };
        assert_eq!(selected(&asked).unwrap()[0].1, ["link", "out", "src", "src/deep", "src/deep/two.rs"]);
    }

    /// A build is done again when a file's content, name or permissions change, and not when its time does.
    #[test]
    fn the_digest_follows_the_content() {
        let context = context();
        let root = File::open(context.path()).unwrap();
        let now = || digest(root.as_fd(), &asking(&["."])).unwrap();
        let first = now();
        fs::write(context.path().join("a.txt"), "a.txt").unwrap();
        assert_eq!(now(), first);
        fs::write(context.path().join("a.txt"), "other").unwrap();
        let second = now();
        assert_ne!(second, first);
        fs::rename(context.path().join("a.txt"), context.path().join("c.txt")).unwrap();
        assert_ne!(now(), second);
    }
}
