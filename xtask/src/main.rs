//! `cargo xtask <task>`: the chores of this repository that need more than a shell line.
//!
//! Each task is a module with `run(root, args)`; a new one needs its `mod` line, its line in [`TASKS`] and its arm in
//! [`run`].

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task is run by hand or by CI, and reports there"
)]

mod bench;
mod ci;
mod conformance;
mod demo;
mod images;
mod judge;
mod leaks;
mod soak;
mod vm;

mod machine;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

/// Name and one-line help of every task.
const TASKS: &[(&str, &str)] = &[
    ("demo", "start PostgreSQL and Redis on the native driver, use them, show that nothing is left"),
    ("ci", "everything CI runs, from the packages it needs to the suites on every driver"),
    ("images", "build the container images of the tests from Debian packages (target/images)"),
    ("judge", "unpack hostile images with Shakedown, umoci, Podman and containerd, and compare"),
    ("conformance", "run the suites of crun and runc on `shakedown oci`, crun and runc, and compare"),
    ("leaks", "list what of Shakedown is on this machine now; exit 1 if anything is"),
    ("soak", "start a thousand containers, kill a thousand processes at random, show that nothing is left"),
    ("vm", "the suite in a virtual machine with another kernel and cgroup v2 alone; slow, not in CI"),
    ("bench", "measure beside crun, runc, Docker and testcontainers"),
];

/// The task has failed and has said why.
#[derive(Debug)]
pub(crate) struct Silent;

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task failed")
    }
}

impl std::error::Error for Silent {}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&workspace_root(), &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<Silent>() {
                eprintln!("Error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Runs the task that the first argument names.
fn run(root: &Path, args: &[String]) -> Result<()> {
    let (task, rest) = args.split_first().map_or(("help", &[][..]), |(task, rest)| (task.as_str(), rest));
    match task {
        "demo" => demo::run(root, rest),
        "ci" => ci::run(root, rest),
        "images" => images::run(root, rest),
        "judge" => judge::run(root, rest),
        "conformance" => conformance::run(root, rest),
        "leaks" => leaks::run(root, rest),
        "soak" => soak::run(root, rest),
        "vm" => vm::run(root, rest),
        "bench" => bench::run(root, rest),
        "help" | "-h" | "--help" => {
            println!("{}", usage());
            Ok(())
        }
        other => bail!("there is no task `{other}`\n\n{}", usage()),
    }
}

/// The usage text, with one line per task.
fn usage() -> String {
    let mut text = String::from("usage: cargo xtask <task> [argument…]\n\ntasks:");
    for (name, help) in TASKS {
        text.push_str(&format!("\n  {name:<8} {help}"));
    }
    text
}

/// The directory of the workspace: the parent of this package.
fn workspace_root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}
