//! Health checks on their schedule, with Docker's states: for drivers that make none themselves.

use super::Poll;
use super::check::{brief, said};
use crate::driver::{Driver, ExecRequest, Health, HealthProbe, HealthStatus, ImageConfig};
use shakedown_spec::{Container, Healthcheck};
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, timeout};

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// How many checks are remembered, and how many bytes of what one wrote.
const REMEMBERED: usize = 5;
const LONGEST_OUTPUT: usize = 4096;

/// What a container's health check found so far.
#[derive(Debug)]
pub struct HealthMonitor {
    check: Healthcheck,
    argv: Vec<String>,
    health: Mutex<Health>,
}

impl HealthMonitor {
    /// For the check that the declaration has, else the image; `None` if there is none, or it is switched off.
    #[must_use]
    pub fn of(container: &Container, image: &ImageConfig) -> Option<Self> {
        let check = container.healthcheck.as_ref().or(image.healthcheck.as_ref())?.clone();
        let argv = check.argv()?;
        Some(Self { check, argv, health: Mutex::default() })
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known by now.
    #[must_use]
    pub fn report(&self) -> Health {
        self.health().clone()
    }

    /// Checks on schedule, until the future is dropped: that is for who knows when the container ends. While `paused` says
    /// so, no check is made.
    pub async fn watch(&self, driver: &dyn Driver, id: &str, paused: impl Fn() -> bool) -> Infallible {
        *self.health() = Health::default();
        let begin = Instant::now();
        let starting = || {
            let period = self.check.start_period.unwrap_or_default();
            self.health().status == HealthStatus::Starting && begin.elapsed() < period
        };
        loop {
            let pause = match starting() {
                true => self.check.start_interval.unwrap_or(START_INTERVAL),
                false => self.check.interval.unwrap_or(INTERVAL),
            };
            super::poll::pause(pause).await;
            if paused() {
                continue;
            }
            let (probe, _) = ask(driver, id, &self.argv, self.check.timeout.unwrap_or(TIMEOUT)).await;
            // One that was halted in the middle says nothing.
            if !paused() {
                self.note(probe, !starting());
            }
        }
    }

    /// Takes a check into account. Its failure counts if `counts`.
    pub(super) fn note(&self, probe: HealthProbe, counts: bool) {
        let mut health = self.health();
        if probe.exit_code == 0 {
            health.failing_streak = 0;
            health.status = HealthStatus::Healthy;
        } else if counts {
            health.failing_streak += 1;
            if health.failing_streak >= self.check.retries.unwrap_or(RETRIES).max(1) {
                health.status = HealthStatus::Unhealthy;
            }
        }
        if health.log.len() == REMEMBERED {
            health.log.remove(0);
        }
        health.log.push(probe);
    }
}

/// One check, and what it means for who waits. A check that takes too long is killed where the driver can do that.
pub(super) async fn ask(
    driver: &dyn Driver,
    id: &str,
    argv: &[String],
    limit: Duration,
) -> (HealthProbe, Poll) {
    let ended = async {
        let exec = driver.exec(id, ExecRequest::of(argv.iter().cloned())).await?;
        let abort = exec.abort.clone();
        let ended = timeout(limit, exec.collect()).await.ok();
        if let Some(abort) = abort.filter(|_| ended.is_none()) {
            abort().await;
        }
        ended.transpose()
    };
    let (exit_code, output, answer) = match ended.await {
        Ok(Some(ended)) => {
            let output = [&ended.stdout[..], &ended.stderr[..]].concat();
            let answer = if ended.exit.code == 0 { Poll::Ready(()) } else { Poll::NotYet(said(&ended)) };
            (ended.exit.code, String::from_utf8_lossy(&output).into_owned(), answer)
        }
        Ok(None) => {
            let words = format!("the health check took over {}", super::Span(limit));
            (-1, words.clone(), Poll::NotYet(words))
        }
        Err(failure) => (-1, brief(&failure), Poll::NotYet(brief(&failure))),
    };
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let ended_us = u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX);
    (HealthProbe { exit_code, output: cut(output), ended_us }, answer)
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST_OUTPUT {
        let end = (0..=LONGEST_OUTPUT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor(retries: u32) -> HealthMonitor {
        let mut container = Container::of("redis:7");
        container.healthcheck = Some(Healthcheck::command(["true"]).retries(retries));
        HealthMonitor::of(&container, &ImageConfig::default()).unwrap()
    }

    fn probe(exit_code: i32) -> HealthProbe {
        HealthProbe { exit_code, output: String::new(), ended_us: 0 }
    }

    /// A service that hiccups once is not unhealthy; one success heals it.
    #[test]
    fn failures_count_in_a_row() {
        let monitor = monitor(2);
        let seen = [1, 0, 1, 7, 0].map(|code| {
            monitor.note(probe(code), true);
            let health = monitor.report();
            (health.status, health.failing_streak)
        });
        use HealthStatus::{Healthy, Starting, Unhealthy};
        assert_eq!(seen, [(Starting, 1), (Healthy, 0), (Healthy, 1), (Unhealthy, 2), (Healthy, 0)]);
    }

    /// While a service starts, failures do not make it unhealthy; only the last five checks are kept.
    #[test]
    fn failures_of_the_start_do_not_count() {
        let monitor = monitor(1);
        (0..9).for_each(|code| monitor.note(probe(code + 1), false));
        let health = monitor.report();
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Starting, 0));
        assert_eq!(health.log.iter().map(|probe| probe.exit_code).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
    }

    /// `NONE` switches the image's check off; without any there is nothing to watch.
    #[test]
    fn a_check_may_be_switched_off() {
        let image = ImageConfig { healthcheck: Some(Healthcheck::shell("ping")), ..ImageConfig::default() };
        let mut container = Container::of("redis:7");
        assert!(HealthMonitor::of(&container, &image).is_some());
        container.healthcheck = Some(Healthcheck::none());
        assert!(HealthMonitor::of(&container, &image).is_none());
        assert!(HealthMonitor::of(&Container::of("redis:7"), &ImageConfig::default()).is_none());
    }

    /// Output is cut between characters.
    #[test]
    fn long_output_is_cut() {
        let text = cut("ä".repeat(3000));
        assert_eq!(text.len(), 4096);
        assert_eq!(cut("short".to_owned()), "short");
    }
}
