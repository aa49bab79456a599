//! HTTP: connections, redirects, and what an answer that is no success means.
//!
//! Plain HTTP goes to this machine, and where it was declared, alone; everything else is HTTPS, redirects and token
//! servers included, so that no password or token travels in the clear and no registry can make this machine call its
//! own services.

use super::call::{Call, Outgoing, Reason, RegistryError};
use super::retry::{Pace, retry_after};
use crate::native::image::digest::Digest;
use crate::native::image::failures::plain;
use crate::native::image::options::RetryPolicy;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, LOCATION, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::time::timeout;

const MOST_REDIRECTS: u32 = 5;
/// The most that is read of a token or an error, as containers/image has it.
pub(super) const LARGEST_ANSWER: u64 = 1 << 20;

type TlsClient = Client<HttpsConnector<HttpConnector>, Outgoing>;

/// The connections to all registries.
pub(super) struct Connections {
    plain: Client<HttpConnector, Outgoing>,
    /// By the file of further authorities. Made when they are first needed: reading the system's certificates takes
    /// long.
    tls: Mutex<HashMap<Option<PathBuf>, Result<TlsClient, String>>>,
    pub(super) policy: RetryPolicy,
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
struct ErrorItem {
    code: String,
    #[serde(default)]
    message: String,
}

impl Connections {
    pub(super) fn new(policy: RetryPolicy) -> Self {
        let plain = Client::builder(TokioExecutor::new()).build(connector_for(&policy));
        Self { plain, tls: Mutex::default(), policy }
    }

    pub(super) fn pace(&self) -> Pace {
        Pace::new(&self.policy)
    }

    /// Follows redirects. The next host does not get what was meant for this one. Says whether the answer is the
    /// registry's own.
    pub(super) async fn follow(
        &self,
        call: &Call,
        authorization: Option<&str>,
    ) -> Result<(Response<Incoming>, bool), RegistryError> {
        let (mut uri, mut authorization) = (call.uri.clone(), authorization);
        for _ in 0..=MOST_REDIRECTS {
            // An upload's address, too, comes from the registry and may lead to another host.
            let own = call.host.is_at(&uri);
            authorization = authorization.filter(|_| own);
            let response = self.request(call, &uri, authorization).await?;
            if !redirects(&call.method, response.status()) {
                return Ok((response, own));
            }
            let next = location(&uri, response.headers());
            let Some(next) = next else { return Err(call.protocol("a redirect leads nowhere")) };
            // Back at the registry it is somebody else who sends there.
            authorization = authorization.filter(|_| call.host.is_at(&next));
            uri = next;
        }
        Err(call.protocol(format!("it redirects more than {MOST_REDIRECTS} times")))
    }

    /// One request and the head of its answer.
    pub(super) async fn request(
        &self,
        call: &Call,
        uri: &Uri,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let secure = uri.scheme_str() == Some("https");
        if !secure && !call.host.may_be_plain(uri) {
            return Err(call.protocol(format!("it sends to `{uri}`, which is not encrypted")));
        }
        let mut request = Request::builder().method(&call.method).uri(uri).header(USER_AGENT, "shakedown");
        if call.method != Method::GET && call.method != Method::HEAD {
            request = request.header(CONTENT_LENGTH, call.payload.length());
        }
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(call.payload.body()).map_err(|error| call.protocol(error.to_string()))?;
        let tls = if secure { Some(self.tls(call)?) } else { None };
        let answer = match tls {
            Some(tls) => tls.request(request),
            None => self.plain.request(request),
        };
        let mut answer = pin!(answer);
        loop {
            let sent = call.payload.sent();
            match timeout(self.policy.stall, &mut answer).await {
                Ok(answer) => return answer.map_err(|error| call.connection(&error)),
                // A long blob is on its way out, and moves.
                Err(_elapsed) if call.payload.sent() != sent => {}
                Err(_elapsed) => return Err(call.error(Reason::Silent(self.policy.stall))),
            }
        }
    }

    fn tls(&self, call: &Call) -> Result<TlsClient, RegistryError> {
        let mut clients = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        let client = clients
            .entry(call.host.ca.clone())
            .or_insert_with(|| tls_client(call.host.ca.as_deref(), &self.policy));
        client
            .clone()
            .map_err(|reason| call.error(Reason::Connection { reason, refused: false, lasting: true }))
    }

    /// The answer, if it is a success; otherwise what the registry says is the error.
    pub(super) async fn success(
        &self,
        call: &Call,
        response: Response<Incoming>,
        authenticated: bool,
        trouble: Option<String>,
    ) -> Result<Response<Incoming>, RegistryError> {
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let wait = retry_after(response.headers(), SystemTime::now());
        let bytes = self.pace().collect(call, response.into_body(), LARGEST_ANSWER).await.unwrap_or_default();
        let words = match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => body.errors.iter().map(|item| format!("{}: {}", item.code, item.message)).collect(),
            Err(_other_form) => Vec::new(),
        };
        Err(call.error(Reason::Status { code, words: words.join("; "), authenticated, wait, trouble }))
    }
}

fn connector_for(policy: &RetryPolicy) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(policy.stall));
    connector
}

fn tls_client(ca: Option<&Path>, policy: &RetryPolicy) -> Result<TlsClient, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        let wrong =
            |reason: String| format!("the certificates in `{}` cannot be used: {reason}", path.display());
        let pem = std::fs::read(path).map_err(|error| wrong(plain(&error)))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err("the system has no certificates; install `ca-certificates`".to_owned());
    }
    // Named, because a process where two providers are compiled in has no default one.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config =
        config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1();
    Ok(Client::builder(TokioExecutor::new()).build(connector.wrap_connector(connector_for(policy))))
}

/// What was sent has to be sent again only for the two statuses that say so.
fn redirects(method: &Method, status: StatusCode) -> bool {
    let reads = method == Method::GET || method == Method::HEAD;
    matches!(status.as_u16(), 307 | 308) || (reads && matches!(status.as_u16(), 301..=303))
}

/// Where an answer sends to.
pub(super) fn location(base: &Uri, headers: &HeaderMap) -> Option<Uri> {
    join(base, headers.get(LOCATION)?.to_str().ok()?)
}

fn join(base: &Uri, location: &str) -> Option<Uri> {
    let mut parts = base.clone().into_parts();
    if location.starts_with('/') && !location.starts_with("//") {
        parts.path_and_query = Some(location.parse().ok()?);
        return Uri::from_parts(parts).ok();
    }
    let next: Uri = location.parse().ok()?;
    if next.authority().is_some()
        && next.authority() == base.authority()
        && base.scheme_str() == Some("https")
    {
        // A registry behind a proxy that does its HTTPS often does not know of it.
        parts.path_and_query = next.into_parts().path_and_query;
        return Uri::from_parts(parts).ok();
    }
    (next.scheme().is_some() && next.authority().is_some()).then_some(next)
}

pub(super) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A redirect may leave the host; it may not lose the scheme.
    #[test]
    fn redirects_are_resolved() {
        let base: Uri = "https://ghcr.io/v2/a/blobs/x".parse().unwrap();
        assert_eq!(join(&base, "/other?y=1").unwrap(), "https://ghcr.io/other?y=1");
        assert_eq!(join(&base, "https://cdn.example/x").unwrap(), "https://cdn.example/x");
        assert_eq!(join(&base, "http://ghcr.io/x?y").unwrap(), "https://ghcr.io/x?y");
        assert!(join(&base, "//cdn.example/x").is_none());
        assert!(join(&base, "relative").is_none());
    }
}
