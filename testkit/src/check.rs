//! A check of the user's own, after the keeper's waits: *ready*, *not yet*, or *never*.
//!
//! ```text
//! client thread: the wait loop                      check's thread: a tokio runtime of its own
//!   ── "ask" ─────────────────────────────────────►   the user's closure
//!   ◄──────────────────────────────────── Answer ──   (may block, may use any client library)
//! ```

use crate::error::locate;
use crate::guard::Alive;
use crate::start::launch;
use crate::{Container, Failure, FailureKind, LogTail, Module, Pending, Running, background, evidence};
use shakedown_runtime::wait::{Missed, Poll, Span, poll};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// What a check says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The service is ready.
    Ready,
    /// Not yet, and what the check saw; a timeout quotes the last one.
    NotYet(String),
    /// It never will be, and why; nothing is waited for any longer.
    Never(String),
}

/// `Ok` is ready, an error not yet: for checks that try what the test is going to do.
impl<T, E: fmt::Display> From<Result<T, E>> for Answer {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Ready,
            Err(error) => Self::NotYet(error.to_string()),
        }
    }
}

impl From<Answer> for Poll {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Ready => Self::Ready(()),
            Answer::NotYet(status) => Self::NotYet(status),
            Answer::Never(reason) => Self::Never(reason),
        }
    }
}

/// A module with checks of the user's own; made by [`Start::wait_for`](crate::Start::wait_for).
///
/// The common options of a module can still be set. Its own methods come before `wait_for`.
#[must_use = "a declaration does nothing until it is started"]
pub struct Checked<M: Module> {
    module: M,
    checks: Vec<Check<M::Connection>>,
}

/// One check, and what completes the sentence "waited for …".
struct Check<C> {
    name: String,
    ask: Box<dyn Ask<C>>,
}

impl<M: Module> Checked<M> {
    pub(crate) fn new(module: M) -> Self {
        Self { module, checks: Vec::new() }
    }

    /// Adds a further check; they are made one after the other, in the order they are given.
    pub fn wait_for<F, A>(mut self, name: impl Into<String>, check: F) -> Self
    where
        F: AsyncFn(&M::Connection) -> A + Send + 'static,
        A: Into<Answer> + 'static,
    {
        // A `PhantomData` of a function pointer: the answer's type is named, and nothing of it is kept.
        let ask = Box::new(Asked(check, PhantomData::<fn() -> A>));
        self.checks.push(Check { name: name.into(), ask });
        self
    }

    /// Starts the container, and returns it when it is ready and all checks say so.
    ///
    /// # Errors
    ///
    /// The failure that kept it from being ready, with the line of this call, the last word of the check, and the
    /// container's log. Nothing of the container is left then.
    #[track_caller]
    pub fn start(self) -> Pending<Running<M>> {
        let caller = Location::caller();
        let test = evidence::current_test();
        Pending::spawn(async move {
            let limit = self.module.declare().ready_timeout();
            let begin = Instant::now();
            let running = launch(self.module, test).await?;
            for check in self.checks {
                let waited = Waited { begin, limit, name: check.name, alive: running.alive().clone() };
                if let Err(mut failure) = waited.until(check.ask, running.connection()).await {
                    locate(&mut failure, caller);
                    return Err(failure);
                }
            }
            Ok(running)
        })
    }
}

impl<M: Module + AsMut<Container>> AsMut<Container> for Checked<M> {
    fn as_mut(&mut self) -> &mut Container {
        self.module.as_mut()
    }
}

impl<M: Module + fmt::Debug> fmt::Debug for Checked<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.checks.iter().map(|check| &check.name).collect();
        f.debug_struct("Checked").field("module", &self.module).field("checks", &names).finish()
    }
}

/// A check whose type is forgotten: the futures of async closures cannot be named.
trait Ask<C>: Send {
    fn ask<'a>(&'a self, connection: &'a C) -> Pin<Box<dyn Future<Output = Answer> + 'a>>;
}

struct Asked<F, A>(F, PhantomData<fn() -> A>);

