//! Building all tests once, and finding what was built.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::machine::{cargo, output_of};

/// The packages whose tests run on every driver.
pub(super) const WHOLE_SYSTEM: &[&str] = &["shakedown-tests", "shakedown-examples"];

/// An executable that cargo has built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Built {
    /// The name of its target.
    pub(super) name: String,
    /// The directory of its package, within the workspace.
    pub(super) package: PathBuf,
    /// Where it is.
    pub(super) executable: PathBuf,
    /// Whether it is a test, and not a program that tests start.
    pub(super) is_test: bool,
}

/// Builds the tests of all packages. Returns what the whole-system suites need.
pub(super) fn all(root: &Path) -> Result<Vec<Built>> {
    let mut command = cargo();
    command.current_dir(root).args([
        "test",
        "--locked",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let messages = output_of(&mut command)?;
    let directories: Vec<PathBuf> = package_directories(root)?;
    let mut built = executables(&messages, root)?;
    built.retain(|built| directories.contains(&built.package));
    if !built.iter().any(|built| built.is_test) {
        bail!("there are no tests in {}", WHOLE_SYSTEM.join(" and "));
    }
    Ok(built)
}

/// Where the packages of the whole-system suites are, within the workspace.
fn package_directories(root: &Path) -> Result<Vec<PathBuf>> {
    let arguments = ["metadata", "--locked", "--no-deps", "--format-version=1"];
    let metadata: Value = serde_json::from_str(&output_of(cargo().current_dir(root).args(arguments))?)?;
    let packages = metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let wanted = packages.iter().filter(|package| WHOLE_SYSTEM.iter().any(|name| package["name"] == **name));
    wanted.map(|package| directory_of(&package["manifest_path"], root)).collect()
}

fn directory_of(manifest: &Value, root: &Path) -> Result<PathBuf> {
    let manifest = Path::new(manifest.as_str().unwrap_or_default());
    let directory = manifest.parent().context("a package has no directory")?;
    Ok(directory.strip_prefix(root).context("a package is outside of the workspace")?.to_path_buf())
}

/// The executables among cargo's messages, of packages in the workspace.
fn executables(messages: &str, root: &Path) -> Result<Vec<Built>> {
    let mut all = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cargo printed no JSON")?;
        let Some(executable) = message["executable"].as_str() else { continue };
        all.push(Built {
            name: message["target"]["name"].as_str().unwrap_or_default().to_owned(),
            package: directory_of(&message["manifest_path"], root)?,
            executable: executable.into(),
            is_test: message["profile"]["test"] == true,
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Libraries are left out, and a program that tests start is told from a test.
    #[test]
    fn executables_are_found_among_the_messages() {
        let messages = r#"{"reason":"compiler-artifact","executable":null,"manifest_path":"/w/spec/Cargo.toml"}
{"reason":"compiler-artifact","executable":"/t/suite-1","manifest_path":"/w/tests/Cargo.toml","target":{"name":"suite"},"profile":{"test":true}}
{"reason":"compiler-artifact","executable":"/t/loop","manifest_path":"/w/tests/Cargo.toml","target":{"name":"loop"},"profile":{"test":false}}
{"reason":"build-finished","success":true}
"#;
        let found = executables(messages, Path::new("/w")).unwrap();
        let short: Vec<_> = found.iter().map(|built| (built.name.as_str(), built.is_test)).collect();
        assert_eq!(short, [("suite", true), ("loop", false)]);
        assert_eq!(found[0].package, Path::new("tests"));
    }
}
