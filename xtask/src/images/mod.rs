//! `cargo xtask images`: OCI images of real programs, built from Debian packages, so that neither tests nor the demo
//! need a registry.
//!
//! ```text
//! recipe ──► debian ──► slim ──► finish ──► layout
//! packages   a tree     less     users,     blobs, manifest, index
//!            of files   files    entrypoint
//! ```
//! A hash over the recipe names the result in `target/images/.cache`; `target/images/<name>` is a link to it. Results
//! are made in a scratch directory and renamed, so that what has its name is complete.

mod recipe;

mod debian;
mod layout;
mod slim;
mod tree;

mod busybox;
mod debian_image;
mod postgres;
mod redis;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use self::debian::Debian;
use self::layout::Layer;
use self::recipe::Recipe;
use self::tree::Tree;

/// The time stamp of every file and image: builds must not differ by the time they ran at (2024-01-01).
const EPOCH: u64 = 1_704_067_200;
/// [`EPOCH`], as image configurations write it.
const CREATED: &str = "2024-01-01T00:00:00Z";
/// Begins the names of directories that a build works in, and that the next one may remove.
const SCRATCH: &str = ".scratch-";

/// The images that [`ensure`] made or found; each is the directory of an OCI image layout.
#[derive(Debug)]
#[expect(dead_code, reason = "for the tasks that run tests on these images")]
pub(crate) struct ImagesBuilt {
    /// The directory with one image layout per image.
    pub(crate) directory: PathBuf,
    /// A shell and its tools, nothing else.
    pub(crate) busybox: PathBuf,
    /// PostgreSQL, with the contract of the official image.
    pub(crate) postgres: PathBuf,
    /// Redis, with the contract of the official image.
    pub(crate) redis: PathBuf,
    /// Debian with its package tools, to build images on.
    pub(crate) debian: PathBuf,
}

/// The task: builds what is missing, and tells where everything is.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    if let Some(arg) = args.first() {
        bail!("`cargo xtask images` takes no arguments, got `{arg}`");
    }
    ensure(root).map(|_| ())
}

/// Makes sure that all images are under `root`/target/images, building those that are not there yet.
///
/// Safe to call from several processes at once: one builds, the others wait for it.
pub(crate) fn ensure(root: &Path) -> Result<ImagesBuilt> {
    let store = Store::open(&root.join("target/images"))?;
    let debian = Debian::of_this_machine();
    let base = recipe::base().named(&debian, "");
    let directory = store.directory.clone();
    let image = |recipe: Recipe| -> Result<PathBuf> {
        let name = recipe.name;
        store.ensure(&debian, &base, recipe).with_context(|| format!("failed to build image {name}"))
    };
    Ok(ImagesBuilt {
        busybox: image(busybox::recipe())?,
        redis: image(redis::recipe())?,
        postgres: image(postgres::recipe())?,
        debian: image(debian_image::recipe())?,
        directory,
    })
}

/// `target/images`, locked.
struct Store {
    /// `target/images` itself: one link per image.
    directory: PathBuf,
    /// Results, under names that contain the hash of the recipe.
    cache: PathBuf,
    /// Held until the store is dropped, and by the package tools that were started meanwhile (see [`debian`]).
    lock: File,
}

impl Store {
    /// Waits until no one else builds here, then removes what interrupted builds have left.
    fn open(directory: &Path) -> Result<Self> {
        let cache = directory.join(".cache");
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let path = cache.join("lock");
        let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        if lock.try_lock().is_err() {
            println!("waiting for another build of images, which holds {}", path.display());
        }
        // Already held if the attempt succeeded; then this returns at once.
        lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        let store = Self { directory: directory.to_path_buf(), cache, lock };
        store.sweep()?;
        Ok(store)
    }

