//! Images for several machines, and for others than this one.

use crate::images::{Parts, bytes, descriptor, quick, resolve, store_with};
use crate::server::{Registry, shown};
use crate::tape::Tape;
use serde_json::json;
use shakedown_runtime::Wanted;
use shakedown_runtime::native::image::{Store, StoredImage};
use shakedown_spec::{Failure, FailureKind, Platform, PullPolicy};
use std::sync::Arc;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image for one machine, with a file that names it.
fn image_for(platform: &Platform) -> Parts {
    let mut parts = Parts::of(&[Tape::default().file("machine", &platform.to_string()).done()]);
    parts.config["os"] = platform.os.clone().into();
    parts.config["architecture"] = platform.architecture.clone().into();
    parts.describe();
    parts
}

/// Puts an image for these machines there.
fn push_index(registry: &Registry, repository: &str, platforms: &[&str]) {
    let entries: Vec<_> = platforms
        .iter()
        .map(|text| {
            let platform: Platform = text.parse().unwrap();
            let parts = image_for(&platform);
            registry.push(&parts, repository, &text.replace('/', "-"), "");
            let mut entry = descriptor(MANIFEST, &bytes(&parts.manifest));
            entry["platform"] = json!({"os": platform.os, "architecture": platform.architecture});
            if let Some(variant) = platform.variant {
                entry["platform"]["variant"] = variant.into();
            }
            entry
        })
        .collect();
    let index = bytes(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}));
    let path = format!("/v2/{repository}/manifests/1");
    let (status, answer) = registry.send("PUT", &path, &format!("Content-Type: {INDEX}\r\n"), &index);
    assert_eq!(status, 201, "{answer}");
}

async fn ask(store: &Store, source: &str, platform: &str) -> Result<String, Failure> {
    let platform: Platform = platform.parse().unwrap();
    let mut wanted = Wanted::new(source.parse().unwrap(), PullPolicy::Missing);
    wanted.platform = Some(platform);
    store.obtain(&wanted, Arc::new(|_, _, _| {})).await.map(|image| machine(&image))
}

fn machine(image: &StoredImage) -> String {
    std::fs::read_to_string(image.layers[0].join("machine")).unwrap()
}

/// Each machine gets its own image, also beside one another in one store.
#[tokio::test]
async fn the_best_image_is_chosen() {
    let (work, registry) = (tempfile::tempdir().unwrap(), Registry::start(""));
    let own = Platform::here().to_string();
    push_index(&registry, "shop", &["linux/s390x", "linux/arm/v6", "linux/arm/v7", &own, "windows/amd64"]);
    let store = store_with(&work.path().join("store"), quick()).await;
    let source = format!("{}/shop:1", registry.address);
    for round in 0..2 {
        let here = resolve(&store, &source, PullPolicy::Missing).await.unwrap();
        assert_eq!(machine(&here), own, "round {round}");
        for (asked, given) in [
            ("linux/s390x", "linux/s390x"),
            ("linux/arm/v8", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
        ] {
            assert_eq!(ask(&store, &source, asked).await.unwrap(), given, "round {round}");
        }
    }
    let failure = ask(&store, &source, "linux/riscv64").await.unwrap_err();
    insta::assert_snapshot!(shown(&failure, &registry.address, work.path()).replace(&own, "HERE"), @"
    image 127.0.0.1:5000/shop:1 has no version for linux/riscv64
      there are: linux/s390x, linux/arm/v6, linux/arm/v7, HERE, windows/amd64
    ");
}

/// An image for another processor is refused before it fails with "exec format error", unless it was asked for.
#[tokio::test]
async fn images_for_other_processors_are_refused() {
    let (work, registry) = (tempfile::tempdir().unwrap(), Registry::start(""));
    registry.push(&image_for(&"linux/s390x".parse().unwrap()), "shop", "1", "");
    registry.push(&image_for(&"windows/amd64".parse().unwrap()), "shop", "2", "");
    let store = store_with(&work.path().join("store"), quick()).await;
    let say = |failure: Failure| {
        assert_eq!(failure.kind, FailureKind::ImageUnusable);
        shown(&failure, &registry.address, work.path()).replace(&Platform::here().to_string(), "HERE")
    };
    let source = |tag: &str| format!("{}/shop:{tag}", registry.address);
    let foreign = resolve(&store, &source("1"), PullPolicy::Missing).await.unwrap_err();
    insta::assert_snapshot!(say(foreign), @"
    image 127.0.0.1:5000/shop:1 is not for HERE
      it is for: linux/s390x
    hint: ask for the platform `linux/s390x` to use it all the same, with an emulator
    ");
    let windows = resolve(&store, &source("2"), PullPolicy::Missing).await.unwrap_err();
    insta::assert_snapshot!(say(windows), @"
    image 127.0.0.1:5000/shop:2 is not for HERE
      it is for: windows/amd64
    ");
    assert_eq!(ask(&store, &source("1"), "linux/s390x").await.unwrap(), "linux/s390x");
    let other = ask(&store, &source("1"), "linux/riscv64").await.unwrap_err();
    insta::assert_snapshot!(say(other), @"
    image 127.0.0.1:5000/shop:1 is not for linux/riscv64
      it is for: linux/s390x
    ");
}
