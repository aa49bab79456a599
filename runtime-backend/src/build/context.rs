//! What a build may take files from.

use super::ignore::{self, Patterns};
use super::path::absolute;
use shakedown_spec::{BuildContext, ContextFile, Failure, FailureKind};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A build's context, with its `.dockerignore` read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The files.
    pub files: Files,
    /// The lines of `.dockerignore`: what is there on the disk, and not for the build.
    pub ignore: Vec<String>,
}

/// The files of a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Files {
    /// Those of this directory; absolute, without links.
    Directory(PathBuf),
    /// These.
    Memory(Vec<ContextFile>),
}

/// Something in a directory that belongs to a context.
#[derive(Debug)]
pub(crate) struct Found {
    /// Relative to the context, with `/`.
    pub(crate) path: String,
    pub(crate) file: PathBuf,
    pub(crate) metadata: fs::Metadata,
}

impl Context {
    /// Opens a context. `dockerfile` is the path of the Dockerfile, if it is a file: it may have a `.dockerignore` of its
    /// own beside it.
    ///
    /// # Errors
    ///
    /// There is no such directory, or what is to be left out cannot be understood.
    pub fn open(declared: &BuildContext, dockerfile: Option<&Path>) -> Result<Self, Failure> {
        let context = match declared {
            BuildContext::Directory(path) => Self::directory(path, dockerfile)?,
            BuildContext::Files(files) => {
                let files = files.iter().map(named).collect::<Result<Vec<_>, _>>()?;
                let ignore = files.iter().find(|file| file.path == ".dockerignore");
                let ignore = ignore.map(|file| ignore::lines(&String::from_utf8_lossy(&file.bytes)));
                Self { ignore: ignore.unwrap_or_default(), files: Files::Memory(files) }
            }
        };
        Patterns::new(&context.ignore).map_err(|reason| {
            Failure::new(FailureKind::Invalid, ".dockerignore is not understood").fact("pattern", reason)
        })?;
        Ok(context)
    }

    fn directory(path: &str, dockerfile: Option<&Path>) -> Result<Self, Failure> {
        let unusable = |error: io::Error| {
            Failure::new(FailureKind::Invalid, "the build context cannot be used")
                .fact("directory", path)
                .fact("reason", error.to_string())
        };
        let root = fs::canonicalize(path).map_err(unusable)?;
        if !root.is_dir() {
            return Err(unusable(io::ErrorKind::NotADirectory.into()));
        }
        let own = dockerfile.map(|file| {
            let mut name = file.as_os_str().to_owned();
            name.push(".dockerignore");
            PathBuf::from(name)
        });
        for file in own.into_iter().chain([root.join(".dockerignore")]) {
            match fs::read(&file) {
                Ok(text) => {
                    let ignore = ignore::lines(&String::from_utf8_lossy(&text));
                    return Ok(Self { files: Files::Directory(root), ignore });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let title = format!("{} cannot be read", file.display());
                    return Err(Failure::new(FailureKind::Invalid, title).fact("reason", error.to_string()));
                }
            }
        }
        Ok(Self { files: Files::Directory(root), ignore: Vec::new() })
    }

    /// Writes the files of a context in memory into an empty directory. The files of a directory stay where they are.
    ///
    /// # Errors
    ///
    /// A file cannot be written, such as one whose directory is a file.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let Files::Memory(files) = &self.files else { return Ok(()) };
        for file in files {
            let path = directory.join(&file.path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            // A later file of the same name replaces an earlier one.
            let mut out = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                .open(&path)?;
            out.write_all(&file.bytes)?;
            // Whatever the umask is: the mode is part of what is built.
            out.set_permissions(fs::Permissions::from_mode(file.mode.unwrap_or(0o644)))?;
        }
        Ok(())
    }

    /// Whether `.dockerignore` leaves this path out.
    pub(crate) fn patterns(&self) -> Patterns {
        // They have been read by `open`.
        Patterns::new(&self.ignore).unwrap_or_default()
    }

    /// What of a directory belongs to the context, directories before what they hold; links are not followed.
    pub(crate) fn walk(&self, root: &Path) -> Result<Vec<Found>, (PathBuf, io::Error)> {
        let patterns = self.patterns();
        let mut found = Vec::new();
        walk(root, "", &patterns, &mut found)?;
        Ok(found)
    }
}

