//! `cargo xtask conformance`: the test suites of crun and runc on `shakedown oci`, crun and runc, side by side.
//!
//! The suites come from Debian's source packages, of the versions whose binary packages are compared. What crun passes
//! and Shakedown does not is written to `target/conformance/missing.txt`, and beside it what the suites have printed.
//! Arguments are names of suites; without any, all run.

mod world;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::machine::users::{Ranges, User};
use crate::machine::{cargo, is_root, packages, run as run_command, target_directory};
use world::World;

/// The programs that are needed, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] = &[
    ("crun", "crun"),
    ("runc", "runc"),
    ("bats", "bats"),
    ("python3", "python3"),
    ("gcc", "gcc"),
    ("go", "golang-go"),
    ("jq", "jq"),
    ("gawk", "gawk"),
    ("dpkg-source", "dpkg-dev"),
    ("newuidmap", "uidmap"),
    ("runuser", "util-linux"),
    ("script", "bsdutils"),
    ("losetup", "mount"),
    ("ip", "iproute2"),
];

/// What the helper programs of runc's suite are built of.
const LIBRARIES: &str = "libseccomp-dev pkg-config golang-github-containerd-console-dev golang-github-urfave-cli-dev \
    golang-golang-x-sys-dev golang-github-cyphar-filepath-securejoin-dev golang-github-opencontainers-specs-dev \
    golang-github-seccomp-libseccomp-golang-dev golang-github-sirupsen-logrus-dev \
    golang-github-coreos-go-systemd-dev golang-github-godbus-dbus-dev golang-github-docker-go-units-dev golang-github-moby-sys-dev \
    golang-github-cilium-ebpf-dev";

/// Fetches the sources by an apt configuration of its own, and builds what the suites need. `$1` is the directory,
/// `$2` the busybox root file system.
const PREPARE: &str = r#"
set -eu
cd "$1"
mkdir -p apt/lists/partial apt/cache/archives/partial
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $release main" \
    > apt/sources.list
apt="-o Dir::Etc::SourceList=$1/apt/sources.list -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$1/apt/lists \
    -o Dir::Cache=$1/apt/cache -o APT::Get::List-Cleanup=0"
apt-get -q $apt update
[ -d crun ] || { apt-get -q $apt source --download-only crun; dpkg-source -x crun_*.dsc crun; }
[ -d runc ] || { apt-get -q $apt source --download-only runc; dpkg-source -x runc_*.dsc runc; }
: > crun/tests/config.h
# The program that takes terminals is started beside the tests, and a fast runtime comes before it.
sed -i 's|--mode null "$CONSOLE_SOCKET" &) &|&\n\tretry 100 0.1 [ -e "$CONSOLE_SOCKET" ]|' \
    runc/tests/integration/helpers.bash
gcc -static -O1 -I crun/tests -o crun/tests/init crun/tests/init.c
data=runc/tests/integration/testdata
# Without the directories that the suite puts something else in the place of.
tar -C "$2" --numeric-owner --exclude=./proc --exclude=./sys -cf "$data/busybox-$(go env GOARCH).tar.xz" .
[ -e "$data/debian-$(go env GOARCH).tar.xz" ] || cp "$data/busybox-$(go env GOARCH).tar.xz" "$data/debian-$(go env GOARCH).tar.xz"
mkdir -p go/src/github.com/opencontainers
ln -sfn "$1/runc" go/src/github.com/opencontainers/runc
export GOPATH="$1/go:/usr/share/gocode" GO111MODULE=off GOCACHE="$1/gocache"
for helper in recvtty sd-helper seccompagent; do
    (cd "go/src/github.com/opencontainers/runc/contrib/cmd/$helper" && go build -tags seccomp -o "$helper" .)
done
"#;

/// Debian's crun refuses machines with both versions of control groups: it does not see the second one.
const HIDDEN: &str =
    r#"if [ -e /sys/fs/cgroup/unified ]; then umount -l /sys/fs/cgroup/unified; fi; exec "$@""#;

/// runc's tests want a terminal as standard input, which controls them; they report elsewhere.
const WITH_TERMINAL: &str = r#"
exec 3>&1 4>&2
script -qec "bats --tap '$1' >&3 2>&4 3>&- 4>&-" /dev/null > /dev/null
"#;

/// How long a file of a suite may take: the longest of those that do not hang take half of it.
const FILE_LIMIT: Duration = Duration::from_secs(120);

/// Files of runc's suite that want what is not there: CRIU, an SSH server, systemd.
const LEFT_OUT: [&str; 3] = ["checkpoint.bats", "mounts_sshfs.bats", "cgroup_delegation.bats"];

