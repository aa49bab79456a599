//! Speaks to a registry: the OCI distribution protocol, which is Docker's `v2`.
//!
//! Plain HTTP goes to this machine alone; everything else is HTTPS, redirects and token servers included, so that no
//! password or token travels in the clear and no registry can make this machine call its own services.

use super::digest::Digest;
use super::manifest::{ACCEPTED, LARGEST_DOCUMENT};
use bytes::Bytes;
use docker_credential::DockerCredential;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, LOCATION, USER_AGENT, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use shakedown_spec::ImageReference;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How long a registry may say nothing at all.
const SILENCE: Duration = Duration::from_secs(30);
/// A side question must not hold up an answer.
const SIDE_QUESTION: Duration = Duration::from_secs(3);
const MOST_REDIRECTS: u32 = 5;
/// The most that is read of a token or an error, as containers/image has it.
const LARGEST_ANSWER: u64 = 1 << 20;

type TlsClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// The client side of all registries.
pub(crate) struct Registry {
    plain: Client<HttpConnector, Empty<Bytes>>,
    /// Made when it is first needed: reading the system's certificates takes long.
    tls: OnceLock<Result<TlsClient, String>>,
    docker_config: Option<PathBuf>,
    /// `Authorization` values that worked, by registry and repository.
    granted: Mutex<HashMap<String, String>>,
}

/// Why a registry did not give what was asked for.
#[derive(Debug)]
pub(crate) struct RegistryError {
    /// Scheme, host and port.
    pub(crate) registry: String,
    pub(crate) request: String,
    pub(crate) reason: Reason,
}

#[derive(Debug)]
pub(crate) enum Reason {
    /// No connection, or it broke.
    Connection { reason: String, refused: bool },
    /// Nothing came for [`SILENCE`].
    Silent,
    /// An answer that is no success, with the registry's own words.
    Status { code: u16, words: String, authenticated: bool },
    /// An answer that breaks the protocol.
    Protocol(String),
}

/// A manifest or index as the registry gave it.
pub(crate) struct FetchedManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
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

