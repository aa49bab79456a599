//! What `shakedown doctor` says of the machine: every requirement with its verdict and what to do.
//!
//! `facts` reads the machine, once, and decides nothing; what is here decides, and reads nothing.

mod facts;

pub use facts::{Facts, Limit};

use serde::Serialize;

/// How much a requirement is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is.
    Yes,
    /// Something cannot be done, or is slower; the rest works.
    Limited,
    /// The native driver does not work.
    No,
}

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What is required.
    pub name: &'static str,
    /// Whether it is met.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do, if something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The page that tells more, below `docs/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<&'static str>,
}

impl Check {
    fn yes(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Yes, found: found.into(), fix: None, page: None }
    }

    fn limited(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Limited, fix: Some(fix.into()), ..Self::yes(name, found) }
    }

    fn no(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::No, fix: Some(fix.into()), ..Self::yes(name, found) }
    }

    fn page(self, page: &'static str) -> Self {
        Self { page: Some(page), ..self }
    }
}

const KERNEL: &str = "kernel-features.md";
const USERNS: &str = "errors/user-namespaces-off.md";
const SUBID: &str = "errors/id-not-mapped.md";
const LIMITS: &str = "errors/limit-unsupported.md";
const SPACE: &str = "errors/no-space.md";
const DESCRIPTORS: &str = "errors/too-many-open-files.md";
const DRIVER: &str = "errors/no-driver.md";

/// The oldest kernel on which every feature is there that nothing replaces.
const OLDEST: (u32, u32) = (5, 12);

/// Every requirement, in the order in which a container would miss it.
#[must_use]
pub fn checks(facts: &Facts) -> Vec<Check> {
    let mut list = vec![kernel(facts)];
    if facts.uid != 0 {
        list.extend([user_namespaces(facts), ranges(facts)]);
    }
    list.extend([overlay(facts), store(facts), space(facts), security(facts)]);
    list.extend(facts.limits.iter().map(limit));
    list.extend([ipv6(facts), descriptors(facts), processes(facts), inotify(facts), keyrings(facts)]);
    list.extend([emulation(facts), clock(facts), engine(facts)]);
    list
}

fn kernel(facts: &Facts) -> Check {
    let name = "kernel";
    let mut numbers = facts.kernel.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    let found = format!("Linux {}", facts.kernel);
    match version {
        Some(version) if version < OLDEST => {
            Check::no(name, found, "Linux 5.12 is the oldest; or use Docker: `SHAKEDOWN_DRIVER=docker`")
                .page(KERNEL)
        }
        Some(version) if version < (6, 15) => {
            Check::yes(name, format!("{found}; file systems are mounted in the ways of older kernels"))
                .page(KERNEL)
        }
        _ => Check::yes(name, found),
    }
}

fn user_namespaces(facts: &Facts) -> Check {
    let name = "user namespaces";
    let is = |value: Option<u64>, off: u64| value == Some(off);
    let off = [
        (
            is(facts.userns_clone, 0),
            "kernel.unprivileged_userns_clone = 0",
            "sudo sysctl kernel.unprivileged_userns_clone=1",
        ),
        (
            is(facts.userns_apparmor, 1),
            "kernel.apparmor_restrict_unprivileged_userns = 1",
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            is(facts.userns_most, 0),
            "user.max_user_namespaces = 0",
            "sudo sysctl user.max_user_namespaces=15000",
        ),
    ];
    match off.into_iter().find(|(off, ..)| *off) {
        Some((_, found, fix)) => Check::no(name, found, format!("`{fix}`, or run as root")).page(USERNS),
        None => Check::yes(name, "no switch is off"),
    }
}

fn ranges(facts: &Facts) -> Check {
    let name = "ranges of ids";
    let fix = "`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER`";
    match (facts.subids, facts.newuidmap) {
        (true, true) => Check::yes(name, "/etc/subuid, /etc/subgid and newuidmap are there"),
        (true, false) => {
            let install = "install `uidmap` (Debian, Ubuntu) or `shadow-utils` (Fedora)";
            Check::limited(name, "newuidmap is not installed: containers have one user", install).page(SUBID)
        }
        (false, _) => {
            Check::limited(name, "none in /etc/subuid and /etc/subgid: containers have one user", fix)
                .page(SUBID)
        }
    }
}

fn overlay(facts: &Facts) -> Check {
    let name = "overlayfs";
    if facts.overlay {
        return Check::yes(name, "the kernel has it");
    }
    // It is loaded with the first mount, if this user may load it.
    let fix =
        "`sudo modprobe overlay`; without it, containers' files are stacked by fuse-overlayfs or copied";
    Check::limited(name, "not in /proc/filesystems: not loaded, or not there", fix).page(KERNEL)
}

