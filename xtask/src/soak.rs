//! `cargo xtask soak`: the tests of `tests/suite/soak.rs` with large numbers, then a look at what is left.
//!
//! It runs as whoever calls it, on the driver that `SHAKEDOWN_DRIVER` names. CI runs the same tests with small numbers.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::machine::{cargo, find_program, run as run_command};
use crate::{Silent, leaks};

/// How long what was killed may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(10);

const USAGE: &str =
    "usage: cargo xtask soak [--containers N] [--kills N] [--connections N] [--running N] [--networks N]";

/// The options, the variables by which the tests know them, and their values unless they are given.
const NUMBERS: &[(&str, &str, &str)] = &[
    ("--containers", "SHAKEDOWN_SOAK_CONTAINERS", "1000"),
    ("--kills", "SHAKEDOWN_SOAK_KILLS", "1000"),
    ("--connections", "SHAKEDOWN_SOAK_CONNECTIONS", "10000"),
    ("--running", "SHAKEDOWN_SOAK_RUNNING", "300"),
    ("--networks", "SHAKEDOWN_SOAK_NETWORKS", "300"),
];

/// The task.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let numbers = numbers(args)?;
    let before = leaks::look(None)?;
    let begin = Instant::now();
    let mut command = cargo();
    command.current_dir(root).envs(numbers).env("CI", "true");
    if find_program("cargo-nextest").is_some() {
        command.args(["nextest", "run", "--locked", "--package=shakedown-tests", "--test=suite"]);
        command.args(["--success-output=immediate-final", "-E", "test(soak::)"]);
    } else {
        command.args(["test", "--locked", "--package=shakedown-tests", "--test=suite", "--"]);
        command.args(["soak::", "--nocapture"]);
    }
    let ran = run_command(&mut command);
    let found = leaks::look_within(GONE_WITHIN, None)?.without(&before);
    println!("{}", found.text());
    println!("soaked for {} s", begin.elapsed().as_secs());
    ran?;
    if found.leaks.is_empty() { Ok(()) } else { Err(Silent.into()) }
}

/// The variables for the tests.
fn numbers(args: &[String]) -> Result<Vec<(&'static str, String)>> {
    let mut numbers: Vec<_> =
        NUMBERS.iter().map(|(_, variable, usual)| (*variable, (*usual).to_owned())).collect();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let known = NUMBERS.iter().position(|(option, ..)| option == arg);
        match (known, args.next().and_then(|value| value.parse::<u32>().ok())) {
            (Some(known), Some(number)) => numbers[known].1 = number.to_string(),
            _ => bail!("{USAGE}"),
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that is not given is the usual one, and a misspelt option does not soak for an hour.
    #[test]
    fn numbers_are_read() {
        let args = ["--kills", "5"].map(str::to_owned);
        let numbers: Vec<String> = numbers(&args).unwrap().into_iter().map(|(_, number)| number).collect();
        assert_eq!(numbers, ["1000", "5", "10000", "300", "300"]);
        assert!(super::numbers(&["--kill".to_owned(), "5".to_owned()]).is_err());
        assert!(super::numbers(&["--kills".to_owned()]).is_err());
    }
}