/// Token servers use either name, or both.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    /// A client that finds passwords in this Docker configuration file.
    pub(crate) fn new(docker_config: Option<PathBuf>) -> Self {
        let plain = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self { plain, tls: OnceLock::new(), docker_config, granted: Mutex::default() }
    }

    /// A manifest or index by tag or digest.
    pub(crate) async fn manifest(
        &self,
        image: &ImageReference,
        selector: &str,
    ) -> Result<FetchedManifest, RegistryError> {
        let call = Call::new(Method::GET, image, &format!("manifests/{selector}"));
        let response = self.send(&call).await?;
        let claimed = content_digest(response.headers());
        let bytes = collect(&call, response.into_body(), LARGEST_DOCUMENT).await?;
        let digest = Digest::of(&bytes);
        // Asked for by digest, the digest decides; otherwise what the registry claims has to be true.
        let expected = selector.parse().ok().or(claimed).unwrap_or(digest);
        if expected != digest {
            return Err(call.protocol(format!("the manifest's digest is {digest}, not {expected}")));
        }
        Ok(FetchedManifest { bytes, digest })
    }

    /// Which manifest a tag means now, if the registry says so.
    pub(crate) async fn current(&self, image: &ImageReference) -> Result<Option<Digest>, RegistryError> {
        let call = Call::new(Method::HEAD, image, &format!("manifests/{}", image.selector()));
        Ok(content_digest(self.send(&call).await?.headers()))
    }

    /// A blob as a stream of pieces.
    pub(crate) async fn blob(
        &self,
        image: &ImageReference,
        digest: Digest,
    ) -> Result<BlobStream, RegistryError> {
        let call = Call::new(Method::GET, image, &format!("blobs/{digest}"));
        let body = self.send(&call).await?.into_body();
        Ok(BlobStream { call, body })
    }

    /// The tags of a repository, as far as the registry tells at once.
    pub(crate) async fn tags(&self, image: &ImageReference) -> Vec<String> {
        let call = Call::new(Method::GET, image, "tags/list?n=1000");
        let ask = async {
            let body = self.send(&call).await?.into_body();
            let bytes = collect(&call, body, LARGEST_ANSWER).await?;
            let tags: Option<Tags> = serde_json::from_slice(&bytes).ok();
            Ok::<_, RegistryError>(tags.and_then(|tags| tags.tags).unwrap_or_default())
        };
        timeout(SIDE_QUESTION, ask).await.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Sends a request, with what the registry demands to know about the caller.
    async fn send(&self, call: &Call) -> Result<Response<Incoming>, RegistryError> {
        let granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner).get(&call.scope).cloned();
        let response = self.follow(call, granted.as_deref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return success(call, response, granted.is_some()).await;
        }
        let challenges = challenges(response.headers());
        let credential = self.credential(call).await;
        let Some(authorization) = self.authorize(call, &challenges, credential.as_ref()).await? else {
            return success(call, response, false).await;
        };
        let response = self.follow(call, Some(&authorization)).await?;
        let response = success(call, response, credential.is_some()).await?;
        self.granted.lock().unwrap_or_else(PoisonError::into_inner).insert(call.scope.clone(), authorization);
        Ok(response)
    }

    /// Follows redirects. The next host does not get what was meant for this one.
    async fn follow(
        &self,
        call: &Call,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let (mut uri, mut authorization) = (call.uri.clone(), authorization);
        for _ in 0..=MOST_REDIRECTS {
            let response = self.request(call, &uri, authorization).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| join(&uri, location));
            let Some(next) = next else { return Err(call.protocol("a redirect leads nowhere".to_owned())) };
            if next.authority() != uri.authority() {
                authorization = None;
            }
            uri = next;
        }
        Err(call.protocol(format!("it redirects more than {MOST_REDIRECTS} times")))
    }

    async fn request(
        &self,
        call: &Call,
        uri: &Uri,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut request = Request::builder().method(&call.method).uri(uri).header(USER_AGENT, "shakedown");
        if call.wants_manifest {
            request = request.header(ACCEPT, ACCEPTED);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::new()).map_err(|error| call.protocol(error.to_string()))?;
        let secure = uri.scheme_str() == Some("https");
        let stays_here = call.loopback && is_loopback(uri);
        if !secure && !stays_here {
            return Err(call.protocol(format!("it sends to `{uri}`, which is not encrypted")));
        }
        let answer = async {
            if secure { self.tls(call)?.request(request).await } else { self.plain.request(request).await }
                .map_err(|error| call.connection(&error))
        };
        timeout(SILENCE, answer).await.unwrap_or_else(|_elapsed| Err(call.error(Reason::Silent)))
    }

    fn tls(&self, call: &Call) -> Result<&TlsClient, RegistryError> {
        let client = self.tls.get_or_init(|| {
            // Named, because a process where two providers are compiled in has no default one.
            let provider = rustls::crypto::ring::default_provider();
            let builder = hyper_rustls::HttpsConnectorBuilder::new().with_provider_and_native_roots(provider);
            let builder =
                builder.map_err(|error| format!("the system's certificates cannot be read: {error}"))?;
            let connector = builder.https_only().enable_http1().build();
            Ok(Client::builder(TokioExecutor::new()).build(connector))
        });
        client
            .as_ref()
            .map_err(|reason| call.error(Reason::Connection { reason: reason.clone(), refused: false }))
    }

    async fn authorize(
        &self,
        call: &Call,
        challenges: &[Challenge],
        credential: Option<&DockerCredential>,
    ) -> Result<Option<String>, RegistryError> {
        let basic = credential.and_then(|credential| match credential {
            DockerCredential::UsernamePassword(user, password) => Some(basic(user, password)),
            // The refresh token of `docker login` by browser needs the oauth2 grant, which is not spoken here.
            DockerCredential::IdentityToken(_) => None,
        });
        if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
            return self.token(call, bearer, basic.as_deref()).await.map(Some);
        }
        Ok(basic.filter(|_| challenges.iter().any(|challenge| challenge.scheme == "basic")))
    }

    async fn token(
        &self,
        call: &Call,
        challenge: &Challenge,
        basic: Option<&str>,
    ) -> Result<String, RegistryError> {
        let parameter = |name: &str| challenge.parameters.get(name);
        let Some(realm) = parameter("realm") else {
            return Err(call.protocol("it asks for a token and does not say from where".to_owned()));
        };
        let mut address = format!("{realm}{}", if realm.contains('?') { '&' } else { '?' });
        for name in ["service", "scope"] {
            if let Some(value) = parameter(name) {
                address.push_str(&format!("{name}={}&", escaped(value)));
            }
        }
        let uri = address.trim_end_matches('&').parse();
        let uri: Uri =
            uri.map_err(|_error| call.protocol(format!("its token server `{realm}` is no address")))?;
        let side = Call { method: Method::GET, wants_manifest: false, uri: uri.clone(), ..call.clone() };
        let response = success(&side, self.request(&side, &uri, basic).await?, basic.is_some()).await?;
        let bytes = collect(&side, response.into_body(), LARGEST_ANSWER).await?;
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|error| call.protocol(format!("its token server's answer is no token: {error}")))?;
        let token = token.token.or(token.access_token);
        let token =
            token.ok_or_else(|| call.protocol("its token server answers without a token".to_owned()))?;
        Ok(format!("Bearer {token}"))
    }

    /// What the user's Docker configuration has for this registry.
    async fn credential(&self, call: &Call) -> Option<DockerCredential> {
        let path = self.docker_config.clone()?;
        let names = match call.registry.as_str() {
            "docker.io" => {
                vec!["https://index.docker.io/v1/".to_owned(), "index.docker.io".into(), "docker.io".into()]
            }
            other => vec![other.to_owned(), format!("https://{other}"), format!("http://{other}")],
        };
        let found = tokio::task::spawn_blocking(move || {
            let text = std::fs::read(path).ok()?;
            names.iter().find_map(|name| docker_credential::get_credential_from_reader(&text[..], name).ok())
        });
        // A credential helper is a program of the user's and may hang.
        timeout(SILENCE, found).await.ok()?.ok()?
    }
}

