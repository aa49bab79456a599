//! What the store tells about its images, and how they go.

use crate::images::{Parts, assert_consistent, assert_verifies, resolve, shop, store};
use crate::server::Registry;
use crate::tape::Tape;
use shakedown_runtime::Wanted;
use shakedown_runtime::native::image::{Digest, PruneRules, Shape, Store, StoreLimits, StoreOptions};
use shakedown_spec::{FailureKind, ImageSource, PullPolicy};
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86400);

fn base() -> Vec<u8> {
    Tape::default().dir("etc").file("etc/motd", &"welcome".repeat(10_000)).done()
}

/// Two images on one base, and a store that has them.
struct Shelf {
    work: tempfile::TempDir,
    store: Store,
    registry: Registry,
}

impl Shelf {
    async fn new() -> Self {
        let work = tempfile::tempdir().unwrap();
        let registry = Registry::start("");
        for name in ["orders", "refunds"] {
            let top = Tape::default().file(name, &"x".repeat(50_000)).done();
            registry.push(&Parts::of(&[base(), top]), name, "1", "");
        }
        let store = store(&work.path().join("store")).await;
        let shelf = Self { work, store, registry };
        for name in ["orders", "refunds"] {
            shelf.get(name).await;
        }
        shelf
    }

    async fn get(&self, name: &str) -> shakedown_runtime::native::image::StoredImage {
        resolve(&self.store, &self.name(name), PullPolicy::Missing).await.unwrap()
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}:1", self.registry.address)
    }

    fn id(&self, name: &str) -> Digest {
        self.store.inspect(&self.name(name)).unwrap().summary.id
    }

    fn root(&self) -> PathBuf {
        self.work.path().join("store")
    }

    fn names(&self) -> Vec<String> {
        let names = self.store.list().unwrap().into_iter().flat_map(|image| image.names);
        names.map(|name| name.replace(&self.registry.address, "registry")).collect()
    }

    fn count(&self, directory: &str) -> usize {
        fs::read_dir(self.root().join(directory)).unwrap().count()
    }

    fn layers(&self) -> usize {
        let forms = fs::read_dir(self.root().join("layers")).unwrap();
        forms.map(|form| fs::read_dir(form.unwrap().path()).unwrap().count()).sum()
    }

    /// As if nobody had asked for the image for so long.
    fn age(&self, name: &str, age: Duration) {
        let id = self.id(name).hex();
        for form in fs::read_dir(self.root().join("images")).unwrap() {
            let record = form.unwrap().path().join(format!("{id}.json"));
            File::options().append(true).open(record).unwrap().set_modified(SystemTime::now() - age).unwrap();
        }
    }

    async fn prune(&self, rules: PruneRules) -> Vec<Digest> {
        self.store.prune(&rules).await.unwrap().images
    }

    fn shown(&self, failure: &shakedown_spec::Failure) -> String {
        let mut text = failure.to_string().replace(&self.registry.address, "registry");
        for name in ["orders", "refunds"] {
            if let Ok(details) = self.store.inspect(&self.name(name)) {
                text = text.replace(&details.summary.id.to_string(), &format!("ID-{name}"));
            }
        }
        text
    }
}

/// A user sees what an image costs, what it shares, and what its removal would give back.
#[tokio::test]
async fn sizes_are_told_as_shared_and_own() {
    let shelf = Shelf::new().await;
    let list = shelf.store.list().unwrap();
    assert_eq!(shelf.names(), ["registry/orders:1", "registry/refunds:1"]);
    for image in &list {
        assert_eq!(image.size, image.shared + image.own);
        assert!(image.shared >= 70_000, "{image:?}");
        assert!(image.own >= 50_000 && image.own < image.shared, "{image:?}");
    }
    let details = shelf.store.inspect(&shelf.name("orders")).unwrap();
    assert_eq!(details.layers.len(), 2);
    assert!(details.layers.iter().all(|layer| layer.stored && layer.tree.is_dir() && layer.disk > 0));
    assert_eq!(details.config.command, ["/bin/true"]);
    // One goes: what they share stays, and belongs to the other alone.
    let freed = shelf.store.remove(&shelf.name("orders"), false).await.unwrap();
    assert_eq!((freed.images.len(), freed.layers), (1, 1));
    assert!(freed.bytes >= list[0].own, "{freed:?}");
    assert_eq!(shelf.store.list().unwrap()[0].shared, 0);
    assert_verifies(&shelf.root()).await;
    shelf.store.remove(&shelf.name("refunds"), false).await.unwrap();
    assert_eq!((shelf.layers(), shelf.count("blobs/sha256"), shelf.count("refs")), (0, 0, 0));
    // And it can be fetched again.
    shelf.get("orders").await;
    assert_verifies(&shelf.root()).await;
}

