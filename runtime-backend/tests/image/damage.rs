//! Damage to what the store has is found.

use crate::images::{resolve, shop, store};
use crate::server::Registry;
use crate::tape::{Entry, FIFO, FILE, Tape};
use shakedown_runtime::native::image::{Blob, Digest, Finding, LocalUnpacker, Remedy, Unpacker, remove_tree};
use shakedown_spec::PullPolicy;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Damage to an unpacked tree is found whatever it is, and what unpacking wrote adds up to what is there afterwards.
#[tokio::test]
async fn a_tree_adds_up_to_what_was_unpacked() {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    let layer = Tape::default()
        .dir("etc")
        .file("etc/motd", "first")
        .file("etc/motd", "welcome")
        .hard("etc/copy", "etc/motd")
        .symlink("etc/link", "motd")
        .entry(Entry::new(FILE, "etc/secret").mode(0).data("key"))
        .entry(Entry::new(FIFO, "pipe"))
        .file(".wh.old", "")
        .done();
    let unpacker = LocalUnpacker::of_this_process();
    let unpack = async || {
        remove_tree(&tree).unwrap();
        let path = work.path().join("layer.tar");
        fs::write(&path, &layer).unwrap();
        let blob = Blob::whole(fs::File::open(&path).unwrap()).unwrap();
        unpacker.unpack(blob, &tree, None).await.unwrap().sum
    };
    let whole = unpack().await;
    assert_eq!(unpacker.sum(&tree).await.unwrap(), whole);
    let time = fs::metadata(tree.join("etc/motd")).unwrap().modified().unwrap();
    let rewrite = |content: &str| {
        let mut file = fs::File::create(tree.join("etc/motd")).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.set_modified(time).unwrap();
    };
    let damages: [(&str, &dyn Fn()); 6] = [
        ("another byte", &|| rewrite("welcomf")),
        ("cut short", &|| rewrite("welco")),
        ("deleted", &|| fs::remove_file(tree.join("etc/link")).unwrap()),
        ("rights", &|| fs::set_permissions(tree.join("etc"), fs::Permissions::from_mode(0o700)).unwrap()),
        ("one more", &|| fs::write(tree.join("etc/new"), "").unwrap()),
        ("attribute", &|| {
            let value = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(tree.join("etc/motd"), "user.shop", b"x", value).unwrap();
        }),
    ];
    for (what, damage) in damages {
        assert_eq!(unpack().await.digest, whole.digest);
        damage();
        assert_ne!(unpacker.sum(&tree).await.unwrap().digest, whole.digest, "{what}");
    }
}

/// What happens to a file, and how it is called.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

/// Everything in the store that is no directory.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    rewrite(path, &bytes);
}

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    rewrite(path, &bytes[..bytes.len() / 2]);
}

/// With the time that it had, as a disk would damage it.
fn rewrite(path: &Path, bytes: &[u8]) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    fs::write(path, bytes).unwrap();
    File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
}

/// Whatever file of the store is damaged: it is found, can be cleared away, and the next to ask gets a whole image.
#[tokio::test]
async fn damage_to_any_file_is_found_and_mended() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start("");
    registry.push(&shop(), "orders", "1", "");
    shop().layout(&work.path().join("layout"), "1");
    let mut other = shop();
    other.config["author"] = "another with the same layers".into();
    other.describe();
    other.layout(&work.path().join("layout"), "2");
    let sources = [
        format!("{}/orders:1", registry.address),
        format!("oci:{}:1", work.path().join("layout").display()),
        format!("oci:{}:2", work.path().join("layout").display()),
    ];
    let root = work.path().join("store");
    let store = store(&root).await;
    let unpacker = LocalUnpacker::of_this_process();
    let sums = async || {
        let mut sums = Vec::new();
        for source in &sources {
            for layer in resolve(&store, source, PullPolicy::Missing).await.unwrap().layers {
                sums.push(unpacker.sum(&layer).await.unwrap().digest);
            }
        }
        sums
    };
    let whole = sums().await;
    let mut places = Vec::new();
    ["blobs", "images", "layers", "refs"].iter().for_each(|name| files(&root.join(name), &mut places));
    assert!(places.len() >= 20, "{places:#?}");
    let mut tried = 0;
    for place in places {
        let stat = fs::symlink_metadata(&place).unwrap();
        let mut damages: Vec<Damage<'_>> = Vec::new();
        // A name that is taken away is what `rm` does.
        if !place.starts_with(root.join("refs")) {
            damages.push(("deleted", &|path| fs::remove_file(path).unwrap()));
        }
        if stat.is_file() && stat.len() > 0 {
            damages.extend([("flipped", &flip as &dyn Fn(&Path)), ("cut", &cut)]);
        }
        for (what, damage) in damages {
            damage(&place);
            let found = store.verify(false).await.unwrap();
            assert!(!found.is_empty(), "{} {what}", place.display());
            let removed = store.verify(true).await.unwrap();
            assert!(removed.iter().all(|finding| finding.remedy == Remedy::Removed), "{removed:?}");
            assert_eq!(store.verify(false).await.unwrap(), [], "{} {what}", place.display());
            assert_eq!(sums().await, whole, "{} {what}", place.display());
            assert_eq!(store.verify(false).await.unwrap(), [], "{} {what}", place.display());
            tried += 1;
        }
    }
    assert!(tried > 40, "{tried}");
    let image = resolve(&store, &sources[0], PullPolicy::Missing).await.unwrap();
    assert_eq!(store.content(&image).await.unwrap().layers.len(), 3);
}

