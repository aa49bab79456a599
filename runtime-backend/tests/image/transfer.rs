//! Archives that the store writes and reads, judged by the tools that others use.

use crate::images::{archive_of, assert_consistent, bytes, descriptor, resolve, shop, store};
use serde_json::Value;
use shakedown_runtime::native::image::{PruneRules, Store, StoredImage};
use shakedown_runtime::{ArchiveForm, ByteStream, NewImage};
use shakedown_spec::{ImageReference, PullPolicy};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// A store with the image `shop`, read from a layout.
async fn with_shop() -> (TempDir, Store, StoredImage) {
    let work = tempfile::tempdir().unwrap();
    // Tools choose by platform.
    let mut parts = shop();
    parts.config["architecture"] = "amd64".into();
    parts.describe();
    parts.layout(&work.path().join("layout"), "9");
    let store = store(&work.path().join("store")).await;
    let source = format!("oci:{}", work.path().join("layout").display());
    let image = resolve(&store, &source, PullPolicy::Missing).await.unwrap();
    (work, store, image)
}

async fn write(stream: ByteStream, file: &Path) {
    let (mut stream, mut bytes) = (stream, Vec::new());
    stream.read_to_end(&mut bytes).await.unwrap();
    fs::write(file, bytes).unwrap();
}

/// What a program prints; it has to succeed.
#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; `apt-get install {program}`"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn reference(name: &str) -> ImageReference {
    name.parse().unwrap()
}

/// skopeo reads what is saved, in every form, and finds the same configuration and layers.
#[tokio::test]
async fn skopeo_reads_every_form() {
    let (work, store, image) = with_shop().await;
    let named = [(image.clone(), Some(reference("localhost/shop:9")))];
    let place = |name: &str| work.path().join(name);
    write(store.save(&named, ArchiveForm::Docker).await.unwrap(), &place("docker.tar")).await;
    write(store.save(&named, ArchiveForm::Oci).await.unwrap(), &place("oci.tar")).await;
    store.save_layout(&named, &place("dir")).await.unwrap();
    for source in [
        format!("docker-archive:{}:localhost/shop:9", place("docker.tar").display()),
        format!("oci-archive:{}:localhost/shop:9", place("oci.tar").display()),
        format!("oci:{}:localhost/shop:9", place("dir").display()),
    ] {
        let config = json(&run("skopeo", &["inspect", "--config", &source]));
        let original = json(&String::from_utf8(store.content(&image).await.unwrap().config).unwrap());
        assert_eq!(config["rootfs"], original["rootfs"], "{source}");
        // A copy reads every layer and checks its digest.
        let copy = format!("dir:{}", place("copy").display());
        run("skopeo", &["copy", "--quiet", &source, &copy]);
        let manifest = json(&fs::read_to_string(place("copy/manifest.json")).unwrap());
        assert_eq!(manifest["config"]["digest"], image.image.id.as_str(), "{source}");
    }
    let tags = run("skopeo", &["list-tags", &format!("docker-archive:{}", place("docker.tar").display())]);
    assert_eq!(json(&tags)["Tags"][0], "localhost/shop:9");
}

/// podman loads what is saved under the name it was saved by, with the same id.
#[tokio::test]
async fn podman_loads_what_is_saved() {
    let (work, store, image) = with_shop().await;
    let named = [(image.clone(), Some(reference("localhost/shop:9")))];
    for form in [ArchiveForm::Docker, ArchiveForm::Oci] {
        let file = work.path().join("saved.tar");
        write(store.save(&named, form).await.unwrap(), &file).await;
        let at = |name: &str| work.path().join(name).display().to_string();
        let (root, runroot) = (at("podman"), at("podman-run"));
        let podman = |args: &[&str]| {
            let places = ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs"];
            run("podman", &[&places[..], args].concat())
        };
        podman(&["load", "--quiet", "--input", &file.display().to_string()]);
        let id = podman(&["image", "inspect", "--format", "{{.Id}}", "localhost/shop:9"]);
        assert_eq!(format!("sha256:{}", id.trim()), image.image.id, "{form:?}");
        podman(&["image", "rm", "--force", "localhost/shop:9"]);
    }
}

