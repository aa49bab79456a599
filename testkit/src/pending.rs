//! What takes time: awaited in any runtime, or waited for with a blocked thread.

use crate::error::locate;
use crate::{Failure, background};
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

/// Something under way that ends in a `T`, or in the [`Failure`] that says why not.
///
/// It has begun when it is made, so two of them run side by side; `.await` it in any async runtime, or call
/// [`blocking`](Pending::blocking). Dropping it calls the work off and takes away what it has made so far.
///
/// ```no_run
/// use shakedown::{modules::{Postgres, Redis}, prelude::*};
///
/// # fn main() -> shakedown::Result {
/// let (db, cache) = Postgres::new().start().and(Redis::new().start()).blocking()?;
/// # Ok(()) }
/// ```
#[must_use = "dropping a `Pending` calls the work off; `.await` it, or call `.blocking()`"]
pub struct Pending<T> {
    result: Pin<Box<dyn Future<Output = Result<T, Failure>> + Send>>,
}

impl<T: Send + 'static> Pending<T> {
    /// Runs `work` on the client's own thread; a failure of it names the line that called the caller of this.
    #[track_caller]
    pub(crate) fn spawn(work: impl Future<Output = Result<T, Failure>> + Send + 'static) -> Self {
        let caller = Location::caller();
        let result = background::spawn(async move {
            work.await.map_err(|mut failure| {
                locate(&mut failure, caller);
                failure
            })
        });
        Self { result: Box::pin(async { result?.await }) }
    }

    /// This and `other`, both under way; if one fails, the other is called off.
    pub fn and<U: Send + 'static>(self, other: Pending<U>) -> Pending<(T, U)> {
        Pending { result: Box::pin(futures::future::try_join(self, other)) }
    }

    /// Blocks this thread until the result is there: for tests without async code.
    ///
    /// Inside an async runtime it works as well, and keeps the runtime's thread from other tasks meanwhile.
    ///
    /// # Errors
    ///
    /// The failure that `.await` gives.
    pub fn blocking(self) -> Result<T, Failure> {
        block_on(self)
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Failure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.result.as_mut().poll(context)
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls `future` on this thread and parks between. The executors of tokio and `futures` panic when one is entered
/// inside another; this one knows nothing of them.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
        // A wake-up that came before this line is not lost: it makes `park` return at once.
        std::thread::park();
    }
}
