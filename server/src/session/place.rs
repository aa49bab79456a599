//! The run directory and the session's place in it.

use super::{ProcessIdentity, RUN_DIRECTORY_VARIABLE};
use crate::config::DriverChoice;
use shakedown_spec::{Failure, FailureKind};
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// `sun_path` of `unix(7)` holds 108 bytes, the last of them a zero.
const LONGEST_SOCKET_PATH: usize = 107;

/// The directory of all sessions of this user on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDirectory(PathBuf);

impl RunDirectory {
    /// Finds or makes the run directory: `$SHAKEDOWN_RUN_DIR`, else `$XDG_RUNTIME_DIR/shakedown`, else
    /// `/run/shakedown` for root, else `/tmp/shakedown-<uid>`.
    ///
    /// # Errors
    ///
    /// The directory cannot be made, or somebody else could change what is in it.
    pub fn find() -> Result<Self, Failure> {
        let path = choose(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
        make_private(&path)?;
        Ok(Self(path))
    }

    /// Where the sessions are.
    #[must_use]
    pub fn sessions(&self) -> PathBuf {
        self.0.join("sessions")
    }

    /// The places of all sessions, dead or alive, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Place> {
        places_in(&self.sessions())
    }

    /// The place of the session `name`; its directory need not exist.
    ///
    /// # Errors
    ///
    /// The socket's path would be longer than the kernel allows.
    pub fn place(&self, name: &str) -> Result<Place, Failure> {
        let place = Place { name: name.to_owned(), directory: self.sessions().join(name) };
        let length = place.socket().as_os_str().len();
        if length <= LONGEST_SOCKET_PATH {
            return Ok(place);
        }
        let title = "the run directory's path is too long for a socket";
        Err(Failure::new(FailureKind::Invalid, title)
            .fact("socket", place.socket().display().to_string())
            .fact("length", format!("{length} bytes; the kernel allows {LONGEST_SOCKET_PATH} (unix(7))"))
            .hint(format!("set {RUN_DIRECTORY_VARIABLE} to a shorter path, such as /tmp/shakedown-run")))
    }
}

fn places_in(sessions: &Path) -> Vec<Place> {
    let Ok(entries) = std::fs::read_dir(sessions) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.map(|name| Place { directory: sessions.join(&name), name }).collect()
}

fn choose(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let uid = rustix::process::geteuid();
    if let Some(chosen) = variable(RUN_DIRECTORY_VARIABLE) {
        return std::path::absolute(&chosen).unwrap_or_else(|_| chosen.into());
    }
    // `sudo` often keeps the variable of the calling user; root's files in that user's directory would be his.
    if let Some(runtime) = variable("XDG_RUNTIME_DIR").map(PathBuf::from)
        && runtime.is_absolute()
        && std::fs::metadata(&runtime).is_ok_and(|found| found.uid() == uid.as_raw())
    {
        return runtime.join("shakedown");
    }
    if uid.is_root() && rustix::fs::access("/run", rustix::fs::Access::WRITE_OK).is_ok() {
        return PathBuf::from("/run/shakedown");
    }
    PathBuf::from(format!("/tmp/shakedown-{}", uid.as_raw()))
}

