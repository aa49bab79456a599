//! Images made here, and what an image consists of.

use crate::images::{Parts, archive_of, assert_consistent, bytes, resolve, shop, store};
use crate::tape::Tape;
use serde_json::json;
use shakedown_runtime::native::image::{Content, Descriptor, Digest, Ingest, Store};
use shakedown_spec::{ImageReference, ImageSource, PullPolicy};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

async fn ingest(store: &Store) -> Ingest {
    let source: ImageSource = "docker-archive:orders.tar".parse().unwrap();
    store.ingest(&source, Arc::new(|_, _, _| {})).await.unwrap()
}

fn put(ingest: &Ingest, layer: &[u8]) -> (Descriptor, Digest) {
    let mut blob = ingest.blob().unwrap();
    blob.write_all(layer).unwrap();
    blob.finish_layer_tar().unwrap()
}

fn config(diff_ids: &[Digest]) -> Vec<u8> {
    bytes(&json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/shop"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
}

fn name(text: &str) -> ImageReference {
    text.parse().unwrap()
}

fn read(content: &Content, layer: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    content.layers[layer].blob.reader().read_to_end(&mut bytes).unwrap();
    bytes
}

#[track_caller]
fn carries(content: &Content, parts: &Parts) {
    assert_eq!(content.config, bytes(&parts.config));
    assert_eq!(content.layers.len(), parts.blobs.len());
    for (index, blob) in parts.blobs.iter().enumerate() {
        assert_eq!(content.layers[index].descriptor.digest, Digest::of(blob));
        assert_eq!(read(content, index), *blob);
    }
}

/// A build's way: layer by layer, each unpacked at once; the image is there under its names without any registry.
#[tokio::test]
async fn an_image_is_made_layer_by_layer() {
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("store");
    let store = store(&root).await;
    let ingest = ingest(&store).await;
    let (base, base_id) = put(&ingest, &Tape::default().dir("etc").file("etc/motd", "welcome").done());
    // The directory has no entry: its rights are those of the layer below.
    let (top, top_id) = put(&ingest, &Tape::default().file("etc/shop", "orders").done());
    let mut trees = Vec::new();
    ingest.layer(&base, base_id, &mut trees).await.unwrap();
    ingest.layer(&top, top_id, &mut trees).await.unwrap();
    assert_eq!(fs::read(trees[1].join("etc/shop")).unwrap(), b"orders");
    let names = [name("shop/orders:7"), name("shop/orders:latest")];
    let image = ingest.finish(&config(&[base_id, top_id]), &[base, top], &names).await.unwrap();
    assert_eq!(image.layers, trees);
    assert_eq!(image.image.reference, "shop/orders:7");
    for name in ["shop/orders:7", "shop/orders"] {
        let found = resolve(&store, name, PullPolicy::Never).await.unwrap();
        assert_eq!(
            (found.image.id, found.image.config.command),
            (image.image.id.clone(), vec!["/shop".to_owned()])
        );
    }
    drop(ingest);
    let content = store.content(&image).await.unwrap();
    assert_eq!(content.config, config(&[base_id, top_id]));
    assert_eq!(content.layers[1].tree, trees[1]);
    assert_eq!(Digest::of(&read(&content, 1)), top_id);
    let manifest: serde_json::Value = serde_json::from_slice(&content.manifest.unwrap()).unwrap();
    assert_eq!(manifest["layers"][0]["digest"], base_id.to_string());
    assert_consistent(&root);
}

/// A name goes over to the image that was made last.
#[tokio::test]
async fn a_name_is_taken_over() {
    let work = tempfile::tempdir().unwrap();
    let store = store(&work.path().join("store")).await;
    let ingest = ingest(&store).await;
    let mut ids = Vec::new();
    for content in ["old", "new"] {
        let (blob, id) = put(&ingest, &Tape::default().file("version", content).done());
        ids.push(ingest.finish(&config(&[id]), &[blob], &[name("shop:1")]).await.unwrap());
    }
    let found = resolve(&store, "shop:1", PullPolicy::Missing).await.unwrap();
    assert_eq!(found.image.id, ids[1].image.id);
    assert_eq!(fs::read(found.layers[0].join("version")).unwrap(), b"new");
}

/// What contradicts itself is refused, and leaves neither names nor half an image.
#[tokio::test]
async fn a_made_image_is_checked_like_a_fetched_one() {
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("store");
    let store = store(&root).await;
    let ingest = ingest(&store).await;
    let (blob, id) = put(&ingest, &Tape::default().file("a", "").done());
    let other = Digest::of(b"another");
    let failure =
        ingest.finish(&config(&[other]), std::slice::from_ref(&blob), &[name("shop")]).await.unwrap_err();
    let shown = failure.to_string().replace(&id.to_string(), "ID").replace(&other.to_string(), "OTHER");
    insta::assert_snapshot!(shown, @"
    image docker-archive:orders.tar has the wrong bytes: an unpacked layer does not match its digest
      expected: OTHER
      actual:   ID
    hint: write `docker-archive:orders.tar` again; it was damaged or changed after it was written
    ");
    let missing = Descriptor::new("application/vnd.oci.image.layer.v1.tar", other, 7);
    let failure = ingest.finish(&config(&[other]), &[missing], &[name("shop")]).await.unwrap_err();
    insta::assert_snapshot!(failure.to_string().replace(&other.to_string(), "OTHER"), @"
    image docker-archive:orders.tar is incomplete: the blob OTHER cannot be read
      reason: no such file or directory
    ");
    // Begun and given up.
    let mut blob = ingest.blob().unwrap();
    blob.write_all(b"half").unwrap();
    drop(blob);
    drop(ingest);
    assert!(resolve(&store, "shop", PullPolicy::Never).await.is_err());
    assert_consistent(&root);
}

/// An image from files can be passed on while the files are there, layers verified, from every kind of file.
#[tokio::test]
async fn the_content_of_an_image_from_files_is_read_from_them() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name);
    shop().layout(&path("layout"), "7");
    fs::write(path("oci.tar"), archive_of(&path("layout"))).unwrap();
    fs::write(path("docker.tar"), shop().docker_archive("shop:7")).unwrap();
    for (source, number) in [("oci:layout", 0), ("oci-archive:oci.tar", 1), ("docker-archive:docker.tar", 2)]
    {
        let (kind, file) = source.split_once(':').unwrap();
        let store = store(&path(&format!("store{number}"))).await;
        let image =
            resolve(&store, &format!("{kind}:{}", path(file).display()), PullPolicy::Missing).await.unwrap();
        let content = store.content(&image).await.unwrap();
        if kind == "docker-archive" {
            assert_eq!(content.layers[1].descriptor.digest, content.layers[1].diff_id);
            assert_eq!(Digest::of(&read(&content, 1)), content.layers[1].diff_id);
        } else {
            carries(&content, &shop());
            assert_eq!(content.manifest.as_deref(), Some(&bytes(&shop().manifest)[..]));
        }
        assert_consistent(&path(&format!("store{number}")));
    }
}

/// What was copied into the store outlives the file that it came from; what was not is said.
#[tokio::test]
async fn content_that_is_gone_is_said() {
    let work = tempfile::tempdir().unwrap();
    let layout = work.path().join("layout");
    shop().layout(&layout, "7");
    let store = store(&work.path().join("store")).await;
    let image = resolve(&store, &format!("oci:{}", layout.display()), PullPolicy::Missing).await.unwrap();
    let moved = work.path().join("moved");
    fs::rename(&layout, &moved).unwrap();
    let failure = store.content(&image).await.unwrap_err();
    insta::assert_snapshot!(shown(&failure, work.path()), @"
    image oci:DIR/layout cannot be passed on: the store has its files, but not its layers as archives
      came from: oci:DIR/layout
      reason:    image oci:DIR/layout was not found
    ");
    fs::rename(&moved, &layout).unwrap();
    let content = store.content(&image).await.unwrap();
    let ingest = ingest(&store).await;
    let mut layers = Vec::new();
    for layer in &content.layers {
        layers.push(ingest.take(&layer.descriptor, &layer.blob).await.unwrap());
    }
    let made = ingest.finish(&content.config, &layers, &[name("shop/base")]).await.unwrap();
    fs::rename(&layout, &moved).unwrap();
    assert_eq!(made.image.id, image.image.id);
    carries(&store.content(&image).await.unwrap(), &shop());
}

fn shown(failure: &shakedown_spec::Failure, work: &Path) -> String {
    failure.to_string().replace(work.to_str().unwrap(), "DIR")
}
