//! Dependencies point one way: testkit → server → runtime-backend → spec, and testkit, server → modules → spec.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// Every package, and the packages of the workspace that it may depend on, for tests as well.
const ALLOWED: &[(&str, &[&str])] = &[
    ("shakedown-spec", &[]),
    ("shakedown-modules", &["shakedown-spec"]),
    ("shakedown-runtime", &["shakedown-spec"]),
    ("shakedown-server", &["shakedown-runtime", "shakedown-modules", "shakedown-spec"]),
    ("shakedown", &["shakedown-server", "shakedown-runtime", "shakedown-modules", "shakedown-spec"]),
    // What users have: the public crate and nothing below it.
    ("shakedown-examples", &["shakedown"]),
    // The suite also looks at sessions and drivers from outside.
    ("shakedown-tests", &["shakedown", "shakedown-server", "shakedown-runtime"]),
    // What a container costs is compared with what the kernel alone takes for its namespaces.
    ("shakedown-bench", &["shakedown", "shakedown-runtime"]),
    // It has to be built before anything else is.
    ("xtask", &[]),
];

/// A crate that depends on a higher one cannot be used, or understood, by itself.
#[test]
fn dependencies_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    let packages = packages();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("{name}: say in this test what it may depend on"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        // Dependencies within the workspace have a path.
        let inner = dependencies.filter(|dependency| dependency["path"].is_string());
        let inner = inner.filter_map(|dependency| dependency["name"].as_str());
        wrong.extend(
            inner.filter(|to| !allowed.contains(to)).map(|to| format!("{name} must not depend on {to}")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(packages.len() >= 6, "cargo lists {} packages", packages.len());
}

/// The packages of the workspace.
fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(super::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}