/// What skopeo writes, compressed or not, is loaded with its names and is the same image; what is saved is loaded by
/// another store.
#[tokio::test]
async fn archives_of_others_are_loaded() {
    let (work, store, image) = with_shop().await;
    let layout = format!("oci:{}:9", work.path().join("layout").display());
    let file = |name: &str| work.path().join(name);
    run("skopeo", &["copy", "-q", &layout, &format!("docker-archive:{}:shop:9", file("d.tar").display())]);
    run(
        "skopeo",
        &["copy", "-q", &layout, &format!("oci-archive:{}:localhost/shop:9", file("o.tar").display())],
    );
    run("gzip", &["--keep", &file("d.tar").display().to_string()]);
    run("zstd", &["--quiet", &file("o.tar").display().to_string()]);
    let named = [(image.clone(), Some(reference("localhost/shop:9")))];
    write(store.save(&named, ArchiveForm::Docker).await.unwrap(), &file("own.tar")).await;
    for (name, expected) in [
        ("d.tar", "docker.io/library/shop:9"),
        ("d.tar.gz", "docker.io/library/shop:9"),
        ("o.tar", "localhost/shop:9"),
        ("o.tar.zst", "localhost/shop:9"),
        ("own.tar", "localhost/shop:9"),
    ] {
        let root = work.path().join(format!("store-{name}"));
        let other = crate::images::store(&root).await;
        let archive = tokio::fs::File::open(file(name)).await.unwrap();
        let loaded = other.load(archive, Arc::new(|_, _, _| {})).await;
        let loaded = loaded.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        let [(found, names)] = &loaded[..] else { panic!("{name}: {loaded:?}") };
        assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected], "{name}");
        assert_eq!(found.image.config, image.image.config, "{name}");
        let by_name = resolve(&other, expected, PullPolicy::Never).await.unwrap();
        assert_eq!(by_name.image.id, found.image.id, "{name}");
        let by_id = resolve(&other, &found.image.id, PullPolicy::Never).await.unwrap();
        assert_eq!(by_id.layers, found.layers, "{name}");
        // It can be passed on, for its layers are here.
        other.content(found).await.unwrap();
        drop(loaded);
        assert_consistent(&root);
    }
}

/// An archive that is cut, or no archive, is told as such and leaves nothing.
#[tokio::test]
async fn broken_archives_are_refused() {
    let (work, store, image) = with_shop().await;
    let file = work.path().join("own.tar");
    write(store.save(&[(image, None)], ArchiveForm::Docker).await.unwrap(), &file).await;
    let whole = fs::read(&file).unwrap();
    let mut wrong = whole.clone();
    // In the configuration, which is not compressed.
    let at = wrong.windows(11).position(|bytes| bytes == b"SHOP=orders").unwrap();
    wrong[at] ^= 1;
    let target = crate::images::store(&work.path().join("target")).await;
    for (what, bytes) in [("cut", &whole[..whole.len() / 2]), ("text", b"orders"), ("wrong", &wrong)] {
        let failure = target.load(bytes, Arc::new(|_, _, _| {})).await.unwrap_err();
        assert_eq!(failure.kind, shakedown_spec::FailureKind::ImageUnusable, "{what}: {failure}");
    }
    assert_consistent(&work.path().join("target"));
}

/// A root file system becomes an image of one layer, with what is said about it; the archive may be compressed.
#[tokio::test]
async fn a_root_file_system_is_imported() {
    let work = tempfile::tempdir().unwrap();
    let store = store(work.path()).await;
    let tar = crate::tape::Tape::default().dir("srv").file("srv/orders", "42").done();
    for bytes in [tar.clone(), crate::images::gzip(&tar)] {
        let new = NewImage::named("shop:1").change("CMD [\"serve\"]").change("ENV A=1").message("first");
        let image = store.import(Box::pin(std::io::Cursor::new(bytes)), &new).await.unwrap();
        assert_eq!(image.image.config.command, ["serve"]);
        assert!(image.image.config.env.contains(&"A=1".to_owned()));
        assert_eq!(fs::read_to_string(image.layers[0].join("srv/orders")).unwrap(), "42");
        let named = resolve(&store, "shop:1", PullPolicy::Never).await.unwrap();
        assert_eq!(named.image.id, image.image.id);
    }
    assert_consistent(work.path());
}

