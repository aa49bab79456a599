//! Debian packages that tests and measurements need.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, bail};

use super::{find_program, is_root, run};

/// Makes sure that each program is there, installing the package beside it where it is not.
pub(crate) fn ensure(programs: &[(&str, &str)]) -> Result<()> {
    let missing: BTreeSet<&str> = programs
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.iter().copied().collect::<Vec<_>>().join(" ");
    if !is_root() {
        bail!("packages are missing\nhint: `sudo apt-get install {list}`");
    }
    eprintln!("apt-get install {list}");
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["--quiet", "--yes"]);
        command
    };
    // The lists of packages may be old, or not be there at all.
    run(apt().arg("update").stdout(std::io::stderr()))?;
    run(apt().args(["install", "--no-install-recommends"]).args(&missing).stdout(std::io::stderr()))?;
    let still: Vec<&str> = programs
        .iter()
        .map(|(program, _)| *program)
        .filter(|program| find_program(program).is_none())
        .collect();
    if !still.is_empty() {
        bail!("the packages are installed, but not found: {}", still.join(", "));
    }
    Ok(())
}
