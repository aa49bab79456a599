//! One request to a registry, and what its errors say about it.

use super::hosts::Host;
use crate::native::image::failures::plain;
use crate::native::image::unpacker::Blob;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Uri};
use std::error::Error;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How much of a file is sent at once.
const PIECE: usize = 256 << 10;

/// What is sent along.
pub(super) type Outgoing = UnsyncBoxBody<Bytes, io::Error>;

/// Why a registry did not give what was asked for.
#[derive(Debug)]
pub(crate) struct RegistryError {
    /// Scheme, host and port.
    pub(crate) registry: String,
    pub(crate) request: String,
    pub(crate) reason: Reason,
    /// How often it was asked for.
    pub(crate) attempts: u32,
    /// How much of a blob had come.
    pub(crate) received: Option<(u64, u64)>,
    /// What became of the mirrors that were asked before, a line each.
    pub(crate) mirrors: Vec<String>,
}

#[derive(Debug)]
pub(crate) enum Reason {
    /// No connection, or it broke. `lasting`: no further attempt can help.
    Connection { reason: String, refused: bool, lasting: bool },
    /// Nothing came for this long.
    Silent(Duration),
    /// Less came in this time than has to.
    Slow { bytes: u64, window: Duration },
    /// A blob ended early, without the connection breaking.
    Short,
    /// A blob has another length than its descriptor says.
    Size(u64),
    /// An answer that is no success, with the registry's own words.
    Status {
        code: u16,
        words: String,
        authenticated: bool,
        /// How long it asks to wait.
        wait: Option<Duration>,
        /// Why no password could be found out.
        trouble: Option<String>,
    },
    /// It answers with another part than was asked for.
    Range(String),
    /// An answer that breaks the protocol.
    Protocol(String),
}

impl RegistryError {
    /// Whether it may work the next time. What says "no" says so again.
    pub(super) fn is_temporary(&self) -> bool {
        match &self.reason {
            Reason::Connection { lasting, .. } => !lasting,
            Reason::Silent(_) | Reason::Slow { .. } | Reason::Short | Reason::Range(_) => true,
            Reason::Status { code, .. } => matches!(code, 408 | 429 | 500 | 502 | 503 | 504),
            Reason::Size(_) | Reason::Protocol(_) => false,
        }
    }

    /// In a line.
    pub(super) fn short(&self) -> String {
        format!("{}: {}", self.registry, self.reason)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connection { reason, .. } | Self::Range(reason) | Self::Protocol(reason) => {
                f.write_str(reason)
            }
            Self::Silent(time) => write!(f, "the registry said nothing for {time:?}"),
            Self::Slow { bytes, window } => write!(f, "only {bytes} bytes came in {window:?}"),
            Self::Short => f.write_str("it ended early"),
            Self::Size(size) => write!(f, "it has {size} bytes"),
            Self::Status { code, words, .. } if words.is_empty() => write!(f, "status {code}"),
            Self::Status { code, words, .. } => write!(f, "status {code}, {words}"),
        }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) host: Arc<Host>,
    pub(super) repository: String,
    /// `pull`, or `pull,push`.
    pub(super) actions: &'static str,
    /// A further scope that the token has to have.
    pub(super) also: Option<String>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) payload: Payload,
}

/// What goes with a request. It can be sent again.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    Nothing,
    Bytes(Bytes),
    /// The blob from this byte on; `sent` counts what was taken from it.
    Blob {
        blob: Blob,
        from: u64,
        sent: Arc<AtomicU64>,
    },
}

impl Call {
    /// A request for something of a repository.
    pub(super) fn new(method: Method, host: &Arc<Host>, repository: &str, path: &str) -> Self {
        // A reference has been checked to be made of characters that an address may have.
        let uri = host.address(repository, path).parse().unwrap_or_default();
        let (host, repository) = (Arc::clone(host), repository.to_owned());
        let (headers, payload) = (Vec::new(), Payload::Nothing);
        Self { method, uri, host, repository, actions: "pull", also: None, headers, payload }
    }

    /// The same for an address that the registry gave.
    pub(super) fn at(&self, method: Method, uri: Uri) -> Self {
        Self { method, uri, headers: Vec::new(), payload: Payload::Nothing, ..self.clone() }
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    pub(super) fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }

    /// Under this name tokens are kept.
    pub(super) fn scope(&self) -> String {
        format!("repository:{}:{}", self.repository, self.actions)
    }

    pub(super) fn error(&self, reason: Reason) -> RegistryError {
        let request = format!("{} {}", self.method, self.uri.path());
        let registry = self.host.origin();
        RegistryError { registry, request, reason, attempts: 1, received: None, mirrors: Vec::new() }
    }

    pub(super) fn protocol(&self, reason: impl Into<String>) -> RegistryError {
        self.error(Reason::Protocol(reason.into()))
    }

    /// The innermost cause says it best: "connection refused", "invalid peer certificate".
    pub(super) fn connection(&self, error: &(dyn Error + 'static)) -> RegistryError {
        let mut cause = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let io = cause.downcast_ref::<io::Error>();
        let refused = io.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        // An `io::Error` passes itself over when it names its source.
        let mut inner = cause;
        while let Some(wrapped) = inner.downcast_ref::<io::Error>().and_then(|error| error.get_ref()) {
            inner = wrapped;
        }
        let tls = inner.downcast_ref::<rustls::Error>();
        let lasting_tls = tls.is_some_and(|error| {
            matches!(error, rustls::Error::InvalidCertificate(_) | rustls::Error::InvalidMessage(_))
        });
        let reason = io.map_or_else(|| cause.to_string(), plain);
        // On this machine nothing is on its way up between two attempts that the user would not know of.
        let lasting = lasting_tls || (refused && self.host.is_loopback());
        self.error(Reason::Connection { reason, refused, lasting })
    }
}

impl Payload {
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Blob { blob, from, .. } => blob.length - from,
        }
    }

    /// How much was taken from it; it moves while a long one is sent.
    pub(super) fn sent(&self) -> u64 {
        match self {
            Self::Blob { sent, .. } => sent.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    pub(super) fn body(&self) -> Outgoing {
        match self {
            Self::Nothing => Empty::new().map_err(|never| match never {}).boxed_unsync(),
            Self::Bytes(bytes) => Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync(),
            Self::Blob { blob, from, sent } => {
                let part = Blob::part(Arc::clone(&blob.file), blob.offset + from, blob.length - from);
                let pieces =
                    stream::try_unfold((part.reader(), Arc::clone(sent)), |(reader, sent)| async move {
                        let reading = tokio::task::spawn_blocking(move || piece(reader));
                        let (reader, bytes) = reading.await.map_err(io::Error::other)??;
                        sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        Ok((!bytes.is_empty()).then(|| (Frame::data(bytes), (reader, sent))))
                    });
                StreamBody::new(pieces).boxed_unsync()
            }
        }
    }
}

fn piece<R: Read>(mut reader: R) -> io::Result<(R, Bytes)> {
    let mut buffer = vec![0; PIECE];
    let read = reader.read(&mut buffer)?;
    buffer.truncate(read);
    Ok((reader, buffer.into()))
}