/// A blob on its way.
pub(crate) struct BlobStream {
    call: Call,
    body: Incoming,
}

impl BlobStream {
    /// The next piece, or `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        next_data(&self.call, &mut self.body).await
    }
}

async fn next_data(call: &Call, body: &mut Incoming) -> Result<Option<Bytes>, RegistryError> {
    loop {
        let frame = timeout(SILENCE, body.frame()).await.map_err(|_elapsed| call.error(Reason::Silent))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(call.connection(&error)),
            // Trailers say nothing here.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

async fn collect(call: &Call, mut body: Incoming, most: u64) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    while let Some(data) = next_data(call, &mut body).await? {
        bytes.extend_from_slice(&data);
        if bytes.len() as u64 > most || body.size_hint().lower() > most {
            return Err(call.protocol(format!("its answer is longer than {most} bytes")));
        }
    }
    Ok(bytes)
}

async fn success(
    call: &Call,
    response: Response<Incoming>,
    authenticated: bool,
) -> Result<Response<Incoming>, RegistryError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let code = response.status().as_u16();
    let bytes = collect(call, response.into_body(), LARGEST_ANSWER).await.unwrap_or_default();
    let words = match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(body) => body.errors.iter().map(|item| format!("{}: {}", item.code, item.message)).collect(),
        Err(_other_form) => Vec::new(),
    };
    Err(call.error(Reason::Status { code, words: words.join("; "), authenticated }))
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// One request, and what its errors say about it.
#[derive(Clone, Debug)]
struct Call {
    method: Method,
    uri: Uri,
    registry: String,
    loopback: bool,
    wants_manifest: bool,
    scope: String,
}

