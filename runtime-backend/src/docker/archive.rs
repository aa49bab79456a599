//! Images that lie in files, turned into the archive that every daemon loads (`docker load`).
//!
//! An OCI layout or archive is read as it is uploaded: nothing is unpacked here, gzip layers pass as they are, and
//! each blob's digest is checked while it passes. A wrong digest breaks the upload off before its end, so the daemon
//! never sees a complete archive.

use crate::driver::Result;
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};
use shakedown_spec::{Failure, FailureKind, ImageSource};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

/// An image in files, with its configuration read and checked.
pub(crate) struct Packed {
    files: Files,
    /// The digest of the configuration, `sha256:…`.
    pub(crate) id: String,
    config: Vec<u8>,
    layers: Vec<Layer>,
}

struct Layer {
    /// Where its blob lies.
    file: String,
    /// What its bytes have to hash to; a `docker save` archive names no digest, and the daemon checks the content.
    digest: Option<String>,
    /// Whether it has to be inflated on the way: daemons before 23.0 load no zstd.
    zstd: bool,
}

/// Files by name: of a directory, or inside a tar file.
enum Files {
    Directory(PathBuf),
    Tar { path: PathBuf, index: HashMap<String, Entry> },
}

enum Entry {
    Data { offset: u64, size: u64 },
    Link(String),
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// An entry of `manifest.json` in what `docker save` writes.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

const NAME: &str = "org.opencontainers.image.ref.name";

impl Packed {
    /// Reads what the source says of itself; blocking.
    pub(crate) fn open(source: &ImageSource) -> Result<Self> {
        let opened = match source {
            ImageSource::OciLayout { path, tag } => {
                Self::layout(Files::Directory(path.clone()), tag.as_deref())
            }
            ImageSource::OciArchive { path, tag } => {
                Files::index(path).and_then(|files| Self::layout(files, tag.as_deref()))
            }
            ImageSource::DockerArchive { path, reference } => {
                Files::index(path).and_then(|files| Self::saved(files, reference.as_deref()))
            }
            ImageSource::Registry(reference) => Err(format!("{reference} is not an archive")),
        };
        opened.map_err(|reason| {
            let missing = match source {
                ImageSource::OciLayout { path, .. } if !path.exists() => Some(path.join("index.json")),
                ImageSource::OciArchive { path, .. } | ImageSource::DockerArchive { path, .. }
                    if !path.exists() =>
                {
                    Some(path.clone())
                }
                _ => None,
            };
            match missing {
                Some(file) => {
                    Failure::new(FailureKind::ImageNotFound, format!("image {source} was not found"))
                        .fact("file", file.display().to_string())
                        .fact("reason", "no such file or directory")
                }
                None => Failure::new(FailureKind::ImageUnusable, format!("image {source} cannot be used"))
                    .fact("reason", reason),
            }
        })
    }

    fn layout(files: Files, tag: Option<&str>) -> std::result::Result<Self, String> {
        let index: Index = parse("index.json", &files.read("index.json")?)?;
        let mut chosen = choose(index.manifests, tag)?;
        let mut bytes = files.blob(&chosen.digest)?;
        // An image for several machines is an index of its own.
        if chosen.media_type.contains("index") || chosen.media_type.contains("manifest.list") {
            let nested: Index = parse(&chosen.digest, &bytes)?;
            chosen = choose_platform(nested.manifests)?;
            bytes = files.blob(&chosen.digest)?;
        }
        let manifest: Manifest = parse(&chosen.digest, &bytes)?;
        let config = files.blob(&manifest.config.digest)?;
        let layers = manifest.layers.into_iter().map(|layer| {
            let file = blob_path(&layer.digest)?;
            Ok(Layer { file, zstd: layer.media_type.ends_with("zstd"), digest: Some(layer.digest) })
        });
        let layers = layers.collect::<std::result::Result<_, String>>()?;
        Ok(Self { files, id: manifest.config.digest, config, layers })
    }

