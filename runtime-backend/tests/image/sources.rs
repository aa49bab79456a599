//! Images in files: found, verified, and told apart when they are wrong.

use crate::images::{Parts, archive_of, assert_consistent, bytes, gzip, resolve, shop, store};
use crate::tape::Tape;
use serde_json::json;
use shakedown_runtime::native::image::StoredImage;
use shakedown_spec::{Failure, FailureKind, PullPolicy};
use std::fs;
use std::path::Path;
use std::time::Instant;

fn there(image: &StoredImage) {
    let [base, second, third] = &image.layers[..] else { panic!("{:?}", image.layers) };
    assert_eq!(fs::read(base.join("etc/motd")).unwrap(), b"welcome");
    assert_eq!(fs::read(second.join("etc/shop")).unwrap(), b"orders");
    assert!(fs::symlink_metadata(second.join("etc/old")).is_ok());
    assert!(third.join("srv/catalogue").exists());
    assert_eq!(image.image.config.command, ["/bin/true"]);
}

/// Layouts, archives of them and Docker's archives all give the same image.
#[tokio::test]
async fn every_kind_of_file_gives_the_image() {
    let work = tempfile::tempdir().unwrap();
    let (layout, root) = (work.path().join("layout"), work.path().join("store"));
    shop().layout(&layout, "9");
    let archive = archive_of(&layout);
    fs::write(work.path().join("oci.tar"), &archive).unwrap();
    fs::write(work.path().join("oci.tar.gz"), gzip(&archive)).unwrap();
    fs::write(work.path().join("docker.tar"), shop().docker_archive("localhost/shop:9")).unwrap();
    let store = store(&root).await;
    let mut ids = Vec::new();
    for source in [
        "oci:DIR/layout",
        "oci:DIR/layout:9",
        "oci-archive:DIR/oci.tar:9",
        "oci-archive:DIR/oci.tar.gz",
        "docker-archive:DIR/docker.tar:localhost/shop:9",
    ] {
        let source = source.replace("DIR", work.path().to_str().unwrap());
        let image = resolve(&store, &source, PullPolicy::Missing).await.unwrap();
        there(&image);
        ids.push(image.image.id);
    }
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_consistent(&root);
}

/// A layer that comes twice is unpacked once, and stands twice in the order.
#[tokio::test]
async fn a_layer_may_come_twice() {
    let work = tempfile::tempdir().unwrap();
    let layer = Tape::default().file("a", "x").done();
    let image = Parts::of(&[layer.clone(), Tape::default().file(".wh.a", "").done(), layer]);
    fs::write(work.path().join("docker.tar"), image.docker_archive("shop:1")).unwrap();
    let store = store(&work.path().join("store")).await;
    let source = format!("docker-archive:{}", work.path().join("docker.tar").display());
    let image = resolve(&store, &source, PullPolicy::Missing).await.unwrap();
    assert_eq!(image.layers[0], image.layers[2]);
}

/// A known image costs microseconds, in the same process and in the next one; a changed layout is noticed.
#[tokio::test]
async fn a_known_image_is_found_at_once() {
    let work = tempfile::tempdir().unwrap();
    let (layout, root) = (work.path().join("layout"), work.path().join("store"));
    shop().layout(&layout, "9");
    let source = format!("oci:{}", layout.display());
    let first = resolve(&store(&root).await, &source, PullPolicy::Missing).await.unwrap();
    // Nothing of the image is read again: not even its blobs are there.
    fs::rename(layout.join("blobs"), layout.join("elsewhere")).unwrap();
    let next = store(&root).await;
    let from_disk = resolve(&next, &source, PullPolicy::Missing).await.unwrap();
    assert_eq!(from_disk.image, first.image);
    let mut fastest = u128::MAX;
    for _ in 0..50 {
        let start = Instant::now();
        resolve(&next, &source, PullPolicy::Missing).await.unwrap();
        fastest = fastest.min(start.elapsed().as_micros());
    }
    assert!(fastest < 1000, "{fastest} µs");
    fs::rename(layout.join("elsewhere"), layout.join("blobs")).unwrap();
    fs::remove_file(layout.join("index.json")).unwrap();
    Parts::of(&[Tape::default().file("new", "").done()]).layout(&layout, "9");
    let changed = resolve(&next, &source, PullPolicy::Missing).await.unwrap();
    assert!(changed.layers[0].join("new").exists());
}

