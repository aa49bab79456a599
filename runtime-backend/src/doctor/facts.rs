//! What the machine is like, as it says itself.

use crate::docker;
use crate::native::{limits, store_directory};
use rustix::process::{Resource, getrlimit};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What is known of the machine and the user.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `uname -r`.
    pub kernel: String,
    /// The effective user id.
    pub uid: u32,
    /// `kernel.unprivileged_userns_clone`, which Debian's kernels had.
    pub userns_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, which Ubuntu's kernels have.
    pub userns_apparmor: Option<u64>,
    /// `user.max_user_namespaces`.
    pub userns_most: Option<u64>,
    /// Whether the user has ranges in `/etc/subuid` and `/etc/subgid`.
    pub subids: bool,
    /// Whether `newuidmap` is installed.
    pub newuidmap: bool,
    /// Whether `/proc/filesystems` has overlayfs.
    pub overlay: bool,
    /// The directory of the image store.
    pub store: String,
    /// The type of the file system it is on.
    pub store_kind: String,
    /// How many bytes are free there.
    pub store_free: u64,
    /// How many bytes are free where long logs are written.
    pub temporary_free: u64,
    /// The kernel's security modules.
    pub security_modules: String,
    /// Whether seccomp filters are there.
    pub seccomp: bool,
    /// What limits can be set.
    pub limits: Vec<Limit>,
    /// Whether an interface has an IPv6 address.
    pub ipv6: bool,
    /// `RLIMIT_NOFILE`, soft and hard; the greatest number for none.
    pub files: (u64, u64),
    /// `RLIMIT_NPROC`, soft.
    pub processes: Option<u64>,
    /// `fs.inotify.max_user_instances`.
    pub inotify: Option<u64>,
    /// How many keys the user may have.
    pub keys: Option<u64>,
    /// Names of emulators that are registered with the kernel.
    pub emulators: Vec<String>,
    /// Seconds since 1970.
    pub seconds: u64,
    /// The socket of a Docker-compatible engine, and whether it may be used.
    pub socket: Option<(String, bool)>,
}

/// A limit that can be set or cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Its name as a capability.
    pub name: &'static str,
    /// Why it cannot be set.
    pub missing: Option<String>,
    /// What to do about it.
    pub fix: String,
}

impl Facts {
    /// Reads them. No namespace is made and nothing is changed.
    #[must_use]
    pub fn gather() -> Self {
        let store = store_directory();
        let (store_kind, store_free) = file_system(&store);
        let (_, temporary_free) = file_system(&crate::logbook::directory());
        let files = getrlimit(Resource::Nofile);
        let most = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            kernel: text("/proc/sys/kernel/osrelease"),
            uid: rustix::process::geteuid().as_raw(),
            userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            userns_apparmor: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            userns_most: number("/proc/sys/user/max_user_namespaces"),
            subids: ["/etc/subuid", "/etc/subgid"].iter().all(|file| has_range(&text(file))),
            newuidmap: in_path("newuidmap"),
            overlay: text("/proc/filesystems").lines().any(|line| line.ends_with("\toverlay")),
            store: store.display().to_string(),
            store_kind,
            store_free,
            temporary_free,
            security_modules: text("/sys/kernel/security/lsm"),
            seccomp: text("/proc/self/status").contains("\nSeccomp:"),
            limits: limits(),
            ipv6: !text("/proc/net/if_inet6").is_empty(),
            files: (most(files.current), most(files.maximum)),
            processes: getrlimit(Resource::Nproc).current,
            inotify: number("/proc/sys/fs/inotify/max_user_instances"),
            keys: number("/proc/sys/kernel/keys/maxkeys"),
            emulators: emulators(),
            seconds: now.as_secs(),
            socket: socket(),
        }
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn number(path: &str) -> Option<u64> {
    text(path).parse().ok()
}

/// Whether a line of subuid(5) is for this user.
fn has_range(lines: &str) -> bool {
    let uid = rustix::process::getuid();
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid.as_raw())).ok().flatten();
    let names = [user.map(|user| user.name), Some(uid.as_raw().to_string())];
    let owner = |line: &str| line.split(':').next().map(str::to_owned);
    lines.lines().any(|line| names.contains(&owner(line)))
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

/// Type and free bytes of the file system of a path that may not be there yet.
fn file_system(path: &Path) -> (String, u64) {
    let there =
        path.ancestors().find(|path| path.exists()).map_or_else(|| PathBuf::from("/"), Path::to_owned);
    let free = rustix::fs::statvfs(&there).map_or(0, |found| found.f_bavail * found.f_frsize);
    let there = there.canonicalize().unwrap_or(there);
    let mounts = text("/proc/self/mountinfo");
    let kind = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = Path::new(before.split_ascii_whitespace().nth(4)?);
        let depth = there.starts_with(point).then(|| point.components().count())?;
        Some((depth, after.split_ascii_whitespace().next()?))
    });
    // Of two mounts at one place, the later one is seen.
    let kind = kind.max_by_key(|(depth, _)| *depth).map_or("unknown", |(_, kind)| kind);
    (kind.to_owned(), free)
}

fn emulators() -> Vec<String> {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("qemu-")).collect();
    names.sort();
    names
}

fn socket() -> Option<(String, bool)> {
    let candidates = docker::candidates(|name| std::env::var(name).ok());
    let paths = candidates.iter().filter_map(|candidate| match &candidate.endpoint {
        Ok(docker::Endpoint::Unix(path)) => Some(path.clone()),
        _ => None,
    });
    let path = paths.into_iter().find(|path| path.exists())?;
    let open = rustix::fs::access(&path, rustix::fs::Access::WRITE_OK).is_ok();
    Some((path.display().to_string(), open))
}
