//! One check of one condition.

use super::plan::{Kind, Matcher, Plan};
use super::{Missed, Poll, Target, Waiting, health, hold, http, probe};
use crate::driver::{ExecOutput, ExecRequest, HealthStatus};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long one connection may take to answer. A reply that is lost must not cost the whole time of the wait.
const ONE_ANSWER: Duration = Duration::from_secs(5);

/// Asks once.
pub(super) fn check<'a>(waiting: &'a Waiting<'_>, kind: &'a Kind) -> BoxFuture<'a, Poll> {
    let (driver, id) = (&waiting.target.driver, &waiting.target.id);
    async move {
        match kind {
            Kind::Running => match hold::has_ended(waiting, None) {
                Poll::Ready(()) => Poll::Never("it has ended".to_owned()),
                _ => Poll::Ready(()),
            },
            Kind::Port(port) => match driver.listening(id, *port).await {
                Ok(true) => Poll::Ready(()),
                Ok(false) => Poll::NotYet("connection refused".to_owned()),
                Err(failure) => Poll::NotYet(brief(&failure)),
            },
            Kind::Log { pattern, times, stream } => match pattern.count(&waiting.target.text(*stream)) {
                found if found >= *times => Poll::Ready(()),
                found => Poll::NotYet(format!("{found} of {times} times in the log")),
            },
            Kind::Http { port, check, response } => {
                answered(http::ask(&**driver, id, *port, check, response.as_ref())).await
            }
            Kind::Command { argv, exit_code, output } => {
                command(waiting, argv, *exit_code, output.as_ref()).await
            }
            Kind::Healthy { argv, timeout: limit } => healthy(waiting, argv, *limit).await,
            Kind::Exit { code } => hold::has_ended(waiting, *code),
            Kind::Probe { protocol, port } => answered(probe::ask(&**driver, id, *protocol, *port)).await,
            Kind::All(plans) => all(waiting, plans).await,
            Kind::Any(plans) => any(waiting, plans).await,
        }
    }
    .boxed()
}

/// Healthy by the schedule, else by a check that does not wait for it: who waits need not wait for an interval of 30 s.
/// Its failure is remembered and does not count.
async fn healthy(waiting: &Waiting<'_>, argv: &[String], limit: Duration) -> Poll {
    let Target { driver, id, health, .. } = waiting.target;
    if health.as_ref().is_some_and(|health| health.report().status == HealthStatus::Healthy) {
        return Poll::Ready(());
    }
    let (probe, answer) = health::ask(&**driver, id, argv, limit).await;
    if let Some(health) = health {
        health.note(probe, false);
    }
    answer
}

async fn answered(asked: impl Future<Output = Poll>) -> Poll {
    let silent = || Poll::NotYet(format!("no answer within {} s", ONE_ANSWER.as_secs()));
    timeout(ONE_ANSWER, asked).await.unwrap_or_else(|_| silent())
}

async fn all(waiting: &Waiting<'_>, plans: &[Plan]) -> Poll {
    for plan in plans {
        match check(waiting, &plan.kind).await {
            Poll::Ready(()) => {}
            other => return other,
        }
    }
    Poll::Ready(())
}

/// "Never" if each of them says so.
async fn any(waiting: &Waiting<'_>, plans: &[Plan]) -> Poll {
    let mut statuses = Vec::new();
    let mut never = true;
    for plan in plans {
        match check(waiting, &plan.kind).await {
            Poll::Ready(()) => return Poll::Ready(()),
            Poll::NotYet(status) => {
                never = false;
                statuses.push(status);
            }
            Poll::Never(status) => statuses.push(status),
        }
    }
    let statuses = statuses.join("; ");
    if never { Poll::Never(statuses) } else { Poll::NotYet(statuses) }
}

async fn command(waiting: &Waiting<'_>, argv: &[String], exit_code: i32, output: Option<&Matcher>) -> Poll {
    let target = waiting.target;
    let request = ExecRequest::of(argv.iter().cloned());
    let ran = async { target.driver.exec(&target.id, request).await?.collect().await };
    match ran.await {
        Ok(ended) if ended.exit.code != exit_code => Poll::NotYet(said(&ended)),
        Ok(ended) if output.is_some_and(|pattern| !pattern.is_in(&ended.stdout)) => {
            Poll::NotYet(format!("{}, without the expected output", said(&ended)))
        }
        Ok(_) => Poll::Ready(()),
        Err(failure) => Poll::NotYet(brief(&failure)),
    }
}

/// The exit code and the last line a command wrote: programs say why at the end.
pub(super) fn said(ended: &ExecOutput) -> String {
    let last = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.trim().chars().filter(|c| !c.is_control()).take(200).collect::<String>())
    };
    match last(&ended.stderr).or_else(|| last(&ended.stdout)) {
        Some(line) => format!("exit code {}: {line}", ended.exit.code),
        None => format!("exit code {}", ended.exit.code),
    }
}

/// A failure as a status: its reason, which says more than its title here.
pub(super) fn brief(failure: &shakedown_spec::Failure) -> String {
    let reason = failure.facts.iter().find(|(label, _)| label == "reason");
    reason.map_or_else(|| failure.title.clone(), |(_, reason)| reason.clone())
}

/// What the checks said so far, for the report if the container ends between two of them.
#[derive(Debug, Default)]
pub(super) struct Seen {
    last: Mutex<Option<(String, u64, Instant)>>,
}

impl Seen {
    pub(super) fn note(&self, answer: &Poll) {
        let (Poll::NotYet(status) | Poll::Never(status)) = answer else { return };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let checks = last.as_ref().map_or(0, |(_, checks, _)| *checks) + 1;
        *last = Some((status.clone(), checks, Instant::now()));
    }

    pub(super) fn last(&self, begin: Instant) -> Option<Missed> {
        let (status, checks, at) = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(Missed { status, never: false, checks, last: at.elapsed(), waited: begin.elapsed() })
    }
}
