//! `cargo xtask ci`: everything CI runs, on a machine that has nothing but Rust, a C compiler and root.
//!
//! ```text
//! set up ──► check ──► build once ──► unit tests ──► the suite, four times ──► summary
//! packages,  fmt, clippy,             all crates,    native as root
//! users      doc, licences            hostile        native as user with subuid
//!                                     images         native as user without subuid
//!                                                    docker
//! ```
//! The quick and frequent reasons to fail come first. Every command selects the same packages, so that cargo builds
//! each dependency once. A step that fails does not end the run, except for the steps that need it.

mod build;
mod checks;
mod licences;
mod report;
mod suites;

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use self::report::Report;
use self::suites::Suites;
use crate::machine::dockerd::Dockerd;
use crate::machine::users::{Ranges, User};
use crate::machine::{is_root, packages};
use crate::{images, judge, leaks};

/// What the steps start, and the Debian packages that have it.
const PROGRAMS: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("dockerd", "docker.io"),
    ("docker-registry", "docker-registry"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("newuidmap", "uidmap"),
    ("setpriv", "util-linux"),
    ("useradd", "passwd"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
];

/// The task.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let only = match args {
        [] => None,
        [option, name] if option == "--only" => Some(name.clone()),
        _ => bail!("usage: cargo xtask ci [--only PART-OF-A-STEP'S-NAME]"),
    };
    if !is_root() {
        bail!(
            "`cargo xtask ci` needs root: it installs packages, makes two users and starts dockerd\n\
             hint: `sudo -E env PATH=$PATH cargo xtask ci`\n\
             hint: CONTRIBUTING.md has the commands for one part of it, which need no root"
        );
    }
    let mut report = Report::new(only);
    let before = leaks::look(None)?;
    if !before.leaks.is_empty() {
        println!("there before this run, and not counted as left by it:\n{}", before.text());
    }
    let tests = [&suites::SUITES[..], &suites::OFFICIAL_IMAGES, &[suites::UNITS]].concat();
    report.set_up("packages", &tests, || packages::ensure(&[PROGRAMS, judge::PROGRAMS].concat()));
    checks::run_all(root, &mut report);
    let built = report.set_up("build", &tests, || build::all(root));
    let images = report.set_up("images", &tests, || images::ensure(root));
    let users = report.set_up("users", &suites::SUITES, || {
        Ok((User::ensure(Ranges::With)?, User::ensure(Ranges::Without)?))
    });
    let docker = report.set_up(
        "docker daemon",
        &[suites::UNITS, suites::ON_DOCKER, suites::OFFICIAL_IMAGES[1]],
        Dockerd::start,
    );
    let host = docker.as_ref().map(Dockerd::host);

    let suites = Suites { root, before: &before, docker: host.as_deref() };
    suites.units(built.is_some(), &mut report);
    let ready = built.as_ref().zip(images.as_ref()).zip(users.as_ref());
    let ready = ready.context("the steps `build`, `images` and `users` have to succeed first");
    suites.whole_system(ready.map(|((built, images), users)| (built, images, users)), &mut report);
    suites.official_images(built.is_some() && images.is_some(), &mut report);
    if docker.is_some() {
        println!("\nstopping the docker daemon");
        drop(docker);
    }
    report.finish()
}
