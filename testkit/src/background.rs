//! The one thread of this process that talks to the session keeper.
//!
//! A test's own runtime may be any, may be none, and ends with the test; containers of a binary's tests share one
//! connection that has to outlive each of them.

use crate::{Failure, FailureKind};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError, mpsc};
use std::task::{Context, Poll};
use std::thread::ThreadId;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

#[derive(Clone)]
struct Background {
    runtime: Handle,
    thread: ThreadId,
}

static BACKGROUND: Mutex<Option<Background>> = Mutex::new(None);

/// The running thread, started on first use.
fn background() -> io::Result<Background> {
    let mut slot = BACKGROUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = &*slot {
        return Ok(running.clone());
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let thread = std::thread::Builder::new().name("shakedown client".to_owned());
    // It ends with the process; the kernel closes the connections, which is what the keeper goes by.
    let thread = thread.spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    let running = Background { runtime: handle, thread: thread.thread().id() };
    *slot = Some(running.clone());
    Ok(running)
}

/// Runs `work`, which is the user's code and may block, to its end on a new thread with a tokio runtime of its own.
pub(crate) fn on_a_thread_of_its_own(
    name: &str,
    work: impl AsyncFnOnce() + Send + 'static,
) -> Result<(), Failure> {
    let start = || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(work()))
    };
    start().map(drop).map_err(|error: io::Error| {
        Failure::new(FailureKind::Other, format!("the thread `{name}` could not be started"))
            .fact("reason", error.to_string())
    })
}

/// Starts `work`; dropping what comes back calls it off.
pub(crate) fn spawn<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<Working<T>, Failure> {
    let background = background().map_err(|error| {
        Failure::new(FailureKind::Other, "the thread that talks to the session keeper could not be started")
            .fact("reason", error.to_string())
    })?;
    let (send, result) = oneshot::channel();
    let task = background.runtime.spawn(async move {
        // The receiver is gone if the work was called off; the result is then dropped here, which takes it away.
        drop(send.send(work.await));
    });
    Ok(Working { result, task: task.abort_handle() })
}

/// Work under way on the background thread.
pub(crate) struct Working<T> {
    result: oneshot::Receiver<Result<T, Failure>>,
    task: AbortHandle,
}

impl<T> Future for Working<T> {
    type Output = Result<T, Failure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result).poll(context).map(|received| {
            received.unwrap_or_else(|_| {
                Err(Failure::new(
                    FailureKind::Other,
                    "the thread that talks to the session keeper has panicked",
                )
                .hint("its message stands further up in this test's output; please report it"))
            })
        })
    }
}

impl<T> Drop for Working<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs `work` to its end, or as long as `limit`, whatever thread this is: also while it panics, and inside or outside
/// any runtime. The work goes on after the limit; without a limit nothing is waited for.
pub(crate) fn finish<T: Send + 'static>(
    limit: Duration,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let background = background().ok()?;
    let (send, result) = mpsc::sync_channel(1);
    background.runtime.spawn(async move {
        // Nobody may be waiting any more.
        drop(send.send(work.await));
    });
    // The background thread drops what a called-off task held; it would wait for itself.
    if std::thread::current().id() == background.thread {
        return None;
    }
    result.recv_timeout(limit).ok()
}