/// File systems on which layers cannot be the lower ones of a stack in a user namespace, or lose what they are.
const UNFIT: [&str; 6] = ["nfs", "cifs", "vfat", "exfat", "fuse", "9p"];

fn store(facts: &Facts) -> Check {
    let (name, kind) = ("image store", &facts.store_kind);
    let found = format!("{} on {kind}", facts.store);
    if UNFIT.iter().any(|unfit| kind.starts_with(unfit)) {
        let fix = "set SHAKEDOWN_STORE to a directory on a local disk";
        return Check::limited(name, format!("{found}: owners, extended attributes or speed suffer"), fix);
    }
    Check::yes(name, found)
}

fn space(facts: &Facts) -> Check {
    const LITTLE: u64 = 1 << 30;
    let name = "disk space";
    let found =
        format!("{} MiB for images, {} MiB for logs", facts.store_free >> 20, facts.temporary_free >> 20);
    match facts.store_free.min(facts.temporary_free) {
        0..LITTLE => {
            let fix =
                "`shakedown images prune` removes what no reference needs; or set SHAKEDOWN_STORE and TMPDIR";
            Check::limited(name, found, fix).page(SPACE)
        }
        _ => Check::yes(name, found),
    }
}

fn security(facts: &Facts) -> Check {
    let name = "security";
    let modules = if facts.security_modules.is_empty() { "unknown" } else { &facts.security_modules };
    if facts.seccomp {
        return Check::yes(name, format!("seccomp filters; modules: {modules}"));
    }
    let fix = "a kernel with CONFIG_SECCOMP_FILTER";
    Check::no(name, "the kernel has no seccomp filters, and no container is launched without one", fix)
        .page(KERNEL)
}

fn limit(limit: &Limit) -> Check {
    match &limit.missing {
        None => Check::yes(limit.name, "control groups are writable"),
        Some(reason) => Check::limited(limit.name, reason, &limit.fix).page(LIMITS),
    }
}

fn ipv6(facts: &Facts) -> Check {
    let name = "IPv6";
    if facts.ipv6 {
        return Check::yes(name, "there is an address");
    }
    Check::limited(
        name,
        "no interface has an IPv6 address",
        "published ports are reached over IPv4: nothing has to be done",
    )
}

fn descriptors(facts: &Facts) -> Check {
    const LOW: u64 = 4096;
    let name = "open files";
    let found = format!("{} (hard limit {})", facts.files.0, facts.files.1);
    if facts.files.1 < LOW {
        let fix = "`ulimit -Hn 65536` as root, or LimitNOFILE= in the unit that runs the tests";
        return Check::limited(name, format!("{found}: enough for some dozens of containers"), fix)
            .page(DESCRIPTORS);
    }
    Check::yes(name, found)
}

fn processes(facts: &Facts) -> Check {
    const LOW: u64 = 1024;
    let name = "processes";
    match facts.processes {
        Some(most) if most < LOW => Check::limited(
            name,
            format!("{most} for this user, those of containers included"),
            "`ulimit -u 16384`",
        ),
        Some(most) => Check::yes(name, most.to_string()),
        None => Check::yes(name, "no limit"),
    }
}

fn inotify(facts: &Facts) -> Check {
    let name = "inotify";
    match facts.inotify {
        Some(instances) if instances < 128 => {
            let fix = "`sudo sysctl fs.inotify.max_user_instances=512`";
            Check::limited(
                name,
                format!("{instances} instances for this user: services that watch files fail"),
                fix,
            )
        }
        Some(instances) => Check::yes(name, format!("{instances} instances")),
        None => Check::limited(name, "the kernel has none", "services that watch files poll, or fail"),
    }
}

fn keyrings(facts: &Facts) -> Check {
    match facts.keys {
        Some(most) => Check::yes("keyrings", format!("{most} keys for this user")),
        None => Check::limited("keyrings", "the kernel has none", "services that use keyctl(2) fail"),
    }
}

fn emulation(facts: &Facts) -> Check {
    match facts.emulators.as_slice() {
        [] => Check::limited(
            "other machines' images",
            "no emulator is registered with binfmt_misc",
            "install `qemu-user-static` to run images of other architectures",
        ),
        list => Check::yes("other machines' images", list.join(", ")),
    }
}

fn clock(facts: &Facts) -> Check {
    // Certificates and registry tokens are checked against it.
    const SANE: u64 = 1_735_689_600;
    if facts.seconds >= SANE {
        return Check::yes("clock", "after 2025-01-01");
    }
    Check::limited(
        "clock",
        "before 2025: certificates of registries do not count as valid yet",
        "set the clock",
    )
}

