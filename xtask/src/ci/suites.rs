//! The tests: of each crate once, of the whole system on every driver, and a look for leaks after each.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

use super::build::{Built, WHOLE_SYSTEM};
use super::report::Report;
use crate::images::ImagesBuilt;
use crate::leaks::{self, Found};
use crate::machine::stage::Stage;
use crate::machine::users::User;
use crate::machine::{cargo, find_program, run};

/// After a test run has ended, everything is gone within this time.
const GONE_WITHIN: Duration = Duration::from_secs(2);
/// A suite that takes this long hangs: `timeout` ends it, and the step fails.
const LIMIT: &str = "900";
/// The step of the crates' own tests.
pub(super) const UNITS: &str = "unit tests";
/// The whole-system suites, in the order they run in.
pub(super) const SUITES: [&str; 6] = [AS_ROOT, BY_FUSE, BY_COPY, WITH_RANGES, WITHOUT_RANGES, ON_DOCKER];
/// The images of `tests/dockerfiles`, built on both drivers.
pub(super) const OFFICIAL_IMAGES: [&str; 2] = ["official images: native", "official images: docker"];
const AS_ROOT: &str = "suite: native as root";
const BY_FUSE: &str = "suite: native with fuse-overlayfs";
const BY_COPY: &str = "suite: native without overlayfs";
const WITH_RANGES: &str = "suite: native as user with subuid";
const WITHOUT_RANGES: &str = "suite: native as user without subuid";
pub(super) const ON_DOCKER: &str = "suite: docker";

/// What all suites have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suites<'a> {
    /// The workspace.
    pub(super) root: &'a Path,
    /// What was there before, and is not theirs.
    pub(super) before: &'a Found,
    /// The address of the Docker daemon, if it runs.
    pub(super) docker: Option<&'a str>,
}

/// The results of the steps before that the whole-system suites need.
type Ready<'a> = (&'a Vec<Built>, &'a ImagesBuilt, &'a (User, User));

