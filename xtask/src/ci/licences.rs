//! The rules of `deny.toml` that matter most, for machines without cargo-deny: building that takes longer than all of
//! the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use toml::Table;

use crate::machine::{cargo, output_of};

/// Packages come from there and from nowhere else.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks licences, banned packages and sources of everything that is built.
pub(super) fn check(root: &Path) -> Result<()> {
    let file = root.join("deny.toml");
    let rules =
        Rules::parse(&fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?)?;
    let metadata = output_of(cargo().current_dir(root).args(["metadata", "--locked", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("`cargo metadata` printed no JSON")?;
    let packages = metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let wrong: Vec<String> = packages.iter().flat_map(|package| rules.objections(package)).collect();
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    println!("{} packages, every licence is allowed, none is banned, all are of crates.io", packages.len());
    Ok(())
}

/// What is taken from `deny.toml`.
#[derive(Debug)]
struct Rules {
    allowed: BTreeSet<String>,
    /// Further licences of one package.
    exceptions: BTreeMap<String, BTreeSet<String>>,
    banned: BTreeSet<String>,
}

impl Rules {
    fn parse(text: &str) -> Result<Self> {
        let rules: Table = text.parse().context("deny.toml is not understood")?;
        let list = |table: &toml::Value, key: &str| -> BTreeSet<String> {
            let list = table.get(key).and_then(toml::Value::as_array);
            list.into_iter().flatten().filter_map(|item| Some(item.as_str()?.to_owned())).collect()
        };
        let name =
            |table: &toml::Value, key: &str| table.get(key).and_then(|name| Some(name.as_str()?.to_owned()));
        let licences = rules.get("licenses").context("deny.toml has no [licenses]")?;
        let bans = rules.get("bans").context("deny.toml has no [bans]")?;
        let tables = |table: &toml::Value, key: &str| -> Vec<toml::Value> {
            table.get(key).and_then(toml::Value::as_array).cloned().unwrap_or_default()
        };
        let exceptions = tables(licences, "exceptions");
        Ok(Self {
            allowed: list(licences, "allow"),
            exceptions: exceptions
                .iter()
                .filter_map(|item| Some((name(item, "crate")?, list(item, "allow"))))
                .collect(),
            banned: tables(bans, "deny").iter().filter_map(|item| name(item, "crate")).collect(),
        })
    }

    /// What is wrong with a package of `cargo metadata`.
    fn objections(&self, package: &Value) -> Vec<String> {
        let name = package["name"].as_str().unwrap_or_default();
        let version = package["version"].as_str().unwrap_or_default();
        let mut wrong = Vec::new();
        let licence = package["license"].as_str().unwrap_or_default();
        let exceptions = self.exceptions.get(name);
        let allows = |id: &str| self.allowed.contains(id) || exceptions.is_some_and(|more| more.contains(id));
        if !satisfied(licence, &allows) {
            wrong.push(format!("{name} {version}: the licence `{licence}` is not allowed"));
        }
        if self.banned.contains(name) {
            wrong.push(format!("{name} {version} is banned"));
        }
        if let Some(source) = package["source"].as_str().filter(|source| *source != REGISTRY) {
            wrong.push(format!("{name} {version} comes from {source}"));
        }
        wrong
    }
}

/// Whether a licence expression (SPDX 2.1 appendix IV, and the older `MIT/Apache-2.0`) can be met with what is allowed.
fn satisfied(expression: &str, allows: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let result = any(&mut rest, allows);
    result && rest.is_empty()
}

/// `a OR b`: binds less than AND.
fn any(words: &mut &[&str], allows: &dyn Fn(&str) -> bool) -> bool {
    let mut result = all(words, allows);
    while take(words, "OR") {
        result |= all(words, allows);
    }
    result
}

/// `a AND b`.
fn all(words: &mut &[&str], allows: &dyn Fn(&str) -> bool) -> bool {
    let mut result = one(words, allows);
    while take(words, "AND") {
        result &= one(words, allows);
    }
    result
}

/// A licence, one with an exception, or an expression in parentheses.
fn one(words: &mut &[&str], allows: &dyn Fn(&str) -> bool) -> bool {
    if take(words, "(") {
        let result = any(words, allows);
        return take(words, ")") && result;
    }
    let Some((id, rest)) = words.split_first() else { return false };
    *words = rest;
    if take(words, "WITH") {
        let Some((exception, rest)) = words.split_first() else { return false };
        *words = rest;
        return allows(&format!("{id} WITH {exception}"));
    }
    allows(id)
}

fn take(words: &mut &[&str], word: &str) -> bool {
    match words.split_first() {
        Some((first, rest)) if *first == word => {
            *words = rest;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(expression: &str, expected: bool) {
        let allowed = ["MIT", "Apache-2.0", "ISC", "Apache-2.0 WITH LLVM-exception"];
        assert_eq!(satisfied(expression, &|id| allowed.contains(&id)), expected, "{expression}");
    }

    /// A licence that nobody agreed to does not slip in behind one that is allowed.
    #[test]
    fn expressions_are_understood() {
        check("MIT OR GPL-3.0", true);
        check("MIT/GPL-3.0", true);
        check("MIT AND GPL-3.0", false);
        check("GPL-3.0 OR MIT AND ISC", true);
        check("(GPL-3.0 OR MIT) AND ISC", true);
        check("MIT AND (GPL-3.0 OR LGPL-3.0)", false);
        check("GPL-2.0 WITH Classpath-exception-2.0 OR Apache-2.0 WITH LLVM-exception", true);
        check("ISC WITH LLVM-exception", false);
        check("", false);
        check("MIT )", false);
    }

    /// The three rules are applied as they are written.
    #[test]
    fn objections_name_the_package() {
        let rules = Rules::parse(
            "[licenses]\nallow = [\"MIT\"]\nexceptions = [{ crate = \"roots\", allow = [\"CDLA-Permissive-2.0\"] }]\n\
             [bans]\ndeny = [{ crate = \"tokio-tar\" }]\n",
        )
        .unwrap();
        let objections = |name: &str, licence: &str, source: &str| {
            rules.objections(&serde_json::json!({
                "name": name, "version": "1.0.0", "license": licence, "source": source
            }))
        };
        assert!(objections("serde", "MIT", REGISTRY).is_empty());
        assert!(objections("roots", "CDLA-Permissive-2.0", REGISTRY).is_empty());
        assert_eq!(
            objections("tokio-tar", "GPL-3.0", "git+https://example.org/tar"),
            [
                "tokio-tar 1.0.0: the licence `GPL-3.0` is not allowed",
                "tokio-tar 1.0.0 is banned",
                "tokio-tar 1.0.0 comes from git+https://example.org/tar"
            ]
        );
    }
}