/// Layers that lean on what is below are unpacked with it, and only then.
#[tokio::test]
async fn layers_that_lean_on_lower_ones() {
    let work = tempfile::tempdir().unwrap();
    let base = Tape::default().dir("bin").file("bin/vim", "editor").done();
    let leaning = Tape::default().hard("bin/vi", "bin/vim").done();
    let rootless = Tape::default().file("nowhere/.wh.x", "").file("y", "").done();
    let hidden = Tape::default().file(".wh..wh..opq", "").file("only", "").done();
    Parts::of(&[base.clone(), leaning, rootless]).layout(&work.path().join("a"), "1");
    Parts::of(&[base, hidden]).layout(&work.path().join("b"), "1");
    let store = store(&work.path().join("store")).await;
    let source = |name: &str| format!("oci:{}", work.path().join(name).display());
    let image = resolve(&store, &source("a"), PullPolicy::Missing).await.unwrap();
    assert_eq!(fs::read(image.layers[1].join("bin/vi")).unwrap(), b"editor");
    assert!(!image.layers[2].join("nowhere").exists());
    let image = resolve(&store, &source("b"), PullPolicy::Missing).await.unwrap();
    assert_eq!(image.layers.len(), 1, "what is below an opaque layer is left out");
}

/// Writes an image that `change` has spoilt, and gives the failure with the paths of this run taken out.
async fn failure_of(change: impl FnOnce(&mut Parts, &Path)) -> Failure {
    let work = tempfile::tempdir().unwrap();
    let (layout, root) = (work.path().join("shop"), work.path().join("store"));
    let mut parts = shop();
    fs::create_dir(&layout).unwrap();
    change(&mut parts, &layout);
    if !layout.join("index.json").exists() {
        parts.layout(&layout, "9");
    }
    let store = store(&root).await;
    let source = format!("oci:{}", layout.display());
    let failure = resolve(&store, &source, PullPolicy::Missing).await.unwrap_err();
    assert_consistent(&root);
    let clean = |text: String| text.replace(work.path().to_str().unwrap(), "DIR");
    Failure {
        title: clean(failure.title),
        facts: failure.facts.into_iter().map(|(label, value)| (label, clean(value))).collect(),
        hints: failure.hints.into_iter().map(clean).collect(),
        ..failure
    }
}

#[track_caller]
fn says(failure: &Failure, kind: FailureKind, text: &str) {
    assert_eq!(failure.kind, kind);
    assert!(failure.to_string().contains(text), "{failure}");
}