/// What crun passes and Shakedown does not, on purpose.
const ON_PURPOSE: [(&str, &str); 1] = [(
    "exec.py: exec_add_no_new_privileges",
    "a further process keeps the container's noNewPrivileges, as with runc; with crun it loses it",
)];

const SUITES: [&str; 3] = ["crun", "crun as a user", "runc"];
const RUNTIMES: [&str; 3] = ["shakedown", "crun", "runc"];

/// What became of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    Skipped,
}

type Results = BTreeMap<String, Verdict>;

/// The task.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    if let [option, place] = args
        && option == "--guard"
    {
        return world::guard(Path::new(place));
    }
    let wanted: Vec<&str> =
        SUITES.into_iter().filter(|suite| args.is_empty() || args.iter().any(|arg| arg == suite)).collect();
    if wanted.len() < args.len() {
        bail!("the arguments of `cargo xtask conformance` are suites: {SUITES:?}, got {args:?}");
    }
    if !is_root() {
        bail!(
            "`cargo xtask conformance` needs root: the suites run as root and as a user\n\
             hint: `sudo -E env PATH=$PATH cargo xtask conformance`"
        );
    }
    packages::ensure(PROGRAMS)?;
    let libraries = LIBRARIES.split_ascii_whitespace();
    run_command(
        Command::new("apt-get").args(["install", "-qq", "-y", "--no-install-recommends"]).args(libraries),
    )?;
    let user = User::ensure(Ranges::With)?;
    let world = World::new()?;
    fs::set_permissions(&world.place, fs::Permissions::from_mode(0o755))?;
    let runtimes = prepare(root, &world.place)?;
    let directory = root.join("target/conformance");
    fs::create_dir_all(&directory)?;
    let mut table = Vec::new();
    for suite in wanted {
        let results = RUNTIMES.map(|name| carry_out(suite, name, &runtimes.join(name), &world, &user.name));
        let mut read = Vec::new();
        for (name, text) in RUNTIMES.iter().zip(results) {
            let text = text?;
            fs::write(directory.join(format!("{suite} on {name}.tap")), &text)?;
            read.push(parse(&text));
        }
        let [ours, theirs, third] = read.try_into().unwrap_or_default();
        table.push((suite, [ours, theirs, third]));
    }
    drop(world);
    report(root, &table)
}

/// Builds everything; gives the directory with a program for each runtime.
fn prepare(root: &Path, place: &Path) -> Result<PathBuf> {
    let packages = ["--package=shakedown-server", "--bin=shakedown"];
    run_command(cargo().current_dir(root).args(["build", "--locked"]).args(packages))?;
    let runtimes = place.join("runtimes");
    fs::create_dir(&runtimes)?;
    let program = place.join("program");
    fs::copy(target_directory(root).join("debug/shakedown"), &program).context("cannot copy the program")?;
    let script = |name: &str, text: &str| -> Result<()> {
        let path = runtimes.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("cannot set a mode")
    };
    script("shakedown", &format!("exec {} oci \"$@\"", program.display()))?;
    script("crun", "exec /usr/bin/crun \"$@\"")?;
    script("runc", "exec /usr/sbin/runc \"$@\"")?;
    crate::images::run(root, &[])?;
    let busybox = place.join("busybox");
    let source = format!("oci:{}", fs::canonicalize(root.join("target/images/busybox"))?.display());
    let store = place.join("store");
    let mut unpack = Command::new(&program);
    run_command(unpack.args(["images", "unpack", &source]).arg(&busybox).env("SHAKEDOWN_STORE", store))?;
    run_command(Command::new("sh").args(["-c", PREPARE, "sh"]).arg(place).arg(&busybox))?;
    Ok(runtimes)
}

/// Runs the files of a suite, one after the other; gives what they have printed.
fn carry_out(suite: &str, runtime: &str, program: &Path, world: &World, user: &str) -> Result<String> {
    println!("conformance: {suite}: {runtime}");
    let sources = if suite == "runc" { "runc" } else { "crun" };
    let mut before: Vec<String> = Vec::new();
    if runtime == "crun" {
        before.extend(["sh", "-c", HIDDEN, "sh"].map(str::to_owned));
    }
    let mut directory = world.place.join(sources);
    if suite.ends_with("as a user") {
        // The tests write where they are.
        directory = world.place.join("user");
        if !directory.exists() {
            let from = world.place.join(sources);
            run_command(Command::new("cp").args(["-r", "--no-target-directory"]).arg(from).arg(&directory))?;
        }
        run_command(Command::new("chown").args(["-R", user]).arg(&directory))?;
        before.extend(["runuser", "-u", user, "--"].map(str::to_owned));
    }
    let mut text = String::new();
    for file in files_of(suite, &directory)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut words = before.clone();
        words.push("env".to_owned());
        words.extend(command_of(suite, &file, program, &directory));
        let place = if suite == "runc" { directory.join("tests/integration") } else { directory.clone() };
        let printed = world.run(&words, &place, FILE_LIMIT)?;
        text.push_str(&format!("# {name}\n{}\n", printed.output));
        text.extend(printed.errors.lines().map(|line| format!("#! {line}\n")));
        if !printed.in_time {
            println!("conformance: {suite}: {runtime}: {name} was ended after {} s", FILE_LIMIT.as_secs());
        }
    }
    Ok(text)
}

