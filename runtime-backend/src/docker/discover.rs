//! Where a Docker-compatible daemon may listen.

use super::DockerDriver;
use crate::detect::Refusal;
use crate::image_files::digest::Digest;
use serde::Deserialize;
use std::fmt;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The address of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// Plain HTTP over TCP.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// An address to try, or why what was configured is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it was found: a variable, a file, or a well-known path.
    pub origin: String,
    /// The address.
    pub endpoint: Result<Endpoint, String>,
}

impl Endpoint {
    /// The address as messages name it: the path of a socket, or `host:port`.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Unix(path) => path.display().to_string(),
            Self::Tcp { host, port } => format!("{host}:{port}"),
        }
    }

    /// Whether ports that the daemon publishes appear on this machine's loopback interface.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                host == "localhost"
                    || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }

    /// The host at which a test reaches published ports.
    pub(crate) fn host(&self) -> String {
        match self {
            Self::Tcp { host, .. } if !self.is_local() => host.clone(),
            _ => "127.0.0.1".to_owned(),
        }
    }

    /// Connects once, for a reason in the words of the operating system instead of an HTTP library's.
    pub(crate) async fn probe(&self) -> Result<(), String> {
        let tried = match self {
            Self::Unix(path) => tokio::net::UnixStream::connect(path).await.map(drop),
            Self::Tcp { host, port } => {
                tokio::net::TcpStream::connect((host.as_str(), *port)).await.map(drop)
            }
        };
        tried.map_err(|error| {
            let reason = match error.kind() {
                ErrorKind::NotFound if matches!(self, Self::Unix(_)) => "no such socket".to_owned(),
                ErrorKind::PermissionDenied => "permission denied".to_owned(),
                ErrorKind::ConnectionRefused => "connection refused; no daemon listens there".to_owned(),
                _ => error.to_string(),
            };
            format!("{}: {reason}", self.place())
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// Reads what `DOCKER_HOST` may say: `unix:///path`, `tcp://host:port`, `http://host:port`, or a bare path.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.starts_with('/').then_some(text)) {
            return Ok(Self::Unix(path.into()));
        }
        let Some(address) = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")) else {
            return Err(format!(
                "`{text}` is neither unix:///PATH nor tcp://HOST:PORT; TLS and ssh are not supported"
            ));
        };
        let address = address.trim_end_matches('/');
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| format!("`{text}` has no valid port"))?)
            }
            _ => (address, 2375),
        };
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

/// The addresses to try, in order; `variable` reads the environment.
///
/// An address that someone set is the only one tried: falling back silently would run tests on another machine.
pub fn candidates(variable: impl Fn(&str) -> Option<String>) -> Vec<Candidate> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    for name in ["SHAKEDOWN_DOCKER_HOST", "DOCKER_HOST"] {
        if let Some(value) = set(name) {
            return vec![Candidate { origin: name.to_owned(), endpoint: value.parse() }];
        }
    }
    let home = set("HOME").map(PathBuf::from);
    let mut found: Vec<Candidate> =
        home.iter().filter_map(|home| context(home, set("DOCKER_CONTEXT"))).collect();
    let runtime = set("XDG_RUNTIME_DIR").map(PathBuf::from);
    let sockets = [
        Some(PathBuf::from("/var/run/docker.sock")),
        runtime.as_ref().map(|dir| dir.join("docker.sock")),
        home.as_ref().map(|home| home.join(".docker/run/docker.sock")),
        runtime.as_ref().map(|dir| dir.join("podman/podman.sock")),
        Some(PathBuf::from("/run/podman/podman.sock")),
    ];
    for path in sockets.into_iter().flatten() {
        found.push(Candidate { origin: path.display().to_string(), endpoint: Ok(Endpoint::Unix(path)) });
    }
    found
}

/// The current context of the `docker` command.
fn context(home: &Path, named: Option<String>) -> Option<Candidate> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(rename = "currentContext")]
        current: Option<String>,
    }
    let directory = home.join(".docker");
    let config = || {
        serde_json::from_slice::<Config>(&std::fs::read(directory.join("config.json")).ok()?).ok()?.current
    };
    let name = named.or_else(config).filter(|name| name != "default")?;
    let endpoint = context_endpoint(&directory, &name);
    Some(Candidate { origin: format!("docker context `{name}`"), endpoint })
}