/// B0–B4: parts of an image that do not fit together are told apart, and never run.
#[tokio::test]
async fn contradictions_are_refused() {
    let wrong = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let diff_id = failure_of(|parts, _| {
        parts.config["rootfs"]["diff_ids"][1] = json!(wrong);
        parts.describe();
    });
    insta::assert_snapshot!(diff_id.await, @"
    image oci:DIR/shop has the wrong bytes: an unpacked layer does not match its digest
      expected: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
      actual:   sha256:9db76d67bb67c78e6de8c68fdf66c724a5fc5cda00762b7e2724f2e1342c8f13
    hint: write `oci:DIR/shop` again; it was damaged or changed after it was written
    ");
    insta::assert_snapshot!(failure_of(|parts, _| parts.blobs[2][40] ^= 1).await, @"
    image oci:DIR/shop has the wrong bytes: layer 3 does not match its digest
      expected: sha256:537f8084de18648abfa3985d9494e0153b2515803b3b47e1661419760a9eb0c3
      actual:   sha256:7887c9089026dbd490962add0f5e9c0bbf8de7cb62ff9721efcf5b5abfaf6aaf
    hint: write `oci:DIR/shop` again; it was damaged or changed after it was written
    ");
    insta::assert_snapshot!(failure_of(|parts, _| parts.blobs[2].truncate(90)).await, @"
    image oci:DIR/shop is broken: layer 3 is shorter than its manifest says
      expected: 409 bytes
      actual:   90 bytes
    hint: write `oci:DIR/shop` again; it was damaged or changed after it was written
    ");
    insta::assert_snapshot!(failure_of(|parts, _| parts.manifest["layers"][0]["size"] = json!(7)).await, @"
    image oci:DIR/shop is broken: layer 1 is longer than its manifest says
      expected: 7 bytes
      actual:   193 bytes
    hint: write `oci:DIR/shop` again; it was damaged or changed after it was written
    ");
    let fewer = failure_of(|parts, _| {
        parts.config["rootfs"]["diff_ids"].as_array_mut().unwrap().pop();
        parts.describe();
    });
    insta::assert_snapshot!(fewer.await, @"
    image oci:DIR/shop contradicts itself
      layers in its manifest:      3
      layers in its configuration: 2
    ");
    let more = failure_of(|parts, _| {
        parts.config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(json!(wrong));
        parts.describe();
    });
    says(&more.await, FailureKind::ImageUnusable, "layers in its configuration: 4");
    let config = failure_of(|parts, _| parts.config["os"] = json!("linuX"));
    says(&config.await, FailureKind::ImageUnusable, "the configuration does not match its digest");
}

/// B5–BE: documents that are too long, of unknown types, or lead out of the layout.
#[tokio::test]
async fn documents_are_checked() {
    let refused = FailureKind::ImageUnusable;
    let media_type =
        failure_of(|parts, _| parts.manifest["layers"][0]["mediaType"] = json!("application/x-rar"));
    insta::assert_snapshot!(media_type.await, @"
    image oci:DIR/shop cannot be used
      document: blobs/sha256/704b3f09cb3cedce66ba0312dd64ecf1756cf574648b5d1199ea553c69dba8fa
      reason:   layer 1 is of type `application/x-rar`, which cannot be unpacked
    ");
    let big = failure_of(|parts, _| {
        parts.config["comment"] = json!("x".repeat(5 << 20));
        parts.describe();
    });
    says(&big.await, refused, "the most is 4194304");
    let up = failure_of(|_, layout| {
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": "sha256:../../../x", "size": 1}]});
        fs::write(layout.join("index.json"), bytes(&index)).unwrap();
    });
    insta::assert_snapshot!(up.await, @"
    image oci:DIR/shop cannot be used
      document: index.json
      reason:   `sha256:../../../x` is not `sha256:` and 64 lower-case hexadecimal digits
    ");
    let gone = failure_of(|parts, layout| {
        parts.layout(layout, "9");
        let name = parts.manifest["layers"][1]["digest"].as_str().unwrap().replace(':', "/");
        fs::remove_file(layout.join("blobs").join(name)).unwrap();
    });
    says(&gone.await, refused, "is incomplete");
    let artifact = failure_of(|parts, _| {
        parts.manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    });
    says(&artifact.await, refused, "it is no container image");
    let foreign = failure_of(|parts, _| {
        parts.manifest["layers"][0]["urls"] = json!(["http://127.0.0.1:1/never"]);
        parts.manifest["layers"][0]["size"] = json!(1);
    });
    says(&foreign.await, refused, "is longer than its manifest says");
}

/// A layer that is an attack is named, with the entry and the reason.
#[tokio::test]
async fn an_attack_is_reported() {
    let attack =
        failure_of(|parts, _| *parts = Parts::of(&[Tape::default().file("../../etc/cron.d/x", "").done()]));
    insta::assert_snapshot!(attack.await, @"
    image oci:DIR/shop could not be unpacked
      layer:  sha256:a7e1f69abb99ee971b8e4746a998036a9ae431a3278bb31a92827e28fe41fa89
      reason: entry `../../etc/cron.d/x` of the layer is refused: its name contains `..`
    hint: no usual tool writes such an entry; build the image anew, or do not use it
    ");
}

/// What is not there is said with what is.
#[tokio::test]
async fn missing_images_are_told_with_their_neighbours() {
    let work = tempfile::tempdir().unwrap();
    let layout = work.path().join("shop");
    shop().layout(&layout, "7");
    Parts::of(&[Tape::default().done()]).layout(&layout, "8");
    fs::write(work.path().join("docker.tar"), shop().docker_archive("shop:9")).unwrap();
    let store = store(&work.path().join("store")).await;
    let ask = async |source: &str| {
        let source = source.replace("DIR", work.path().to_str().unwrap());
        let failure = resolve(&store, &source, PullPolicy::Missing).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::ImageNotFound);
        failure.to_string().replace(work.path().to_str().unwrap(), "DIR")
    };
    insta::assert_snapshot!(ask("oci:DIR/shop:9").await, @"
    image oci:DIR/shop:9 was not found
      tags there: 7, 8
    ");
    insta::assert_snapshot!(ask("oci:DIR/shop").await, @"
    image oci:DIR/shop was not found
      reason:     the layout has several images
      tags there: 7, 8
    hint: name one of them, such as `oci:DIR/shop:7`
    ");
    insta::assert_snapshot!(ask("oci:DIR/nowhere").await, @"
    image oci:DIR/nowhere was not found
      file:   DIR/nowhere/index.json
      reason: no such file or directory
    ");
    insta::assert_snapshot!(ask("docker-archive:DIR/docker.tar:orders:1").await, @"
    image docker-archive:DIR/docker.tar:orders:1 was not found
      images there: shop:9
    ");
    insta::assert_snapshot!(ask("oci-archive:DIR/docker.tar").await, @"
    image oci-archive:DIR/docker.tar was not found
      missing: index.json
    hint: an OCI layout has `index.json`, `oci-layout` and `blobs/`; `skopeo copy IMAGE oci:DIR` writes one
    ");
}

/// The index of a layout for several machines gives this one's image, or says which there are.
#[tokio::test]
async fn the_platform_is_chosen() {
    let unfit = failure_of(|parts, layout| {
        parts.layout(layout, "9");
        let mut index: serde_json::Value =
            serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let mut other = index["manifests"][0].clone();
        index["manifests"][0]["platform"] = json!({"os": "linux", "architecture": "s390x"});
        other["platform"] = json!({"os": "windows", "architecture": "amd64"});
        index["manifests"].as_array_mut().unwrap().push(other);
        fs::write(layout.join("index.json"), bytes(&index)).unwrap();
    });
    says(&unfit.await, FailureKind::ImageUnusable, "linux/s390x, windows/amd64");
}
