//! Finds directories inside the target, and never anything outside of it.
//!
//! Every path is resolved by the kernel as if the target were `/` (`openat2` with `RESOLVE_IN_ROOT`), so that no
//! symlink a layer brings leads out. Where the kernel has no `openat2` (before 5.6, or under an old seccomp filter), a
//! walk of `O_PATH` descriptors does the same. Last components are never followed: whatever changes the tree works on
//! a directory's descriptor and a single name.

use super::error::UnpackError;
use super::path::EntryPath;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// As many as the kernel follows (`path_resolution(7)`).
const MOST_SYMLINKS: u32 = 40;
/// Open directories kept. Archives are written directory by directory, so few are enough, and a process may have as
/// few as 1024 descriptors for all its layers.
const KEPT_OPEN: usize = 64;

/// How paths are resolved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolver {
    /// By the kernel if it can, else by the walk.
    #[default]
    Auto,
    /// By the walk. For tests of it.
    Walk,
}

/// The target directory and the directories in it that are open.
pub(crate) struct Root<'a> {
    fd: BorrowedFd<'a>,
    walk: bool,
    open: HashMap<Vec<u8>, Rc<OwnedFd>>,
}

/// A directory found or made.
pub(crate) struct Found {
    pub(crate) fd: Rc<OwnedFd>,
    /// The directories that had to be made on the way, outermost first, as they were spelled.
    pub(crate) made: Vec<Vec<u8>>,
}

const HANDLE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const NO_FOLLOW: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl<'a> Root<'a> {
    pub(crate) fn new(fd: BorrowedFd<'a>, resolver: Resolver) -> Self {
        let walk = resolver == Resolver::Walk || !kernel_resolves(fd);
        Self { fd, walk, open: HashMap::new() }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'a> {
        self.fd
    }

    /// Forgets the open directories: something on a path to one of them may have been replaced.
    pub(crate) fn forget(&mut self) {
        self.open.clear();
    }

    /// The directory that contains `path`, if it exists.
    pub(crate) fn existing_parent(&mut self, path: &EntryPath) -> Result<Option<Rc<OwnedFd>>, UnpackError> {
        let (directory, _) = path.split();
        if let Some(fd) = self.open.get(directory) {
            return Ok(Some(Rc::clone(fd)));
        }
        match self.resolve(directory) {
            Ok(fd) => Ok(Some(self.keep(directory, fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(explain(path, error)),
        }
    }

    /// The directory that contains `path`; what is missing on the way is made.
    pub(crate) fn parent(&mut self, path: &EntryPath) -> Result<Found, UnpackError> {
        if let Some(fd) = self.existing_parent(path)? {
            return Ok(Found { fd, made: Vec::new() });
        }
        let (directory, _) = path.split();
        let (mut made, mut left) = (Vec::new(), MOST_SYMLINKS);
        let fd = self.ensure(directory, &mut made, &mut left).map_err(|error| explain(path, error))?;
        Ok(Found { fd: self.keep(directory, fd), made })
    }

    fn keep(&mut self, directory: &[u8], fd: OwnedFd) -> Rc<OwnedFd> {
        if self.open.len() >= KEPT_OPEN {
            self.open.clear();
        }
        let fd = Rc::new(fd);
        self.open.insert(directory.to_vec(), Rc::clone(&fd));
        fd
    }

    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if self.walk {
            return walk(self.fd, path);
        }
        let path = if path.is_empty() { b"." } else { path };
        // RESOLVE_IN_ROOT may say EAGAIN when anything is renamed meanwhile anywhere (openat2(2), ERRORS).
        loop {
            let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(self.fd, path, HANDLE, Mode::empty(), how) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Opens the directory, making what is missing. A symlink on the way may lead to a directory that only a lower
    /// layer has; it is made in this one, inside of the root, as it is merged with the lower one later.
    fn ensure(&self, path: &[u8], made: &mut Vec<Vec<u8>>, left: &mut u32) -> Result<OwnedFd, Errno> {
        match self.resolve(path) {
            Err(Errno::NOENT) => {}
            result => return result,
        }
        let trimmed = path.trim_suffix_slashes();
        let slash = trimmed.iter().rposition(|byte| *byte == b'/');
        let (directory, name) = slash.map_or((&b""[..], trimmed), |at| (&trimmed[..at], &trimmed[at + 1..]));
        let parent = self.ensure(directory, made, left)?;
        if matches!(name, b"" | b"." | b"..") {
            return self.resolve(path);
        }
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                made.push(path.to_vec());
                rustix::fs::openat(&parent, name, HANDLE | OFlags::NOFOLLOW, Mode::empty())
            }
            Err(Errno::EXIST) => {
                // Made meanwhile, on the way of another symlink of the same path.
                if let Ok(fd) = rustix::fs::openat(&parent, name, HANDLE | OFlags::NOFOLLOW, Mode::empty()) {
                    return Ok(fd);
                }
                *left = left.checked_sub(1).filter(|left| *left > 0).ok_or(Errno::LOOP)?;
                let target =
                    rustix::fs::readlinkat(&parent, name, Vec::new()).map_err(|_not_link| Errno::NOTDIR)?;
                let target = target.as_bytes();
                let path = if target.starts_with(b"/") {
                    target.to_vec()
                } else {
                    [directory, b"/", target].concat()
                };
                if path.len() > 4095 {
                    return Err(Errno::NAMETOOLONG);
                }
                self.ensure(&path, made, left)
            }
            Err(error) => Err(error),
        }
    }
}

trait TrimSlashes {
    fn trim_suffix_slashes(&self) -> &[u8];
}

impl TrimSlashes for [u8] {
    fn trim_suffix_slashes(&self) -> &[u8] {
        &self[..self.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1)]
    }
}

fn explain(path: &EntryPath, error: Errno) -> UnpackError {
    match error {
        Errno::NOTDIR => UnpackError::refused(path.as_bytes(), "a file stands where its directory should be"),
        Errno::LOOP => UnpackError::refused(path.as_bytes(), "the symlinks on its path go in a circle"),
        Errno::NAMETOOLONG => {
            UnpackError::refused(path.as_bytes(), "its path is too long for the file system")
        }
        error => UnpackError::system(format!("open the directory of `{path}`"), error),
    }
}

fn kernel_resolves(fd: BorrowedFd<'_>) -> bool {
    // Filters of old container engines answer EPERM to calls they do not know.
    let result = rustix::fs::openat2(fd, c".", HANDLE, Mode::empty(), ResolveFlags::IN_ROOT);
    !matches!(result, Err(Errno::NOSYS | Errno::PERM))
}

/// What `openat2` with `RESOLVE_IN_ROOT` does, in user space: `..` of the root is the root, an absolute symlink starts
/// at the root again. Nothing else changes the tree meanwhile (it is private until it is complete), so looking first
/// and following then is no race.
fn walk(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let reopen = |fd: BorrowedFd<'_>| rustix::fs::openat(fd, c".", HANDLE, Mode::empty());
    let mut stack: Vec<OwnedFd> = Vec::new();
    let mut todo: Vec<Vec<u8>> = components_reversed(path);
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == b".." {
            stack.pop();
            continue;
        }
        let here = stack.last().map_or(root, AsFd::as_fd);
        let next = rustix::fs::openat(here, &name[..], NO_FOLLOW, Mode::empty())?;
        match file_type(next.as_fd())? {
            FileType::Directory => stack.push(next),
            FileType::Symlink => {
                links += 1;
                if links > MOST_SYMLINKS {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(&next, c"", Vec::new())?;
                if target.as_bytes().starts_with(b"/") {
                    stack.clear();
                }
                todo.extend(components_reversed(target.as_bytes()));
            }
            _ => return Err(Errno::NOTDIR),
        }
    }
    match stack.pop() {
        Some(fd) => Ok(fd),
        None => reopen(root),
    }
}

fn components_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let mut parts: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    parts.reverse();
    parts
}

