//! A blob on its way: goes on where it broke off, at the next host if need be.

use super::Registry;
use super::call::{Call, Reason, RegistryError};
use super::hosts::Host;
use super::retry::{Attempts, Pace};
use crate::native::image::manifest::Descriptor;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, RANGE};
use hyper::{Method, Response, StatusCode};
use std::collections::VecDeque;
use std::sync::Arc;

/// A blob as a stream of pieces. The bytes are not verified here.
pub(crate) struct BlobStream<'a> {
    registry: &'a Registry,
    hosts: VecDeque<Arc<Host>>,
    wanted: Descriptor,
    repository: String,
    open: Option<Open>,
    attempts: Option<Attempts>,
    received: u64,
    /// What `received` was when an attempt last counted as one that worked.
    milestone: u64,
    /// Whether the host gives parts; one that does it wrong is asked for the whole.
    gives_parts: bool,
    mirrors: Vec<String>,
    came_from_mirror: bool,
}

struct Open {
    call: Call,
    body: Incoming,
    pace: Pace,
    /// Bytes that are there already and come once more.
    skip: u64,
}

impl<'a> BlobStream<'a> {
    pub(super) fn new(
        registry: &'a Registry,
        hosts: Vec<Arc<Host>>,
        repository: &str,
        wanted: &Descriptor,
    ) -> Self {
        Self {
            registry,
            hosts: hosts.into(),
            wanted: wanted.clone(),
            repository: repository.to_owned(),
            open: None,
            attempts: None,
            received: 0,
            milestone: 0,
            gives_parts: true,
            mirrors: Vec::new(),
            came_from_mirror: false,
        }
    }

    /// Whether any of it is a mirror's: wrong bytes are then no fault of the registry.
    pub(crate) fn came_from_mirror(&self) -> bool {
        self.came_from_mirror
    }

    /// The next piece, or `None` at the end, when as many bytes came as were wanted.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let problem = match &mut self.open {
                None => match self.connect().await {
                    Ok(open) => {
                        self.open = Some(open);
                        continue;
                    }
                    Err(error) => error,
                },
                Some(open) => match open.pace.next(&open.call, &mut open.body).await {
                    Ok(Some(mut piece)) => {
                        let skipped = open.skip.min(piece.len() as u64);
                        open.skip -= skipped;
                        // `skipped` is at most the piece's length.
                        let _ = piece.split_to(usize::try_from(skipped).unwrap_or(piece.len()));
                        if piece.is_empty() {
                            continue;
                        }
                        self.count(piece.len() as u64);
                        return Ok(Some(piece));
                    }
                    Ok(None) if self.received >= self.wanted.size => return Ok(None),
                    // Where the end of the connection is the end of the answer, a break looks like this.
                    Ok(None) => open.call.error(Reason::Short),
                    Err(error) => error,
                },
            };
            self.open = None;
            self.overcome(problem).await?;
        }
    }

    fn count(&mut self, bytes: u64) {
        self.received += bytes;
        self.came_from_mirror |= self.hosts.front().is_some_and(|host| host.is_mirror);
        if self.received - self.milestone >= self.registry.connections.policy.least {
            self.milestone = self.received;
            if let Some(attempts) = &mut self.attempts {
                attempts.worked();
            }
        }
    }

    /// Lets the host rest, or turns to the next one.
    async fn overcome(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if matches!(error.reason, Reason::Range(_)) {
            self.gives_parts = false;
        }
        let Some(attempts) = &mut self.attempts else { return Err(error) };
        let Err(last) = attempts.after(error).await else { return Ok(()) };
        if self.hosts.len() > 1 {
            self.mirrors.push(last.short());
            self.hosts.pop_front();
            (self.attempts, self.gives_parts) = (None, true);
            return Ok(());
        }
        let received = Some((self.received, self.wanted.size));
        Err(RegistryError { received, mirrors: std::mem::take(&mut self.mirrors), ..last })
    }

    /// Asks for what is missing.
    async fn connect(&mut self) -> Result<Open, RegistryError> {
        let path = format!("blobs/{}", self.wanted.digest);
        let mut call = Call::new(Method::GET, &self.hosts[0], &self.repository, &path);
        if self.attempts.is_none() {
            self.attempts = Some(Attempts::new(&self.registry.connections.policy, &call));
        }
        let from = if self.gives_parts { self.received } else { 0 };
        if from > 0 {
            call = call.header(RANGE, &format!("bytes={from}-"));
        }
        let response = match self.registry.send(&call).await {
            Err(RegistryError { reason: Reason::Status { code: 416, .. }, .. }) if from > 0 => {
                return Err(call.error(Reason::Range(format!("there is nothing from byte {from} on"))));
            }
            other => other?,
        };
        let skip = self.skip(&call, &response, from)?;
        let (pace, body) = (self.registry.connections.pace(), response.into_body());
        Ok(Open { call, body, pace, skip })
    }

    /// How much of the answer is there already.
    fn skip(&self, call: &Call, response: &Response<Incoming>, from: u64) -> Result<u64, RegistryError> {
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let part = part(response.headers());
            if from > 0 && part == Some((from, self.wanted.size)) {
                return Ok(0);
            }
            let said = header(CONTENT_RANGE).unwrap_or("nothing").to_owned();
            return Err(
                call.error(Reason::Range(format!("asked for bytes from {from} on, it sends `{said}`")))
            );
        }
        match header(CONTENT_LENGTH).and_then(number) {
            Some(length) if length != self.wanted.size => Err(call.error(Reason::Size(length))),
            _ => Ok(self.received),
        }
    }
}

/// Where the part begins and how long the whole is: `bytes 5-9/10`.
fn part(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?;
    let (range, whole) = text.split_once('/')?;
    let (first, _last) = range.split_once('-')?;
    Some((first.parse().ok()?, whole.parse().ok()?))
}