impl<C, F: AsyncFn(&C) -> A + Send, A: Into<Answer>> Ask<C> for Asked<F, A> {
    fn ask<'a>(&'a self, connection: &'a C) -> Pin<Box<dyn Future<Output = Answer> + 'a>> {
        Box::pin(async move { (self.0)(connection).await.into() })
    }
}

/// One check of one container that is being waited for.
struct Waited {
    begin: Instant,
    limit: Duration,
    name: String,
    alive: Alive,
}

impl Waited {
    /// Asks until the answer is ready, or the container has ended, or its time is up.
    async fn until<C: Send + Sync + 'static>(
        self,
        ask: Box<dyn Ask<C>>,
        connection: Arc<C>,
    ) -> Result<(), Failure> {
        let (questions, answers) = (Questions::answered_by(ask, connection)?, self.alive.clone());
        let left = self.limit.saturating_sub(self.begin.elapsed());
        let asking = poll(left, || questions.ask());
        let ended = async move { answers.share.exited(&answers.id).await };
        match futures::future::select(pin!(asking), pin!(ended)).await {
            futures::future::Either::Left((Ok(()), _)) => Ok(()),
            futures::future::Either::Left((Err(missed), _)) => Err(self.missed(missed).await),
            futures::future::Either::Right((Ok(exit), _)) => {
                let title = format!("{} exited before it was ready: {exit}", self.alive.name);
                let kind =
                    if exit.out_of_memory { FailureKind::OutOfMemory } else { FailureKind::ExitedEarly };
                Err(self.told(Failure::new(kind, title)).await)
            }
            futures::future::Either::Right((Err(failure), _)) => Err(failure),
        }
    }

    async fn missed(&self, missed: Missed) -> Failure {
        let name = &self.alive.name;
        let title = if missed.never {
            format!("{name} will not be ready: {}", missed.status)
        } else {
            format!("{name} was not ready after {}", Span(self.begin.elapsed()))
        };
        let failure = self.told(Failure::new(FailureKind::NotReady, title)).await;
        if missed.never { failure } else { failure.fact("last check", missed.to_string()) }
    }

    async fn told(&self, failure: Failure) -> Failure {
        let failure = failure.fact("waited for", &self.name);
        match evidence::tail_of(&self.alive).await {
            Some((tail, kept)) => with_file(failure, kept).log(tail),
            None => failure.log(LogTail { name: self.alive.name.clone(), lines: Vec::new(), total: 0 }),
        }
    }
}

fn with_file(failure: Failure, kept: Option<String>) -> Failure {
    match kept {
        Some(path) => failure.fact("full log", path),
        None => failure,
    }
}

/// The way to the thread that asks the user's check. Dropping it ends the thread, at the latest when a check that
/// blocks returns.
struct Questions(mpsc::UnboundedSender<oneshot::Sender<Answer>>);

impl Questions {
    fn answered_by<C: Send + Sync + 'static>(
        ask: Box<dyn Ask<C>>,
        connection: Arc<C>,
    ) -> Result<Self, Failure> {
        let (send, mut questions) = mpsc::unbounded_channel::<oneshot::Sender<Answer>>();
        let answering = async move || {
            while let Some(mut reply) = questions.recv().await {
                let answer = tokio::select! {
                    answer = ask.ask(&connection) => answer,
                    () = reply.closed() => continue,
                };
                // Nobody waits any more if time was up in the same instant.
                drop(reply.send(answer));
            }
        };
        background::on_a_thread_of_its_own("shakedown check", answering)?;
        Ok(Self(send))
    }

    fn ask(&self) -> impl Future<Output = Poll> + Send + 'static {
        let (reply, answer) = oneshot::channel();
        let asked = self.0.send(reply);
        async move {
            let panicked =
                || Poll::Never("the check has panicked; its message is in the test's output".to_owned());
            match asked {
                Ok(()) => answer.await.map_or_else(|_| panicked(), Poll::from),
                Err(_) => panicked(),
            }
        }
    }
}
