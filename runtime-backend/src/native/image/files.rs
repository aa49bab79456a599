//! Images in files: OCI layout directories, OCI archives, Docker archives.

use super::digest::{Digest, Hasher};
use super::failures::{not_found, plain, unusable, wrong_digest, wrong_size};
use super::manifest::{Descriptor, Document, LARGEST_DOCUMENT, Manifest, Platform, choose};
use super::unpack::shown;
use super::unpacker::Blob;
use serde::Deserialize;
use shakedown_spec::{Failure, ImageSource};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Annotations that name an image of a layout; containerd writes the whole reference in the second.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
/// How deep indexes may nest.
const DEEPEST_INDEX: usize = 4;
/// How many members an archive may have; images have a few dozen.
const MOST_MEMBERS: usize = 100_000;

/// Named files, in a directory or in a tar archive.
#[derive(Debug)]
pub(crate) enum Files {
    Directory(PathBuf),
    Archive { file: Arc<File>, members: HashMap<Vec<u8>, Member> },
}

#[derive(Debug)]
pub(crate) enum Member {
    File {
        offset: u64,
        length: u64,
    },
    /// `docker save` used to write a layer that comes twice as a symlink.
    Link(Vec<u8>),
}

/// An image found in files: its configuration and where its layers are.
#[derive(Debug)]
pub(crate) struct FoundInFiles {
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Option<Digest>,
    pub(crate) layers: Vec<LayerFile>,
}

/// One layer in a file.
#[derive(Clone, Debug)]
pub(crate) struct LayerFile {
    path: String,
    /// Digest and size as the manifest has them; Docker's archives have none.
    expected: Option<(Digest, u64)>,
}

impl Files {
    /// The members of an uncompressed tar archive.
    pub(crate) fn archive(file: File) -> io::Result<Self> {
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            if members.len() >= MOST_MEMBERS {
                return Err(io::Error::other(format!("the archive has more than {MOST_MEMBERS} members")));
            }
            let name = clean(&entry.path_bytes());
            let kind = entry.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                // A symlink is relative to its directory, a hard link to the archive.
                let directory =
                    name.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |at| &name[..at]);
                let target =
                    if kind.is_symlink() { [directory, b"/", &target].concat() } else { target.to_vec() };
                members.insert(name, Member::Link(clean(&target)));
            } else if kind.is_file() {
                members
                    .insert(name, Member::File { offset: entry.raw_file_position(), length: entry.size() });
            }
        }
        Ok(Self::Archive { file: Arc::new(file), members })
    }

    fn open(&self, path: &str) -> io::Result<Option<Blob>> {
        match self {
            Self::Directory(directory) => match File::open(directory.join(path)) {
                Ok(file) => Blob::whole(file).map(Some),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            Self::Archive { file, members } => {
                let name = clean(path.as_bytes());
                let mut member = members.get(&name);
                if let Some(Member::Link(target)) = member {
                    member = members.get(target);
                }
                let Some(Member::File { offset, length }) = member else { return Ok(None) };
                Ok(Some(Blob { file: Arc::clone(file), offset: *offset, length: *length }))
            }
        }
    }

    /// A file that has to be there.
    fn need(&self, source: &ImageSource, path: &str) -> Result<Blob, Failure> {
        match self.open(path) {
            Ok(Some(blob)) => Ok(blob),
            Ok(None) => Err(unusable(source, "is incomplete").fact("missing", path)),
            Err(error) => {
                Err(unusable(source, "could not be read").fact("file", path).fact("reason", plain(&error)))
            }
        }
    }

    /// A document, bounded.
    fn read(&self, source: &ImageSource, path: &str) -> Result<Vec<u8>, Failure> {
        let blob = self.need(source, path)?;
        if blob.length > LARGEST_DOCUMENT {
            let length = format!("{} bytes; the most is {LARGEST_DOCUMENT}", blob.length);
            return Err(unusable(source, "cannot be used: a document of it is too long")
                .fact("file", path)
                .fact("length", length));
        }
        let mut bytes = Vec::new();
        blob.reader().read_to_end(&mut bytes).map_err(|error| {
            unusable(source, "could not be read").fact("file", path).fact("reason", plain(&error))
        })?;
        Ok(bytes)
    }

    fn read_verified(
        &self,
        source: &ImageSource,
        wanted: &Descriptor,
        what: &str,
    ) -> Result<Vec<u8>, Failure> {
        let bytes = self.read(source, &blob_path(wanted.digest))?;
        check_length(source, what, wanted.size, bytes.len() as u64)?;
        match Digest::of(&bytes) {
            digest if digest == wanted.digest => Ok(bytes),
            digest => Err(wrong_digest(source, what, wanted.digest, digest)),
        }
    }

    /// The layer's bytes, verified. Hashing reads all of it: call it where blocking is allowed.
    pub(crate) fn layer(&self, source: &ImageSource, layer: &LayerFile, what: &str) -> Result<Blob, Failure> {
        let blob = self.need(source, &layer.path)?;
        let Some((expected, size)) = layer.expected else { return Ok(blob) };
        check_length(source, what, size, blob.length)?;
        let actual = digest_of(&blob).map_err(|error| {
            unusable(source, "could not be read")
                .fact("file", layer.path.clone())
                .fact("reason", plain(&error))
        })?;
        if actual == expected { Ok(blob) } else { Err(wrong_digest(source, what, expected, actual)) }
    }
}

