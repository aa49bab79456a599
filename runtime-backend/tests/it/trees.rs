//! What an image's layers become: the same tree here as in Docker, file by file.

use super::docker::{Lab, check, image};
use bollard::query_parameters::CreateContainerOptions;
use futures_util::TryStreamExt;
use shakedown_runtime::Driver;
use shakedown_runtime::native::image::{Shape, StoreOptions};
use shakedown_runtime::native::open_store;
use shakedown_spec::{ImageSource, PullPolicy};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use tar::{Builder, EntryType, Header};

/// Kind, mode, owner, and contents of each file, by its path.
type Tree = BTreeMap<String, String>;

/// What Docker puts into a container that no image has, or has otherwise.
fn is_of_docker(path: &str) -> bool {
    let own =
        ["dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", ".dockerenv"];
    path.is_empty() || own.iter().any(|own| path == *own || path.starts_with(&format!("{own}/")))
}

fn digest(mut content: impl Read) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match content.read(&mut buffer).unwrap() {
            0 => break,
            read => context.update(&buffer[..read]),
        }
    }
    let hex = |byte: &u8| format!("{byte:02x}");
    context.finish().as_ref().iter().map(hex).collect()
}

/// A file's line. Owners are compared where this process may set them.
fn line(kind: &str, mode: u32, owner: (u64, u64), more: &str) -> String {
    let owner = if rustix::process::geteuid().is_root() { owner } else { (0, 0) };
    format!("{kind} {:o} {}:{} {more}", mode & 0o7777, owner.0, owner.1)
}

/// The files below a directory.
fn on_disk(root: &Path, below: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        if is_of_docker(&name) {
            continue;
        }
        let found = fs::symlink_metadata(&path).unwrap();
        let kind = found.file_type();
        let (kind, more) = if kind.is_dir() {
            on_disk(root, &path, tree);
            ("directory", String::new())
        } else if kind.is_symlink() {
            ("link", fs::read_link(&path).unwrap().to_string_lossy().into_owned())
        } else if kind.is_file() {
            ("file", digest(fs::File::open(&path).unwrap()))
        } else if kind.is_fifo() {
            ("pipe", String::new())
        } else {
            let device = found.rdev();
            ("device", format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device)))
        };
        let owner = (found.uid().into(), found.gid().into());
        // The mode of a link means nothing, and tar files say what they like.
        let mode = if kind == "link" { 0o777 } else { found.mode() };
        tree.insert(name, line(kind, mode, owner, &more));
    }
}

/// The files of an archive of `docker export`.
fn in_archive(archive: impl Read) -> Tree {
    let mut tree = Tree::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('/').to_owned();
        let name = text(&entry.path_bytes());
        if is_of_docker(&name) {
            continue;
        }
        let header = entry.header().clone();
        let target = entry.link_name_bytes().map(|target| text(&target)).unwrap_or_default();
        let (kind, more) = match header.entry_type() {
            EntryType::Directory => ("directory", String::new()),
            EntryType::Symlink => ("link", target),
            EntryType::Link => {
                let first = tree[&target].clone();
                tree.insert(name, first);
                continue;
            }
            EntryType::Fifo => ("pipe", String::new()),
            EntryType::Char | EntryType::Block => {
                let number = |number: Option<u32>| number.unwrap_or_default();
                let (major, minor) = (header.device_major().unwrap(), header.device_minor().unwrap());
                ("device", format!("{}:{}", number(major), number(minor)))
            }
            _ => ("file", digest(&mut entry)),
        };
        let mode = if kind == "link" { 0o777 } else { header.mode().unwrap() };
        tree.insert(name, line(kind, mode, (header.uid().unwrap(), header.gid().unwrap()), &more));
    }
    tree
}

async fn of_docker(lab: &Lab, source: &ImageSource) -> Tree {
    let image = lab.driver.resolve(source, PullPolicy::Missing, Arc::new(|_, _, _| ())).await.unwrap();
    let docker = super::build::docker();
    let body = bollard::models::ContainerCreateBody {
        image: Some(image.id),
        cmd: Some(vec!["true".to_owned()]),
        ..Default::default()
    };
    let made = docker.create_container(None::<CreateContainerOptions>, body).await.unwrap();
    let mut archive = tempfile::tempfile().unwrap();
    let mut chunks = docker.export_container(&made.id);
    let written = async {
        while let Some(chunk) = chunks.try_next().await? {
            std::io::Write::write_all(&mut archive, &chunk).unwrap();
        }
        Ok::<(), bollard::errors::Error>(())
    };
    let written = written.await;
    docker.remove_container(&made.id, None).await.unwrap();
    written.unwrap();
    std::io::Seek::rewind(&mut archive).unwrap();
    in_archive(std::io::BufReader::new(archive))
}

async fn of_the_store(source: &ImageSource) -> Tree {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = open_store(None, &place.path().join("store"), Default::default()).await.unwrap();
    let tree = place.path().join("tree");
    let progress = Arc::new(|_: &str, _, _| ());
    let options = StoreOptions::default();
    store
        .unpack_to(
            &shakedown_runtime::Wanted::new(source.clone(), PullPolicy::Missing),
            &tree,
            Shape::Merged,
            options,
            progress,
        )
        .await
        .unwrap();
    let mut files = Tree::new();
    on_disk(&tree, &tree, &mut files);
    files
}

