//! `cargo xtask bench`: prepares what `shakedown-bench` measures with, and runs it.
//!
//! ```text
//! packages ──► user ──► images ──► build ──► dockerd ──► shakedown-bench ──► results
//! ```
//! The program is built as a release, and run from a place that the ordinary user can read as well. What it and the
//! engines write is in memory: neither the disk is measured, nor what its file system remembers of the files that another
//! engine has just removed.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::Silent;
use crate::machine::dockerd::Dockerd;
use crate::machine::stage::Stage;
use crate::machine::users::{Ranges, User};
use crate::machine::{cargo, is_root, packages, target_directory};

/// What is measured or needed for it, and the Debian packages that have it.
const PROGRAMS: &[(&str, &str)] = &[
    ("crun", "crun"),
    ("runc", "runc"),
    ("podman", "podman"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("docker-registry", "docker-registry"),
    ("docker", "docker.io"),
    ("mmdebstrap", "mmdebstrap"),
    ("dockerd", "docker.io"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("redis-benchmark", "redis-tools"),
    ("newuidmap", "uidmap"),
    ("setpriv", "util-linux"),
    ("useradd", "passwd"),
];

const USAGE: &str = "usage: cargo xtask bench [--json] [--n N] [--only PART-OF-A-ROW'S-NAME]";

/// The task. With `--json`, standard output has the results and nothing else.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    check(args)?;
    if !is_root() {
        bail!(
            "`cargo xtask bench` needs root: it measures as root and as a user, and starts dockerd\n\
             hint: `sudo -E env PATH=$PATH cargo xtask bench`"
        );
    }
    packages::ensure(PROGRAMS)?;
    let user = User::ensure(Ranges::With)?;
    build_images(root)?;
    let built = cargo()
        .current_dir(root)
        .args(["build", "--locked", "--release", "--package=shakedown-bench", "--package=shakedown-server"])
        .status();
    if !built.context("cannot start cargo")?.success() {
        bail!("shakedown-bench could not be built");
    }

    into_memory().context("cannot mount a tmpfs on /var/tmp")?;
    let stage = Stage::new(root, &root.join("target/images"))?;
    let program = target_directory(root).join("release/shakedown-bench");
    let program = stage.copy(&program, Path::new("target/bin/shakedown-bench"))?;
    let shakedown = target_directory(root).join("release/shakedown");
    let shakedown = stage.copy(&shakedown, Path::new("target/bin/shakedown"))?;
    // A daemon that was named is used; none of the machine's own is touched unasked.
    let (docker, host) = match env::var("DOCKER_HOST") {
        Ok(host) if !host.is_empty() => (None, host),
        _ => {
            let docker = Dockerd::start()?;
            let host = docker.host();
            (Some(docker), host)
        }
    };
    let mut command = Command::new(program);
    command.arg("run").arg("--images").arg(stage.path().join("target/images"));
    command.arg("--program").arg(shakedown);
    command.args(["--docker", &host, "--user", &user.name]).args(args);
    let status = command.current_dir(stage.path()).status().context("cannot start shakedown-bench")?;
    drop(docker);
    if status.success() { Ok(()) } else { Err(Silent.into()) }
}

/// From here on, `/var/tmp` is in memory for this process and those that it starts, and is gone with them.
fn into_memory() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // Pulls fill it with some hundreds of megabytes at a time, of four engines.
    mount("tmpfs", "/var/tmp", "tmpfs", MountFlags::empty(), c"mode=1777,size=75%")?;
    Ok(())
}

/// Refuses what `shakedown-bench` would refuse after everything has been built.
fn check(args: &[String]) -> Result<()> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => {}
            "--n" if args.next().is_some_and(|n| n.parse::<usize>().is_ok_and(|n| n > 0)) => {}
            "--only" if args.next().is_some() => {}
            _ => bail!("{USAGE}"),
        }
    }
    Ok(())
}

/// Builds the images in a process of its own, whose progress goes to standard error.
fn build_images(root: &Path) -> Result<()> {
    let mut command = Command::new(env::current_exe().context("this program's file is unknown")?);
    command.arg("images").current_dir(root).stdin(Stdio::null()).stdout(std::io::stderr());
    if command.status().context("cannot build images")?.success() {
        Ok(())
    } else {
        bail!("no images to measure with")
    }
}