fn engine(facts: &Facts) -> Check {
    let name = "Docker";
    match &facts.socket {
        Some((path, true)) => Check::yes(name, path),
        Some((path, false)) => {
            let fix = "`sudo usermod -aG docker $USER`, and log in again; the native driver needs none";
            Check::limited(name, format!("{path}: permission denied"), fix).page(DRIVER)
        }
        None => Check::limited(name, "no socket", "nothing: the native driver needs none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which everything works.
    fn good() -> Facts {
        let limit = |name| Limit { name, missing: None, fix: String::new() };
        Facts {
            kernel: "6.18.1-amd64".into(),
            uid: 1000,
            userns_clone: Some(1),
            userns_apparmor: None,
            userns_most: Some(15000),
            subids: true,
            newuidmap: true,
            overlay: true,
            store: "/home/ada/.local/share/shakedown".into(),
            store_kind: "ext4".into(),
            store_free: 20 << 30,
            temporary_free: 8 << 30,
            security_modules: "lockdown,capability,apparmor".into(),
            seccomp: true,
            limits: ["memory limit", "pids limit"].map(limit).into(),
            ipv6: true,
            files: (1024, 524_288),
            processes: Some(63_000),
            inotify: Some(128),
            keys: Some(200),
            emulators: vec!["qemu-aarch64".into()],
            seconds: 1_800_000_000,
            socket: Some(("/var/run/docker.sock".into(), true)),
        }
    }

    fn told(facts: &Facts) -> String {
        let unmet = checks(facts).into_iter().filter(|check| check.verdict != Verdict::Yes);
        let line = |check: Check| {
            let fix = check.fix.unwrap_or_default();
            format!(
                "{:?} {}: {}\n  {fix}\n  {}\n",
                check.verdict,
                check.name,
                check.found,
                check.page.unwrap_or("-")
            )
        };
        unmet.map(line).collect()
    }

    /// Where everything works, nothing is to be done.
    #[test]
    fn a_good_machine_needs_nothing() {
        assert_eq!(told(&good()), "");
        assert!(checks(&good()).iter().all(|check| check.fix.is_none()));
    }

    /// Each switch that is off is named with the command that turns it on.
    #[test]
    fn what_stops_the_native_driver_is_told() {
        let facts = Facts { kernel: "5.10.0-30".into(), userns_apparmor: Some(1), seccomp: false, ..good() };
        insta::assert_snapshot!(told(&facts), @r"
        No kernel: Linux 5.10.0-30
          Linux 5.12 is the oldest; or use Docker: `SHAKEDOWN_DRIVER=docker`
          kernel-features.md
        No user namespaces: kernel.apparmor_restrict_unprivileged_userns = 1
          `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or run as root
          errors/user-namespaces-off.md
        No security: the kernel has no seccomp filters, and no container is launched without one
          a kernel with CONFIG_SECCOMP_FILTER
          kernel-features.md
        ");
    }

    /// What does not work, while containers do, is told with what it means.
    #[test]
    fn what_is_missing_is_told() {
        let reason = "/sys/fs/cgroup/memory is not writable for this user: Permission denied".to_owned();
        let facts = Facts {
            subids: false,
            store_kind: "nfs".into(),
            store_free: 5 << 20,
            limits: vec![Limit { name: "memory limit", missing: Some(reason), fix: "run as root".into() }],
            files: (256, 256),
            emulators: Vec::new(),
            socket: Some(("/var/run/docker.sock".into(), false)),
            ..good()
        };
        insta::assert_snapshot!(told(&facts), @r"
        Limited ranges of ids: none in /etc/subuid and /etc/subgid: containers have one user
          `sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER`
          errors/id-not-mapped.md
        Limited image store: /home/ada/.local/share/shakedown on nfs: owners, extended attributes or speed suffer
          set SHAKEDOWN_STORE to a directory on a local disk
          -
        Limited disk space: 5 MiB for images, 8192 MiB for logs
          `shakedown images prune` removes what no reference needs; or set SHAKEDOWN_STORE and TMPDIR
          errors/no-space.md
        Limited memory limit: /sys/fs/cgroup/memory is not writable for this user: Permission denied
          run as root
          errors/limit-unsupported.md
        Limited open files: 256 (hard limit 256): enough for some dozens of containers
          `ulimit -Hn 65536` as root, or LimitNOFILE= in the unit that runs the tests
          errors/too-many-open-files.md
        Limited other machines' images: no emulator is registered with binfmt_misc
          install `qemu-user-static` to run images of other architectures
          -
        Limited Docker: /var/run/docker.sock: permission denied
          `sudo usermod -aG docker $USER`, and log in again; the native driver needs none
          errors/no-driver.md
        ");
    }

    /// Every page that a verdict names is there.
    #[test]
    fn pages_are_there() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        for page in [KERNEL, USERNS, SUBID, LIMITS, SPACE, DESCRIPTORS, DRIVER] {
            assert!(docs.join(page).exists(), "docs/{page}");
        }
    }
}