/// Makes the directory, for this user only, and refuses one that somebody else made or could write to: in `/tmp` the
/// name can be guessed, and who owns the directory could put another socket in the place of the keeper's.
fn make_private(path: &Path) -> Result<(), Failure> {
    let cannot = |error: io::Error| {
        Failure::new(FailureKind::Other, "the run directory cannot be made")
            .fact("directory", path.display().to_string())
            .fact("reason", error.to_string())
            .hint(format!("set {RUN_DIRECTORY_VARIABLE} to a directory of your own"))
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(cannot)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(cannot(error)),
        _ => {}
    }
    let found = std::fs::symlink_metadata(path).map_err(cannot)?;
    let reason = if !found.is_dir() {
        "it is not a directory".to_owned()
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        format!("it belongs to user {}, not to user {}", found.uid(), rustix::process::geteuid().as_raw())
    } else if found.mode() & 0o022 != 0 {
        format!("others can write to it (mode {:04o})", found.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(Failure::new(FailureKind::Invalid, "the run directory is not safe to use")
        .fact("directory", path.display().to_string())
        .fact("reason", reason)
        .hint(format!("remove it, or set {RUN_DIRECTORY_VARIABLE} to a directory of your own")))
}

/// One session's name and files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The session's name: letters, digits and `-`.
    pub name: String,
    /// The session's directory.
    pub directory: PathBuf,
}

impl Place {
    /// The place of this process's session. Processes with the same `NEXTEST_RUN_ID`, else with the same parent, share
    /// it, unless they ask for different drivers.
    ///
    /// # Errors
    ///
    /// There is no usable run directory.
    pub fn of_this_process(driver: DriverChoice) -> Result<Self, Failure> {
        let run = std::env::var("NEXTEST_RUN_ID").ok().filter(|id| !id.is_empty());
        RunDirectory::find()?.place(&session_name(run.as_deref(), ProcessIdentity::runner(), driver))
    }

    /// The keeper's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("keeper.sock")
    }

    /// The keeper's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join("keeper.log")
    }

    /// The places of the other sessions in the same run directory.
    pub(crate) fn neighbours(&self) -> Vec<Self> {
        let mut all = self.directory.parent().map(places_in).unwrap_or_default();
        all.retain(|place| place.name != self.name);
        all
    }

    pub(crate) fn meta(&self) -> PathBuf {
        self.directory.join("meta.json")
    }
}

fn session_name(run: Option<&str>, runner: ProcessIdentity, driver: DriverChoice) -> String {
    let base = match run {
        // The first half of a UUID is enough to tell runs apart, and a person can match it with nextest's output.
        Some(id) if id.len() == 36 && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') => {
            id[..18].to_owned()
        }
        Some(id) => format!("{:016x}", fnv1a(id.as_bytes())),
        None => format!("{}-{:x}", runner.pid, runner.started),
    };
    match driver {
        DriverChoice::Auto => format!("run-{base}"),
        chosen => format!("run-{base}-{chosen}"),
    }
}

/// FNV-1a: every test binary has to come to the same name, whatever compiler built it; `DefaultHasher` may differ.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn name(run: Option<&str>, expected: &str) {
        assert_eq!(
            session_name(run, ProcessIdentity { pid: 4711, started: 0xbeef }, DriverChoice::Auto),
            expected
        );
    }

    /// All processes of a test run come to the same name, and it fits into a socket's path.
    #[test]
    fn a_session_is_named_after_the_run() {
        name(Some("123e4567-e89b-12d3-a456-426614174000"), "run-123e4567-e89b-12d3");
        name(Some("../../etc"), "run-b2d9fe41e2c00c1f");
        name(None, "run-4711-beef");
    }

    /// A run directory that somebody else could fill is refused, with the way out.
    #[test]
    fn a_directory_open_to_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("run");
        make_private(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let text = make_private(&path).unwrap_err().to_string().replace(path.to_str().unwrap(), "RUN");
        insta::assert_snapshot!(text, @r"
        the run directory is not safe to use
          directory: RUN
          reason:    others can write to it (mode 0777)
        hint: remove it, or set SHAKEDOWN_RUN_DIR to a directory of your own
        ");
    }

    /// A long run directory is told before `bind` fails with "invalid argument".
    #[test]
    fn a_path_too_long_for_a_socket_is_told() {
        let deep = RunDirectory(PathBuf::from("/").join("d".repeat(90)));
        insta::assert_snapshot!(deep.place("run-1").unwrap_err(), @r"
        the run directory's path is too long for a socket
          socket: /dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd/sessions/run-1/keeper.sock
          length: 118 bytes; the kernel allows 107 (unix(7))
        hint: set SHAKEDOWN_RUN_DIR to a shorter path, such as /tmp/shakedown-run
        ");
    }
}
