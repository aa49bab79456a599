//! What a registry means by a reference, without fetching the image: for `shakedown lock`.

use super::digest::{Digest, Hasher};
use super::failures::unusable;
use super::files::parse;
use super::manifest::{Descriptor, Document, LARGEST_DOCUMENT};
use super::options::{RegistriesConfig, StoreOptions};
use super::refusal::refused;
use super::registry::Registry;
use serde::Deserialize;
use shakedown_spec::{Failure, ImageReference, ImageSource, Platform};
use std::collections::BTreeMap;

/// What a reference means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookedUp {
    /// The digest of the index or manifest that it names.
    pub digest: String,
    /// The digest of the manifest for each platform.
    pub platforms: BTreeMap<String, String>,
}

/// The part of a configuration that says what it is for.
#[derive(Deserialize)]
struct ForPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

/// Asks the registry what it means by a reference now. Nothing is written anywhere.
///
/// # Errors
///
/// The registry does not have it, refuses, or is not reached.
pub async fn look_up(reference: &ImageReference, registries: &RegistriesConfig) -> Result<LookedUp, Failure> {
    let options = StoreOptions { registries: registries.clone(), ..StoreOptions::of_environment() };
    let (registry, source) = (Registry::new(options), ImageSource::Registry(reference.clone()));
    let fetched = match registry.manifest(reference, reference.selector()).await {
        Ok(fetched) => fetched,
        Err(error) => return Err(refused(&registry, &source, reference, "the manifest", &error).await),
    };
    let place = format!("manifests/{}", reference.selector());
    let platforms = match parse(&source, &place, &fetched.bytes)? {
        Document::Index(entries) => of_index(&entries),
        Document::Manifest(manifest) => {
            let config = small_blob(&registry, &source, reference, &manifest.config).await?;
            let kind: Option<ForPlatform> = serde_json::from_slice(&config).ok();
            let kind = kind.filter(|kind| !kind.os.is_empty() && !kind.architecture.is_empty());
            let kind = kind.map(|kind| Platform::new(&kind.os, &kind.architecture, kind.variant.as_deref()));
            kind.into_iter().map(|kind| (kind.to_string(), fetched.digest.to_string())).collect()
        }
    };
    Ok(LookedUp { digest: fetched.digest.to_string(), platforms })
}

/// The first entry of a platform is its image; `unknown/unknown` are attestations.
fn of_index(entries: &[Descriptor]) -> BTreeMap<String, String> {
    let mut platforms = BTreeMap::new();
    for entry in entries {
        if let Some(platform) = entry.platform.as_ref().filter(|platform| platform.os != "unknown") {
            platforms.entry(platform.to_string()).or_insert_with(|| entry.digest.to_string());
        }
    }
    platforms
}

async fn small_blob(
    registry: &Registry,
    source: &ImageSource,
    reference: &ImageReference,
    wanted: &Descriptor,
) -> Result<Vec<u8>, Failure> {
    let what = "the configuration";
    let (mut bytes, mut hasher) = (Vec::new(), Hasher::new());
    let mut stream = registry.blob(reference, wanted, true);
    loop {
        match stream.next().await {
            Ok(Some(piece)) => {
                hasher.update(&piece);
                bytes.extend_from_slice(&piece);
            }
            Ok(None) => break,
            Err(error) => return Err(refused(registry, source, reference, what, &error).await),
        }
        if bytes.len() as u64 > LARGEST_DOCUMENT {
            return Err(unusable(source, "cannot be used: its configuration is too long"));
        }
    }
    let actual: Digest = hasher.finish();
    if actual == wanted.digest {
        Ok(bytes)
    } else {
        Err(super::failures::wrong_digest(source, what, wanted.digest, actual))
    }
}