fn check_length(source: &ImageSource, what: &str, expected: u64, actual: u64) -> Result<(), Failure> {
    if expected == actual { Ok(()) } else { Err(wrong_size(source, what, expected, actual)) }
}

fn digest_of(blob: &Blob) -> io::Result<Digest> {
    let (mut reader, mut hasher) = (blob.reader(), Hasher::new());
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The name of a member without `./`, and with `..` resolved: it is only looked up, never opened.
fn clean(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Finds the image in an OCI layout.
pub(crate) fn find_in_layout(
    files: &Files,
    source: &ImageSource,
    tag: Option<&str>,
) -> Result<FoundInFiles, Failure> {
    let nothing = |_missing| {
        not_found(source)
            .fact("missing", "index.json")
            .hint("an OCI layout has `index.json`, `oci-layout` and `blobs/`; `skopeo copy IMAGE oci:DIR` writes one")
    };
    files.need(source, "index.json").map_err(nothing)?;
    let index = files.read(source, "index.json")?;
    let Document::Index(entries) = parse(source, "index.json", &index)? else {
        return Err(unusable(source, "cannot be used: its `index.json` is no index"));
    };
    let mut wanted = pick(source, entries, tag)?;
    for _ in 0..DEEPEST_INDEX {
        let bytes = files.read_verified(source, &wanted, "the manifest")?;
        match parse(source, &blob_path(wanted.digest), &bytes)? {
            Document::Manifest(manifest) => return found(files, source, &manifest, wanted.digest),
            Document::Index(entries) => wanted = for_this_machine(source, &entries)?.clone(),
        }
    }
    Err(unusable(source, "cannot be used: its indexes are nested too deep"))
}

fn found(
    files: &Files,
    source: &ImageSource,
    manifest: &Manifest,
    digest: Digest,
) -> Result<FoundInFiles, Failure> {
    let config = files.read_verified(source, &manifest.config, "the configuration")?;
    let layer = |layer: &Descriptor| LayerFile {
        path: blob_path(layer.digest),
        expected: Some((layer.digest, layer.size)),
    };
    let layers = manifest.layers.iter().map(layer).collect();
    Ok(FoundInFiles { config, manifest: Some(digest), layers })
}

pub(crate) fn parse(source: &ImageSource, place: &str, bytes: &[u8]) -> Result<Document, Failure> {
    Document::parse(bytes)
        .map_err(|reason| unusable(source, "cannot be used").fact("document", place).fact("reason", reason))
}

/// The entry for this machine's platform.
pub(crate) fn for_this_machine<'a>(
    source: &ImageSource,
    entries: &'a [Descriptor],
) -> Result<&'a Descriptor, Failure> {
    let here = Platform::here();
    choose(entries, &here).map_err(|platforms| {
        let there = if platforms.is_empty() { "none".to_owned() } else { platforms.join(", ") };
        unusable(source, &format!("has no version for {here}")).fact("there are", there)
    })
}

