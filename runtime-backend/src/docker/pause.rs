//! What may be asked of a container that runs or has run: pause, the way in, its health, its ports.

use super::ports::Reservations;
use super::{DockerDriver, Instance, daemon_failure};
use crate::driver::{Attached, Health, HealthProbe, HealthStatus, Resize, Result};
use crate::wait::{Poll, poll};
use bollard::errors::Error;
use bollard::models::{HealthStatusEnum, HealthcheckResult};
use bollard::query_parameters::ResizeContainerTTYOptionsBuilder;
use futures_util::{FutureExt, TryFutureExt};
use shakedown_spec::FailureKind;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How long the daemon may take to let go of the ports of a container that has ended.
const RELEASE: Duration = Duration::from_secs(5);

impl DockerDriver {
    pub(super) async fn pause_container(&self, id: &str) -> Result<()> {
        let instance = self.instance(id)?;
        let paused = self.inner.docker.pause_container(&instance.name).await;
        already(paused, "is already paused").map_err(|error| {
            daemon_failure(FailureKind::Other, format!("{} could not be paused", instance.service), &error)
        })
    }

    pub(super) async fn unpause_container(&self, id: &str) -> Result<()> {
        let instance = self.instance(id)?;
        let unpaused = self.inner.docker.unpause_container(&instance.name).await;
        // One that was killed has been let go by the daemon.
        let fine = ["is not paused", "is not running", "cannot resume a stopped container"];
        fine.into_iter().fold(unpaused, already).map_err(|error| {
            daemon_failure(FailureKind::Other, format!("{} could not be unpaused", instance.service), &error)
        })
    }

    pub(super) fn attached(&self, id: &str) -> Result<Attached> {
        let instance = self.instance(id)?;
        let input = instance.input.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let resize = instance.tty.then(|| self.resize(&instance));
        Ok(Attached { input, resize })
    }

    fn resize(&self, instance: &Arc<Instance>) -> Resize {
        let (docker, instance) = (self.inner.docker.clone(), Arc::clone(instance));
        Arc::new(move |size| {
            let options =
                ResizeContainerTTYOptionsBuilder::new().h(size.rows.into()).w(size.columns.into()).build();
            let (docker, name) = (docker.clone(), instance.name.clone());
            let title = format!("the size of the terminal of {} could not be set", instance.service);
            let set = async move { docker.resize_container_tty(&name, options).await };
            set.map_err(move |error| daemon_failure(FailureKind::Other, title, &error)).boxed()
        })
    }

    /// The daemon makes the checks itself.
    pub(super) async fn health_of(&self, id: &str) -> Result<Health> {
        let instance = self.instance(id)?;
        let inspected = self.inner.docker.inspect_container(&instance.name, None).await.map_err(|error| {
            let title = format!("the health of {} is not known", instance.service);
            daemon_failure(FailureKind::Other, title, &error)
        })?;
        let health = inspected.state.and_then(|state| state.health).unwrap_or_default();
        let status = match health.status {
            Some(HealthStatusEnum::HEALTHY) => HealthStatus::Healthy,
            Some(HealthStatusEnum::UNHEALTHY) => HealthStatus::Unhealthy,
            _ => HealthStatus::Starting,
        };
        let streak = health.failing_streak.and_then(|streak| u32::try_from(streak).ok());
        let log = health.log.into_iter().flatten().map(probe).collect();
        Ok(Health { status, failing_streak: streak.unwrap_or(0), log })
    }

    /// Keeps the ports of a container that has ended from others until it is started again or removed.
    pub(super) async fn reserve_again(&self, instance: &Instance) {
        let published = instance.endpoints.lock().unwrap_or_else(PoisonError::into_inner).published.clone();
        if published.is_empty() || !self.inner.endpoint.is_local() || instance.host_network {
            return;
        }
        // The daemon's proxies end a little after the container. A port that another program has taken meanwhile is told
        // by the next start.
        let _ = poll(RELEASE, || async {
            if instance.exit.borrow().is_none() {
                return Poll::Never("it runs again".to_owned());
            }
            match Reservations::again(&published) {
                Ok(held) => {
                    *instance.reserved.lock().unwrap_or_else(PoisonError::into_inner) = held;
                    Poll::Ready(())
                }
                Err(error) => Poll::NotYet(error.to_string()),
            }
        })
        .await;
    }
}

fn already(done: std::result::Result<(), Error>, words: &str) -> std::result::Result<(), Error> {
    match done {
        Err(error) if super::failures::words(&error).contains(words) => Ok(()),
        other => other,
    }
}

fn probe(result: HealthcheckResult) -> HealthProbe {
    HealthProbe {
        exit_code: result.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1),
        output: result.output.unwrap_or_default(),
        // A text, or with another feature of bollard a time that is written nearly like one.
        ended_us: result.end.and_then(|end| micros(&end.to_string())).unwrap_or(0),
    }
}

/// Microseconds since 1970-01-01 00:00 UTC of a time such as `2026-03-01T12:00:00.25+01:00` (RFC 3339).
fn micros(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let rest = text.get(19..)?;
    let zone = rest.find(['Z', '+', '-'])?;
    let (fraction, zone) = rest.split_at(zone);
    let fraction: String =
        fraction.trim_matches(['.', ' ']).chars().chain("000000".chars()).take(6).collect();
    let offset = match zone.split_at(1) {
        ("Z", _) => 0,
        (sign, zone) => {
            let mut parts = zone.split(':').map(|part| part.parse::<i64>().ok());
            let minutes = parts.next()?? * 60 + parts.next()??;
            if sign == "-" { -minutes } else { minutes }
        }
    };
    // Days of the civil calendar, counted from March so that a leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute - offset) * 60 + second;
    u64::try_from(seconds * 1_000_000 + fraction.parse::<i64>().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The daemon writes its times in its own time zone.
    #[test]
    fn times_of_the_daemon_are_read() {
        assert_eq!(micros("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(micros("2000-02-29T01:00:00.25+01:00"), Some(951_782_400_250_000));
        assert_eq!(micros("2024-12-31T21:59:59.123456789-02:00"), Some(1_735_689_599_123_456));
        assert_eq!(micros("2000-02-29 01:00:00.25 +01:00:00"), Some(951_782_400_250_000));
        for wrong in ["", "yesterday", "2024-12-31", "2024-12-31T21:59:59"] {
            assert_eq!(micros(wrong), None, "{wrong}");
        }
    }
}
