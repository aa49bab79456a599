//! The image `busybox`: a static program that is a shell and its tools, and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::recipe::{Image, Recipe};
use super::tree::Tree;

/// How the image is made.
pub(super) fn recipe() -> Recipe {
    Recipe {
        name: "busybox",
        file_name: String::new(),
        variant: "extract",
        packages: &["busybox-static"],
        before: &[],
        after: &[],
        drop: &[],
        on_base: false,
        source: &[include_str!("busybox.rs")],
        finish,
    }
}

fn finish(tree: &mut Tree, scratch: &Path) -> Result<Image> {
    let program = tree.paths().find(|path| path.ends_with("bin/busybox")).map(str::to_owned);
    let program = tree.contents(&program.context("the package has no bin/busybox")?)?.to_vec();
    let licence = tree.contents("usr/share/doc/busybox-static/copyright")?.to_vec();

    let mut image = Tree::default();
    for applet in applets(&program, scratch)?.lines().filter(|applet| *applet != "busybox") {
        image.symlink(&format!("bin/{applet}"), "busybox");
    }
    let banner = run(scratch, "--help")?;
    image.file("bin/busybox", 0o755, program);
    image.file("usr/share/doc/busybox-static/copyright", 0o644, licence);
    // Scripts of other images begin with `#!/usr/bin/env sh`.
    image.symlink("usr/bin/env", "../../bin/env");
    image.file(
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    );
    image.file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n");
    for (directory, mode) in
        [("dev", 0o755), ("proc", 0o555), ("root", 0o700), ("sys", 0o555), ("tmp", 0o1777)]
    {
        image.directory(directory, mode, (0, 0));
    }
    *tree = image;

    // `BusyBox v1.35.0 (Debian 1:1.35.0-4) multi-call binary.`
    let version = banner.split_whitespace().nth(1).map(|version| version.trim_start_matches('v').to_owned());
    let config = json!({ "Env": [super::recipe::PATH], "Cmd": ["sh"] });
    Ok(Image { tag: version.context("`busybox --help` names no version")?, config })
}

/// The names of the tools in the program, one a line. Writes the program to `scratch` to ask it.
fn applets(program: &[u8], scratch: &Path) -> Result<String> {
    let path = scratch.join("busybox");
    fs::write(&path, program)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    run(scratch, "--list")
}

/// What the program in `scratch` prints.
fn run(scratch: &Path, arg: &str) -> Result<String> {
    let output = Command::new(scratch.join("busybox")).arg(arg).output().context("cannot start busybox")?;
    if !output.status.success() {
        bail!("`busybox {arg}` failed");
    }
    String::from_utf8(output.stdout).context("busybox prints no text")
}
