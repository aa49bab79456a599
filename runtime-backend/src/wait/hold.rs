//! Holds a condition against the container until it is met, cannot be met any more, or time is over.

use super::plan::{Kind, Matcher, Plan};
use super::poll::{LONGEST_PAUSE, poll_until, rest};
use super::{Missed, Poll, Waiting, check};
use crate::driver::{Exit, Result};
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use shakedown_spec::{Failure, Stream};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A search of a log that takes longer is not repeated at once.
const CHEAP: Duration = Duration::from_millis(1);

/// Why a condition was not met.
#[derive(Debug)]
pub(super) enum Unmet {
    /// Time ran out, or a check said "never".
    Missed { title: String, missed: Missed },
    /// The container ended first.
    Exited { title: String, exit: Exit, last: Option<Missed> },
    /// The driver does not tell about the container any more.
    Lost(Failure),
}

/// Returns when the condition is met. Conditions made of others are put together here; each single one races the
/// container's end.
pub(super) fn hold<'a>(
    waiting: &'a Waiting<'_>,
    plan: &'a Plan,
    deadline: Instant,
) -> BoxFuture<'a, std::result::Result<(), Unmet>> {
    let own = plan.timeout.map(|timeout| Instant::now() + waiting.target.scaled(timeout));
    let deadline = own.map_or(deadline, |own| own.min(deadline));
    async move {
        match &plan.kind {
            Kind::All(plans) if plan.successes == 1 => {
                for plan in plans {
                    hold(waiting, plan, deadline).await?;
                }
                Ok(())
            }
            Kind::Any(plans) if plan.successes == 1 => {
                let each = plans.iter().map(|plan| hold(waiting, plan, deadline));
                any(each).await.map_err(|unmet| unmet.named(&plan.title))
            }
            Kind::Log { pattern, times, stream } => follow(waiting, (pattern, *times, *stream), deadline)
                .await
                .map_err(|unmet| unmet.named(&plan.title)),
            Kind::Exit { code } => {
                ended(waiting, *code, deadline).await.map_err(|unmet| unmet.named(&plan.title))
            }
            _ => ask(waiting, plan, deadline).await.map_err(|unmet| unmet.named(&plan.title)),
        }
    }
    .boxed()
}

/// Returns with the first that holds. If none does, the container's end says more than a status, and a status of each
/// more than the last one's.
async fn any<'a>(
    each: impl Iterator<Item = BoxFuture<'a, std::result::Result<(), Unmet>>>,
) -> std::result::Result<(), Unmet> {
    let mut each: FuturesUnordered<_> = each.collect();
    let mut together: Option<Unmet> = None;
    while let Some(answer) = each.next().await {
        let Err(unmet) = answer else { return Ok(()) };
        together = Some(match together {
            None => unmet,
            Some(together) => together.or(unmet),
        });
    }
    together.map_or(Ok(()), Err)
}

impl Unmet {
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Missed { title, missed: one }, Self::Missed { missed: two, .. }) => {
                let missed = Missed {
                    status: format!("{}; {}", one.status, two.status),
                    never: one.never && two.never,
                    checks: one.checks + two.checks,
                    last: one.last.min(two.last),
                    waited: one.waited.max(two.waited),
                };
                Self::Missed { title, missed }
            }
            (Self::Missed { .. }, ended) | (ended, _) => ended,
        }
    }

    fn named(mut self, name: &str) -> Self {
        if let Self::Missed { title, .. } | Self::Exited { title, .. } = &mut self {
            name.clone_into(title);
        }
        self
    }
}

/// Polls, until the container ends.
async fn ask(waiting: &Waiting<'_>, plan: &Plan, deadline: Instant) -> std::result::Result<(), Unmet> {
    let begin = Instant::now();
    let seen = check::Seen::default();
    let polled = poll_until(deadline, plan.successes, || async {
        let answer = check::check(waiting, &plan.kind).await;
        seen.note(&answer);
        answer
    });
    tokio::select! {
        biased;
        // First, so that a container that has ended is never called running.
        exit = waiting.exit.clone() => {
            Err(exited(exit, seen.last(begin)))
        }
        polled = polled => polled.map_err(|missed| Unmet::Missed { title: String::new(), missed }),
    }
}

fn exited(exit: Result<Exit>, last: Option<Missed>) -> Unmet {
    match exit {
        Ok(exit) => Unmet::Exited { title: String::new(), exit, last },
        Err(failure) => Unmet::Lost(failure),
    }
}

/// Follows the log. The container's end is the end of the log, so what it wrote last still counts.
async fn follow(
    waiting: &Waiting<'_>,
    (pattern, times, stream): (&Matcher, usize, Option<Stream>),
    deadline: Instant,
) -> std::result::Result<(), Unmet> {
    let begin = Instant::now();
    let log = &waiting.target.log;
    let mut changes = log.watch();
    let mut checks = 0;
    loop {
        // In this order: what is written after the search changes the version again.
        changes.mark_unchanged();
        let searching = std::time::Instant::now();
        let ended = log.read(usize::MAX).1;
        let found = pattern.count(&waiting.target.text(stream));
        checks += 1;
        if found >= times {
            return Ok(());
        }
        let status = match (found, times) {
            (0, _) => "not in the log".to_owned(),
            _ => format!("{found} of {times} times in the log"),
        };
        let missed = Missed { status, never: false, checks, last: Duration::ZERO, waited: begin.elapsed() };
        if ended {
            tokio::select! {
                exit = timeout_at(deadline, waiting.exit.clone()) => return Err(match exit {
                    Ok(exit) => exited(exit, Some(missed)),
                    Err(_) => Unmet::Missed { title: String::new(), missed },
                }),
                // It was started again.
                Ok(()) = changes.changed() => continue,
            }
        }
        // A search reads the whole log; a service that writes a lot must not keep this machine busy with it.
        let cost = searching.elapsed();
        let searched = Instant::now();
        if cost > CHEAP {
            rest((10 * cost).min(LONGEST_PAUSE), deadline).await;
        }
        if timeout_at(deadline, changes.changed()).await.is_err() {
            let missed = Missed { last: searched.elapsed(), waited: begin.elapsed(), ..missed };
            return Err(Unmet::Missed { title: String::new(), missed });
        }
    }
}

/// Waits for the container's own end.
async fn ended(
    waiting: &Waiting<'_>,
    code: Option<i32>,
    deadline: Instant,
) -> std::result::Result<(), Unmet> {
    let begin = Instant::now();
    match timeout_at(deadline, waiting.exit.clone()).await {
        Ok(Ok(exit)) if code.is_none_or(|code| code == exit.code) => Ok(()),
        Ok(exit) => Err(exited(exit, None)),
        Err(_) => {
            let status = "it still runs".to_owned();
            let missed =
                Missed { status, never: false, checks: 0, last: Duration::ZERO, waited: begin.elapsed() };
            Err(Unmet::Missed { title: String::new(), missed })
        }
    }
}

/// Whether the container has ended, without waiting.
pub(super) fn has_ended(waiting: &Waiting<'_>, code: Option<i32>) -> Poll {
    match waiting.exit.clone().now_or_never() {
        None => Poll::NotYet("it still runs".to_owned()),
        Some(Ok(exit)) if code.is_none_or(|code| code == exit.code) => Poll::Ready(()),
        Some(Ok(exit)) => Poll::Never(format!("it exited: {exit}")),
        Some(Err(failure)) => Poll::Never(failure.title),
    }
}