/// The entry of a layout's `index.json` that is meant.
fn pick(source: &ImageSource, entries: Vec<Descriptor>, tag: Option<&str>) -> Result<Descriptor, Failure> {
    let names = |entry: &Descriptor| NAMES.map(|name| entry.annotations.get(name).cloned());
    let listed = |entries: &[Descriptor]| {
        let mut all: Vec<_> =
            entries.iter().filter_map(|entry| names(entry).into_iter().flatten().next()).collect();
        all.dedup();
        all.join(", ")
    };
    let there = listed(&entries);
    let matching: Vec<_> = match tag {
        Some(tag) => entries
            .into_iter()
            .filter(|entry| names(entry).iter().flatten().any(|name| name == tag))
            .collect(),
        None => entries,
    };
    match (&matching[..], tag) {
        ([], Some(_)) if !there.is_empty() => Err(not_found(source).fact("tags there", there)),
        ([], _) => Err(not_found(source).fact("reason", "the layout has no image of that name")),
        ([only], _) => Ok(only.clone()),
        (several, None) if several.iter().any(|entry| names(entry) != names(&several[0])) => {
            Err(not_found(source)
                .fact("reason", "the layout has several images")
                .fact("tags there", there.clone())
                .hint(format!(
                    "name one of them, such as `{source}:{}`",
                    there.split(", ").next().unwrap_or_default()
                )))
        }
        (several, _) => for_this_machine(source, several).cloned(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Finds the image in what `docker save` writes.
pub(crate) fn find_in_docker_archive(
    files: &Files,
    source: &ImageSource,
    reference: Option<&str>,
) -> Result<FoundInFiles, Failure> {
    files.need(source, "manifest.json").map_err(|_missing| {
        not_found(source)
            .fact("missing", "manifest.json")
            .hint("`docker save IMAGE -o FILE` writes a Docker archive; for an OCI layout in a tar file write `oci-archive:FILE`")
    })?;
    let bytes = files.read(source, "manifest.json")?;
    let images: Vec<SavedImage> = serde_json::from_slice(&bytes).map_err(|error| {
        unusable(source, "cannot be used").fact("document", "manifest.json").fact("reason", error.to_string())
    })?;
    let image = pick_saved(source, &images, reference)?;
    let config = files.read(source, &image.config)?;
    // Its file is named for its digest by every tool; where it is, it has to be true.
    let stem = Path::new(&image.config).file_stem().map_or(&b""[..], |stem| stem.as_bytes());
    if let Ok(expected) = format!("sha256:{}", shown(stem)).parse()
        && expected != Digest::of(&config)
    {
        return Err(wrong_digest(source, "the configuration", expected, Digest::of(&config)));
    }
    let layers = image.layers.iter().map(|path| LayerFile { path: path.clone(), expected: None }).collect();
    Ok(FoundInFiles { config, manifest: None, layers })
}

fn pick_saved<'a>(
    source: &ImageSource,
    images: &'a [SavedImage],
    reference: Option<&str>,
) -> Result<&'a SavedImage, Failure> {
    let tags = |image: &'a SavedImage| image.repo_tags.as_deref().unwrap_or_default();
    let there = || images.iter().flat_map(tags).cloned().collect::<Vec<_>>().join(", ");
    let same = |tag: &str, wanted: &str| {
        let full = |text: &str| text.parse::<shakedown_spec::ImageReference>().map(|full| full.to_string());
        tag == wanted || matches!((full(tag), full(wanted)), (Ok(tag), Ok(wanted)) if tag == wanted)
    };
    match (images, reference) {
        (_, Some(wanted)) => images
            .iter()
            .find(|image| tags(image).iter().any(|tag| same(tag, wanted)))
            .ok_or_else(|| not_found(source).fact("images there", there())),
        ([only], None) => Ok(only),
        ([], None) => Err(not_found(source).fact("reason", "the archive has no image")),
        (_, None) => Err(not_found(source)
            .fact("reason", "the archive has several images")
            .fact("images there", there())
            .hint(format!(
                "name one of them, such as `{source}:{}`",
                images.iter().flat_map(tags).next().cloned().unwrap_or_default()
            ))),
    }
}
