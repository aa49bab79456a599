//! OCI image layouts: the directories that images are written to.
//!
//! The formats are those of the OCI image specification 1.1, chapters "Image Layout", "Image Manifest" and
//! "Image Configuration".

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use ring::digest::{self, SHA256};
use serde_json::{Value, json};

use super::CREATED;
use super::recipe::Image;
use super::tree::Tree;

/// The file that describes a base layer, next to its blob.
pub(super) const LAYER_RECORD: &str = "layer.json";
/// The blob of a base layer.
const LAYER_BLOB: &str = "layer.tar.gz";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A layer that has been written.
#[derive(Debug)]
pub(super) struct Layer {
    /// Where its blob is.
    path: PathBuf,
    /// The hash of the compressed archive, with its algorithm.
    digest: String,
    /// The hash of the archive, with its algorithm.
    diff_id: String,
    /// The bytes of the compressed archive.
    size: u64,
}

/// The architecture of this machine, as images name it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The SHA-256 of the bytes, in hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&digest::digest(&SHA256, bytes))
}

/// Writes a layer that several images share into a new directory.
pub(super) fn write_base(directory: &Path, tree: &Tree) -> Result<()> {
    fs::create_dir(directory)?;
    let layer = write_layer(&directory.join(LAYER_BLOB), tree)?;
    let record = json!({ "digest": layer.digest, "diff_id": layer.diff_id, "size": layer.size });
    fs::write(directory.join(LAYER_RECORD), record.to_string())
        .context("cannot write the record of the layer")
}

/// Reads what [`write_base`] wrote.
pub(super) fn read_base(directory: &Path) -> Result<(Layer, Tree)> {
    let record: Value = serde_json::from_slice(&fs::read(directory.join(LAYER_RECORD))?)?;
    let field = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let path = directory.join(LAYER_BLOB);
    let mut tree = Vec::new();
    GzDecoder::new(File::open(&path)?).read_to_end(&mut tree).context("cannot unpack the base layer")?;
    let tree = Tree::from_tar(tree.as_slice(), |_| true)?;
    let size = record["size"].as_u64().unwrap_or_default();
    Ok((Layer { path, digest: field("digest"), diff_id: field("diff_id"), size }, tree))
}

/// Writes an image into a new directory: the files of `tree`, as one layer or on top of the lower layer.
pub(super) fn write_image(
    directory: &Path,
    name: &str,
    image: &Image,
    lower: Option<(Layer, Tree)>,
    tree: &Tree,
) -> Result<()> {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut layers = Vec::new();
    let unnamed = blobs.join("new");
    if let Some((layer, files)) = lower {
        let upper = write_layer(&unnamed, &tree.on_top_of(&files))?;
        layers.extend([layer, upper]);
    } else {
        layers.push(write_layer(&unnamed, tree)?);
    }
    for layer in &layers {
        // The blob of the base is linked, that of the image has its only name changed.
        let blob = blobs.join(layer.digest.trim_start_matches("sha256:"));
        // A copy where links are refused: on some file systems, and to files of other users (fs.protected_hardlinks).
        let linked = fs::hard_link(&layer.path, &blob).or_else(|_| fs::copy(&layer.path, &blob).map(drop));
        linked.with_context(|| format!("cannot create {}", blob.display()))?;
    }
    fs::remove_file(&unnamed)?;

    let config = write_json(&blobs, CONFIG, &configuration(image, &layers))?;
    let layers: Vec<Value> =
        layers.iter().map(|layer| descriptor(LAYER, &layer.digest, layer.size)).collect();
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    let mut manifest = write_json(&blobs, MANIFEST, &manifest)?;
    manifest["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": format!("{name}:{}", image.tag) });

    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] });
    fs::write(directory.join("index.json"), index.to_string()).context("cannot write index.json")
}

/// The image configuration: how to run the image, and what its layers are.
fn configuration(image: &Image, layers: &[Layer]) -> Value {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let created_by = |_: &Layer| json!({ "created": CREATED, "created_by": "cargo xtask images" });
    json!({
        "created": CREATED,
        "architecture": architecture(),
        "os": "linux",
        "config": image.config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": layers.iter().map(created_by).collect::<Vec<Value>>(),
    })
}

/// Writes a JSON blob under its hash. Returns its descriptor.
fn write_json(blobs: &Path, media_type: &str, value: &Value) -> Result<Value> {
    let text = value.to_string();
    let hash = sha256(text.as_bytes());
    fs::write(blobs.join(&hash), &text).context("cannot write a blob")?;
    Ok(descriptor(media_type, &format!("sha256:{hash}"), text.len() as u64))
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

/// Writes the files as a compressed archive, and hashes it on the way, before and after compression.
fn write_layer(path: &Path, tree: &Tree) -> Result<Layer> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let compressed = GzEncoder::new(Hashing::new(io::BufWriter::new(file)), Compression::default());
    let mut archive = Hashing::new(compressed);
    tree.write_tar(&mut archive)?;
    let (diff_id, _, compressor) = archive.finish();
    let (digest, size, mut file) = compressor.finish().context("cannot compress the layer")?.finish();
    file.flush().context("cannot write the layer")?;
    Ok(Layer { path: path.to_path_buf(), digest, diff_id, size })
}

/// A writer that hashes and counts what passes through it.
struct Hashing<W> {
    inner: W,
    hash: digest::Context,
    size: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: digest::Context::new(&SHA256), size: 0 }
    }

    /// The digest and the number of the bytes written, and the writer behind.
    fn finish(self) -> (String, u64, W) {
        (format!("sha256:{}", hex(&self.hash.finish())), self.size, self.inner)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(digest: &digest::Digest) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