    fn saved(files: Files, reference: Option<&str>) -> std::result::Result<Self, String> {
        let mut list: Vec<Saved> = parse("manifest.json", &files.read("manifest.json")?)?;
        if let Some(wanted) = reference {
            let is_it = |tag: &String| tag == wanted || tag.strip_suffix(":latest") == Some(wanted);
            let names = list.iter().flat_map(|image| image.repo_tags.clone().unwrap_or_default());
            let names = names.collect::<Vec<_>>().join(", ");
            list.retain(|image| image.repo_tags.iter().flatten().any(is_it));
            if list.is_empty() {
                return Err(format!("it has no `{wanted}`; it has {names}"));
            }
        }
        let [image] = <[Saved; 1]>::try_from(list)
            .map_err(|list| format!("it has {} images; name one after a colon", list.len()))?;
        let config = files.read(&image.config)?;
        let id = format!("sha256:{}", hex(digest(&SHA256, &config).as_ref()));
        let layers = image.layers.into_iter().map(|file| Layer { file, digest: None, zstd: false }).collect();
        Ok(Self { files, id, config, layers })
    }

    /// Writes the archive for `docker load`, with this image tagged `tag`; blocking.
    pub(crate) fn write(
        &self,
        tag: &str,
        out: impl Write,
        progress: &dyn Fn(&str, u64, u64),
    ) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        let config = format!("{}.json", self.id.trim_start_matches("sha256:"));
        append(&mut tar, &config, self.config.len() as u64, &self.config[..])?;
        let mut layers = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let name = format!("{number}/layer.tar");
            self.write_layer(&mut tar, &name, layer, progress)?;
            layers.push(name);
        }
        let saved = [Saved { config, repo_tags: Some(vec![tag.to_owned()]), layers }];
        let manifest = serde_json::to_vec(&saved)?;
        append(&mut tar, "manifest.json", manifest.len() as u64, &manifest[..])?;
        tar.finish()
    }

    fn write_layer(
        &self,
        tar: &mut tar::Builder<impl Write>,
        name: &str,
        layer: &Layer,
        progress: &dyn Fn(&str, u64, u64),
    ) -> io::Result<()> {
        let (blob, size) = self.files.open(&layer.file).map_err(io::Error::other)?;
        let mut checked =
            Checked { blob, hash: Context::new(&SHA256), done: 0, size, name: &layer.file, progress };
        if layer.zstd {
            // A tar header stands before the content and has its size: it takes one pass to know it.
            let (again, _) = self.files.open(&layer.file).map_err(io::Error::other)?;
            let inflated = io::copy(&mut zstd::stream::read::Decoder::new(again)?, &mut io::sink())?;
            append(tar, name, inflated, zstd::stream::read::Decoder::new(&mut checked)?.take(inflated))?;
            io::copy(&mut checked, &mut io::sink())?;
        } else {
            append(tar, name, size, &mut checked)?;
        }
        let found = format!("sha256:{}", hex(checked.hash.finish().as_ref()));
        match &layer.digest {
            Some(digest) if *digest != found => {
                Err(io::Error::other(format!("layer {digest} has digest {found}")))
            }
            _ => Ok(()),
        }
    }
}

/// Hashes and counts what is read through it.
struct Checked<'a, R> {
    blob: R,
    hash: Context,
    done: u64,
    size: u64,
    name: &'a str,
    progress: &'a dyn Fn(&str, u64, u64),
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.done += count as u64;
        (self.progress)(self.name, self.done, self.size);
        Ok(count)
    }
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, size: u64, content: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content)
}

impl Files {
    /// Where each file of a tar file lies.
    fn index(path: &Path) -> std::result::Result<Self, String> {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let broken = |error: io::Error| format!("{} is no tar file: {error}", path.display());
        let mut index = HashMap::new();
        for entry in tar::Archive::new(file).entries_with_seek().map_err(broken)? {
            let entry = entry.map_err(broken)?;
            let name = entry.path().map_err(broken)?.into_owned();
            let link = entry.link_name().map_err(broken)?;
            let place = match (entry.header().entry_type(), link) {
                // `docker save` links a layer that it has written already.
                (tar::EntryType::Symlink, Some(to)) => {
                    Entry::Link(plain(&name.parent().unwrap_or(Path::new("")).join(to)))
                }
                (tar::EntryType::Link, Some(to)) => Entry::Link(plain(&to)),
                _ => Entry::Data { offset: entry.raw_file_position(), size: entry.size() },
            };
            index.insert(plain(&name), place);
        }
        Ok(Self::Tar { path: path.to_owned(), index })
    }