fn file_type(fd: BorrowedFd<'_>) -> Result<FileType, Errno> {
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    /// A tree with every kind of symlink that could lead out, in a directory with something to find outside.
    fn tree() -> tempfile::TempDir {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir_all(outer.path().join("secret")).unwrap();
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        let links = [
            ("lib", "usr/lib"),
            ("abs", "/usr/lib"),
            ("out", "../secret"),
            ("far", "/../../../usr"),
            ("loop", "loop"),
            ("usr/up", "../../.."),
            ("chain", "abs/../up"),
            ("gone", "/run/lock"),
        ];
        for (name, target) in links {
            symlink(target, root.join(name)).unwrap();
        }
        outer
    }

    /// Resolves `path` in both ways; the result is where it landed, relative to the root.
    fn lands(path: &str) -> [Result<String, Errno>; 2] {
        [Resolver::Auto, Resolver::Walk].map(|resolver| {
            let outer = tree();
            let root = fs::File::open(outer.path().join("root")).unwrap();
            let found = Root::new(root.as_fd(), resolver).resolve(path.as_bytes())?;
            let found = fs::File::from(found).metadata().unwrap().ino();
            let places = ["", "usr", "usr/lib", "../secret"];
            let ino = |place: &&str| fs::metadata(outer.path().join("root").join(place)).unwrap().ino();
            Ok((*places.iter().find(|place| ino(place) == found).unwrap()).to_owned())
        })
    }

    #[track_caller]
    fn check(path: &str, expected: Result<&str, Errno>) {
        let expected = expected.map(str::to_owned);
        assert_eq!(lands(path), [expected.clone(), expected], "{path}");
    }

    /// No symlink leads out of the root, with and without the kernel's help.
    #[test]
    fn symlinks_stay_inside() {
        check("", Ok(""));
        check("usr/lib", Ok("usr/lib"));
        check("lib", Ok("usr/lib"));
        check("abs", Ok("usr/lib"));
        check("far", Ok("usr"));
        check("usr/up", Ok(""));
        check("chain", Ok(""));
        check("../../..", Ok(""));
        check("out", Err(Errno::NOENT));
        check("gone", Err(Errno::NOENT));
        check("loop", Err(Errno::LOOP));
        check("file", Err(Errno::NOTDIR));
        check("file/x", Err(Errno::NOTDIR));
    }

    /// A symlink to a directory of a lower layer gets its directory inside of the root.
    #[test]
    fn missing_directories_are_made_inside() {
        for resolver in [Resolver::Auto, Resolver::Walk] {
            let outer = tree();
            let root = fs::File::open(outer.path().join("root")).unwrap();
            let mut root = Root::new(root.as_fd(), resolver);
            let made = |root: &mut Root<'_>, name: &str| {
                root.parent(&EntryPath::new(name.as_bytes()).unwrap()).map(|found| found.made.len())
            };
            assert_eq!(made(&mut root, "gone/file").unwrap(), 2);
            assert_eq!(made(&mut root, "out/file").unwrap(), 1);
            assert_eq!(made(&mut root, "a/b/c").unwrap(), 2);
            assert!(made(&mut root, "loop/file").is_err());
            assert!(outer.path().join("root/run/lock").is_dir());
            assert!(outer.path().join("root/secret").is_dir());
            assert_eq!(fs::read_dir(outer.path().join("secret")).unwrap().count(), 0);
        }
    }
}
