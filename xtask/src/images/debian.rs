//! Debian packages: where they come from, and how they become a tree of files, with `mmdebstrap`.
//!
//! The packages come from where this machine has its own from, so that a build works behind any mirror or proxy. None of
//! that is left in an image: [`super::slim`] leaves out all configuration of apt.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::EPOCH;
use super::recipe::Recipe;

/// Built from where the machine is not a Debian itself.
const DEFAULT_SUITE: &str = "bookworm";
/// The keys of Debian, as the package `debian-archive-keyring` installs them on any distribution.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The packages this needs on a machine.
const TOOLS: &[&str] = &["mmdebstrap", "debian-archive-keyring"];

/// The release of Debian that packages are taken from.
pub(super) struct Debian {
    suite: String,
    /// Whether this machine runs that release: then its package sources are used.
    is_this_machine: bool,
}

impl Debian {
    /// The release this machine runs, or else a fixed one.
    pub(super) fn of_this_machine() -> Self {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let field = |name: &str| {
            release.lines().find_map(|line| line.strip_prefix(name)).map(|v| v.trim_matches('"'))
        };
        match (field("ID="), field("VERSION_CODENAME=")) {
            (Some("debian"), Some(suite)) => Self { suite: suite.to_owned(), is_this_machine: true },
            _ => Self { suite: DEFAULT_SUITE.to_owned(), is_this_machine: false },
        }
    }

    /// The name of the release: `bookworm`.
    pub(super) fn suite(&self) -> &str {
        &self.suite
    }

    /// Installs the packages of the recipe into an archive. Works in `scratch`.
    ///
    /// The tools inherit `lock` as their standard input: if this process is killed, the lock is not free, and their
    /// files are not swept, until they have ended as well.
    pub(super) fn install(&self, recipe: &Recipe, archive: &Path, scratch: &Path, lock: &File) -> Result<()> {
        require_tools()?;
        let log_path = scratch.join("log");
        let log = File::create(&log_path).context("cannot create the log of mmdebstrap")?;
        let mut command = self.command(recipe);
        command.arg(&self.suite).arg(archive).args(self.sources());
        command.env("SOURCE_DATE_EPOCH", EPOCH.to_string()).env_remove("LC_ALL").env("LANG", "C.UTF-8");
        if is_root() {
            // An ordinary user's build runs as other users, who may not be able to reach this directory.
            command.env("TMPDIR", scratch);
        }
        command.stdin(lock.try_clone()?).stdout(log.try_clone()?).stderr(log);
        let status = command.status().context("cannot start mmdebstrap")?;
        if !status.success() {
            let log = fs::read_to_string(&log_path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            bail!(
                "mmdebstrap failed ({status}), its log ends:\n{}",
                lines[lines.len().saturating_sub(25)..].join("\n")
            );
        }
        Ok(())
    }

    /// mmdebstrap with all options, but without the suite, the archive and the sources.
    fn command(&self, recipe: &Recipe) -> Command {
        let mut command = Command::new("mmdebstrap");
        command.args(["--format=tar", "--aptopt=APT::Sandbox::User \"root\"", "--dpkgopt=force-confold"]);
        command.arg(format!("--variant={}", recipe.variant));
        if !recipe.packages.is_empty() {
            command.arg(format!("--include={}", recipe.packages.join(",")));
        }
        command.args(recipe.before.iter().map(|hook| format!("--essential-hook={hook}")));
        command.args(recipe.after.iter().map(|hook| format!("--customize-hook={hook}")));
        if self.is_this_machine {
            command.args(acquire_options().iter().map(|option| format!("--aptopt={option}")));
        } else {
            command.arg(format!("--keyring={KEYRING}"));
        }
        command
    }

    /// The lines of a `sources.list`, or nothing: then mmdebstrap takes Debian's own servers.
    fn sources(&self) -> Vec<String> {
        if !self.is_this_machine {
            return Vec::new();
        }
        let format = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
        source_lines(
            &self.suite,
            &output_of("apt-get", &["indextargets", "--format", format, "Created-By: Packages"]),
        )
    }
}

/// The sources of this suite among all that apt knows, given one a line as `origin|address|suite|component`.
fn source_lines(suite: &str, known: &str) -> Vec<String> {
    let releases = [suite.to_owned(), format!("{suite}-updates"), format!("{suite}-security")];
    let mut components: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for line in known.lines() {
        if let ["Debian", address, release, component] = line.split('|').collect::<Vec<_>>()[..]
            && releases.iter().any(|known| known == release)
        {
            components.entry((address, release)).or_default().insert(component);
        }
    }
    let line = |((address, release), components): ((&str, &str), BTreeSet<&str>)| {
        format!("deb {address} {release} {}", components.into_iter().collect::<Vec<_>>().join(" "))
    };
    components.into_iter().map(line).collect()
}

/// How apt downloads on this machine: its proxy, and how strict it is about dates.
fn acquire_options() -> Vec<String> {
    let wanted = ["Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries"];
    let dump = output_of("apt-config", &["dump"]);
    let chosen = dump.lines().filter(|line| wanted.iter().any(|start| line.starts_with(start)));
    chosen.map(str::to_owned).collect()
}

/// What a program prints; nothing if it fails, for what is asked here has defaults.
fn output_of(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).stderr(Stdio::null()).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => String::new(),
    }
}

/// Makes sure that mmdebstrap is there: installs it as root, says what to do otherwise.
fn require_tools() -> Result<()> {
    match Command::new("mmdebstrap").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("cannot start mmdebstrap"),
    }
    let tools = TOOLS.join(" ");
    if !is_root() {
        bail!("mmdebstrap is not installed\nhint: `sudo apt-get install {tools} uidmap`");
    }
    println!("mmdebstrap is not installed: apt-get install {tools}");
    let install = || -> Result<bool> {
        let mut command = Command::new("apt-get");
        command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(TOOLS);
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        Ok(command.status().context("cannot start apt-get")?.success())
    };
    if install()? {
        return Ok(());
    }
    // The lists of packages may be old, or not be there at all.
    Command::new("apt-get").args(["update", "--quiet"]).status().context("cannot start apt-get")?;
    if !install()? {
        bail!("apt-get could not install {tools}");
    }
    Ok(())
}

/// Whether this process is root's: the files of a process in /proc belong to its effective user.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A foreign repository of the machine must not get into an image, nor packages of another release.
    #[test]
    fn only_sources_of_the_suite_are_taken() {
        let known = "Debian|http://mirror/debian/|bookworm|main\n\
                     Debian|http://mirror/debian/|bookworm|contrib\n\
                     Debian|http://mirror/debian/|bookworm-backports|main\n\
                     Other|http://other/|bookworm|main\n";
        assert_eq!(source_lines("bookworm", known), ["deb http://mirror/debian/ bookworm contrib main"]);
    }
}
