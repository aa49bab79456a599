//! The one loop that polls, and the only place that sleeps.

use std::fmt;
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The answer of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Poll<T = ()> {
    /// It holds.
    Ready(T),
    /// It does not hold yet; how things stand, for the message if time runs out.
    NotYet(String),
    /// It will never hold, and why.
    Never(String),
}

/// How a wait ended without success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// What the last check said, or why the condition will never hold.
    pub status: String,
    /// Whether a check said "never"; otherwise time ran out.
    pub never: bool,
    /// How many checks were made.
    pub checks: u64,
    /// How long ago the last check ended.
    pub last: Duration,
    /// How long the wait took.
    pub waited: Duration,
}

impl fmt::Display for Missed {
    /// The last status, and how many checks there were.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, checks, .. } = self;
        match checks {
            0 => write!(f, "{status}"),
            1 => write!(f, "{status} (1 check, {} ago)", Span(self.last)),
            _ => write!(f, "{status} ({checks} checks, the last {} ago)", Span(self.last)),
        }
    }
}

/// A duration as messages show it: `97 ms`, `1.5 s`, `60 s`.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match (millis / 1000, millis % 1000 / 100) {
            (0, _) => write!(f, "{millis} ms"),
            (seconds, 0) => write!(f, "{seconds} s"),
            (seconds, tenths) => write!(f, "{seconds}.{tenths} s"),
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(1);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Checks until the answer is ready or never, or until `limit` is over.
///
/// The pause between two checks grows from 1 ms to 100 ms: a service that starts in milliseconds is noticed in
/// milliseconds, and one that takes minutes is not disturbed. A check that does not return is given up at the limit.
///
/// # Errors
///
/// What the last check said.
pub async fn poll<T, F, C>(limit: Duration, check: F) -> Result<T, Missed>
where
    F: FnMut() -> C + Send,
    C: Future<Output = Poll<T>> + Send,
{
    poll_until(Instant::now() + limit, 1, check).await
}

/// [`poll`] with a point in time, and so many successes in a row.
pub(crate) async fn poll_until<T, F, C>(deadline: Instant, successes: u32, mut check: F) -> Result<T, Missed>
where
    F: FnMut() -> C + Send,
    C: Future<Output = Poll<T>> + Send,
{
    let begin = Instant::now();
    let (mut pause, mut checks, mut in_a_row) = (FIRST_PAUSE, 0, 0);
    let mut status = "no check was answered in time".to_owned();
    let mut answered = begin;
    loop {
        let answer = timeout_at(deadline, check()).await;
        let missed = |status: String, never, checks, answered: Instant| Missed {
            status,
            never,
            checks,
            last: answered.elapsed(),
            waited: begin.elapsed(),
        };
        let Ok(answer) = answer else { return Err(missed(status, false, checks, answered)) };
        (checks, answered) = (checks + 1, Instant::now());
        match answer {
            Poll::Ready(value) => {
                in_a_row += 1;
                if in_a_row >= successes {
                    return Ok(value);
                }
                status = format!("held {in_a_row} of {successes} times in a row");
            }
            Poll::NotYet(now) => (in_a_row, status) = (0, now),
            Poll::Never(reason) => return Err(missed(reason, true, checks, answered)),
        }
        if !rest(pause, deadline).await {
            return Err(missed(status, false, checks, answered));
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Sleeps, at most until the deadline; tells whether there is time for another check.
pub(super) async fn rest(pause: Duration, deadline: Instant) -> bool {
    let until = Instant::now() + pause;
    tokio::time::sleep_until(until.min(deadline)).await;
    until < deadline
}

/// Lets time pass: for what happens on a schedule. Who has to be able to end it earlier drops the future.
pub async fn pause(time: Duration) {
    tokio::time::sleep_until(Instant::now() + time).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Runs the loop over these answers; the last one is repeated.
    async fn run(answers: &[Poll], successes: u32) -> (Result<(), Missed>, Duration) {
        let begin = Instant::now();
        let rest = Mutex::new(answers.iter().cloned().collect::<std::collections::VecDeque<_>>());
        let check = || {
            let mut rest = rest.lock().unwrap();
            let next = if rest.len() > 1 { rest.pop_front() } else { rest.front().cloned() };
            std::future::ready(next.unwrap())
        };
        let result = poll_until(begin + Duration::from_secs(60), successes, check).await;
        (result, begin.elapsed())
    }

    fn not_yet(status: &str) -> Poll {
        Poll::NotYet(status.to_owned())
    }

    /// The message of a timeout quotes the last status and says how hard was tried.
    #[tokio::test(start_paused = true)]
    async fn a_timeout_quotes_the_last_status() {
        let (result, took) = run(&[not_yet("no route"), not_yet("connection refused")], 1).await;
        assert_eq!(took, Duration::from_secs(60));
        insta::assert_snapshot!(result.unwrap_err(), @"connection refused (606 checks, the last 73 ms ago)");
    }

    /// A fast service is noticed in milliseconds: pauses of 1, 2, 4 ms.
    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_from_one_millisecond() {
        let (result, took) = run(&[not_yet(""), not_yet(""), not_yet(""), Poll::Ready(())], 1).await;
        assert_eq!((result, took), (Ok(()), Duration::from_millis(7)));
    }

    /// "Never" ends the wait at once.
    #[tokio::test(start_paused = true)]
    async fn never_ends_at_once() {
        let (result, took) = run(&[Poll::Never("the migration failed".to_owned())], 1).await;
        assert!(took.is_zero());
        let missed = result.unwrap_err();
        assert!(missed.never);
        assert_eq!(missed.status, "the migration failed");
    }

    /// A service that answers once and falls over is not ready.
    #[tokio::test(start_paused = true)]
    async fn successes_count_in_a_row() {
        let answers = [Poll::Ready(()), not_yet("gone"), Poll::Ready(()), Poll::Ready(())];
        let (result, took) = run(&answers, 2).await;
        assert_eq!((result, took), (Ok(()), Duration::from_millis(7)));
    }

    /// A check that hangs does not hold the test beyond its time.
    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_is_given_up() {
        let result = poll(Duration::from_secs(5), std::future::pending::<Poll>).await;
        assert_eq!(result.unwrap_err().status, "no check was answered in time");
    }

    /// Times read well at every size.
    #[test]
    fn durations_are_short() {
        let shown = [97, 1000, 1549, 60_000].map(|millis| Span(Duration::from_millis(millis)).to_string());
        assert_eq!(shown, ["97 ms", "1 s", "1.5 s", "60 s"]);
    }
}
