//! Docker's own registry, on a free port of loopback. It ends with the test.

use crate::lab::image;
use serde_json::Value;
use shakedown_runtime::native::image::Digest;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

pub(crate) struct Registry {
    process: Child,
    /// Host and port.
    pub(crate) address: String,
    _data: TempDir,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            data.path().display()
        );
        let path = data.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("`docker-registry` has to be installed: apt install docker-registry");
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line =
            log.find(|line| line.contains("listening on ")).expect("the registry says where it listens");
        // Read on, so that the registry never waits for a full pipe.
        std::thread::spawn(move || log.for_each(drop));
        let (_, rest) = line.split_once("listening on ").unwrap();
        let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit()).unwrap_or(rest.len());
        Self { process, address: rest[..end].to_owned(), _data: data }
    }

    /// Puts an image of `target/images` there; gives the digest of its manifest.
    pub(crate) fn push(&self, name: &str, repository_and_tag: &str) -> String {
        self.push_source(&image(name), repository_and_tag)
    }

    /// Puts an image anywhere there.
    pub(crate) fn push_source(&self, source: &str, repository_and_tag: &str) -> String {
        let digest = tempfile::NamedTempFile::new().unwrap();
        let target = format!("docker://{}/{repository_and_tag}", self.address);
        let copied = Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--dest-tls-verify=false", "--digestfile"])
            .arg(digest.path())
            .args([source, &target])
            .output()
            .expect("`skopeo` has to be installed: apt install skopeo");
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        std::fs::read_to_string(digest.path()).unwrap().trim().to_owned()
    }
}

/// A layout in `directory` with the busybox image under an id of its own, so that a test may remove it from a daemon
/// that other tests use as well. Gives its source.
pub(crate) fn own_busybox(directory: &Path) -> String {
    let original = PathBuf::from(image("busybox").trim_start_matches("oci:"));
    let copied = Command::new("cp").arg("-rL").arg(&original).arg(directory).status().unwrap();
    assert!(copied.success());
    let blob = |entry: &Value| {
        directory.join("blobs/sha256").join(entry["digest"].as_str().unwrap().trim_start_matches("sha256:"))
    };
    let read = |path: &Path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
    let write = |document: &Value, entry: &mut Value| {
        let bytes = serde_json::to_vec(document).unwrap();
        entry["digest"] = Value::from(Digest::of(&bytes).to_string());
        entry["size"] = Value::from(bytes.len());
        std::fs::write(blob(entry), bytes).unwrap();
    };
    let mut index = read(&directory.join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]));
    let mut config = read(&blob(&manifest["config"]));
    config["author"] = Value::from(directory.to_str().unwrap());
    write(&config, &mut manifest["config"]);
    write(&manifest, &mut index["manifests"][0]);
    std::fs::write(directory.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    format!("oci:{}", directory.display())
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
