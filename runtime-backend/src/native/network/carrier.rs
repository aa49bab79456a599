//! The thread that carries what goes through published ports.
//!
//! One of its own, so that neither waits for the other: a dump through a port for the keeper's answers, an answer for the
//! bytes of a test. It begins with the first port and ends with the driver.

use std::io;
use std::sync::{Mutex, PoisonError};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Its stack: futures live on the heap.
const STACK: usize = 512 << 10;

/// The thread, if there is one yet.
#[derive(Debug, Default)]
pub(crate) struct Carrier {
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    runtime: Handle,
    /// Its end is the thread's.
    _end: oneshot::Sender<()>,
}

impl Carrier {
    /// The thread's runtime.
    pub(super) fn thread(&self) -> io::Result<Handle> {
        let mut slot = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*slot {
            return Ok(running.runtime.clone());
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("shakedown ports".to_owned()).stack_size(STACK);
        thread.spawn(move || {
            // An error is the end of the sender.
            let _ = runtime.block_on(ended);
        })?;
        *slot = Some(Running { runtime: handle.clone(), _end: end });
        Ok(handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that uses several drivers one after the other keeps no threads of those that are gone.
    #[tokio::test]
    async fn the_thread_ends_with_its_owner() {
        let carrier = Carrier::default();
        let task = carrier.thread().unwrap().spawn(std::future::pending::<()>());
        drop(carrier);
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