/// What a container runs on stays, whoever asks for its removal; without its name it goes with the last user.
#[tokio::test]
async fn an_image_in_use_stays() {
    let shelf = Shelf::new().await;
    let name = shelf.name("orders");
    let used = shelf.get("orders").await;
    // Another process, as it were: nothing is shared but the directory.
    let other = store(&shelf.root()).await;
    let failure = other.remove(&name, false).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::ImageUnusable);
    insta::assert_snapshot!(shelf.shown(&failure), @"
    image registry/orders:1 is in use
    hint: end the sessions that use it, or take its name away with `shakedown images rm --force registry/orders:1`
    ");
    let freed = other.prune(&PruneRules { all: true, ..PruneRules::default() }).await.unwrap();
    assert_eq!((freed.images.len(), freed.in_use.len()), (1, 1));
    assert_eq!(shelf.names(), ["registry/orders:1"]);
    let freed = other.remove(&name, true).await.unwrap();
    assert_eq!((freed.untagged.len(), freed.images.len(), freed.in_use.len()), (1, 0, 1));
    assert!(used.layers.iter().all(|layer| layer.is_dir()));
    let nameless = PruneRules { nameless: true, ..PruneRules::default() };
    assert!(other.prune(&nameless).await.unwrap().images.is_empty());
    drop(used);
    assert_eq!(other.prune(&nameless).await.unwrap().images.len(), 1);
    assert_eq!((shelf.layers(), shelf.count("blobs/sha256")), (0, 0));
    assert_verifies(&shelf.root()).await;
}

/// An image has as many names as it is given, and goes with the last.
#[tokio::test]
async fn names_are_given_and_taken() {
    let shelf = Shelf::new().await;
    shelf.store.tag(&shelf.name("orders"), &"shop/orders:7".parse().unwrap()).await.unwrap();
    let id = shelf.id("orders");
    let found = resolve(&shelf.store, "shop/orders:7", PullPolicy::Never).await.unwrap();
    assert_eq!(found.image.id, id.to_string());
    drop(found);
    let failure = shelf.store.remove(&id.to_string(), false).await.unwrap_err();
    insta::assert_snapshot!(shelf.shown(&failure), @"
    image ID-orders has several names
      names: registry/orders:1, shop/orders:7
    hint: remove it by these names, or all at once with `--force`
    ");
    let freed = shelf.store.remove(&shelf.name("orders"), false).await.unwrap();
    assert_eq!((freed.untagged.len(), freed.images.len()), (1, 0));
    assert_eq!(shelf.names(), ["registry/refunds:1", "shop/orders:7"]);
    // The name of another image goes over.
    shelf.store.tag(&shelf.name("refunds"), &"shop/orders:7".parse().unwrap()).await.unwrap();
    assert_eq!(shelf.store.inspect("shop/orders:7").unwrap().summary.id, shelf.id("refunds"));
    assert_eq!(shelf.prune(PruneRules { nameless: true, ..PruneRules::default() }).await, [id]);
    let freed = shelf.store.remove(&shelf.id("refunds").hex()[..12], true).await.unwrap();
    assert_eq!((freed.untagged.len(), freed.images.len()), (2, 1));
    let failure = shelf.store.remove("shop/orders:7", false).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::ImageNotFound);
    insta::assert_snapshot!(failure, @"the store has no image `shop/orders:7`");
    assert_verifies(&shelf.root()).await;
}