fn walk(
    directory: &Path,
    prefix: &str,
    patterns: &Patterns,
    found: &mut Vec<Found>,
) -> Result<(), (PathBuf, io::Error)> {
    let about = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| (path, error)
    };
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut entries = entries.map_err(about(directory))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let file = entry.path();
        let out = patterns.matches(&path);
        let metadata = match fs::symlink_metadata(&file) {
            Ok(metadata) => metadata,
            // What is left out may come and go as it likes.
            Err(error) if out && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err((file, error)),
        };
        let at = found.len();
        if metadata.is_dir() && (!out || patterns.has_exceptions()) {
            walk(&file, &format!("{path}/"), patterns, found)?;
        }
        // A directory that is left out is needed all the same if something in it is taken.
        if !out || found.len() > at {
            found.insert(at, Found { path, file, metadata });
        }
    }
    Ok(())
}

/// With a path that leads nowhere else.
fn named(file: &ContextFile) -> Result<ContextFile, Failure> {
    let path = absolute("/", &file.path).trim_start_matches('/').to_owned();
    let climbs = file.path.split('/').any(|part| part == "..");
    if path.is_empty() || climbs || file.path.contains('\0') || file.path.ends_with('/') {
        let title = format!("`{}` cannot be a file of a build context", file.path.escape_debug());
        return Err(Failure::new(FailureKind::Invalid, title)
            .fact("reason", "it has to be the path of a file within the context, without `..`"));
    }
    Ok(ContextFile { path, ..file.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn file(path: &str) -> ContextFile {
        ContextFile { path: path.to_owned(), bytes: b"x".to_vec(), mode: Some(0o755) }
    }

    /// What is left out is not sent, what is taken back is, and a link stays a link wherever it leads.
    #[test]
    fn a_directory_is_walked() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("target/deep")).unwrap();
        fs::create_dir_all(root.path().join("docker")).unwrap();
        for path in ["a", "target/b", "target/deep/keep", "docker/Dev"] {
            fs::write(root.path().join(path), "x").unwrap();
        }
        symlink("/etc", root.path().join("out")).unwrap();
        fs::write(root.path().join(".dockerignore"), "target\n!target/deep/keep\n").unwrap();
        let paths = |dockerfile: &str| {
            let declared = BuildContext::Directory(root.path().to_str().unwrap().to_owned());
            let context = Context::open(&declared, Some(&root.path().join(dockerfile))).unwrap();
            let found = context.walk(root.path()).unwrap();
            found.into_iter().map(|found| found.path).collect::<Vec<_>>()
        };
        let expected = [
            ".dockerignore",
            "a",
            "docker",
            "docker/Dev",
            "out",
            "target",
            "target/deep",
            "target/deep/keep",
        ];
        assert_eq!(paths("Dockerfile"), expected);
        fs::write(root.path().join("docker/Dev.dockerignore"), "*\n!a\n").unwrap();
        assert_eq!(paths("docker/Dev"), ["a"]);
    }

    /// A file of a context in memory stays in it.
    #[test]
    fn files_in_memory_stay_inside() {
        for path in ["../a", "a/../../b", "", "/", "a/"] {
            assert!(Context::open(&BuildContext::Files(vec![file(path)]), None).is_err(), "{path}");
        }
        let declared = BuildContext::Files(vec![file("/a/./b"), file("c")]);
        let context = Context::open(&declared, None).unwrap();
        let directory = tempfile::tempdir().unwrap();
        context.write(directory.path()).unwrap();
        let mode = fs::metadata(directory.path().join("a/b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert_eq!(fs::read(directory.path().join("c")).unwrap(), b"x");
    }

    /// A pattern that is none is told before anything is sent.
    #[test]
    fn a_wrong_pattern_is_told() {
        let ignore = ContextFile { path: ".dockerignore".to_owned(), bytes: b"a[\n".to_vec(), mode: None };
        let failure = Context::open(&BuildContext::Files(vec![ignore]), None).unwrap_err();
        insta::assert_snapshot!(failure, @"
        .dockerignore is not understood
          pattern: `a[`: a `[` has no end, or something odd in it
        ");
    }
}
