//! Images in files: OCI layout directories, OCI archives, Docker archives.

use super::blob::Blob;
use super::digest::{Digest, Hasher};
use super::failures::{not_found, plain, unusable, wrong_digest, wrong_size};
use super::manifest::{Descriptor, Document, LARGEST_DOCUMENT, LAYER, Manifest, choose};
use super::spool::seekable;
use super::write::{Outgoing, OutgoingLayer};
use serde::Deserialize;
use shakedown_spec::{Failure, ImageReference, ImageSource, Platform};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
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
    /// The bytes of its manifest; Docker's archives have none.
    pub(crate) manifest: Option<Vec<u8>>,
    pub(crate) layers: Vec<LayerFile>,
}

/// One layer in a file.
#[derive(Clone, Debug)]
pub(crate) struct LayerFile {
    path: String,
    /// What the manifest says; Docker's archives have none.
    pub(crate) expected: Option<Descriptor>,
}

impl Files {
    /// The members of an uncompressed tar archive.
    pub(crate) fn archive(mut file: File) -> io::Result<Self> {
        file.rewind()?;
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek()? {
            // The first header tells an archive from any other file.
            let entry = match entry {
                Err(_) if members.is_empty() => return Err(io::Error::other("this is not a tar archive")),
                entry => entry?,
            };
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

    pub(crate) fn open(&self, path: &str) -> io::Result<Option<Blob>> {
        match self {
            Self::Directory(directory) => match open_file(&directory.join(path)) {
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
                Ok(Some(Blob::part(Arc::clone(file), *offset, *length)))
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
        let Some(Descriptor { digest: expected, size, .. }) = &layer.expected else { return Ok(blob) };
        check_length(source, what, *size, blob.length)?;
        let actual = digest_of(&blob).map_err(|error| {
            unusable(source, "could not be read")
                .fact("file", layer.path.clone())
                .fact("reason", plain(&error))
        })?;
        if actual == *expected { Ok(blob) } else { Err(wrong_digest(source, what, *expected, actual)) }
    }
}

fn check_length(source: &ImageSource, what: &str, expected: u64, actual: u64) -> Result<(), Failure> {
    if expected == actual { Ok(()) } else { Err(wrong_size(source, what, expected, actual)) }
}

pub(crate) fn digest_of(blob: &Blob) -> io::Result<Digest> {
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

/// Opens a regular file: a FIFO in its place would be waited for without end, and a device has no length to go by.
fn open_file(path: &Path) -> io::Result<File> {
    use rustix::fs::{FileType, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(File::from(file)),
        _ => Err(io::Error::other("it is no regular file")),
    }
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

/// Opens the files that the source names. A compressed archive is decompressed into `spool`; blocking.
///
/// # Errors
///
/// They cannot be read, or the source is not in files.
pub(crate) fn open(source: &ImageSource, spool: &Path) -> Result<Files, Failure> {
    let path = match source {
        ImageSource::OciLayout { path, .. } if path.exists() => return Ok(Files::Directory(path.clone())),
        ImageSource::OciLayout { path, .. } => &path.join("index.json"),
        ImageSource::OciArchive { path, .. } | ImageSource::DockerArchive { path, .. } => path,
        _ => return Err(not_found(source)),
    };
    File::open(path).and_then(|file| Files::archive(seekable(file, spool)?)).map_err(|error| {
        let failure = match error.kind() {
            io::ErrorKind::NotFound => not_found(source),
            _ => unusable(source, "could not be read"),
        };
        failure.fact("file", path.display().to_string()).fact("reason", plain(&error))
    })
}

/// Finds the image that the source names.
///
/// # Errors
///
/// It is not there, or is broken.
pub(crate) fn find(
    files: &Files,
    source: &ImageSource,
    platform: &Platform,
) -> Result<FoundInFiles, Failure> {
    match source {
        ImageSource::DockerArchive { reference, .. } => {
            find_in_docker_archive(files, source, reference.as_deref())
        }
        ImageSource::OciLayout { tag, .. } | ImageSource::OciArchive { tag, .. } => {
            find_in_layout(files, source, tag.as_deref(), platform)
        }
        _ => Err(not_found(source)),
    }
}

/// All images with their names, of a layout or an archive of either kind. Of one for several machines, this machine's.
///
/// # Errors
///
/// There is none, or one is broken.
pub(crate) fn find_all(
    files: &Files,
    source: &ImageSource,
) -> Result<Vec<(FoundInFiles, Vec<ImageReference>)>, Failure> {
    // Docker's archives are layouts as well, and `manifest.json` has the names as the user wrote them.
    if let Ok(Some(_)) = files.open("manifest.json") {
        let images = saved_images(files, source)?;
        let image = |image: &SavedImage| Ok((saved(files, source, image)?, named(image.tags())));
        return images.iter().map(image).collect();
    }
    if let (Files::Archive { members, .. }, Ok(None)) = (files, files.open("index.json")) {
        return Err(unusable(source, "is neither what `docker save` writes nor an OCI layout")
            .fact("missing", "manifest.json, index.json")
            .fact("files in it", members.len().to_string()));
    }
    let entries = layout_entries(files, source)?;
    let mut images: Vec<(Digest, FoundInFiles, Vec<ImageReference>)> = Vec::new();
    for entry in entries {
        let names = named(&names_of(&entry));
        match images.iter_mut().find(|(digest, ..)| *digest == entry.digest) {
            Some((.., known)) => known.extend(names),
            None => images.push((entry.digest, follow(files, source, entry, &Platform::here())?, names)),
        }
    }
    Ok(images.into_iter().map(|(_, found, names)| (found, names)).collect())
}

/// What of these are names; a layout may have any text in its annotations.
fn named(texts: &[String]) -> Vec<ImageReference> {
    let mut names: Vec<ImageReference> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    names.dedup();
    names
}

/// The names of a layout's entry: the whole ones, if there are any, else whatever there is.
fn names_of(entry: &Descriptor) -> Vec<String> {
    let all = NAMES.map(|name| entry.annotations.get(name).cloned());
    // A tag alone, as Docker writes it, is not a name.
    let [short, full] = all;
    full.or_else(|| short.filter(|short| short.contains(['/', ':']))).into_iter().collect()
}

/// What is needed to write the image elsewhere. Reads a compressed layer of a Docker archive, to know its digest.
///
/// # Errors
///
/// A file is missing or cannot be read, or the configuration contradicts the layers.
pub(crate) fn outgoing(
    files: &Files,
    source: &ImageSource,
    found: FoundInFiles,
    names: Vec<ImageReference>,
) -> Result<Outgoing, Failure> {
    let diff_ids = diff_ids(&found.config)
        .map_err(|reason| unusable(source, "cannot be used").fact("reason", reason))?;
    if diff_ids.len() != found.layers.len() {
        return Err(unusable(source, "contradicts itself")
            .fact("layers in its manifest", found.layers.len().to_string())
            .fact("layers in its configuration", diff_ids.len().to_string()));
    }
    let layer = |(layer, diff_id): (&LayerFile, Digest)| {
        let blob = files.need(source, &layer.path)?;
        let descriptor = match &layer.expected {
            Some(descriptor) => descriptor.clone(),
            None => describe(&blob, diff_id).map_err(|error| {
                let failure = unusable(source, "could not be read").fact("file", layer.path.clone());
                failure.fact("reason", plain(&error))
            })?,
        };
        Ok(OutgoingLayer { diff_id, descriptor, blob })
    };
    let layers = found.layers.iter().zip(diff_ids).map(layer).collect::<Result<_, Failure>>()?;
    Ok(Outgoing { config: found.config, manifest: found.manifest, layers, names })
}

#[derive(Deserialize)]
struct ConfigOfLayers {
    rootfs: Rootfs,
}

#[derive(Deserialize)]
struct Rootfs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// The digests of the uncompressed layers, lowest first.
fn diff_ids(config: &[u8]) -> Result<Vec<Digest>, String> {
    let config: ConfigOfLayers = serde_json::from_slice(config)
        .map_err(|error| format!("its configuration cannot be read: {error}"))?;
    Ok(config.rootfs.diff_ids)
}

/// What a layer's bytes are, if nothing but its digest in the configuration is known.
///
/// # Errors
///
/// The blob cannot be read.
pub(crate) fn describe(blob: &Blob, diff_id: Digest) -> io::Result<Descriptor> {
    let mut magic = Vec::new();
    blob.reader().take(4).read_to_end(&mut magic)?;
    let (kind, digest) = match magic[..] {
        [0x1f, 0x8b, ..] => ("application/vnd.oci.image.layer.v1.tar+gzip", digest_of(blob)?),
        [0x28, 0xb5, 0x2f, 0xfd] => ("application/vnd.oci.image.layer.v1.tar+zstd", digest_of(blob)?),
        // Checked by whoever reads it.
        _ => (LAYER, diff_id),
    };
    Ok(Descriptor::new(kind, digest, blob.length))
}

/// Finds the image in an OCI layout.
pub(crate) fn find_in_layout(
    files: &Files,
    source: &ImageSource,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<FoundInFiles, Failure> {
    let entries = layout_entries(files, source)?;
    follow(files, source, pick(source, entries, tag, platform)?, platform)
}

fn layout_entries(files: &Files, source: &ImageSource) -> Result<Vec<Descriptor>, Failure> {
    let nothing = |_missing| {
        not_found(source)
            .fact("missing", "index.json")
            .hint("an OCI layout has `index.json`, `oci-layout` and `blobs/`; `skopeo copy IMAGE oci:DIR` writes one")
    };
    files.need(source, "index.json").map_err(nothing)?;
    let index = files.read(source, "index.json")?;
    match parse(source, "index.json", &index)? {
        Document::Index(entries) => Ok(entries),
        Document::Manifest(_) => Err(unusable(source, "cannot be used: its `index.json` is no index")),
    }
}

/// From a layout's entry to the image for this machine.
fn follow(
    files: &Files,
    source: &ImageSource,
    entry: Descriptor,
    platform: &Platform,
) -> Result<FoundInFiles, Failure> {
    let mut wanted = entry;
    for _ in 0..DEEPEST_INDEX {
        let bytes = files.read_verified(source, &wanted, "the manifest")?;
        match parse(source, &blob_path(wanted.digest), &bytes)? {
            Document::Manifest(manifest) => return found(files, source, manifest, bytes),
            Document::Index(entries) => wanted = for_platform(source, &entries, platform)?.clone(),
        }
    }
    Err(unusable(source, "cannot be used: its indexes are nested too deep"))
}

fn found(
    files: &Files,
    source: &ImageSource,
    manifest: Manifest,
    bytes: Vec<u8>,
) -> Result<FoundInFiles, Failure> {
    let config = files.read_verified(source, &manifest.config, "the configuration")?;
    let layer = |layer: Descriptor| LayerFile { path: blob_path(layer.digest), expected: Some(layer) };
    let layers = manifest.layers.into_iter().map(layer).collect();
    Ok(FoundInFiles { config, manifest: Some(bytes), layers })
}

pub(crate) fn parse(source: &ImageSource, place: &str, bytes: &[u8]) -> Result<Document, Failure> {
    Document::parse(bytes)
        .map_err(|reason| unusable(source, "cannot be used").fact("document", place).fact("reason", reason))
}

/// The entry for a platform.
pub(crate) fn for_platform<'a>(
    source: &ImageSource,
    entries: &'a [Descriptor],
    platform: &Platform,
) -> Result<&'a Descriptor, Failure> {
    choose(entries, platform).map_err(|platforms| {
        let there = if platforms.is_empty() { "none".to_owned() } else { platforms.join(", ") };
        unusable(source, &format!("has no version for {platform}")).fact("there are", there)
    })
}

/// The entry of a layout's `index.json` that is meant.
fn pick(
    source: &ImageSource,
    entries: Vec<Descriptor>,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<Descriptor, Failure> {
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
        (several, _) => for_platform(source, several, platform).cloned(),
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

impl SavedImage {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

/// Finds the image in what `docker save` writes.
pub(crate) fn find_in_docker_archive(
    files: &Files,
    source: &ImageSource,
    reference: Option<&str>,
) -> Result<FoundInFiles, Failure> {
    let images = saved_images(files, source)?;
    saved(files, source, pick_saved(source, &images, reference)?)
}

fn saved_images(files: &Files, source: &ImageSource) -> Result<Vec<SavedImage>, Failure> {
    files.need(source, "manifest.json").map_err(|_missing| {
        not_found(source)
            .fact("missing", "manifest.json")
            .hint("`docker save IMAGE -o FILE` writes a Docker archive; for an OCI layout in a tar file write `oci-archive:FILE`")
    })?;
    let bytes = files.read(source, "manifest.json")?;
    serde_json::from_slice(&bytes).map_err(|error| {
        unusable(source, "cannot be used").fact("document", "manifest.json").fact("reason", error.to_string())
    })
}

fn saved(files: &Files, source: &ImageSource, image: &SavedImage) -> Result<FoundInFiles, Failure> {
    let config = files.read(source, &image.config)?;
    // Its file is named for its digest by every tool; where it is, it has to be true.
    let stem = Path::new(&image.config).file_stem().map_or(&b""[..], |stem| stem.as_bytes());
    if let Ok(expected) = format!("sha256:{}", String::from_utf8_lossy(stem)).parse()
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
    let tags = SavedImage::tags;
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
