//! The places an image can come from, and how they are written.

use crate::{Build, DebianSource, ImageReference, ReferenceError};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where an image comes from, as [`Container::image`](crate::Container) says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageSource {
    /// The local store, else a registry.
    Registry(ImageReference),
    /// `sha256:HEX`: an image that is there already, by the digest of its configuration.
    Id(String),
    /// `oci:DIR` or `oci:DIR:TAG`: an OCI image layout directory.
    OciLayout {
        /// The directory.
        path: PathBuf,
        /// Which of its images, by `org.opencontainers.image.ref.name`; the only one when unset.
        tag: Option<String>,
    },
    /// `oci-archive:FILE` or `oci-archive:FILE:TAG`: a tar file of an OCI image layout.
    OciArchive {
        /// The file.
        path: PathBuf,
        /// Which of its images; the only one when unset.
        tag: Option<String>,
    },
    /// `docker-archive:FILE` or `docker-archive:FILE:REFERENCE`: what `docker save` writes.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// Which of its images; the only one when unset.
        reference: Option<String>,
    },
    /// `docker-daemon:REFERENCE`: an image that a Docker-compatible engine of this machine has.
    DockerDaemon(ImageReference),
    /// `debian:SUITE?include=PACKAGE,…`: built of Debian packages. Without a `?` it is the image `debian` of a registry.
    Debian(DebianSource),
    /// `build:DIR` or `build:DIR?target=…`: built from a Dockerfile.
    Build(Box<Build>),
}

impl ImageSource {
    /// The same source with its relative paths beginning at `base`.
    #[must_use]
    pub fn beneath(self, base: &Path) -> Self {
        let at = |path: PathBuf| base.join(path);
        match self {
            Self::OciLayout { path, tag } => Self::OciLayout { path: at(path), tag },
            Self::OciArchive { path, tag } => Self::OciArchive { path: at(path), tag },
            Self::DockerArchive { path, reference } => Self::DockerArchive { path: at(path), reference },
            Self::Build(build) => Self::Build(Box::new(build.beneath(base))),
            Self::Registry(_) | Self::Id(_) | Self::DockerDaemon(_) | Self::Debian(_) => self,
        }
    }
}

impl FromStr for ImageSource {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let wrong = |reason: String| ReferenceError::new(text, reason);
        let located = |rest: &str| {
            let (path, tag) = match rest.split_once(':') {
                Some((path, tag)) => (path, Some(tag.to_owned())),
                None => (rest, None),
            };
            if path.is_empty() {
                return Err(wrong("the path is empty".to_owned()));
            }
            Ok((PathBuf::from(path), tag))
        };
        let (scheme, rest) = text.split_once(':').unwrap_or(("", text));
        match scheme {
            "sha256" => id(text).map(Self::Id).map_err(wrong),
            "oci" => located(rest).map(|(path, tag)| Self::OciLayout { path, tag }),
            "oci-archive" => located(rest).map(|(path, tag)| Self::OciArchive { path, tag }),
            "docker-archive" => {
                located(rest).map(|(path, reference)| Self::DockerArchive { path, reference })
            }
            "docker-daemon" => rest.parse().map(Self::DockerDaemon),
            "debian" if rest.contains('?') => rest.parse().map(Self::Debian).map_err(wrong),
            "build" => rest.parse().map(|build| Self::Build(Box::new(build))).map_err(wrong),
            _ => text.parse().map(Self::Registry),
        }
    }
}

