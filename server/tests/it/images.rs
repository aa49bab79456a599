//! `shakedown images`: the store on the command line.

use shakedown_runtime::native::open_store;
use shakedown_spec::{ImageSource, PullPolicy};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

/// A store with the image `busybox`, and the command line on it.
struct Shelf {
    work: tempfile::TempDir,
    layout: PathBuf,
}

impl Shelf {
    fn new() -> Self {
        let work = tempfile::tempdir().unwrap();
        let layout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/images/busybox");
        let layout = layout.canonicalize().expect("`cargo xtask images` makes the images of the tests");
        let shelf = Self { work, layout };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = open_store(None, &shelf.store(), Default::default()).await.unwrap();
            let source: ImageSource = shelf.source().parse().unwrap();
            let image = store.resolve(&source, PullPolicy::Missing, Arc::new(|_, _, _| {})).await.unwrap();
            store.tag(&image.image.id, &"shop/busybox:1".parse().unwrap()).await.unwrap();
        });
        shelf
    }

    fn store(&self) -> PathBuf {
        self.work.path().join("store")
    }

    fn source(&self) -> String {
        format!("oci:{}", self.layout.display())
    }

    /// The exit code, standard output and standard error.
    fn ask(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shakedown"));
        command
            .arg("images")
            .args(arguments)
            .env("SHAKEDOWN_STORE", self.store())
            .current_dir(self.work.path());
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.replace(&self.source(), "oci:LAYOUT").replace(self.work.path().to_str().unwrap(), "DIR")
        };
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    fn ids(&self) -> Vec<String> {
        let (_, json, _) = self.ask(&["ls", "--json"]);
        let list: serde_json::Value = serde_json::from_str(&json).unwrap();
        list.as_array().unwrap().iter().map(|image| image["id"].as_str().unwrap().to_owned()).collect()
    }
}

