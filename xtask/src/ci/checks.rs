//! What is checked without running anything: format, lints, documentation, licences.

use std::path::Path;

use super::licences;
use super::report::Report;
use crate::machine::{cargo, find_program, run};

pub(super) fn run_all(root: &Path, report: &mut Report) {
    report.step("fmt", || run(cargo().current_dir(root).args(["fmt", "--all", "--check"])));
    report.step("clippy", || {
        let clippy = ["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny=warnings"];
        run(cargo().current_dir(root).args(clippy))
    });
    report.step("doc", || {
        let doc = ["doc", "--locked", "--no-deps", "--workspace", "--exclude=xtask"];
        run(cargo().current_dir(root).args(doc).env("RUSTDOCFLAGS", "--deny=warnings"))
    });
    report.step("licences", || {
        if find_program("cargo-deny").is_some() {
            return run(cargo().current_dir(root).args(["deny", "--locked", "check", "bans", "licenses", "sources"]));
        }
        println!("cargo-deny is not installed (`cargo install cargo-deny`): the rules of deny.toml on licences, banned");
        println!("crates and sources are checked here instead; its duplicate versions are not");
        licences::check(root)
    });
}