impl Call {
    fn new(method: Method, image: &ImageReference, path: &str) -> Self {
        let loopback = image.is_loopback();
        let host = if image.registry == "docker.io" { "registry-1.docker.io" } else { &image.registry };
        let scheme = if loopback { "http" } else { "https" };
        // A reference has been checked to be made of characters that an address may have.
        let uri = format!("{scheme}://{host}/v2/{}/{path}", image.repository).parse().unwrap_or_default();
        let scope = format!("{}/{}", image.registry, image.repository);
        let wants_manifest = path.starts_with("manifests/");
        Self { method, uri, registry: image.registry.clone(), loopback, wants_manifest, scope }
    }

    fn error(&self, reason: Reason) -> RegistryError {
        let origin = |uri: &Uri| {
            format!("{}://{}", uri.scheme_str().unwrap_or("?"), uri.authority().map_or("?", |a| a.as_str()))
        };
        let request = format!("{} {}", self.method, self.uri.path());
        RegistryError { registry: origin(&self.uri), request, reason }
    }

    fn protocol(&self, reason: String) -> RegistryError {
        self.error(Reason::Protocol(reason))
    }

    /// The innermost cause says it best: "connection refused", "invalid peer certificate".
    fn connection(&self, error: &(dyn std::error::Error + 'static)) -> RegistryError {
        let mut cause = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let io = cause.downcast_ref::<std::io::Error>();
        let refused = io.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
        let reason = io.map_or_else(|| cause.to_string(), super::failures::plain);
        self.error(Reason::Connection { reason, refused })
    }
}

struct Challenge {
    scheme: String,
    parameters: HashMap<String, String>,
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    values.map(challenge).collect()
}

/// `Bearer realm="https://…",service="…",scope="a,b"`.
fn challenge(text: &str) -> Challenge {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let mut parameters = HashMap::new();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        parameters.insert(name.trim_matches([',', ' ']).to_ascii_lowercase(), value.to_owned());
        rest = left;
    }
    Challenge { scheme: scheme.to_ascii_lowercase(), parameters }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn join(base: &Uri, location: &str) -> Option<Uri> {
    if !location.starts_with('/') || location.starts_with("//") {
        return location.parse().ok().filter(|uri: &Uri| uri.scheme().is_some() && uri.authority().is_some());
    }
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(location.parse().ok()?);
    Uri::from_parts(parts).ok()
}

fn is_loopback(uri: &Uri) -> bool {
    let Some(host) = uri.host() else { return false };
    host == "localhost"
        || host.ends_with(".localhost")
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The challenge of Docker Hub is understood, commas within quotes included.
    #[test]
    fn challenges_are_read() {
        let read = challenge(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(read.scheme, "bearer");
        assert_eq!(read.parameters["realm"], "https://auth.docker.io/token");
        assert_eq!(read.parameters["scope"], "repository:a/b:pull,push");
        assert_eq!(challenge("Basic realm=registry, charset=UTF-8").parameters["charset"], "UTF-8");
        assert_eq!(challenge("Negotiate").scheme, "negotiate");
    }

    /// A redirect may leave the host; it may not lose the scheme.
    #[test]
    fn redirects_are_resolved() {
        let base: Uri = "https://ghcr.io/v2/a/blobs/x".parse().unwrap();
        assert_eq!(join(&base, "/other?y=1").unwrap(), "https://ghcr.io/other?y=1");
        assert_eq!(join(&base, "https://cdn.example/x").unwrap(), "https://cdn.example/x");
        assert!(join(&base, "//cdn.example/x").is_none());
        assert!(join(&base, "relative").is_none());
    }
}
