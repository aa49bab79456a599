//! `cargo xtask demo`: the first thing to run after a clone. Real services start, are used, and are gone.
//!
//! ```text
//! images ──► build ──► quickstart ──► leaks
//! ```

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::machine::{cargo, run as run_command, target_directory};
use crate::{Silent, images, leaks};

/// How long the keeper may take to end once the program it served has ended.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// The task.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let driver = match args {
        [] => "native",
        [option, driver] if option == "--driver" => driver,
        _ => bail!("usage: cargo xtask demo [--driver native|docker]"),
    };
    let started = Instant::now();
    println!("== images: real servers, built from Debian packages");
    images::ensure(root)?;
    let images_took = started.elapsed();

    println!("\n== build");
    let started = Instant::now();
    run_command(cargo().current_dir(root).args([
        "build",
        "--locked",
        "--package=shakedown-examples",
        "--example=quickstart",
        "--package=shakedown-server",
        "--bin=shakedown",
    ]))?;
    let build_took = started.elapsed();

    println!("\n== quickstart, on the {driver} driver (examples/quickstart.rs)");
    let started = Instant::now();
    let built = target_directory(root).join("debug");
    let example = built.join("examples/quickstart");
    let status = Command::new(&example).current_dir(root).env("SHAKEDOWN_DRIVER", driver).status();
    let status = status.with_context(|| format!("cannot start {}", example.display()))?;
    let run_took = started.elapsed();

    println!("\n== what is left");
    let left = leaks::look_within(GONE_WITHIN, None)?;
    println!("{}", left.text());
    if !status.success() {
        println!("\n== the example failed ({status}); `shakedown doctor` says about this machine:");
        drop(Command::new(built.join("shakedown")).arg("doctor").current_dir(root).status());
        return Err(Silent.into());
    }
    println!(
        "\nimages {images_took:.1?}, build {build_took:.1?}, quickstart from start to end {run_took:.1?}"
    );
    if left.leaks.is_empty() { Ok(()) } else { Err(Silent.into()) }
}
