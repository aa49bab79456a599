//! `shakedown.lock`: which bytes each image reference means in a project.
//!
//! ```toml
//! version = 1
//!
//! [[image]]
//! reference = "docker.io/library/postgres:17"
//! digest = "sha256:…"                   # what the tag means: an index, usually
//! platforms."linux/amd64" = "sha256:…"  # the manifest that it has for each kind of machine
//! ```
//! The file is sorted, so that two people who lock two images make a merge that git can do.

use serde::Deserialize;
use shakedown_spec::{Failure, FailureKind, ImageReference};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The file's name.
pub const FILE_NAME: &str = "shakedown.lock";
/// The version that is written, and the newest that is read.
const VERSION: u32 = 1;

/// A lock file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lockfile {
    /// Where it is.
    pub path: PathBuf,
    /// What each reference means, by its completed text.
    pub images: BTreeMap<String, LockedImage>,
}

/// What one reference means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockedImage {
    /// The digest of the index or manifest that the reference names.
    pub digest: String,
    /// The digests of the manifests, by platform.
    pub platforms: BTreeMap<String, String>,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    #[serde(default)]
    image: Vec<WrittenImage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenImage {
    reference: String,
    digest: String,
    #[serde(default)]
    platforms: BTreeMap<String, String>,
}

impl Lockfile {
    /// A lock file at `path` that has nothing in it yet.
    #[must_use]
    pub fn empty(path: PathBuf) -> Self {
        Self { path, images: BTreeMap::new() }
    }

    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    ///
    /// It cannot be read, or says something that is not understood.
    pub fn read(path: &Path) -> Result<Option<Self>, Failure> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::new(FailureKind::Invalid, format!("{FILE_NAME} cannot be read"))
                .fact("file", path.display().to_string())
                .fact("reason", error.to_string())),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Failure> {
        let written: Written = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            let wrong = wrong(path, Some(line), error.message());
            if text.contains("\n<<<<<<< ") || text.starts_with("<<<<<<< ") {
                return wrong.hint("take either side of the merge, then run `shakedown lock`");
            }
            wrong
        })?;
        if written.version != VERSION {
            let reason =
                format!("it has version {}; this shakedown reads version {VERSION}", written.version);
            return Err(
                wrong(path, None, &reason).hint("use the version of shakedown that wrote it, or a newer one")
            );
        }
        let mut images = BTreeMap::new();
        for image in written.image {
            let reference: ImageReference =
                image.reference.parse().map_err(|error| wrong(path, None, &format!("{error}")))?;
            for digest in image.platforms.values().chain([&image.digest]) {
                pinned(&reference, digest).map_err(|reason| wrong(path, None, &reason))?;
            }
            let locked = LockedImage { digest: image.digest, platforms: image.platforms };
            if images.insert(reference.to_string(), locked).is_some() {
                return Err(wrong(path, None, &format!("{reference} is in it twice")));
            }
        }
        Ok(Self { path: path.to_owned(), images })
    }

    /// What is locked for a reference.
    #[must_use]
    pub fn get(&self, reference: &ImageReference) -> Option<&LockedImage> {
        self.images.get(&reference.to_string())
    }

    /// The file's text: the same for the same content.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "# Which bytes each image reference means. Written by `shakedown lock`; keep it in version control.\n\
             version = {VERSION}\n"
        );
        for (reference, locked) in &self.images {
            // Writing to a `String` cannot fail. No part has a quote or a backslash in it: all were parsed.
            let _ =
                write!(text, "\n[[image]]\nreference = \"{reference}\"\ndigest = \"{}\"\n", locked.digest);
            for (platform, digest) in &locked.platforms {
                let _ = writeln!(text, "platforms.\"{platform}\" = \"{digest}\"");
            }
        }
        text
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn write(&self) -> Result<(), Failure> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let unfinished =
            directory.unwrap_or(Path::new(".")).join(format!(".{FILE_NAME}.{}", std::process::id()));
        let written = std::fs::File::create(&unfinished)
            .and_then(|mut file| file.write_all(self.text().as_bytes()))
            .and_then(|()| std::fs::rename(&unfinished, &self.path));
        written.map_err(|error| {
            let _ = std::fs::remove_file(&unfinished);
            Failure::new(FailureKind::Other, format!("{FILE_NAME} cannot be written"))
                .fact("file", self.path.display().to_string())
                .fact("reason", error.to_string())
        })
    }
}

