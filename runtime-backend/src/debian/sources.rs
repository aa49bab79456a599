//! Where packages come from: the source's mirror, else where this machine has its own from, else Debian's servers.
//!
//! With this machine's sources a build works behind any mirror or proxy it has.

use shakedown_spec::DebianSource;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

/// The keys of Debian, as the package `debian-archive-keyring` installs them on any distribution.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What mmdebstrap is told of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// Options.
    pub(super) options: Vec<String>,
    /// A mirror, or lines of a `sources.list`; nothing for Debian's own servers.
    pub(super) lines: Vec<String>,
}

impl Sources {
    pub(super) fn of(source: &DebianSource) -> Self {
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let is_debian = release.lines().any(|line| matches!(line, "ID=debian" | "ID=\"debian\""));
        let mut options = match is_debian {
            true => acquire_options(&output_of("apt-config", &["dump"])),
            false => Vec::new(),
        };
        if !is_debian && std::path::Path::new(KEYRING).exists() {
            options.push(format!("--keyring={KEYRING}"));
        }
        let lines = match &source.mirror {
            Some(mirror) => vec![mirror.clone()],
            None if is_debian => own_lines(&source.suite),
            None => Vec::new(),
        };
        Self { options, lines }
    }
}

/// The sources of this machine, if it has any of the suite.
fn own_lines(suite: &str) -> Vec<String> {
    let format = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
    let known = output_of("apt-get", &["indextargets", "--format", format, "Created-By: Packages"]);
    lines(suite, &known)
}

/// The sources of this suite among all that apt knows, given one a line as `origin|address|suite|component`.
fn lines(suite: &str, known: &str) -> Vec<String> {
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
fn acquire_options(dump: &str) -> Vec<String> {
    let wanted = ["Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries"];
    let chosen = dump.lines().filter(|line| wanted.iter().any(|start| line.starts_with(start)));
    chosen.map(|option| format!("--aptopt={option}")).collect()
}

/// What a program prints; nothing if it fails, for what is asked here has defaults.
fn output_of(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A foreign repository of the machine does not get into an image, nor packages of another release.
    #[test]
    fn only_sources_of_the_suite_are_taken() {
        let known = "Debian|http://mirror/debian/|bookworm|main\n\
                     Debian|http://mirror/debian/|bookworm|contrib\n\
                     Debian|http://mirror/debian/|bookworm-backports|main\n\
                     Other|http://other/|bookworm|main\n";
        assert_eq!(lines("bookworm", known), ["deb http://mirror/debian/ bookworm contrib main"]);
        assert_eq!(lines("trixie", known), [""; 0]);
    }

    /// Behind a proxy the packages come through it.
    #[test]
    fn the_proxy_is_passed_on() {
        let dump = "APT::Architecture \"amd64\";\nAcquire::http::Proxy \"http://proxy:3142\";\n";
        assert_eq!(acquire_options(dump), ["--aptopt=Acquire::http::Proxy \"http://proxy:3142\";"]);
    }
}
