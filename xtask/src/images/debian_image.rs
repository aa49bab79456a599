//! The image `debian`: Debian with its package tools, for Dockerfiles to build on. Its packages come from a directory in
//! it, so that `apt-get install` in a `RUN` needs no network.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::recipe::{Image, Recipe, finish_base};
use super::tree::Tree;

/// What is left in place by the build and is not of the image.
const DROPPED: &[&str] =
    &["dev/", "proc/", "sys/", "run/", "tmp/", "var/cache/apt/", "var/lib/apt/lists/", "var/log/"];

/// Downloads the packages with all they need, and describes them as an archive has it. Names without colons: apt would
/// escape them once more.
const REPOSITORY: &str = include_str!("debian-repository.sh");

/// How the image is made.
pub(super) fn recipe() -> Recipe {
    Recipe {
        name: "debian",
        file_name: String::new(),
        variant: "minbase",
        packages: &[],
        before: &[],
        after: &[REPOSITORY],
        drop: &[],
        on_base: false,
        source: &[include_str!("debian_image.rs")],
        finish,
    }
}

/// Whether a file of the tree belongs in the image.
pub(super) fn keeps(path: &str) -> bool {
    !DROPPED.iter().any(|dropped| path.starts_with(dropped))
}

fn finish(tree: &mut Tree, _scratch: &Path) -> Result<Image> {
    finish_base(tree);
    // As in the official image: scripts of packages start no services.
    tree.file("usr/sbin/policy-rc.d", 0o755, "#!/bin/sh\nexit 101\n");
    for directory in
        ["dev", "run", "var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "var/log/apt"]
    {
        tree.directory(directory, 0o755, (0, 0));
    }
    for (directory, mode) in [("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777)] {
        tree.directory(directory, mode, (0, 0));
    }
    let config = json!({ "Env": [super::recipe::PATH], "Cmd": ["bash"] });
    Ok(Image { tag: "bookworm-slim".to_owned(), config })
}