/// Contexts lie in directories named by the SHA-256 of their name.
fn context_endpoint(directory: &Path, name: &str) -> Result<Endpoint, String> {
    #[derive(Deserialize)]
    struct Meta {
        #[serde(rename = "Endpoints")]
        endpoints: Endpoints,
    }
    #[derive(Deserialize)]
    struct Endpoints {
        docker: Address,
    }
    #[derive(Deserialize)]
    struct Address {
        #[serde(rename = "Host")]
        host: String,
    }
    let digest = Digest::of(name.as_bytes()).hex();
    let path = directory.join("contexts/meta").join(digest).join("meta.json");
    let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let meta: Meta =
        serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    meta.endpoints.docker.host.parse()
}

/// Connects to the first daemon that answers.
///
/// # Errors
///
/// None does; the refusal has every address's own reason.
pub async fn connect_first(candidates: Vec<Candidate>, session: &str) -> Result<DockerDriver, Refusal> {
    let mut refusal = Refusal::new("docker", "");
    let mut reasons = Vec::new();
    for candidate in candidates {
        let endpoint = match candidate.endpoint {
            Ok(endpoint) => endpoint,
            Err(reason) => {
                reasons.push(format!("{}: {reason}", candidate.origin));
                continue;
            }
        };
        match DockerDriver::connect(&endpoint, session).await {
            Ok(driver) => return Ok(driver),
            Err(failure) => {
                refusal.hints.extend(group_hint(&endpoint));
                reasons.push(failure.title);
            }
        }
    }
    // Well-known paths that are not there say nothing that helps, as long as there is anything else to say.
    let missing = |reason: &String| reason.ends_with(": no such socket");
    if reasons.iter().any(|reason| !missing(reason)) {
        reasons.retain(|reason| !missing(reason));
    } else {
        reasons.truncate(1);
    }
    refusal.reason = reasons.join("\n");
    Err(refusal)
}

/// What to do about a socket whose group could use it, if this process is not of that group.
fn group_hint(endpoint: &Endpoint) -> Option<String> {
    let Endpoint::Unix(path) = endpoint else { return None };
    let metadata = std::fs::metadata(path).ok()?;
    let group_may = metadata.mode() & 0o060 == 0o060;
    let denied =
        rustix::fs::access(path, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_err();
    if !group_may || !denied {
        return None;
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let gid = metadata.gid().to_string();
    let group = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == gid).then_some(name)
    })?;
    Some(format!("add yourself to group `{group}`: `sudo usermod -aG {group} $USER`, then log in again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(text: &str, expected: &str) {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), expected);
    }

    /// What a user has in `DOCKER_HOST` works here too.
    #[test]
    fn endpoints_are_read_as_docker_host_says_them() {
        reads("unix:///run/docker.sock", "unix:///run/docker.sock");
        reads("/run/docker.sock", "unix:///run/docker.sock");
        reads("tcp://10.0.0.1:2375", "tcp://10.0.0.1:2375");
        reads("http://ci/", "tcp://ci:2375");
        assert!("ssh://me@ci".parse::<Endpoint>().unwrap_err().contains("not supported"));
    }

    /// A variable that names a daemon is obeyed, never passed over.
    #[test]
    fn a_set_address_is_the_only_one() {
        let found = candidates(|name| (name == "DOCKER_HOST").then(|| "tcp://ci:1".to_owned()));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].origin, "DOCKER_HOST");
    }

    /// `docker context use colima` is all a user has to say.
    #[test]
    fn the_current_context_comes_first() {
        let home = tempfile::tempdir().unwrap();
        let docker = home.path().join(".docker");
        let digest = Digest::of(b"colima").hex();
        let meta = docker.join("contexts/meta").join(digest);
        std::fs::create_dir_all(&meta).unwrap();
        std::fs::write(docker.join("config.json"), r#"{"currentContext":"colima"}"#).unwrap();
        let json = r#"{"Name":"colima","Endpoints":{"docker":{"Host":"unix:///colima.sock"}}}"#;
        std::fs::write(meta.join("meta.json"), json).unwrap();
        let path = home.path().to_string_lossy().into_owned();
        let found = candidates(|name| (name == "HOME").then(|| path.clone()));
        assert_eq!(found[0].endpoint, Ok(Endpoint::Unix("/colima.sock".into())));
        assert_eq!(found[1].endpoint, Ok(Endpoint::Unix("/var/run/docker.sock".into())));
    }
}
