//! A root file system that a step of a build works on: layers, and an empty place for what the step writes.

use super::written::Written;
use crate::driver::Result;
use crate::native::NativeDriver;
use crate::native::image::{Scratch, Store};
use crate::native::launch::Trouble;
use crate::native::launcher::{Connection, Handle, Reply, Request};
use crate::native::network::gateway::Gateway;
use crate::native::users::Accounts;
use shakedown_spec::{Container, Failure, FailureKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The root file system. Dropped, it is unmounted, its processes are killed, and its place on the disk is emptied.
#[derive(Debug)]
pub(super) struct Sandbox {
    id: String,
    launcher: Handle,
    store: Store,
    scratch: Option<Scratch>,
    /// Its way to the outside, if it has one.
    _gateway: Option<Gateway>,
    /// The users that the root file system knows.
    pub(super) accounts: Accounts,
}

impl Sandbox {
    /// Mounts the layers `trees`, lowest first.
    pub(super) async fn open(driver: &NativeDriver, trees: &[PathBuf]) -> Result<Self> {
        Self::new(driver, trees, None, false).await
    }

    /// An empty root whose files are only ever in memory: none of them is on a disk, whatever ends this process.
    pub(super) async fn in_memory(driver: &NativeDriver) -> Result<Self> {
        Self::new(driver, &[], None, true).await
    }

    /// Mounts the layers for this container to run in, with the network that it declares.
    pub(super) async fn open_for(
        driver: &NativeDriver,
        trees: &[PathBuf],
        container: &Container,
    ) -> Result<Self> {
        Self::new(driver, trees, Some(container), false).await
    }

    async fn new(
        driver: &NativeDriver,
        trees: &[PathBuf],
        container: Option<&Container>,
        memory: bool,
    ) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let storing = |error: std::io::Error| failed(Trouble::new("make room for a step", error.to_string()));
        let scratch = driver.store.scratch().map_err(storing)?;
        let (layers, upper) = if memory {
            // overlayfs takes no stack without a lower layer.
            let nothing = scratch.path().join("empty");
            std::fs::create_dir(&nothing).map_err(storing)?;
            (vec![nothing], None)
        } else {
            (trees.to_owned(), Some(scratch.path().to_owned()))
        };
        let id = format!("build-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let (launcher, store) = (driver.launcher.clone(), driver.store.clone());
        let (scratch, accounts) = (Some(scratch), Accounts::default());
        let mut sandbox = Self { id, launcher, store, scratch, accounts, _gateway: None };
        let connection = match container {
            Some(container) => {
                driver.outbound.connection(&driver.launcher, container).await.map_err(failed)?
            }
            None => Connection::Unused,
        };
        let (id, paths) = (sandbox.id.clone(), Accounts::paths());
        let request = Request::Prepare { id, layers, upper, shift: None, connection, paths, otherwise: true };
        let (reply, exits) = driver.launcher.ask_for(request).await.map_err(failed)?;
        if let Reply::Prepared { addresses, texts, .. } = reply {
            sandbox.accounts = Accounts::read(texts);
            if let Some(container) = container {
                sandbox._gateway = driver.outbound.admit(container, &addresses, exits).map_err(failed)?;
            }
        }
        Ok(sandbox)
    }

    /// What the launcher knows it by.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Takes it away, and waits until it is gone.
    pub(super) async fn close(mut self) -> Result<()> {
        let Some(scratch) = self.scratch.take() else { return Ok(()) };
        close(self.launcher.clone(), self.id.clone(), self.store.clone(), scratch).await.map_err(failed)
    }
}

impl Drop for Sandbox {
    /// Of a step that failed or was given up. Without a runtime the launcher is gone as well, and what is on the disk is
    /// swept by whoever opens the store next.
    fn drop(&mut self) {
        let Some(scratch) = self.scratch.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(close(self.launcher.clone(), self.id.clone(), self.store.clone(), scratch));
        }
    }
}

/// The mount goes first: what it holds could not be removed.
async fn close(
    launcher: Handle,
    id: String,
    store: Store,
    scratch: Scratch,
) -> std::result::Result<(), Trouble> {
    let removed = launcher.ask(Request::Remove { id }).await;
    let emptied = store.discard(scratch).await;
    removed?;
    emptied.map_err(|error| Trouble::new("clean up behind a step", error.to_string()))
}

fn failed(trouble: Trouble) -> Failure {
    let failure = Failure::new(
        FailureKind::LaunchFailed,
        format!("a step of the build failed: cannot {}", trouble.doing),
    );
    let failure = match trouble.call {
        Some(call) => failure.fact("call", call),
        None => failure,
    };
    match trouble.reason {
        Some(reason) => failure.fact("reason", reason),
        None => failure,
    }
}

/// Where files come from, open.
#[derive(Debug)]
pub(super) enum Source {
    /// A directory of the host.
    Directory(std::os::fd::OwnedFd),
    /// Layers, mounted.
    Mounted(Sandbox),
    /// Files that were made for one step.
    Written(Written),
}

impl Source {
    /// A directory of the host.
    pub(super) fn directory(path: &Path) -> std::io::Result<Self> {
        std::fs::File::open(path).map(|file| Self::Directory(file.into()))
    }

    /// Takes it away, if it was made for this.
    pub(super) async fn close(self) -> Result<()> {
        match self {
            Self::Directory(_) => Ok(()),
            Self::Mounted(sandbox) => sandbox.close().await,
            Self::Written(written) => written
                .close()
                .await
                .map_err(|error| failed(Trouble::new("clean up behind a step", error.to_string()))),
        }
    }
}