/// The words of `shakedown images verify`; a damaged image that a container runs on is left until it ends.
#[tokio::test]
async fn findings_are_told_and_used_images_left() {
    let work = tempfile::tempdir().unwrap();
    shop().layout(&work.path().join("layout"), "1");
    let root = work.path().join("store");
    let store = store(&root).await;
    let source = format!("oci:{}", work.path().join("layout").display());
    let image = resolve(&store, &source, PullPolicy::Missing).await.unwrap();
    fs::remove_file(image.layers[0].join("etc/motd")).unwrap();
    fs::write(root.join("blobs/sha256/note"), "x").unwrap();
    let unpacker = LocalUnpacker::of_this_process();
    let told = async |remove: bool| {
        let findings = store.verify(remove).await.unwrap();
        let line = |finding: &Finding| {
            format!("{}: {} ({:?})\n", finding.path.display(), finding.problem, finding.remedy)
        };
        let text: String = findings.iter().map(line).collect();
        let mut names: Vec<&str> = Vec::new();
        for word in text.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64) {
            if !names.contains(&word) {
                names.push(word);
            }
        }
        names
            .iter()
            .enumerate()
            .fold(text.clone(), |text, (number, name)| text.replace(name, &format!("HEX{number}")))
            .replace(work.path().to_str().unwrap(), "DIR")
            .replace(&format!("/{}/", unpacker.form()), "/FORM/")
    };
    insta::assert_snapshot!(told(false).await, @"
    blobs/sha256/note: is no blob: its name is not a digest (None)
    images/FORM/HEX0.json: names what is missing or damaged: layers/FORM/HEX1 (None)
    layers/FORM/HEX1: is damaged: its files are not those that were unpacked (None)
    refs/HEX2.json: names a damaged image: oci:DIR/layout (None)
    ");
    insta::assert_snapshot!(told(true).await, @"
    blobs/sha256/note: is no blob: its name is not a digest (Removed)
    images/FORM/HEX0.json: names what is missing or damaged: layers/FORM/HEX1 (InUse)
    layers/FORM/HEX1: is damaged: its files are not those that were unpacked (InUse)
    refs/HEX2.json: names a damaged image: oci:DIR/layout (InUse)
    ");
    assert!(image.layers[1].is_dir());
    drop(image);
    insta::assert_snapshot!(told(true).await, @"
    images/FORM/HEX0.json: names what is missing or damaged: layers/FORM/HEX1 (Removed)
    layers/FORM/HEX1: is damaged: its files are not those that were unpacked (Removed)
    refs/HEX2.json: names a damaged image: oci:DIR/layout (Removed)
    ");
    assert_eq!(told(true).await, "");
}

/// Writes a record as if it came from another boot of the machine.
fn write_before_boot(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert!(record.get("boot").is_some());
    record["boot"] = "another".into();
    let text = record.to_string();
    fs::write(path, format!("{text}\n{}\n", Digest::of(text.as_bytes()))).unwrap();
}

/// Power was lost before the disk had what the records tell of: the image is looked at before it is used, and what is
/// broken is unpacked again. What is whole is used without the source, and is looked at once.
#[tokio::test]
async fn trees_are_looked_at_after_a_reboot() {
    let work = tempfile::tempdir().unwrap();
    let (layout, root) = (work.path().join("layout"), work.path().join("store"));
    shop().layout(&layout, "1");
    let source = format!("oci:{}", layout.display());
    let image = resolve(&store(&root).await, &source, PullPolicy::Missing).await.unwrap();
    let records = || {
        let mut found = Vec::new();
        ["images", "layers"].iter().for_each(|name| files(&root.join(name), &mut found));
        found.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        found
    };
    records().iter().for_each(|path| write_before_boot(path));
    let blobs = layout.join("blobs");
    fs::rename(&blobs, layout.join("away")).unwrap();
    let again = resolve(&store(&root).await, &source, PullPolicy::Missing).await.unwrap();
    assert_eq!(again.layers, image.layers);
    let record = records().into_iter().find(|path| path.starts_with(root.join("images"))).unwrap();
    assert!(fs::read_to_string(&record).unwrap().contains(r#""boot":null"#));

    fs::rename(layout.join("away"), &blobs).unwrap();
    let motd = image.layers[0].join("etc/motd");
    let losses: [&dyn Fn(); 2] = [&|| fs::write(&motd, "").unwrap(), &|| fs::remove_file(&motd).unwrap()];
    for lose in losses {
        records().iter().for_each(|path| write_before_boot(path));
        lose();
        resolve(&store(&root).await, &source, PullPolicy::Missing).await.unwrap();
        assert_eq!(fs::read(&motd).unwrap(), b"welcome");
        assert_eq!(store(&root).await.verify(false).await.unwrap(), []);
    }
}