/// The reference with the digest that it has to have.
///
/// # Errors
///
/// The digest is none.
pub fn pinned(reference: &ImageReference, digest: &str) -> Result<ImageReference, String> {
    let bare = ImageReference { digest: None, ..reference.clone() };
    format!("{bare}@{digest}").parse().map_err(|error| format!("{error}"))
}

fn wrong(path: &Path, line: Option<usize>, reason: &str) -> Failure {
    let place = path.display();
    let place = line.map_or_else(|| place.to_string(), |line| format!("{place}:{line}"));
    Failure::new(FailureKind::Invalid, format!("{FILE_NAME} is not understood"))
        .fact("file", place)
        .fact("reason", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    const TWO: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

    #[track_caller]
    fn refused(text: &str) -> String {
        Lockfile::parse(Path::new("/shop/shakedown.lock"), text).unwrap_err().to_string()
    }

    /// A reviewer sees in a diff which image changed.
    #[test]
    fn the_file_is_sorted_and_read_back() {
        let mut lock = Lockfile::empty("/shop/shakedown.lock".into());
        let platforms = BTreeMap::from([
            ("linux/arm64".to_owned(), TWO.to_owned()),
            ("linux/amd64".to_owned(), ONE.to_owned()),
        ]);
        lock.images.insert("docker.io/library/redis:7".into(), LockedImage { digest: TWO.into(), platforms });
        lock.images.insert(
            "docker.io/library/postgres:17".into(),
            LockedImage { digest: ONE.into(), ..LockedImage::default() },
        );
        insta::assert_snapshot!(lock.text(), @r#"
        # Which bytes each image reference means. Written by `shakedown lock`; keep it in version control.
        version = 1

        [[image]]
        reference = "docker.io/library/postgres:17"
        digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

        [[image]]
        reference = "docker.io/library/redis:7"
        digest = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
        platforms."linux/amd64" = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
        platforms."linux/arm64" = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
        "#);
        assert_eq!(Lockfile::parse(&lock.path, &lock.text()).unwrap(), lock);
    }

    /// A damaged or foreign file is told before an image is taken for another.
    #[test]
    fn wrong_files_are_told() {
        insta::assert_snapshot!(refused("version = 2\n"), @r"
        shakedown.lock is not understood
          file:   /shop/shakedown.lock
          reason: it has version 2; this shakedown reads version 1
        hint: use the version of shakedown that wrote it, or a newer one
        ");
        insta::assert_snapshot!(refused("version = 1\n[[image]]\nreference = \"redis:7\"\ndigest = \"sha256:1\"\n"), @r"
        shakedown.lock is not understood
          file:   /shop/shakedown.lock
          reason: `docker.io/library/redis:7@sha256:1` is not an image reference: digest `sha256:1` is not `sha256:` and 64 lower-case hexadecimal digits
        ");
        let twice = format!("[[image]]\nreference = \"redis:7\"\ndigest = \"{ONE}\"\n");
        insta::assert_snapshot!(refused(&format!("version = 1\n{twice}{twice}")), @r"
        shakedown.lock is not understood
          file:   /shop/shakedown.lock
          reason: docker.io/library/redis:7 is in it twice
        ");
        insta::assert_snapshot!(refused("version = 1\n<<<<<<< HEAD\n"), @r"
        shakedown.lock is not understood
          file:   /shop/shakedown.lock:2
          reason: key with no value, expected `=`
        hint: take either side of the merge, then run `shakedown lock`
        ");
    }

    /// What is kept under version control is never half written.
    #[test]
    fn the_file_is_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        assert_eq!(Lockfile::read(&path).unwrap(), None);
        let lock = Lockfile::empty(path.clone());
        lock.write().unwrap();
        assert_eq!(Lockfile::read(&path).unwrap(), Some(lock));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
