//! Makes images: honest ones, and ones whose parts contradict each other.

use crate::tape::{Entry, FILE, Tape};
use serde_json::{Value, json};
use shakedown_runtime::native::image::{
    Digest, LocalUnpacker, RetryPolicy, Store, StoreOptions, StoredImage,
};
use shakedown_spec::{Failure, ImageSource, PullPolicy};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The parts of an image. Every field may be changed before it is written.
#[derive(Clone)]
pub(crate) struct Parts {
    /// The layers as they are stored, and the names the manifest has for them.
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) config: Value,
    pub(crate) manifest: Value,
}

pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl Parts {
    /// An image of these uncompressed layers.
    pub(crate) fn of(layers: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = json!({
            "architecture": "any", "os": "linux",
            "config": {"Cmd": ["/bin/true"], "Env": ["SHOP=orders"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let blobs: Vec<_> = layers.iter().map(|layer| gzip(layer)).collect();
        let mut parts = Self { blobs, config, manifest: Value::Null };
        parts.describe();
        parts
    }

    /// Writes the manifest that fits the parts.
    pub(crate) fn describe(&mut self) {
        let layers: Vec<_> = self.blobs.iter().map(|blob| descriptor(LAYER, blob)).collect();
        let config = descriptor("application/vnd.oci.image.config.v1+json", &bytes(&self.config));
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    }

    /// Writes an OCI layout with this image under `tag`. Blobs lie where the manifest names them, right or wrong.
    pub(crate) fn layout(&self, directory: &Path, tag: &str) {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |name: &Value, content: &[u8]| {
            let name = name["digest"].as_str().unwrap().trim_start_matches("sha256:");
            fs::write(blobs.join(name), content).unwrap();
        };
        for (blob, descriptor) in self.blobs.iter().zip(self.manifest["layers"].as_array().unwrap()) {
            put(descriptor, blob);
        }
        put(&self.manifest["config"], &bytes(&self.config));
        let manifest = bytes(&self.manifest);
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        put(&entry, &manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let index = fs::read(directory.join("index.json"));
        let mut index = index.map_or(json!({"schemaVersion": 2, "manifests": []}), |index| {
            serde_json::from_slice(&index).unwrap()
        });
        index["manifests"].as_array_mut().unwrap().push(entry);
        fs::write(directory.join("index.json"), bytes(&index)).unwrap();
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }

    /// What `docker save` writes; the second name of a layer that comes twice is a symlink.
    pub(crate) fn docker_archive(&self, tag: &str) -> Vec<u8> {
        let config = bytes(&self.config);
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let mut tape = Tape::default().entry(Entry::new(FILE, &config_name).data(&config));
        let mut names = Vec::new();
        for (number, blob) in self.blobs.iter().enumerate() {
            names.push(format!("{number}/layer.tar"));
            tape = match self.blobs[..number].iter().position(|earlier| earlier == blob) {
                Some(earlier) => tape.symlink(&names[number], &format!("../{earlier}/layer.tar")),
                None => tape.entry(Entry::new(FILE, &names[number]).data(gunzip(blob))),
            };
        }
        let manifest = json!([{"Config": config_name, "RepoTags": [tag], "Layers": names}]);
        tape.entry(Entry::new(FILE, "manifest.json").data(bytes(&manifest))).done()
    }
}

/// A small image of three layers, the second of which deletes something of the first.
pub(crate) fn shop() -> Parts {
    let base = Tape::default().dir("etc").file("etc/motd", "welcome").file("etc/old", "x").dir("bin").done();
    let second = Tape::default().dir("etc").file("etc/.wh.old", "").file("etc/shop", "orders").done();
    let third = Tape::default().dir("srv").file("srv/catalogue", &"item\n".repeat(5000)).done();
    Parts::of(&[base, second, third])
}

pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut plain).unwrap();
    plain
}

/// An archive of a directory, members named relative to it.
pub(crate) fn archive_of(directory: &Path) -> Vec<u8> {
    let mut tape = Tape::default();
    for path in ["oci-layout", "index.json"] {
        tape = tape.entry(Entry::new(FILE, path).data(fs::read(directory.join(path)).unwrap()));
    }
    for blob in fs::read_dir(directory.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let name = format!("blobs/sha256/{}", blob.file_name().to_str().unwrap());
        tape = tape.entry(Entry::new(FILE, name).data(fs::read(blob.path()).unwrap()));
    }
    tape.done()
}

/// A store in `root` as this process can have it, without passwords.
pub(crate) async fn store(root: &Path) -> Store {
    store_with(root, quick()).await
}

pub(crate) async fn store_with(root: &Path, options: StoreOptions) -> Store {
    Store::open_with(root, Arc::new(LocalUnpacker::of_this_process()), options).await.unwrap()
}

/// Pauses that take no time.
pub(crate) fn quick() -> StoreOptions {
    let (first_pause, longest_pause) = (Duration::from_millis(1), Duration::from_millis(5));
    let retry = RetryPolicy { attempts: 3, first_pause, longest_pause, ..RetryPolicy::default() };
    StoreOptions { retry, ..StoreOptions::default() }
}

pub(crate) async fn resolve(store: &Store, source: &str, policy: PullPolicy) -> Result<StoredImage, Failure> {
    let source: ImageSource = source.parse().unwrap();
    store.resolve(&source, policy, Arc::new(|_, _, _| {})).await
}

/// Everything in the store is as it was written.
pub(crate) async fn assert_verifies(root: &Path) {
    let findings = store(root).await.verify(false).await.unwrap();
    assert!(findings.is_empty(), "{findings:#?}");
    assert_consistent(root);
}

/// The store has no work in progress, and whatever it has is whole.
#[track_caller]
pub(crate) fn assert_consistent(root: &Path) {
    let left: Vec<_> = fs::read_dir(root.join("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left over: {left:?}");
    for form in fs::read_dir(root.join("layers")).unwrap() {
        for layer in fs::read_dir(form.unwrap().path()).unwrap() {
            let layer = layer.unwrap().path();
            assert!(
                layer.join("layer.json").exists() && layer.join("tree").exists(),
                "{} is half",
                layer.display()
            );
        }
    }
    for blob in fs::read_dir(root.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let digest = Digest::of(&fs::read(blob.path()).unwrap());
        assert_eq!(digest.hex(), blob.file_name().to_str().unwrap());
    }
}