/// An upload that stalls keeps nobody from tidying up.
#[tokio::test]
async fn a_stalled_upload_locks_nothing() {
    let work = tempfile::tempdir().unwrap();
    let store = store(work.path()).await;
    let prune = async |mut client: tokio::io::DuplexStream| {
        // More than the pipe holds: when it is written, the store reads.
        client.write_all(&[b'x'; 4096]).await.unwrap();
        let pruned = timeout(Duration::from_secs(10), store.prune(&PruneRules::default())).await;
        pruned.expect("it waits for the upload").unwrap();
    };
    let (client, upload) = tokio::io::duplex(64);
    tokio::select! {
        loaded = store.load(upload, Arc::new(|_, _, _| {})) => panic!("{loaded:?}"),
        () = prune(client) => {}
    }
    let (client, upload) = tokio::io::duplex(64);
    let new = NewImage::named("shop:1");
    tokio::select! {
        imported = store.import(Box::pin(upload), &new) => panic!("{imported:?}"),
        () = prune(client) => {}
    }
}

/// A bundle whose indexes name each other over and over is read once, not 60⁴ times.
#[tokio::test]
async fn repeated_indexes_are_read_once() {
    const KIND: &str = "application/vnd.oci.image.index.v1+json";
    let work = tempfile::tempdir().unwrap();
    let layout = work.path().join("layout");
    let name = "docker.io/library/shop:9";
    shop().layout(&layout, name);
    let mut top = json(&fs::read_to_string(layout.join("index.json")).unwrap());
    let mut entry = top["manifests"][0].clone();
    for _ in 0..4 {
        let index =
            bytes(&serde_json::json!({"schemaVersion": 2, "mediaType": KIND, "manifests": vec![entry; 60]}));
        entry = descriptor(KIND, &index);
        let place = entry["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
        fs::write(layout.join(place), index).unwrap();
    }
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    top["manifests"] = serde_json::json!([entry]);
    fs::write(layout.join("index.json"), bytes(&top)).unwrap();
    fs::write(work.path().join("bundle.tar"), archive_of(&layout)).unwrap();
    let store = store(&work.path().join("store")).await;
    let taken = store.import_bundle(&work.path().join("bundle.tar"), Arc::new(|_, _, _| {})).await;
    // All of it was read; these entries name no platform.
    assert!(taken.unwrap_err().to_string().contains("has no version for"));
}

/// An id that is not here is told with the store's place, and never asked of a registry.
#[tokio::test]
async fn an_unknown_id_is_told() {
    let work = tempfile::tempdir().unwrap();
    let store = store(work.path()).await;
    let id = format!("sha256:{}", "0".repeat(64));
    let failure = resolve(&store, &id, PullPolicy::Missing).await.unwrap_err().to_string();
    let failure = failure.replace(&work.path().canonicalize().unwrap().display().to_string(), "DIR");
    insta::assert_snapshot!(failure, @"
    image sha256:0000000000000000000000000000000000000000000000000000000000000000 was not found
      store:  DIR
      reason: the local store has no image of this id
    ");
}

/// Packages become an image once; its declaration finds it again, and `always` builds it anew. Skipped by nobody: the
/// project's own images are built in the same way.
#[tokio::test]
async fn packages_become_an_image_once() {
    let work = tempfile::tempdir().unwrap();
    let store = store(work.path()).await;
    let source = "debian:bookworm?include=busybox-static&variant=extract&command=[\"busybox\", \"true\"]";
    let image = resolve(&store, source, PullPolicy::Missing).await.unwrap();
    assert_eq!(image.image.config.command, ["busybox", "true"]);
    assert!(image.layers[0].join("bin/busybox").exists());
    assert!(!image.layers[0].join("dev/null").exists(), "devices are the runtime's");
    let again = resolve(&store, source, PullPolicy::Missing).await.unwrap();
    assert_eq!(again.image.id, image.image.id);
    let failure =
        resolve(&store, "debian:no-such-suite?include=busybox", PullPolicy::Missing).await.unwrap_err();
    assert_eq!(failure.kind, shakedown_spec::FailureKind::ImageUnusable, "{failure}");
    assert!(failure.to_string().contains("mmdebstrap"), "its log is shown: {failure}");
    drop((image, again));
    assert_consistent(work.path());
}