async fn assert_same(lab: &Lab, source: &str) {
    let source = source.parse().unwrap();
    let (docker, here) = (of_docker(lab, &source).await, of_the_store(&source).await);
    assert!(docker.len() > 10, "the tree of {source} is hardly there: {docker:?}");
    let differ: Vec<_> = docker
        .keys()
        .chain(here.keys())
        .filter(|path| docker.get(*path) != here.get(*path))
        .map(|path| format!("{path:?}: {:?} in Docker, {:?} here", docker.get(path), here.get(path)))
        .collect();
    assert_eq!(differ, [""; 0], "{source}");
}

/// A service finds the same files, whichever driver unpacks its image.
#[tokio::test]
async fn images_become_the_same_tree_as_in_docker() {
    check(async |lab| {
        for name in ["busybox", "redis", "postgres", "debian"] {
            assert_same(&lab, &image(name)).await;
        }
    })
    .await;
}

/// A file of a layer: path, kind, mode, owner, and content or target.
type Member = (&'static str, EntryType, u32, u64, &'static str);

const BELOW: [Member; 17] = [
    ("./", EntryType::Directory, 0o755, 0, ""),
    ("kept", EntryType::Regular, 0o4755, 0, "kept"),
    ("kept-again", EntryType::Link, 0o4755, 0, "kept"),
    ("gone", EntryType::Regular, 0o644, 7, "gone"),
    ("directory/", EntryType::Directory, 0o1777, 7, ""),
    ("directory/one", EntryType::Regular, 0o600, 7, "one"),
    ("directory/two", EntryType::Regular, 0o644, 7, "two"),
    ("opaque/", EntryType::Directory, 0o755, 0, ""),
    ("opaque/below/", EntryType::Directory, 0o755, 0, ""),
    ("opaque/below/file", EntryType::Regular, 0o644, 0, "below"),
    ("link", EntryType::Symlink, 0o777, 0, "directory"),
    ("nowhere", EntryType::Symlink, 0o777, 9, "/no/such/place"),
    ("file-then-directory", EntryType::Regular, 0o644, 0, "file"),
    ("directory-then-file/", EntryType::Directory, 0o755, 0, ""),
    ("directory-then-file/within", EntryType::Regular, 0o644, 0, "within"),
    ("no/parents/at/all", EntryType::Regular, 0o640, 3, "deep"),
    ("pipe", EntryType::Fifo, 0o600, 0, ""),
];

const ABOVE: [Member; 15] = [
    (".wh.gone", EntryType::Regular, 0o644, 0, ""),
    ("directory/", EntryType::Directory, 0o700, 8, ""),
    ("directory/.wh.one", EntryType::Regular, 0o644, 0, ""),
    ("opaque/", EntryType::Directory, 0o711, 0, ""),
    ("opaque/.wh..wh..opq", EntryType::Regular, 0o644, 0, ""),
    ("opaque/above", EntryType::Regular, 0o644, 0, "above"),
    ("link/", EntryType::Directory, 0o750, 4, ""),
    ("link/is-a-directory-now", EntryType::Regular, 0o644, 0, "now"),
    ("file-then-directory/", EntryType::Directory, 0o755, 0, ""),
    ("file-then-directory/file", EntryType::Regular, 0o644, 0, "file"),
    ("directory-then-file", EntryType::Regular, 0o644, 0, "file"),
    ("a name\nof two lines", EntryType::Regular, 0o444, 0, "lines"),
    ("ümlaut", EntryType::Regular, 0o444, 0, "letters"),
    // Docker makes it for `/etc/hosts`, if the image has not.
    ("etc/", EntryType::Directory, 0o755, 0, ""),
    ("./dotted/./path", EntryType::Regular, 0o644, 0, "dotted"),
];

fn layer(members: &[Member]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (path, kind, mode, owner, content) in members {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner + 1);
        header.set_mtime(86_400);
        let is_link = matches!(kind, EntryType::Link | EntryType::Symlink);
        header.set_size(if is_link { 0 } else { content.len() as u64 });
        if is_link {
            header.set_link_name(content).unwrap();
        }
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, if is_link { &[] } else { content.as_bytes() }).unwrap();
    }
    tar.into_inner().unwrap()
}

/// An OCI layout of these layers.
fn layout(directory: &Path, layers: &[Vec<u8>]) {
    fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let digest = digest(bytes);
        fs::write(directory.join("blobs/sha256").join(&digest), bytes).unwrap();
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"), "size": bytes.len(),
        })
    };
    let layers: Vec<_> = layers.iter().map(|layer| blob(layer, "layer.v1.tar")).collect();
    let ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": layers,
    });
    let manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Deletions, kinds that change, links across layers, a layer that comes twice: what is legal means the same.
#[tokio::test]
async fn awkward_layers_become_the_same_tree_as_in_docker() {
    let place = tempfile::tempdir().unwrap();
    let linked = layer(&[
        ("linked", EntryType::Regular, 0o644, 0, "late"),
        ("late", EntryType::Link, 0o644, 0, "linked"),
    ]);
    layout(place.path(), &[layer(&BELOW), linked.clone(), layer(&ABOVE), linked]);
    check(async |lab| assert_same(&lab, &format!("oci:{}", place.path().display())).await).await;
}
