//! `cargo xtask judge`: hostile images through `shakedown images unpack`, umoci, Podman and containerd, side by side.
//!
//! The comparison is a test of the image store (`runtime-backend/tests/image/judge`); here is what it needs: the
//! programs, ordinary users, and Shakedown's own program in a place that these users can read.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::machine::users::{Ranges, User};
use crate::machine::{cargo, is_root, packages, run as run_command, target_directory};

/// The tools that are asked, and the Debian packages that have them.
pub(crate) const PROGRAMS: &[(&str, &str)] = &[
    ("umoci", "umoci"),
    ("podman", "podman"),
    ("skopeo", "skopeo"),
    ("crun", "crun"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("newuidmap", "uidmap"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
];

/// The task.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    if let Some(arg) = args.first() {
        bail!("`cargo xtask judge` takes no arguments, got `{arg}`");
    }
    if !is_root() {
        bail!(
            "`cargo xtask judge` needs root: it unpacks as root and as users, and starts containerd\n\
             hint: `sudo -E env PATH=$PATH cargo xtask judge`"
        );
    }
    packages::ensure(PROGRAMS)?;
    let users = [User::ensure(Ranges::With)?.name, User::ensure(Ranges::Without)?.name];
    images(root, &users)
}

/// The comparison, when everything is there.
pub(crate) fn images(root: &Path, users: &[String]) -> Result<()> {
    let packages = ["--package=shakedown-server", "--bin=shakedown"];
    run_command(cargo().current_dir(root).args(["build", "--locked"]).args(packages))?;
    let place = tempfile::Builder::new().prefix("sdjudge-").tempdir_in("/var/tmp")?;
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755))?;
    let program = place.path().join("shakedown");
    fs::copy(target_directory(root).join("debug/shakedown"), &program).context("cannot copy the program")?;
    let mut command = cargo();
    command.current_dir(root).args(["test", "--locked", "--package=shakedown-runtime", "--test=image", "--"]);
    command.args(["--ignored", "--exact", "--nocapture", "judge::the_others_agree"]);
    command.env("SHAKEDOWN_PROGRAM", program).env("SHAKEDOWN_USERS", users.join(" "));
    run_command(&mut command)
}