/// The files of a suite, in order.
fn files_of(suite: &str, directory: &Path) -> Result<Vec<PathBuf>> {
    let (below, first, last) =
        if suite == "runc" { ("tests/integration", "", ".bats") } else { ("tests", "test_", ".py") };
    let wanted = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(first) && name.ends_with(last) && !LEFT_OUT.contains(&name))
    };
    let entries = fs::read_dir(directory.join(below)).context("the suite is not there")?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(wanted).collect();
    files.sort();
    Ok(files)
}

/// What `env` is told: variables, and the command.
fn command_of(suite: &str, file: &Path, program: &Path, directory: &Path) -> Vec<String> {
    let (file, program, directory) = (file.display(), program.display(), directory.display());
    if suite == "runc" {
        let words = [&format!("RUNC={program}"), "sh", "-c", WITH_TERMINAL, "sh", &file.to_string()];
        return words.map(str::to_owned).into();
    }
    let init = format!("INIT={directory}/tests/init");
    vec![init, format!("OCI_RUNTIME={program}"), "python3".to_owned(), file.to_string()]
}

/// Reads what the Test Anything Protocol says, by file and name of the test.
fn parse(text: &str) -> Results {
    let mut file = "";
    let mut results = Results::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("# test_").or_else(|| line.strip_prefix("# ")) {
            file = if name.ends_with(".py") || name.ends_with(".bats") { name } else { file };
        }
        let (passed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => continue,
        };
        let name = rest.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches([' ', '-']);
        let (name, comment) = name.split_once('#').unwrap_or((name, ""));
        let skipped = comment.trim_start().to_ascii_lowercase().starts_with("skip");
        let verdict = match (passed, skipped) {
            (_, true) => Verdict::Skipped,
            (true, false) => Verdict::Passed,
            (false, false) => Verdict::Failed,
        };
        results.insert(format!("{file}: {}", name.trim()), verdict);
    }
    results
}

fn report(root: &Path, table: &[(&str, [Results; 3])]) -> Result<()> {
    println!("\n{:<16} {:<10} {:>7} {:>7} {:>7}", "suite", "runtime", "passed", "failed", "skipped");
    let mut missing = String::new();
    for (suite, results) in table {
        for (runtime, results) in RUNTIMES.iter().zip(results) {
            let count = |wanted| results.values().filter(|verdict| **verdict == wanted).count();
            let [passed, failed, skipped] = [Verdict::Passed, Verdict::Failed, Verdict::Skipped].map(count);
            println!("{suite:<16} {runtime:<10} {passed:>7} {failed:>7} {skipped:>7}");
        }
        let [ours, theirs, _] = results;
        let lost = theirs.iter().filter(|(name, verdict)| {
            **verdict == Verdict::Passed && ours.get(*name) != Some(&Verdict::Passed)
        });
        missing.extend(lost.map(|(name, _)| {
            let reason = ON_PURPOSE.iter().find(|(test, _)| test == name);
            let reason = reason.map_or_else(String::new, |(_, reason)| format!(" (on purpose: {reason})"));
            format!("{suite}: {name}{reason}\n")
        }));
    }
    fs::write(root.join("target/conformance/missing.txt"), &missing)?;
    println!("\npassed by crun and not by shakedown (target/conformance/missing.txt):\n{missing}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both suites' way of writing is read; a test of one name in two files is two tests.
    #[test]
    fn protocols_are_read() {
        let text = "# test_exec.py\n1..3\nok 1 - exec\nnot ok 2 - exec-cap\nok 3 - detach #SKIP\n# exec.bats\n\
                    ok 1 exec\n# (in test file exec.bats, line 3)\nok 2 userns # skip test requires userns\n";
        let expected = [
            ("exec.bats: exec", Verdict::Passed),
            ("exec.bats: userns", Verdict::Skipped),
            ("exec.py: detach", Verdict::Skipped),
            ("exec.py: exec", Verdict::Passed),
            ("exec.py: exec-cap", Verdict::Failed),
        ];
        assert_eq!(parse(text), expected.map(|(name, verdict)| (name.to_owned(), verdict)).into());
    }
}