fn id(text: &str) -> Result<String, String> {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        Ok(text.to_owned())
    } else {
        Err("an id is `sha256:` and 64 lower-case hexadecimal digits".to_owned())
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path, selector) = match self {
            Self::Registry(reference) => return reference.fmt(f),
            Self::Id(id) => return f.write_str(id),
            Self::DockerDaemon(reference) => return write!(f, "docker-daemon:{reference}"),
            Self::Debian(debian) => return write!(f, "debian:{debian}"),
            Self::Build(build) => return write!(f, "build:{build}"),
            Self::OciLayout { path, tag } => ("oci", path, tag),
            Self::OciArchive { path, tag } => ("oci-archive", path, tag),
            Self::DockerArchive { path, reference } => ("docker-archive", path, reference),
        };
        write!(f, "{scheme}:{}", path.display())?;
        selector.as_ref().map_or(Ok(()), |selector| write!(f, ":{selector}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[track_caller]
    fn reads(text: &str) -> ImageSource {
        let source: ImageSource = text.parse().unwrap();
        assert_eq!(source.to_string(), text);
        source
    }

    #[track_caller]
    fn refuses(text: &str, reason: &str) {
        let error = text.parse::<ImageSource>().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    /// Sources print as they are written: `shakedown.toml` and the REST API carry them as text.
    #[test]
    fn sources_survive_printing() {
        for text in [
            "oci:a/b",
            "oci:a/b:7",
            "oci-archive:x.tar",
            "docker-archive:x.tar:redis:7",
            ID,
            "docker-daemon:docker.io/library/redis:7",
            "debian:bookworm?include=",
            "debian:bookworm?include=g++,libstdc++6&variant=minbase&mirror=http://deb.debian.org/debian",
            "debian:bookworm?include=redis&command=[\"redis-server\", \"--save\", \"\"]",
            "debian:bookworm?include=redis&command=echo 100%25 %26%26 echo a%3Db",
            "build:images/orders",
            "build:images/orders?arg.VERSION=17&dockerfile=docker/Release&target=run",
            "build:odd%3Fname%25",
        ] {
            reads(text);
        }
    }

    /// A shop's image that is called `build` or `debian` stays what it is.
    #[test]
    fn references_that_look_like_sources_are_references() {
        for text in ["debian:bookworm", "debian", "oci", "build", "example.com/build:7", "sha256"] {
            assert!(matches!(text.parse(), Ok(ImageSource::Registry(_))), "{text}");
        }
    }

    /// The parts of a source arrive where they belong.
    #[test]
    fn options_are_read() {
        let debian =
            reads("debian:bookworm?include=redis,curl&variant=essential&command=redis-server --port 7");
        let ImageSource::Debian(debian) = debian else { panic!("{debian:?}") };
        assert_eq!(debian.include, ["redis", "curl"]);
        assert_eq!((debian.suite.as_str(), debian.variant.as_deref()), ("bookworm", Some("essential")));
        assert_eq!(debian.command.as_deref(), Some("redis-server --port 7"));
        let build = reads("build:a%3Fb?arg.X=1%262&target=t");
        let ImageSource::Build(build) = build else { panic!("{build:?}") };
        assert_eq!(*build, Build::directory("a?b").arg("X", "1&2").target("t"));
    }

    /// A wrong source is told apart by what is wrong with it.
    #[test]
    fn errors_say_what_is_wrong() {
        refuses("oci:", "the path is empty");
        refuses("build:?target=x", "the path is empty");
        refuses("sha256:12", "64 lower-case hexadecimal digits");
        refuses("docker-daemon:Redis", "lower case; try `redis`");
        refuses("debian:bookworm?includes=redis", "has no option `includes`; there are `include`");
        refuses("debian:bookworm?include", "`include` is not `name=value`");
        refuses("debian:bookworm?include=a b", "`a b` is not a package");
        refuses("debian:--help?include=a", "`--help` is not a release of Debian");
        refuses("debian:bookworm?variant=tiny", "variant `tiny` is none of extract, custom");
        refuses("debian:bookworm?mirror=deb.debian.org", "is not an address such as");
    }

    /// A suite can be started from any directory.
    #[test]
    fn relative_paths_begin_at_the_base() {
        for (text, absolute) in [
            ("oci:a:7", "oci:/base/a:7"),
            ("docker-archive:/x.tar", "docker-archive:/x.tar"),
            ("build:.?target=t", "build:/base/.?target=t"),
            ("redis:7", "docker.io/library/redis:7"),
        ] {
            let source = text.parse::<ImageSource>().unwrap().beneath(Path::new("/base"));
            assert_eq!(source.to_string(), absolute);
        }
    }
}