impl Suites<'_> {
    /// The tests of each crate by itself.
    pub(super) fn units(&self, is_built: bool, report: &mut Report) {
        report.step(UNITS, || {
            if !is_built {
                bail!("not run: the step `build` has to succeed first");
            }
            if has_nextest() {
                let filter = format!("not ({})", whole_system_filter());
                return run(self.in_root("cargo").args([
                    "nextest",
                    "run",
                    "--locked",
                    "--no-fail-fast",
                    "-E",
                    &filter,
                ]));
            }
            tell_about_nextest();
            let mut command = self.in_root("cargo");
            command.args(["test", "--locked", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests"]);
            command.arg("--exclude=shakedown-bench");
            run(command.args(WHOLE_SYSTEM.iter().map(|package| format!("--exclude={package}"))))
        });
        report.step("documentation tests", || run(self.in_root("cargo").args(["test", "--locked", "--doc"])));
        self.leaks(UNITS, report);
    }

    /// The whole system on every driver: the same tests each time.
    pub(super) fn whole_system(&self, ready: Result<Ready<'_>>, report: &mut Report) {
        let ready = ready.map_err(|error| error.to_string());
        for suite in SUITES {
            report.step(suite, || {
                let (built, images, (with, without)) =
                    ready.as_ref().map_err(|reason| anyhow!("not run: {reason}"))?;
                match suite {
                    AS_ROOT => self.native_as_root(),
                    BY_FUSE => self.native_stacked("fuse"),
                    BY_COPY => self.native_stacked("copy"),
                    WITH_RANGES => self.native_as_user(with, built, images, has_nextest()),
                    WITHOUT_RANGES => self.native_as_user(without, built, images, false),
                    _ => self.on_docker(),
                }
            });
            self.leaks(suite, report);
        }
    }

    /// Builds that take minutes, natively and in Docker; the second compares its files with those of the first.
    pub(super) fn official_images(&self, is_ready: bool, report: &mut Report) {
        for (step, driver) in OFFICIAL_IMAGES.into_iter().zip(["native", "docker"]) {
            report.step(step, || {
                if !is_ready {
                    bail!("not run: the steps `build` and `images` have to succeed first");
                }
                let records = self.root.join("target/official-images");
                if driver == "native" && records.exists() {
                    run(Command::new("rm").arg("-r").arg(&records))?;
                }
                let mut command = self.in_root("cargo");
                if driver == "docker" {
                    command.env("SHAKEDOWN_OFFICIAL_IMAGES_COMPARED", "1");
                }
                command.env("SHAKEDOWN_DRIVER", driver).args([
                    "test",
                    "--locked",
                    "--package=shakedown-tests",
                ]);
                command.args(["--test=suite", "--", "--ignored", "official_images::", "--test-threads=2"]);
                run(&mut command)
            });
        }
    }

    /// Under nextest: a process for each test.
    fn native_as_root(&self) -> Result<()> {
        let mut command = self.in_root("cargo");
        command.env("SHAKEDOWN_DRIVER", "native");
        if has_nextest() {
            let filter = whole_system_filter();
            return run(command.args(["nextest", "run", "--locked", "--no-fail-fast", "-E", &filter]));
        }
        tell_about_nextest();
        run(command.args(["test", "--locked", "--no-fail-fast", "--test=suite", "--examples"]))
    }

    /// What has to do with files, where the kernel's overlayfs is not used.
    fn native_stacked(&self, by: &str) -> Result<()> {
        let mut command = self.in_root("cargo");
        command.env("SHAKEDOWN_DRIVER", "native").env("SHAKEDOWN_OVERLAY", by);
        command.args([
            "test",
            "--locked",
            "--no-fail-fast",
            "--package=shakedown-tests",
            "--test=suite",
            "--",
        ]);
        run(command.args(["attacks::", "exec::", "files::", "isolation::", "options::", "reaping::"]))
    }

    /// Under `cargo test`: threads of one process.
    fn on_docker(&self) -> Result<()> {
        let Some(host) = self.docker else { bail!("not run: the step `docker daemon` has to succeed first") };
        let mut command = self.in_root("cargo");
        command.env("SHAKEDOWN_DRIVER", "docker").env("DOCKER_HOST", host);
        run(command.args(["test", "--locked", "--no-fail-fast", "--test=suite", "--examples"]))
    }

    /// As another user, on a copy of what was built: this user may be able to read neither the workspace nor cargo.
    fn native_as_user(
        &self,
        user: &User,
        built: &[Built],
        images: &ImagesBuilt,
        nextest: bool,
    ) -> Result<()> {
        let stage = Stage::new(self.root, &images.directory)?;
        let packages: BTreeSet<&Path> = built.iter().map(|built| built.package.as_path()).collect();
        for package in packages {
            stage.copy_directory(self.root, package)?;
        }
        if nextest { self.archive_on(&stage, user) } else { binaries_on(&stage, user, built) }
    }

    /// Under nextest, from an archive of the tests.
    fn archive_on(&self, stage: &Stage, user: &User) -> Result<()> {
        let archive = stage.path().join("suite.tar.zst");
        let filter = whole_system_filter();
        let mut command = self.in_root("cargo");
        command.args(["nextest", "archive", "--locked", "-E", &filter, "--archive-file"]);
        run(command.arg(&archive))?;
        let nextest = find_program("cargo-nextest").map(|found| fs::canonicalize(&found).unwrap_or(found));
        let nextest = stage.copy(&nextest.unwrap_or_default(), Path::new("target/bin/cargo-nextest"))?;
        stage.copy(&self.root.join(".config/nextest.toml"), Path::new(".config/nextest.toml"))?;
        stage.give_to(user)?;

        let mut command = user.command("timeout", &variables(user, stage, &[]));
        command.args(["--kill-after=10", LIMIT]).arg(nextest).args(["nextest", "run", "--no-fail-fast"]);
        command.arg("--archive-file").arg(archive).arg("--workspace-remap").arg(stage.path());
        run(command.current_dir(stage.path()))
    }

    /// A step of its own: what is there now and was not there before.
    fn leaks(&self, after: &str, report: &mut Report) {
        report.step(&format!("leaks after {after}"), || {
            let found = leaks::look_within(GONE_WITHIN, self.docker)?.without(self.before);
            println!("{}", found.text());
            if !found.leaks.is_empty() {
                bail!("{} things are left", found.leaks.len());
            }
            Ok(())
        });
    }

    /// A program with a time limit, in the workspace, that takes what cannot be tested as a failure.
    fn in_root(&self, program: &str) -> Command {
        let program = if program == "cargo" { cargo().get_program().to_owned() } else { program.into() };
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", LIMIT]).arg(program);
        command.current_dir(self.root).env("CI", "true");
        if let Some(host) = self.docker {
            command.env("DOCKER_HOST", host);
        }
        command
    }
}

/// Without nextest: each binary by itself, as `cargo test` does it, with the variables that cargo sets.
fn binaries_on(stage: &Stage, user: &User, built: &[Built]) -> Result<()> {
    let copy = |built: &Built| -> Result<(Built, PathBuf)> {
        let name = built.executable.file_name().unwrap_or(OsStr::new("test"));
        Ok((built.clone(), stage.copy(&built.executable, &Path::new("target/bin").join(name))?))
    };
    let copies = built.iter().map(copy).collect::<Result<Vec<_>>>()?;
    stage.give_to(user)?;
    let programs: Vec<(String, String)> = copies
        .iter()
        .filter(|(built, _)| !built.is_test)
        .map(|(built, path)| (format!("CARGO_BIN_EXE_{}", built.name), path.display().to_string()))
        .collect();
    let mut failed = Vec::new();
    for (built, path) in copies.iter().filter(|(built, _)| built.is_test) {
        let package = stage.path().join(&built.package);
        let mut more = programs.clone();
        more.push(("CARGO_MANIFEST_DIR".to_owned(), package.display().to_string()));
        let mut command = user.command("timeout", &variables(user, stage, &more));
        command.args(["--kill-after=10", LIMIT]).arg(path).current_dir(package);
        println!("     Running {} ({}) as {}", built.name, built.package.display(), user.name);
        if let Err(error) = run(&mut command) {
            println!("{error:#}");
            failed.push(built.name.as_str());
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

/// The environment of tests that run as another user.
fn variables(user: &User, stage: &Stage, more: &[(String, String)]) -> Vec<(String, String)> {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut all = vec![
        pair("CI", "true"),
        pair("SHAKEDOWN_DRIVER", "native"),
        // nextest writes there, and unpacks the archive.
        pair("TMPDIR", &stage.path().join("target").display().to_string()),
        pair("HOME", &user.home.display().to_string()),
    ];
    all.extend_from_slice(more);
    all
}

fn whole_system_filter() -> String {
    WHOLE_SYSTEM.iter().map(|package| format!("package({package})")).collect::<Vec<_>>().join(" + ")
}

fn has_nextest() -> bool {
    find_program("cargo-nextest").is_some()
}

fn tell_about_nextest() {
    println!(
        "cargo-nextest is not installed (`cargo install --locked cargo-nextest`): `cargo test` runs instead, so that"
    );
    println!("a process for each test is NOT exercised in this run");
}
