//! Which driver the session runs its containers with, and what sweeps a dead session.

use crate::config::DriverChoice;
use crate::hook::{LAUNCHER, ROLE_VARIABLE};
use crate::session::Meta;
use shakedown_runtime::detect::no_driver;
use shakedown_runtime::docker::{self, DockerDriver};
use shakedown_runtime::native::{self, Launcher, NativeDriver};
use shakedown_runtime::{Capability, Driver, Refusal};
use shakedown_spec::Failure;
use std::path::Path;
use std::sync::Arc;

/// A driver that works here.
#[derive(Debug)]
pub(super) struct Chosen {
    /// The driver.
    pub(super) driver: Arc<dyn Driver>,
    /// Its engine's address, if it has one: a later session needs it to sweep.
    pub(super) endpoint: Option<String>,
}

/// The native driver's launcher, forked while the process had one thread, or why there is none; `None` if the choice
/// forbids it.
pub(super) type NativeAttempt = Option<Result<Launcher, Refusal>>;

/// Starts what the native driver needs to start before the process has a second thread. `directory` is the session's.
///
/// A process forked here shares the keeper's descriptors and has to close them: the starter would wait for it (it holds
/// the starter's pipe), and the session would look alive after the keeper's death (it holds its lock).
pub(super) fn before_threads(choice: DriverChoice, directory: &Path) -> NativeAttempt {
    if choice == DriverChoice::Docker {
        return None;
    }
    Some(Launcher::fork(directory, (ROLE_VARIABLE, LAUNCHER)))
}

async fn connect_native(launcher: Launcher) -> Result<Arc<dyn Driver>, Refusal> {
    match NativeDriver::new(launcher, &native::store_directory()).await {
        Ok(driver) => Ok(Arc::new(driver)),
        Err(failure) => Err(Refusal::new("native", failure.to_string())),
    }
}

/// The first driver of the choice that works here.
pub(super) async fn choose_driver(
    choice: DriverChoice,
    session: &str,
    native: NativeAttempt,
) -> Result<Chosen, Failure> {
    let mut refusals = Vec::new();
    match native {
        Some(Ok(launcher)) => match connect_native(launcher).await {
            Ok(driver) => return Ok(Chosen { driver, endpoint: None }),
            Err(refusal) => refusals.push(refusal),
        },
        Some(Err(refusal)) => refusals.push(refusal),
        None => {}
    }
    if choice != DriverChoice::Native {
        match connect_docker(session).await {
            Ok(chosen) => return Ok(chosen),
            Err(refusal) => refusals.push(refusal),
        }
    }
    Err(no_driver(&refusals))
}

async fn connect_docker(session: &str) -> Result<Chosen, Refusal> {
    let candidates = docker::candidates(|name| std::env::var(name).ok());
    let driver = docker::connect_first(candidates, session).await?;
    let endpoint = Some(driver.endpoint().to_string());
    Ok(Chosen { driver: Arc::new(driver), endpoint })
}

/// Removes what a dead session left; one that had no driver can have left nothing.
pub(crate) async fn sweep(meta: &Meta, session: &str) -> Result<(), Failure> {
    match (meta.driver.as_str(), &meta.endpoint) {
        ("native", _) => native::sweep(session).await,
        ("docker", Some(endpoint)) => {
            let wrong = |reason: String| no_driver(&[Refusal::new("docker", reason)]);
            let endpoint = endpoint.parse().map_err(wrong)?;
            DockerDriver::connect(&endpoint, session).await?.sweep(session).await
        }
        _ => Ok(()),
    }
}

/// Does something with a driver, without a session. Blocks; to be called while the process has one thread.
///
/// # Errors
///
/// No driver works, the runtime could not be started, or `work` fails.
pub fn with_driver<T>(
    choice: DriverChoice,
    work: impl AsyncFnOnce(&dyn Driver) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let native = before_threads(choice, &std::env::temp_dir());
    super::runtime()?.block_on(async {
        let chosen = choose_driver(choice, "command", native).await?;
        work(&*chosen.driver).await
    })
}

/// What `shakedown doctor` found out about one driver.
#[derive(Clone, Debug)]
pub struct Finding {
    /// `native` or `docker`.
    pub driver: &'static str,
    /// What it is here and what it can do, or why it does not work.
    pub verdict: Result<(String, Vec<Capability>), Refusal>,
}

/// Tries every driver. Blocks; to be called while the process has one thread.
///
/// # Errors
///
/// The runtime could not be started.
pub fn findings() -> Result<Vec<Finding>, Failure> {
    let native = before_threads(DriverChoice::Native, &std::env::temp_dir());
    let runtime = super::runtime()?;
    runtime.block_on(async {
        let mut findings = Vec::new();
        match native {
            Some(Ok(launcher)) => {
                let driver = connect_native(launcher).await;
                let verdict = match driver {
                    Ok(driver) => {
                        driver.examine().await;
                        Ok((driver.description(), driver.capabilities()))
                    }
                    Err(refusal) => Err(refusal),
                };
                findings.push(Finding { driver: "native", verdict });
            }
            Some(Err(refusal)) => findings.push(Finding { driver: "native", verdict: Err(refusal) }),
            None => {}
        }
        let docker = connect_docker("doctor").await;
        let verdict = docker.map(|chosen| (chosen.driver.description(), chosen.driver.capabilities()));
        findings.push(Finding { driver: "docker", verdict });
        Ok(findings)
    })
}

/// Forks the launcher of a command that does without a keeper. To be called while the process has one thread.
///
/// # Errors
///
/// This machine does not let this user make the namespaces that containers need.
pub fn local_launcher() -> Result<Launcher, Refusal> {
    Launcher::fork(&std::env::temp_dir(), (ROLE_VARIABLE, LAUNCHER))
}

/// The native driver of a command that does without a keeper.
///
/// # Errors
///
/// It does not work here.
pub async fn local_driver(launcher: Result<Launcher, Refusal>) -> Result<Arc<dyn Driver>, Failure> {
    let refused = |refusal| no_driver(&[refusal]);
    connect_native(launcher.map_err(refused)?).await.map_err(refused)
}