/// Names, sizes and ids as people and scripts want them.
#[test]
fn images_are_listed_and_told() {
    let shelf = Shelf::new();
    let (code, table, _) = shelf.ask(&["ls"]);
    assert_eq!(code, 0);
    let rows: Vec<Vec<_>> =
        table.lines().map(|line| line.split("  ").filter(|cell| !cell.is_empty()).collect()).collect();
    assert_eq!(
        rows[0].iter().map(|cell| cell.trim()).collect::<Vec<_>>(),
        ["NAME", "ID", "CREATED", "USED", "SIZE", "SHARED", "OWN"]
    );
    assert_eq!(
        rows.iter().skip(1).map(|row| row[0].trim()).collect::<Vec<_>>(),
        ["oci:LAYOUT", "shop/busybox:1"]
    );
    assert_eq!(
        (rows[1][1].trim(), rows[1][3].trim(), rows[1][5].trim()),
        (&shelf.ids()[0][7..19], "just now", "0 B")
    );
    let (_, json, _) = shelf.ask(&["inspect", "shop/busybox:1", "--json"]);
    let details: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(details["id"], shelf.ids()[0]);
    assert!(
        Path::new(
            &details["layers"][0]["tree"]
                .as_str()
                .unwrap()
                .replace("DIR", shelf.work.path().to_str().unwrap())
        )
        .is_dir()
    );
    let (code, text, _) = shelf.ask(&["inspect", &shelf.ids()[0][7..15]]);
    assert!(code == 0 && text.contains("names       oci:LAYOUT, shop/busybox:1\n"), "{text}");
    let (code, _, error) = shelf.ask(&["inspect", "shop/none"]);
    assert_eq!(code, 1);
    insta::assert_snapshot!(error, @"
    error: the store has no image `shop/none`
      images there: oci:LAYOUT, shop/busybox:1
    ");
}

/// What a removal gave back is told, and a wrong name does not keep the others.
#[test]
fn names_and_images_are_removed() {
    let shelf = Shelf::new();
    let id = shelf.ids()[0].clone();
    let (code, _, _) = shelf.ask(&["tag", "shop/busybox:1", "shop/busybox:2"]);
    assert_eq!(code, 0);
    let (code, told, error) = shelf.ask(&["rm", "shop/busybox:1", "shop/none", "shop/busybox:2"]);
    assert_eq!((code, told.as_str()), (1, "untagged: shop/busybox:1\nuntagged: shop/busybox:2\n"));
    assert!(error.contains("the store has no image `shop/none`"), "{error}");
    let (code, dry, _) = shelf.ask(&["prune", "--all", "--dry-run"]);
    assert!(code == 0 && dry.contains(&format!("would be removed: {id}\nwould be freed: ")), "{dry}");
    let (code, told, _) = shelf.ask(&["prune", "--all"]);
    assert!(code == 0 && told.contains(&format!("untagged: oci:LAYOUT\nremoved: {id}\nfreed: ")), "{told}");
    assert_eq!(shelf.ids(), [""; 0]);
    let (code, _, error) = shelf.ask(&["prune", "--max-size", "much"]);
    assert!(code == 2 && error.contains("`much` is no size"), "{error}");
}

/// A damaged store is told by exit code, line by line, and can be cleared.
#[test]
fn damage_is_told_and_cleared() {
    let shelf = Shelf::new();
    assert_eq!(shelf.ask(&["verify"]), (0, "everything is as it was written\n".to_owned(), String::new()));
    let blob = shelf.store().join("blobs/sha256").join(&shelf.ids()[0][7..]);
    std::fs::write(&blob, "{}").unwrap();
    let (code, told, _) = shelf.ask(&["verify"]);
    assert_eq!(code, 1);
    let line = told.lines().find(|line| line.starts_with("blobs/")).unwrap();
    assert!(line.contains(": is damaged: its digest is sha256:"), "{told}");
    assert!(told.ends_with(
        "hint: `shakedown images verify --remove` removes this, and it is made anew when it is asked for\n"
    ));
    let (code, told, _) = shelf.ask(&["verify", "--remove"]);
    assert!(code == 1 && told.lines().all(|line| line.ends_with("; removed")), "{told}");
    assert_eq!(shelf.ask(&["verify"]).0, 0);
}

/// An image can be looked at without running it; nothing is left in the store, and a failure leaves nothing at all.
#[test]
fn an_image_is_unpacked() {
    let shelf = Shelf::new();
    shelf.ask(&["prune", "--all"]);
    let (code, _, error) = shelf.ask(&["unpack", &shelf.source(), "tree"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(shelf.work.path().join("tree/bin/sh").symlink_metadata().is_ok());
    assert_eq!(shelf.ids(), [""; 0]);
    let (code, _, error) = shelf.ask(&["unpack", &shelf.source(), "tree"]);
    assert_eq!(code, 1);
    insta::assert_snapshot!(error, @"
    error: tree cannot be used
      reason: the directory is not empty
    ");
    let (code, _, error) = shelf.ask(&["unpack", "oci:nowhere", "other"]);
    assert_eq!(code, 1);
    insta::assert_snapshot!(error, @"
    error: image oci:DIR/nowhere was not found
      file:   DIR/nowhere/index.json
      reason: no such file or directory
    ");
    assert!(!shelf.work.path().join("other").exists());
}

/// A rule of `shakedown.toml` holds for every command that takes an image, so that none of them fetches from a registry
/// what the project replaces.
#[test]
fn rules_hold_on_the_command_line() {
    let shelf = Shelf::new();
    let rules = format!(
        "offline = true\n[images]\n\"redis:7\" = \"{}\"\n\"shop/*\" = \"nowhere.example/*\"\n",
        shelf.source()
    );
    std::fs::write(shelf.work.path().join("shakedown.toml"), rules).unwrap();
    for command in [
        &["save", "redis:7", "--output", "redis.tar"][..],
        &["unpack", "redis:7", "tree"],
        &["inspect", "redis:7"],
        &["tag", "redis:7", "shop/cache:1"],
        // What the store has is meant before any rule.
        &["save", "shop/cache:1", "--output", "cache.tar"],
    ] {
        let (code, _, trouble) = shelf.ask(command);
        assert_eq!(code, 0, "{command:?}: {trouble}");
    }
    // By the beginning of its id, an image has no name in the file.
    let id = shelf.ids()[0].clone();
    let (code, _, trouble) = shelf.ask(&["save", &id[7..15], "--output", "id.tar"]);
    assert_eq!(code, 0, "{trouble}");
    let (code, _, trouble) = shelf.ask(&["rm", "redis:7"]);
    assert_eq!((code, trouble.lines().next()), (1, Some("error: the store has no image `redis:7`")));
}

/// Somebody who loads the wrong file reads its name and what is wrong with it.
#[test]
fn a_file_that_is_no_archive_is_told() {
    let shelf = Shelf::new();
    std::fs::write(shelf.work.path().join("Dockerfile"), "FROM busybox\n").unwrap();
    let (code, _, trouble) = shelf.ask(&["load", "--input", "Dockerfile"]);
    assert_eq!(code, 1);
    insta::assert_snapshot!(trouble, @r"
    error: Dockerfile could not be read
      reason: this is not a tar archive
    ");
}