    /// Removes the scratch directories of builds that were killed. Nobody uses them: the lock is held.
    fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(&self.cache)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
                // A tree of packages may have been mounted into when its build was killed: never cross a mount.
                let status =
                    Command::new("rm").args(["-rf", "--one-file-system"]).arg(entry.path()).status()?;
                if !status.success() {
                    bail!("cannot remove {}, left by an interrupted build", entry.path().display());
                }
            }
        }
        Ok(())
    }

    /// A directory to work in, on the file system of the results, so that these need only be renamed.
    fn scratch(&self) -> Result<tempfile::TempDir> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(SCRATCH).tempdir_in(&self.cache).context("cannot create a scratch directory")
    }

    /// The image of this recipe: from the cache, or built now. Returns the link to it.
    fn ensure(&self, debian: &Debian, base: &Recipe, recipe: Recipe) -> Result<PathBuf> {
        let started = Instant::now();
        let recipe = recipe.named(debian, &base.file_name);
        let result = self.cache.join(&recipe.file_name);
        let cached = result.join("index.json").exists();
        if !cached {
            println!("{:<9} building from packages of Debian {}", recipe.name, debian.suite());
            let lower = if recipe.on_base { Some(self.base(debian, base)?) } else { None };
            let scratch = self.scratch()?;
            let built = build(debian, &recipe, lower, scratch.path(), &self.lock)?;
            fs::rename(&built, &result).context("cannot move the result to the cache")?;
        }
        let link = self.link(&recipe)?;
        let verb = if cached { "cached" } else { "built" };
        let size = size_of_blobs(&result)? as f64 / 1e6;
        println!("{:<9} {verb}, {size:.1} MB, {:.1?}, {}", recipe.name, started.elapsed(), link.display());
        Ok(link)
    }

    /// The layer that the images of servers have in common, and the files in it.
    fn base(&self, debian: &Debian, recipe: &Recipe) -> Result<(Layer, Tree)> {
        let result = self.cache.join(&recipe.file_name);
        if !result.join(layout::LAYER_RECORD).exists() {
            println!("{:<9} building from packages of Debian {}", recipe.name, debian.suite());
            let scratch = self.scratch()?;
            let tree = files_of(debian, recipe, scratch.path(), &self.lock)?;
            let built = scratch.path().join("result");
            layout::write_base(&built, &tree)?;
            fs::rename(&built, &result).context("cannot move the base layer to the cache")?;
        }
        layout::read_base(&result)
    }

    /// Points `target/images/<name>` to the result. Replacing a link is atomic, replacing a directory is not.
    fn link(&self, recipe: &Recipe) -> Result<PathBuf> {
        let link = self.directory.join(recipe.name);
        let target = Path::new(".cache").join(&recipe.file_name);
        if fs::read_link(&link).is_ok_and(|old| old == target) {
            return Ok(link);
        }
        let new = self.scratch()?;
        std::os::unix::fs::symlink(&target, new.path().join("link"))?;
        fs::rename(new.path().join("link"), &link)
            .with_context(|| format!("cannot replace {}", link.display()))?;
        Ok(link)
    }
}

/// Builds one image in `scratch`, on top of `lower` if there is one. Returns the directory of its layout.
fn build(
    debian: &Debian,
    recipe: &Recipe,
    lower: Option<(Layer, Tree)>,
    scratch: &Path,
    lock: &File,
) -> Result<PathBuf> {
    let mut tree = files_of(debian, recipe, scratch, lock)?;
    let image = (recipe.finish)(&mut tree, scratch)?;
    let result = scratch.join("result");
    layout::write_image(&result, recipe.name, &image, lower, &tree)?;
    Ok(result)
}

/// The files of the packages of this recipe, without those that a container has no use for.
fn files_of(debian: &Debian, recipe: &Recipe, scratch: &Path, lock: &File) -> Result<Tree> {
    let archive = scratch.join("packages.tar");
    debian.install(recipe, &archive, scratch, lock)?;
    let keeps = |path: &str| {
        if recipe.is_whole() { debian_image::keeps(path) } else { slim::keeps(path, recipe.drop) }
    };
    let mut tree = Tree::from_tar(File::open(&archive)?, keeps)?;
    if !recipe.is_whole() {
        tree.retain_contents(|contents| !slim::is_perl_script(contents));
    }
    fs::remove_file(&archive)?;
    Ok(tree)
}

/// The bytes of all blobs of a result.
fn size_of_blobs(result: &Path) -> Result<u64> {
    let mut size = 0;
    for blob in fs::read_dir(result.join("blobs/sha256"))? {
        size += blob?.metadata()?.len();
    }
    Ok(size)
}
