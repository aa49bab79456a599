//! The documents that describe an image: index, manifest, descriptors. OCI's and Docker's forms are read alike.

use super::digest::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shakedown_spec::Platform;
use std::collections::BTreeMap;

/// The most that is read of a manifest, an index or a configuration from anywhere; containers/image and containerd have
/// the same bound (CVE-2020-1702).
pub(crate) const LARGEST_DOCUMENT: u64 = 4 << 20;

/// The type of an image's configuration.
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The type of a manifest.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The type of a layer that is not compressed.
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What a registry is asked for.
pub(crate) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A reference to a blob: digest and size, both checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// Of the blob's bytes.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// In an index: what the image runs on.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_object")]
    pub platform: Option<Platform>,
    /// What its writer says about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor that says nothing but what the blob is.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, platform: None, annotations: BTreeMap::new() }
    }
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
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Serialize)]
struct RawPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

impl From<RawPlatform> for Platform {
    fn from(raw: RawPlatform) -> Self {
        Self::new(&raw.os, &raw.architecture, raw.variant.as_deref())
    }
}

/// A platform as the documents have it: everywhere else it is a text.
mod as_object {
    use super::{Deserialize, Deserializer, Platform, RawPlatform, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(platform: &Option<Platform>, out: S) -> Result<S::Ok, S::Error> {
        let raw = platform.clone().map(|Platform { os, architecture, variant }| RawPlatform {
            architecture,
            os,
            variant,
        });
        raw.serialize(out)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Platform>, D::Error> {
        Ok(Option::<RawPlatform>::deserialize(input)?.map(Platform::from))
    }
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
        let platform = platform.map(Platform::from);
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

/// The entry of an index that fits a machine best. An index with a single entry that names no platform means that one.
/// The error lists the platforms that are there.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    wanted: &Platform,
) -> Result<&'a Descriptor, Vec<String>> {
    let fit = |entry: &Descriptor| entry.platform.as_ref().and_then(|platform| wanted.fit(platform));
    // Of several that fit alike, the first is the one its publisher means.
    if let Some((_, entry)) =
        entries.iter().filter_map(|entry| Some((fit(entry)?, entry))).min_by_key(|(fit, _)| *fit)
    {
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
        let entry = |platform: &str| {
            let digest = Digest::of(platform.as_bytes());
            let (media_type, annotations) = (String::new(), BTreeMap::new());
            Descriptor { media_type, digest, size: 1, platform: Some(platform.parse().unwrap()), annotations }
        };
        let entries =
            ["linux/arm/v5", "linux/arm/v7", "linux/386", "linux/amd64", "unknown/unknown"].map(entry);
        let chosen = |wanted: &str| {
            choose(&entries, &wanted.parse().unwrap())
                .map(|entry| entry.platform.as_ref().unwrap().to_string())
        };
        assert_eq!(chosen("linux/amd64"), Ok("linux/amd64".to_owned()));
        assert_eq!(chosen("linux/arm/v8"), Ok("linux/arm/v7".to_owned()));
        assert_eq!(chosen("linux/arm/v6"), Ok("linux/arm/v5".to_owned()));
        let there = ["linux/arm/v5", "linux/arm/v7", "linux/386", "linux/amd64"];
        assert_eq!(chosen("linux/s390x").unwrap_err(), there);
    }
}