    fn open(&self, name: &str) -> std::result::Result<(Box<dyn Read>, u64), String> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                let opened =
                    File::open(&path).and_then(|file| file.metadata().map(|data| (file, data.len())));
                let (file, size) = opened.map_err(|error| format!("{}: {error}", path.display()))?;
                Ok((Box::new(file), size))
            }
            Self::Tar { path, index } => {
                let mut name = plain(Path::new(name));
                // Each hop is another entry, so more hops than entries are a circle.
                for _ in 0..=index.len() {
                    match index.get(&name) {
                        None => return Err(format!("{} has no {name}", path.display())),
                        Some(Entry::Link(to)) => name.clone_from(to),
                        Some(Entry::Data { offset, size }) => {
                            let opened = File::open(path).and_then(|mut file| {
                                file.seek(SeekFrom::Start(*offset)).map(|_| file.take(*size))
                            });
                            let file = opened.map_err(|error| format!("{}: {error}", path.display()))?;
                            return Ok((Box::new(file), *size));
                        }
                    }
                }
                Err(format!("{}: {name} is a link to itself", path.display()))
            }
        }
    }

    fn read(&self, name: &str) -> std::result::Result<Vec<u8>, String> {
        // Manifests and configurations are small; a file that claims otherwise is not read into memory.
        const LARGEST: u64 = 16 << 20;
        let (file, size) = self.open(name)?;
        if size > LARGEST {
            return Err(format!("{name} has {size} bytes"));
        }
        let mut bytes = Vec::new();
        file.take(LARGEST).read_to_end(&mut bytes).map_err(|error| format!("{name}: {error}"))?;
        Ok(bytes)
    }

    /// A blob of a layout, checked.
    fn blob(&self, digest_wanted: &str) -> std::result::Result<Vec<u8>, String> {
        let bytes = self.read(&blob_path(digest_wanted)?)?;
        let found = format!("sha256:{}", hex(digest(&SHA256, &bytes).as_ref()));
        if found == digest_wanted {
            Ok(bytes)
        } else {
            Err(format!("blob {digest_wanted} has digest {found}"))
        }
    }
}

fn choose(mut manifests: Vec<Descriptor>, tag: Option<&str>) -> std::result::Result<Descriptor, String> {
    let name = |image: &Descriptor| image.annotations.get(NAME).cloned();
    let names = manifests.iter().filter_map(name).collect::<Vec<_>>().join(", ");
    if let Some(tag) = tag {
        manifests.retain(|image| name(image).as_deref() == Some(tag));
        return manifests.into_iter().next().ok_or_else(|| format!("it has no `{tag}`; it has {names}"));
    }
    match manifests.len() {
        1 => Ok(manifests.remove(0)),
        0 => Err("it has no image".to_owned()),
        _ => Err(format!("it has several images; name one after a colon: {names}")),
    }
}

fn choose_platform(mut manifests: Vec<Descriptor>) -> std::result::Result<Descriptor, String> {
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |image: &Descriptor| {
        image
            .platform
            .as_ref()
            .is_none_or(|platform| platform.os == "linux" && platform.architecture == machine)
    };
    let found =
        manifests.iter().position(fits).ok_or_else(|| format!("it has no image for linux/{machine}"))?;
    Ok(manifests.swap_remove(found))
}

fn blob_path(digest: &str) -> std::result::Result<String, String> {
    let hex = digest.strip_prefix("sha256:").ok_or_else(|| format!("digest `{digest}` is not sha256"))?;
    // The digest becomes a path.
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("`{digest}` is not a digest"));
    }
    Ok(format!("blobs/sha256/{hex}"))
}

fn parse<T: for<'a> Deserialize<'a>>(name: &str, bytes: &[u8]) -> std::result::Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("{name}: {error}"))
}

/// A path inside an archive without `.` and `..`.
fn plain(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
