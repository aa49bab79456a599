//! The owner of one running container in this process: takes it away when the test lets go of it.

use crate::session::Share;
use crate::{background, evidence};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the end of a test waits for a container to be gone; after that it is the session's to remove.
const REAP: Duration = Duration::from_secs(20);

/// The containers of this process that are alive, in the order they were started.
static ALIVE: Mutex<BTreeMap<u64, Alive>> = Mutex::new(BTreeMap::new());

/// What is known of a container that is alive.
#[derive(Clone, Debug)]
pub(crate) struct Alive {
    pub(crate) share: Arc<Share>,
    pub(crate) id: String,
    /// The service's name in messages.
    pub(crate) name: String,
    /// The test that started it.
    pub(crate) test: String,
    /// The name of its log file: the service's, with a number if the test has several of them.
    pub(crate) file: String,
}

/// The containers that are alive and belong to `test`.
pub(crate) fn alive_in(test: &str) -> Vec<Alive> {
    let alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
    alive.values().filter(|one| one.test == test).cloned().collect()
}

/// Owns a container.
#[derive(Debug)]
pub(crate) struct Guard {
    number: u64,
    pub(crate) alive: Alive,
}

impl Guard {
    pub(crate) fn new(share: Arc<Share>, id: String, name: String, test: String) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut registry = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = |file: &str| registry.values().any(|other| other.test == test && other.file == file);
        let mut file = name.clone();
        let mut count = 1;
        while taken(&file) {
            count += 1;
            file = format!("{name}-{count}");
        }
        let alive = Alive { share, id, name, test, file };
        registry.insert(number, alive.clone());
        drop(registry);
        evidence::forget(&alive);
        Self { number, alive }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            evidence::show(&self.alive);
        }
        let Alive { share, id, .. } = self.alive.clone();
        // What fails here is the session's to remove; a message could not change what the test has found.
        background::finish(REAP, async move { share.remove(&id).await.is_ok() });
        ALIVE.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
