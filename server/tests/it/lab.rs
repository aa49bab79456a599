//! A run directory of its own for each test, and what is left when the test is done.

use shakedown_runtime::docker::SESSION_LABEL;
use shakedown_server::client::{Client, Lease};
use shakedown_server::config::DriverChoice;
use shakedown_server::session::{Orders, Place, ProcessIdentity};
use shakedown_spec::{Configure, Container, Wait};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

/// No test takes as long; one that hangs says so.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) struct Lab {
    directory: TempDir,
    pub(crate) name: String,
    /// The names of all its sessions.
    sessions_seen: RefCell<BTreeSet<String>>,
}

/// Runs a test with a session name of its own; afterwards every keeper has ended and nothing is left in the daemon.
#[track_caller]
pub(crate) fn check(test: impl AsyncFnOnce(&Lab)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lab = Lab::new();
    runtime.block_on(async {
        timeout(LIMIT, test(&lab)).await.expect("the test took too long");
        for place in lab.places() {
            timeout(LIMIT, ended(place)).await.expect("a keeper does not end");
        }
        assert_eq!(lab.places(), [], "directories of sessions");
        assert_eq!(lab.left().await, [""; 0], "containers and networks");
    });
}

impl Lab {
    fn new() -> Self {
        let random = RandomState::new().hash_one(0);
        let name = format!("it-{random:016x}");
        let sessions_seen = RefCell::new(BTreeSet::from([name.clone()]));
        Self { directory: tempfile::tempdir().unwrap(), name, sessions_seen }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The run directory.
    pub(crate) fn run(&self) -> PathBuf {
        self.path().join("run")
    }

    fn sessions(&self) -> PathBuf {
        self.run().join("sessions")
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let Ok(entries) = std::fs::read_dir(self.sessions()) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names: Vec<String> = names.collect();
        self.sessions_seen.borrow_mut().extend(names.iter().cloned());
        names.into_iter().map(|name| Place { directory: self.sessions().join(&name), name }).collect()
    }

    pub(crate) fn place(&self) -> Place {
        self.place_of(&self.name)
    }

    pub(crate) fn place_of(&self, name: &str) -> Place {
        Place { name: name.to_owned(), directory: self.sessions().join(name) }
    }

    pub(crate) fn orders(&self, runner: Option<ProcessIdentity>) -> Orders {
        Orders::new(&self.place(), runner, DriverChoice::Docker)
    }

    /// A client of the lab's keeper, which is started if it does not run.
    pub(crate) async fn client(&self) -> Client {
        Client::of_session(self.orders(None)).await.unwrap()
    }

    pub(crate) async fn lease(&self) -> (Client, Lease) {
        let client = self.client().await;
        let lease = client.lease("orders", self.path()).await.unwrap();
        (client, lease)
    }

    /// Names of what the daemon has of this lab's sessions.
    pub(crate) async fn left(&self) -> Vec<String> {
        use bollard::query_parameters::{ListContainersOptionsBuilder, ListNetworksOptionsBuilder};
        let docker = docker().await;
        let mut left = Vec::new();
        let seen = self.sessions_seen.borrow().clone();
        for name in seen {
            let filters = HashMap::from([("label", vec![format!("{SESSION_LABEL}={name}")])]);
            let containers = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
            let containers = docker.list_containers(Some(containers)).await.unwrap();
            let networks = ListNetworksOptionsBuilder::default().filters(&filters).build();
            let networks = docker.list_networks(Some(networks)).await.unwrap();
            left.extend(containers.into_iter().flat_map(|container| container.names.unwrap_or_default()));
            left.extend(networks.into_iter().filter_map(|network| network.name));
        }
        left
    }
}

/// The daemon of the tests.
pub(crate) async fn docker() -> bollard::Docker {
    let host = std::env::var("SHAKEDOWN_DOCKER_HOST").or_else(|_| std::env::var("DOCKER_HOST"));
    let docker = bollard::Docker::connect_with_host(&host.unwrap_or("unix:///var/run/docker.sock".into()));
    docker.unwrap().negotiate_version().await.unwrap()
}

/// Waits until the keeper of this session has ended: its lock is free then.
pub(crate) async fn ended(place: Place) {
    let Ok(file) = std::fs::File::open(place.directory.join("lock")) else { return };
    tokio::task::spawn_blocking(move || file.lock().unwrap()).await.unwrap();
}

pub(crate) fn image(name: &str) -> String {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/images");
    let directory = std::env::var("SHAKEDOWN_TEST_IMAGES").unwrap_or_else(|_| built.to_owned());
    format!("oci:{directory}/{name}")
}

/// A shell that says "ready" and stays until it is told to stop.
pub(crate) fn shell() -> Container {
    let script = "echo ready; trap 'echo bye; exit 3' TERM; while :; do sleep 1000 & wait $!; done";
    Container::of(image("busybox")).name("orders").command(["sh", "-c", script]).wait(Wait::log("ready"))
}
