//! A copy of what the suites need, where every user can read it: a checkout may be in a place that only root sees.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::run;
use super::users::User;

/// A directory that looks like the workspace to a test: `shakedown.toml`, `target/images`, the packages' directories.
#[derive(Debug)]
pub(crate) struct Stage {
    directory: TempDir,
}

impl Stage {
    /// Copies the images and the configuration.
    pub(crate) fn new(root: &Path, images: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sdci-stage-").tempdir_in("/var/tmp")?;
        let stage = Self { directory };
        fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o755))?;
        let target = stage.path().join("target");
        fs::create_dir_all(target.join("bin"))?;
        // By this file a test knows the directory for the logs of failures.
        fs::write(target.join("CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n")?;
        // Links are followed: they lead into the cache of images, which is not copied.
        run(Command::new("cp").args(["-r", "--dereference"]).arg(images).arg(&target))?;
        for file in ["shakedown.toml", "Cargo.toml", "Cargo.lock"] {
            if root.join(file).exists() {
                stage.copy(&root.join(file), Path::new(file))?;
            }
        }
        Ok(stage)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Copies one file to this path within the stage.
    pub(crate) fn copy(&self, from: &Path, to: &Path) -> Result<PathBuf> {
        let to = self.path().join(to);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        Ok(to)
    }

    /// Copies a directory with everything in it to the same path within the stage.
    pub(crate) fn copy_directory(&self, root: &Path, path: &Path) -> Result<()> {
        let to = self.path().join(path);
        let parent = to.parent().unwrap_or(self.path());
        fs::create_dir_all(parent)?;
        run(Command::new("cp").args(["-r", "--no-target-directory"]).arg(root.join(path)).arg(&to))
    }

    /// Makes everything the user's: as in a checkout, tests write their logs below `target`.
    pub(crate) fn give_to(&self, user: &User) -> Result<()> {
        run(Command::new("chown").args(["-R", &format!("{0}:{0}", user.name)]).arg(self.path()))
    }
}
