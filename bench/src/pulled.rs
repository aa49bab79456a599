//! The image that is pulled: 150 MB in five layers of different sizes, as an application on a runtime on a distribution
//! has them, in a registry on loopback.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bundle::Image;

/// Bytes of the files of each layer, the lowest first.
const LAYERS: [usize; 5] = [60 << 20, 45 << 20, 25 << 20, 15 << 20, 5 << 20];
/// Where the files come from: programs, libraries and text of Debian packages.
const SOURCES: [&str; 2] = ["postgres", "redis"];
/// The name in the registry.
const NAME: &str = "bench/pulled:1";

/// A registry with the image in it. Dropping it stops the registry and removes its files.
#[derive(Debug)]
pub(crate) struct Registry {
    child: Child,
    address: String,
    _directory: TempDir,
}

impl Registry {
    /// Makes the image and serves it.
    pub(crate) fn start(images: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sdbench-").tempdir_in("/var/tmp")?;
        let layout = directory.path().join("layout");
        write(&layout, images).context("cannot make the image to pull")?;
        // Free a moment ago; who else would take it is no measurement.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = directory.path().join("config.yml");
        let storage = directory.path().join("registry");
        let text = json!({
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": storage}},
            "http": {"addr": address},
        });
        // JSON is YAML.
        fs::write(&config, text.to_string())?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("cannot start docker-registry")?;
        let registry = Self { child, address, _directory: directory };
        let (from, to) = (format!("oci:{}:1", layout.display()), format!("docker://{}", registry.image()));
        let mut push = Command::new("skopeo");
        push.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--retry-times=5",
            "--dest-tls-verify=false",
            &from,
            &to,
        ]);
        if !push.status().context("cannot start skopeo")?.success() {
            bail!("the image to pull could not be pushed");
        }
        Ok(registry)
    }

    /// The reference that is pulled.
    pub(crate) fn image(&self) -> String {
        format!("{}/{NAME}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Writes the layout of the image.
fn write(layout: &Path, images: &Path) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |kind: &str, bytes: &[u8]| -> Result<Value> {
        let digest = sha256(bytes)?;
        fs::write(blobs.join(&digest), bytes)?;
        Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    };
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for plain in archives(images)? {
        diff_ids.push(format!("sha256:{}", sha256(&plain)?));
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&plain)?;
        layers.push(put("application/vnd.oci.image.layer.v1.tar+gzip", &encoder.finish()?)?);
    }
    let config: Value = serde_json::from_slice(&fs::read(&Image::read(&images.join("busybox"))?.config)?)?;
    let config = json!({
        "architecture": config["architecture"], "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let mut manifest = put(kind, manifest.to_string().as_bytes())?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    Ok(())
}

/// The layers' archives: first all of busybox, so that there is a program to run, then files until each is full. If the
/// sources have too few, they come again under other names.
fn archives(images: &Path) -> Result<Vec<Vec<u8>>> {
    let builder = tar::Builder::new(Vec::new());
    let mut filling = Filling { full: Vec::new(), builder, known: HashSet::new() };
    filling.append(&images.join("busybox"), "")?;
    for round in 0..100 {
        for source in SOURCES {
            filling.append(&images.join(source), &format!("srv/{round}/{source}/"))?;
        }
        if filling.full.len() == LAYERS.len() {
            return Ok(filling.full);
        }
    }
    bail!("the sources have too few files")
}

/// Archives that have their size, and the one that is being filled.
struct Filling {
    full: Vec<Vec<u8>>,
    builder: tar::Builder<Vec<u8>>,
    /// The paths in it: Docker and Podman take no archive with one twice.
    known: HashSet<String>,
}

impl Filling {
    /// Appends the files and links of an image below `prefix`, as long as there is room.
    fn append(&mut self, layout: &Path, prefix: &str) -> Result<()> {
        for layer in Image::read(layout)?.layers {
            for entry in tar::Archive::new(GzDecoder::new(File::open(layer)?)).entries()? {
                let Some(most) = LAYERS.get(self.full.len()) else { return Ok(()) };
                self.append_entry(entry?, prefix)?;
                if self.builder.get_ref().len() >= *most {
                    let builder = std::mem::replace(&mut self.builder, tar::Builder::new(Vec::new()));
                    self.full.push(builder.into_inner()?);
                    self.known.clear();
                }
            }
        }
        Ok(())
    }

    fn append_entry(&mut self, mut entry: tar::Entry<'_, impl std::io::Read>, prefix: &str) -> Result<()> {
        let mut header = entry.header().clone();
        let below = |path: &Path| format!("{prefix}{}", path.strip_prefix(".").unwrap_or(path).display());
        let path = below(&entry.path()?);
        let name = path.trim_end_matches('/');
        if name.is_empty() || !self.known.insert(name.to_owned()) {
            return Ok(());
        }
        if let Some(link) = entry.link_name()?.map(std::borrow::Cow::into_owned) {
            // A symbolic link says where from its own place on, a hard link where in the image.
            let hard = header.entry_type() == tar::EntryType::Link;
            let link = if hard { below(&link).into() } else { link };
            self.builder.append_link(&mut header, &path, link)?;
            return Ok(());
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        Ok(self.builder.append_data(&mut header, &path, content.as_slice())?)
    }
}

/// By the program, for one digest a layer is no reason for a dependency.
fn sha256(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start sha256sum")?;
    child.stdin.take().context("sha256sum has no input")?.write_all(bytes)?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().map(str::to_owned).context("sha256sum says nothing")
}
