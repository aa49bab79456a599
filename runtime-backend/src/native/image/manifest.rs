//! The documents that describe an image: index, manifest, descriptors. OCI's and Docker's forms are read alike.

use super::digest::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

/// The most that is read of a manifest, an index or a configuration from anywhere; containers/image and containerd have
/// the same bound (CVE-2020-1702).
pub(crate) const LARGEST_DOCUMENT: u64 = 4 << 20;

/// What a registry is asked for.
pub(crate) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A reference to a blob: digest and size, both checked.
#[derive(Clone, Debug)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// What a manifest is for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

/// One of the two kinds of document.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    /// Several images, usually one for each platform.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

/// One image: its configuration and its layers, lowest first.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
}

// `urls` is not read at all: what it names is outside of the registry (podman really dialled it).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Document {
    /// Reads a manifest or an index. The error says what is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: RawDocument =
            serde_json::from_slice(bytes).map_err(|error| format!("it is no manifest: {error}"))?;
        if raw.schema_version == Some(1) {
            return Err(
                "it is in Docker's format of before 2016 (schema 1); push it again with a current tool"
                    .into(),
            );
        }
        let media_type = raw.media_type.as_deref().unwrap_or("");
        let is_index =
            |kind: &str| kind.ends_with(".image.index.v1+json") || kind.ends_with(".manifest.list.v2+json");
        match (raw.manifests, raw.config, raw.layers) {
            // Two readers of such a document see two images (CVE-2021-41190).
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                Err("it is an index and a manifest at once".into())
            }
            (Some(_), None, None) if !media_type.is_empty() && !is_index(media_type) => {
                Err(format!("it is an index that calls itself `{media_type}`"))
            }
            (Some(manifests), None, None) => descriptors(manifests).map(Self::Index),
            (None, Some(config), Some(layers)) => {
                if is_index(media_type) {
                    return Err(format!("it is a manifest that calls itself `{media_type}`"));
                }
                Ok(Self::Manifest(
                    Manifest { config: config.checked()?, layers: descriptors(layers)? }.checked()?,
                ))
            }
            _ => Err("it is neither an index nor the manifest of an image".into()),
        }
    }
}

fn descriptors(raw: Vec<RawDescriptor>) -> Result<Vec<Descriptor>, String> {
    raw.into_iter().map(RawDescriptor::checked).collect()
}

impl RawDescriptor {
    fn checked(self) -> Result<Descriptor, String> {
        let Self { media_type, digest, size, platform, annotations } = self;
        let digest = digest.parse()?;
        let size = u64::try_from(size).map_err(|_negative| format!("the size of {digest} is negative"))?;
        Ok(Descriptor { media_type, digest, size, platform, annotations: annotations.unwrap_or_default() })
    }
}

impl Manifest {
    fn checked(self) -> Result<Self, String> {
        let config = self.config.media_type.as_str();
        let known = [
            "",
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
            // Some early writers; Docker takes it too.
            "application/octet-stream",
        ];
        if !known.contains(&config) {
            return Err(format!("it is no container image: its configuration is of type `{config}`"));
        }
        if self.config.size > LARGEST_DOCUMENT {
            return Err(format!(
                "its configuration has {} bytes; the most is {LARGEST_DOCUMENT}",
                self.config.size
            ));
        }
        match self.layers.iter().zip(1..).find(|(layer, _)| !is_layer(&layer.media_type)) {
            Some((layer, number)) => {
                Err(format!("layer {number} is of type `{}`, which cannot be unpacked", layer.media_type))
            }
            None => Ok(self),
        }
    }
}

fn is_layer(media_type: &str) -> bool {
    let layer = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.")
        .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1."))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff."))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff."));
    matches!(layer, Some("tar" | "tar+gzip" | "tar+zstd" | "tar.gzip" | "tar.zstd"))
        || matches!(media_type, "application/vnd.docker.image.rootfs.diff.tar")
}

impl Platform {
    /// This machine's, in the names of Go.
    pub(crate) fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }

    /// Whether an image for `other` runs on a machine of this kind. Variants are levels (`v8` of arm64): the first one
    /// offered is the one its publisher means.
    fn runs(&self, other: &Self) -> bool {
        self.os == other.os && self.architecture == other.architecture
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// The entry of an index for this machine. An index with a single entry that names no platform means that one.
/// The error lists the platforms that are there.
pub(crate) fn choose<'a>(entries: &'a [Descriptor], here: &Platform) -> Result<&'a Descriptor, Vec<String>> {
    let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|platform| here.runs(platform));
    if let Some(entry) = entries.iter().find(fits) {
        return Ok(entry);
    }
    let unnamed: Vec<_> = entries.iter().filter(|entry| entry.platform.is_none()).collect();
    if let [only] = unnamed[..] {
        return Ok(only);
    }
    // `unknown/unknown` are attestations, no images.
    let platforms = entries.iter().filter_map(|entry| entry.platform.as_ref());
    Err(platforms.map(Platform::to_string).filter(|platform| !platform.starts_with("unknown/")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(layer_type: &str, digest: &str, size: i64) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{DIGEST}","size":2}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{digest}","size":{size}}}]}}"#
        )
    }

    #[track_caller]
    fn refuses(text: &str, reason: &str) {
        let error = Document::parse(text.as_bytes()).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }

    /// Images of every current tool are read; what cannot be used is told apart.
    #[test]
    fn manifests_are_read_strictly() {
        for kind in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ] {
            assert!(matches!(
                Document::parse(manifest(kind, DIGEST, 3).as_bytes()),
                Ok(Document::Manifest(_))
            ));
        }
        let layer = "application/vnd.oci.image.layer.v1.tar";
        refuses(
            &manifest("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", DIGEST, 3),
            "cannot be unpacked",
        );
        refuses(&manifest(layer, "sha256:../../../etc/passwd", 3), "64 lower-case hexadecimal digits");
        refuses(&manifest(layer, DIGEST, -1), "is negative");
        refuses(r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1");
        refuses(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, "an index and a manifest at once");
        refuses("{}", "neither an index nor the manifest");
        refuses("<html>", "it is no manifest");
    }

    /// The right architecture is chosen, and the others are named if there is none.
    #[test]
    fn the_platform_is_chosen() {
        let entry = |architecture: &str| {
            let platform = Platform {
                architecture: architecture.into(),
                os: "linux".into(),
                variant: Some("v8".into()),
            };
            let digest = Digest::of(architecture.as_bytes());
            let (media_type, annotations) = (String::new(), BTreeMap::new());
            Descriptor { media_type, digest, size: 1, platform: Some(platform), annotations }
        };
        let entries = [entry("arm64"), entry("amd64")];
        let here = |architecture: &str| Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: None,
        };
        assert_eq!(choose(&entries, &here("amd64")).unwrap().digest, Digest::of(b"amd64"));
        assert_eq!(choose(&entries, &here("s390x")).unwrap_err(), ["linux/arm64/v8", "linux/amd64/v8"]);
    }
}
