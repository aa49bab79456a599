//! What an image is made of: the part of a build that is data.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::debian::Debian;
use super::layout;
use super::tree::Tree;

/// Goes into every hash: raise it when code outside the recipes changes what is built.
const BUILDER: u32 = 1;

/// Where programs are looked for: what images set if they have no wishes.
pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How an image is made.
pub(super) struct Recipe {
    /// The name of the image, as in `target/images/<name>`.
    pub(super) name: &'static str,
    /// The name of the result in the cache, with the hash over everything below; empty until [`Recipe::named`].
    pub(super) file_name: String,
    /// The set of packages to begin with, as mmdebstrap names it: `essential`, `extract` for none, or `minbase` for all
    /// that an installed Debian has: then nothing is left out of the image.
    pub(super) variant: &'static str,
    /// The packages to install, with their dependencies.
    pub(super) packages: &'static [&'static str],
    /// Shell lines to run before the packages are installed; `$1` is the tree, in which only the variant is installed.
    pub(super) before: &'static [&'static str],
    /// Shell lines to run after the packages are installed.
    pub(super) after: &'static [&'static str],
    /// What to leave out, besides what every image leaves out: see [`super::slim`].
    pub(super) drop: &'static [&'static str],
    /// Whether the image lies on the layer that servers have in common.
    pub(super) on_base: bool,
    /// Further text that the result depends on: the source of `finish`, and the files it adds.
    pub(super) source: &'static [&'static str],
    /// Changes the files of the packages into those of the image, and describes it. May work in the given directory.
    pub(super) finish: fn(&mut Tree, &Path) -> Result<Image>,
}

/// What is said about an image, besides its files.
pub(super) struct Image {
    /// The version of the program in it.
    pub(super) tag: String,
    /// The `config` object of the OCI image configuration.
    pub(super) config: Value,
}

impl Recipe {
    /// Whether nothing is left out: the image is one to build on, so that it needs its package tools.
    pub(super) fn is_whole(&self) -> bool {
        self.variant == "minbase"
    }

    /// This recipe with its name in the cache, when it is followed on this Debian and on the base of that name.
    pub(super) fn named(mut self, debian: &Debian, base: &str) -> Self {
        let everything = json!([
            BUILDER,
            debian.suite(),
            layout::architecture(),
            if self.on_base { base } else { "" },
            [self.variant],
            self.packages,
            self.before,
            self.after,
            self.drop,
            if self.is_whole() { &[] } else { super::slim::DROPPED },
            self.source,
        ]);
        let hash = layout::sha256(everything.to_string().as_bytes());
        self.file_name = format!("{}-{}", self.name, &hash[..16]);
        self
    }
}

/// The layer that servers have in common: the essential packages of Debian, without its package tools.
pub(super) fn base() -> Recipe {
    Recipe {
        name: "base",
        file_name: String::new(),
        variant: "essential",
        packages: &[],
        before: &[],
        after: &[],
        drop: &[],
        on_base: false,
        source: &[],
        finish: |_, _| anyhow::bail!("the base is a layer, not an image"),
    }
}

/// Puts back, in their plain form, files of the machine that programs and runtimes expect.
pub(super) fn finish_base(tree: &mut Tree) {
    tree.file("etc/hosts", 0o644, "127.0.0.1\tlocalhost\n::1\tlocalhost\n");
    // Runtimes mount their own over these, and cannot create them in an image that is read-only.
    for path in ["etc/hostname", "etc/resolv.conf"] {
        tree.file(path, 0o644, "");
    }
}