/// The beginning of an id names an image if it is long enough and only one begins so.
#[tokio::test]
async fn beginnings_of_ids_are_understood_or_refused() {
    let work = tempfile::tempdir().unwrap();
    let store = store(&work.path().join("store")).await;
    let mut seen: HashMap<String, Parts> = HashMap::new();
    let (one, other) = (0..)
        .find_map(|number| {
            let mut parts = shop();
            parts.config["config"]["Labels"] = serde_json::json!({"number": number.to_string()});
            parts.describe();
            let id = Digest::of(&crate::images::bytes(&parts.config)).hex();
            let other = seen.insert(id[..4].to_owned(), parts.clone())?;
            Some((parts, other))
        })
        .unwrap();
    let mut ids = Vec::new();
    for (number, parts) in [&one, &other].into_iter().enumerate() {
        let layout = work.path().join(number.to_string());
        parts.layout(&layout, "1");
        let image = resolve(&store, &format!("oci:{}", layout.display()), PullPolicy::Missing).await.unwrap();
        ids.push(image.image.id.trim_start_matches("sha256:").to_owned());
    }
    ids.sort();
    let failure = store.inspect(&ids[0][..4]).unwrap_err().to_string();
    let shown = failure
        .replace(&ids[0][..12], "FIRST")
        .replace(&ids[1][..12], "SECOND")
        .replace(&ids[0][..4], "BEGIN");
    insta::assert_snapshot!(shown, @"
    `BEGIN` is the beginning of several ids
      images: FIRST, SECOND
    ");
    assert_eq!(store.inspect(&ids[0][..20]).unwrap().summary.id.hex(), ids[0]);
    assert_eq!(store.inspect(&format!("sha256:{}", ids[1])).unwrap().summary.id.hex(), ids[1]);
    assert!(store.inspect(&ids[0][..3]).is_err());
}

/// Images go by age and by size, the one that nobody asked for the longest first, and asking for one keeps it.
#[tokio::test]
async fn images_go_by_age_and_size() {
    let shelf = Shelf::new().await;
    let (orders, refunds) = (shelf.id("orders"), shelf.id("refunds"));
    shelf.age("orders", 8 * DAY);
    shelf.age("refunds", 2 * DAY);
    let old = |days: u32| PruneRules { older_than: Some(days * DAY), ..PruneRules::default() };
    let dry = shelf.store.prune(&PruneRules { dry_run: true, ..old(7) }).await.unwrap();
    assert_eq!((dry.images, dry.layers, dry.untagged.len()), (vec![orders], 1, 1));
    assert!(dry.bytes >= 50_000);
    assert_eq!(shelf.names().len(), 2);
    // Asked for, it counts as used again, also by a process that did not fetch it.
    resolve(&store(&shelf.root()).await, &shelf.name("orders"), PullPolicy::Missing).await.unwrap();
    assert!(shelf.prune(old(7)).await.is_empty());
    shelf.age("orders", 8 * DAY);
    assert_eq!(shelf.prune(old(7)).await, [orders]);
    shelf.get("orders").await;
    let whole: u64 = shelf.store.list().unwrap().iter().map(|image| image.own).sum();
    assert!(shelf.prune(PruneRules { max_size: Some(10 * whole), ..PruneRules::default() }).await.is_empty());
    let smaller = shelf.store.inspect(&shelf.name("orders")).unwrap().summary.size;
    assert_eq!(shelf.prune(PruneRules { max_size: Some(smaller), ..PruneRules::default() }).await, [refunds]);
    assert_eq!(shelf.names(), ["registry/orders:1"]);
    assert_verifies(&shelf.root()).await;
}

/// Nobody has to think of it: the store stays within its limits by itself, and the work is done once a day.
#[tokio::test]
async fn garbage_is_collected_once_a_day() {
    let shelf = Shelf::new().await;
    shelf.age("orders", 31 * DAY);
    let limits = StoreLimits::default();
    let freed = shelf.store.keep_within(&limits).await.unwrap().unwrap();
    assert_eq!(freed.images.len(), 1);
    assert_eq!(shelf.names(), ["registry/refunds:1"]);
    shelf.age("refunds", 31 * DAY);
    assert_eq!(store(&shelf.root()).await.keep_within(&limits).await.unwrap(), None);
    let stamp = File::options().append(true).open(shelf.root().join("collected")).unwrap();
    stamp.set_modified(SystemTime::now() - 2 * DAY).unwrap();
    // Whoever makes an image is not made to wait, and does not lose what it has made.
    let source: ImageSource = "build:shop".parse().unwrap();
    let ingest = shelf.store.ingest(&source, Arc::new(|_, _, _| {})).await.unwrap();
    assert_eq!(shelf.store.keep_within(&limits).await.unwrap(), None);
    drop(ingest);
    assert_eq!(shelf.store.keep_within(&limits).await.unwrap().unwrap().images.len(), 1);
    assert_eq!((shelf.layers(), shelf.count("blobs/sha256"), shelf.count("locks")), (0, 0, 1));
    assert_consistent(&shelf.root());
}

fn tree(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(tree(&entry.path()).into_iter().map(|inner| format!("{name}/{inner}")));
            found.push(name + "/");
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

async fn unpack(
    store: &Store,
    source: &str,
    to: &Path,
    shape: Shape,
) -> Result<Vec<String>, shakedown_spec::Failure> {
    let source: ImageSource = source.parse().unwrap();
    store
        .unpack_to(
            &Wanted::new(source, PullPolicy::Missing),
            to,
            shape,
            StoreOptions::default(),
            Arc::new(|_, _, _| {}),
        )
        .await
}

/// A directory shows an image as a container would see it, and nothing else is touched.
#[tokio::test]
async fn an_image_is_unpacked_into_a_directory() {
    let work = tempfile::tempdir().unwrap();
    let lower = Tape::default()
        .dir("etc")
        .file("etc/old", "x")
        .dir("srv")
        .file("srv/gone", "x")
        .file("kind", "a file")
        .dir("tree")
        .file("tree/inner", "x")
        .file("one", "linked")
        .hard("two", "one")
        .done();
    let upper = Tape::default()
        .dir("etc")
        .file("etc/.wh.old", "")
        .file("etc/new", "y")
        .dir("srv")
        .file("srv/.wh..wh..opq", "")
        .file("srv/here", "y")
        .dir("kind")
        .file("kind/of", "y")
        .file("tree", "a file")
        .done();
    Parts::of(&[lower, upper]).layout(&work.path().join("layout"), "1");
    let source = format!("oci:{}", work.path().join("layout").display());
    let root = work.path().join("store");
    let store = store(&root).await;
    let target = work.path().join("target");
    unpack(&store, &source, &target, Shape::Merged).await.unwrap();
    insta::assert_snapshot!(tree(&target).join(" "), @"etc/ etc/new kind/ kind/of one srv/ srv/here tree two");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs::metadata(target.join("one")).unwrap()), 2);
    assert!(store.list().unwrap().is_empty());
    // As the store has it.
    fs::create_dir(work.path().join("layers")).unwrap();
    unpack(&store, &source, &work.path().join("layers"), Shape::Layers).await.unwrap();
    insta::assert_snapshot!(tree(&work.path().join("layers")).join(" "), @"0/ 0/etc/ 0/etc/old 0/kind 0/one 0/srv/ 0/srv/gone 0/tree/ 0/tree/inner 0/two 1/ 1/etc/ 1/etc/new 1/etc/old 1/kind/ 1/kind/of 1/srv/ 1/srv/here 1/tree");
    // Out of the store.
    store
        .tag(
            &resolve(&store, &source, PullPolicy::Missing).await.unwrap().image.id,
            &"shop:1".parse().unwrap(),
        )
        .await
        .unwrap();
    unpack(&store, "shop:1", &work.path().join("again"), Shape::Merged).await.unwrap();
    assert_eq!(tree(&work.path().join("again")), tree(&target));
    assert_verifies(&root).await;
    let failure = unpack(&store, &source, &target, Shape::Merged).await.unwrap_err();
    insta::assert_snapshot!(failure.to_string().replace(work.path().to_str().unwrap(), "DIR"), @"
    DIR/target cannot be used
      reason: the directory is not empty
    ");
}

/// What is refused leaves the directory as it was, also if the first layers were honest.
#[tokio::test]
async fn a_refused_image_leaves_an_empty_directory() {
    let work = tempfile::tempdir().unwrap();
    let honest = Tape::default().dir("etc").file("etc/motd", "x").done();
    let hostile = Tape::default().file("../../escaped", "x").done();
    Parts::of(&[honest, hostile]).layout(&work.path().join("layout"), "1");
    let source = format!("oci:{}", work.path().join("layout").display());
    let store = store(&work.path().join("store")).await;
    fs::create_dir(work.path().join("there")).unwrap();
    for (target, there) in [("new", false), ("there", true)] {
        let target = work.path().join(target);
        let failure = unpack(&store, &source, &target, Shape::Merged).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::ImageUnusable, "{failure}");
        assert_eq!(target.exists(), there);
        assert!(!there || tree(&target).is_empty());
    }
    let mut left = tree(work.path());
    left.retain(|path| !path.starts_with("layout/") && !path.starts_with("store/"));
    assert_eq!(left, ["there/"]);
    assert!(store.list().unwrap().is_empty());
}
