//! When a request is made again: pauses that grow, what `Retry-After` asks for, and an end to it.

use super::call::{Call, Reason, RegistryError};
use crate::native::image::options::RetryPolicy;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{HeaderMap, RETRY_AFTER};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, timeout};

/// The attempts at one thing.
#[derive(Debug)]
pub(super) struct Attempts {
    policy: RetryPolicy,
    most: u32,
    failed: u32,
}

impl Attempts {
    /// As many as the policy allows; a mirror gets one: there is always somebody else to ask.
    pub(super) fn new(policy: &RetryPolicy, call: &Call) -> Self {
        let most = if call.host.is_mirror { 1 } else { policy.attempts.max(1) };
        Self { policy: policy.clone(), most, failed: 0 }
    }

    /// Pauses after a failure. The failure comes back where another attempt cannot help, or was the last.
    pub(super) async fn after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.failed += 1;
        if !error.is_temporary() || self.failed >= self.most {
            return Err(RegistryError { attempts: self.failed, ..error });
        }
        let asked = match &error.reason {
            Reason::Status { wait: Some(wait), .. } => *wait,
            _ => Duration::ZERO,
        };
        pause(asked.max(self.backoff(random())).min(self.policy.longest_pause)).await;
        Ok(())
    }

    /// What was asked for is on its way: the count begins anew.
    pub(super) fn worked(&mut self) {
        self.failed = 0;
    }

    /// `luck` is a number from 0 to 1.
    fn backoff(&self, luck: f64) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failed.saturating_sub(1));
        let whole = self.policy.first_pause.saturating_mul(doubled).min(self.policy.longest_pause);
        whole.mul_f64(1.0 - luck / 2.0)
    }
}

/// Lets a registry rest. Not a wait for something to happen, which only the wait loop does: this is the time that the
/// registry asked for, or that its clients leave one another.
async fn pause(time: Duration) {
    tokio::time::sleep_until(Instant::now() + time).await;
}

/// From 0 to 1. The standard library seeds its hash maps with random numbers, which is good enough for a pause.
fn random() -> f64 {
    let number = RandomState::new().build_hasher().finish();
    f64::from((number >> 32) as u32) / f64::from(u32::MAX)
}

/// What `Retry-After` asks for: seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// How fast an answer comes. Only the time in which it was waited for counts.
#[derive(Debug)]
pub(super) struct Pace {
    stall: Duration,
    least: u64,
    window: Duration,
    waited: Duration,
    came: u64,
}

impl Pace {
    pub(super) fn new(policy: &RetryPolicy) -> Self {
        let (stall, least, window) = (policy.stall, policy.least, policy.window);
        Self { stall, least, window, waited: Duration::ZERO, came: 0 }
    }

    /// The next piece of an answer, or `None` at its end.
    pub(super) async fn next(
        &mut self,
        call: &Call,
        body: &mut Incoming,
    ) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let begin = Instant::now();
            let frame = timeout(self.stall, body.frame()).await;
            self.waited += begin.elapsed();
            match frame.map_err(|_elapsed| call.error(Reason::Silent(self.stall)))? {
                None => return Ok(None),
                Some(Err(error)) => return Err(call.connection(&error)),
                // Trailers say nothing here.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.arrived(call, data.len() as u64)?;
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn arrived(&mut self, call: &Call, bytes: u64) -> Result<(), RegistryError> {
        self.came += bytes;
        if self.waited < self.window {
            return Ok(());
        }
        let (came, _) = (std::mem::take(&mut self.came), std::mem::take(&mut self.waited));
        if came < self.least {
            return Err(call.error(Reason::Slow { bytes: came, window: self.window }));
        }
        Ok(())
    }

    /// A whole answer, of at most this many bytes.
    pub(super) async fn collect(
        &mut self,
        call: &Call,
        mut body: Incoming,
        most: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        loop {
            if bytes.len() as u64 + body.size_hint().lower() > most {
                return Err(call.protocol(format!("its answer is longer than {most} bytes")));
            }
            match self.next(call, &mut body).await? {
                Some(data) => bytes.extend_from_slice(&data),
                None => return Ok(bytes),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pauses grow to their bound, and differ between clients.
    #[test]
    fn pauses_double_up_to_a_bound() {
        let policy = RetryPolicy { longest_pause: Duration::from_secs(3), ..RetryPolicy::default() };
        let pause =
            |failed, luck| Attempts { policy: policy.clone(), most: 9, failed }.backoff(luck).as_millis();
        assert_eq!([1, 2, 3, 4, 40].map(|failed| pause(failed, 0.0)), [500, 1000, 2000, 3000, 3000]);
        assert_eq!([1, 2].map(|failed| pause(failed, 1.0)), [250, 500]);
        assert!((0.0..=1.0).contains(&random()));
    }

    /// Both forms of the header are understood; a time in the past means now.
    #[test]
    fn the_registry_is_given_the_time_it_asks_for() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let asked = |value: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            retry_after(&headers, now).map(|time| time.as_secs())
        };
        assert_eq!(asked("120"), Some(120));
        assert_eq!(asked("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(asked("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(asked("soon"), None);
    }
}
