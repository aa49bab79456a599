//! Measures how long containers take: Shakedown beside crun, runc, the Docker Engine and the `testcontainers` crate.
//!
//! ```text
//! shakedown-bench run ──► worker native  (root)      "true" ──► "3.1"
//!   asks in turn,     ──► worker native  (user)      "redis" ──► "21.7"
//!   round by round    ──► worker crun, runc, engine, docker, testcontainers
//!                     ──► worker pull, docker-pull, podman-pull, skopeo-umoci ──► registry on loopback
//! ```
//! Each engine is a process of its own, kept warm, that does one piece of work for each line it reads, and answers with
//! the milliseconds. The engines take turns, so that what disturbs the machine disturbs all of them. `cargo xtask
//! bench` prepares what this program is given: images, a Docker daemon, a user.

#![forbid(unsafe_code)]

mod answer;
mod bundle;
mod engines;
mod load;
mod plan;
mod pulled;
mod results;
mod worker;

use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("Error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether everything could be measured.
fn run(args: &[String]) -> Result<bool> {
    match args.split_first() {
        Some((role, rest)) if role == "run" => plan::run(rest),
        Some((role, rest)) if role == "worker" => worker::serve(rest).map(|()| true),
        Some((role, rest)) if role == "once" => worker::once(rest).map(|()| true),
        _ => bail!("usage: shakedown-bench run OPTIONS; `cargo xtask bench` knows which"),
    }
}

/// Progress and errors: standard output is for the results.
#[expect(clippy::print_stderr, reason = "a program for people, who want to see that it goes on")]
fn say(line: &str) {
    eprintln!("{line}");
}
