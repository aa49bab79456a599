//! The root file system that all engines run `/bin/true` on, and the bundle around it for runc and crun.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The command that `true.*` runs.
pub(crate) const TRUE: &str = "/bin/true";

/// A bundle as the OCI runtime specification has it: `config.json` and `rootfs`.
#[derive(Debug)]
pub(crate) struct Bundle {
    directory: TempDir,
}

impl Bundle {
    /// Unpacks an image layout.
    pub(crate) fn unpack(layout: &Path) -> Result<Self> {
        let bundle = Self { directory: tempfile::Builder::new().prefix("sdbench-").tempdir_in("/var/tmp")? };
        let rootfs = bundle.path().join("rootfs");
        fs::create_dir(&rootfs)?;
        let image = Image::read(layout)?;
        for layer in &image.layers {
            let file = File::open(layer).with_context(|| format!("cannot open {}", layer.display()))?;
            let mut archive = tar::Archive::new(GzDecoder::new(file));
            archive.set_preserve_permissions(true);
            archive.unpack(&rootfs).with_context(|| format!("cannot unpack {}", layer.display()))?;
        }
        fs::write(bundle.path().join("config.json"), configuration()?.to_string())?;
        Ok(bundle)
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// runc's own template, with our command and without a terminal: namespaces, masks, mounts and capabilities are those
/// that both programs take for normal.
fn configuration() -> Result<Value> {
    let directory = tempfile::tempdir()?;
    let status = Command::new("runc").args(["spec", "--bundle"]).arg(directory.path()).status();
    if !status.context("cannot start runc")?.success() {
        bail!("`runc spec` failed");
    }
    let mut value: Value = serde_json::from_slice(&fs::read(directory.path().join("config.json"))?)?;
    value["process"]["terminal"] = json!(false);
    value["process"]["args"] = json!([TRUE]);
    // Without CAP_SYS_RESOURCE a limit cannot be raised to what the template asks for.
    value["process"]["rlimits"] = json!([]);
    value["root"]["readonly"] = json!(false);
    Ok(value)
}

/// An image layout with one image.
#[derive(Debug)]
pub(crate) struct Image {
    /// The blob of the configuration.
    pub(crate) config: PathBuf,
    /// The blobs of the layers, the lowest first.
    pub(crate) layers: Vec<PathBuf>,
}

impl Image {
    /// Reads the index and the manifest of a layout.
    pub(crate) fn read(layout: &Path) -> Result<Self> {
        let json = |path: &Path| -> Result<Value> {
            let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&bytes).with_context(|| format!("{} is no JSON", path.display()))
        };
        let blob = |descriptor: &Value| -> Result<PathBuf> {
            let digest = descriptor["digest"].as_str().context("a descriptor has no digest")?;
            Ok(layout.join("blobs").join(digest.replace(':', "/")))
        };
        let manifest = json(&blob(&json(&layout.join("index.json"))?["manifests"][0])?)?;
        let layers = manifest["layers"].as_array().context("the manifest has no layers")?;
        Ok(Self {
            config: blob(&manifest["config"])?,
            layers: layers.iter().map(blob).collect::<Result<_>>()?,
        })
    }

    /// The image as `docker load` reads it.
    pub(crate) fn docker_archive(&self, reference: &str) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let layers: Vec<String> = self.layers.iter().map(|path| name(path) + ".tar.gz").collect();
        let config = name(&self.config) + ".json";
        let manifest = json!([{ "Config": config, "RepoTags": [reference], "Layers": layers }]).to_string();
        archive.append_path_with_name(&self.config, &config)?;
        for (path, name) in self.layers.iter().zip(&layers) {
            // The layout's blobs may be links; Docker wants files.
            archive.append_file(name, &mut File::open(path)?)?;
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(manifest.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, "manifest.json", manifest.as_bytes())?;
        Ok(archive.into_inner()?)
    }
}
