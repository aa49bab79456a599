//! Speaks to a registry: the OCI distribution protocol, which is Docker's `v2`.
//!
//! ```text
//! Registry::manifest, blob, push ──► hosts (mirrors, then the registry) ──► attempts (retry)
//!          ──► send (auth: token, password) ──► follow (client: redirects) ──► request (HTTP, TLS)
//! ```

mod auth;
mod blob;
mod call;
mod client;
mod hosts;
mod push;
mod retry;

use crate::credentials;
pub(crate) use blob::BlobStream;
pub(crate) use call::{Reason, RegistryError};
pub use credentials::Credentials;
pub(crate) use push::{Parcel, ParcelContent};

use super::digest::Digest;
use super::manifest::{ACCEPTED, Descriptor, LARGEST_DOCUMENT};
use super::options::{RegistriesConfig, RetryPolicy, StoreOptions};
use auth::Grants;
use call::Call;
use client::{Connections, LARGEST_ANSWER, content_digest};
use hosts::Host;
use hyper::Method;
use hyper::header::ACCEPT;
use retry::Attempts;
use serde::Deserialize;
use shakedown_spec::ImageReference;
use std::time::Duration;
use tokio::time::timeout;

/// A side question must not hold up an answer.
const SIDE_QUESTION: Duration = Duration::from_secs(3);

/// The client side of all registries.
pub(crate) struct Registry {
    connections: Connections,
    config: RegistriesConfig,
    credentials: Credentials,
    grants: Grants,
}

/// A manifest or index as the registry gave it.
pub(crate) struct FetchedManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
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
    /// A client.
    pub(crate) fn new(options: StoreOptions) -> Self {
        let StoreOptions { credentials, registries: config, retry } = options;
        Self { connections: Connections::new(retry), config, credentials, grants: Grants::default() }
    }

    /// A manifest or index by tag or digest, from the first host that gives it.
    pub(crate) async fn manifest(
        &self,
        image: &ImageReference,
        selector: &str,
    ) -> Result<FetchedManifest, RegistryError> {
        let mut hosts = Asking::new(self, image, Method::GET, selector);
        loop {
            match self.manifest_once(&hosts.call, selector).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => hosts.overcome(error).await?,
            }
        }
    }

    async fn manifest_once(&self, call: &Call, selector: &str) -> Result<FetchedManifest, RegistryError> {
        let response = self.send(call).await?;
        let claimed = content_digest(response.headers());
        let bytes = self.connections.pace().collect(call, response.into_body(), LARGEST_DOCUMENT).await?;
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
        let mut hosts = Asking::new(self, image, Method::HEAD, image.selector());
        loop {
            match self.send(&hosts.call).await {
                Ok(response) => return Ok(content_digest(response.headers())),
                Err(error) => hosts.overcome(error).await?,
            }
        }
    }

    /// A blob as a stream of pieces; without `mirrors`, from the registry itself.
    pub(crate) fn blob(&self, image: &ImageReference, wanted: &Descriptor, mirrors: bool) -> BlobStream<'_> {
        let hosts = if mirrors {
            Host::all(&image.registry, &self.config)
        } else {
            vec![Host::of(&image.registry, &self.config)]
        };
        BlobStream::new(self, hosts, &image.repository, wanted)
    }

    /// The tags of a repository, as far as the registry tells at once.
    pub(crate) async fn tags(&self, image: &ImageReference) -> Vec<String> {
        let host = Host::of(&image.registry, &self.config);
        let call = Call::new(Method::GET, &host, &image.repository, "tags/list?n=1000");
        let ask = async {
            let body = self.send(&call).await?.into_body();
            let bytes = self.connections.pace().collect(&call, body, LARGEST_ANSWER).await?;
            let tags: Option<Tags> = serde_json::from_slice(&bytes).ok();
            Ok::<_, RegistryError>(tags.and_then(|tags| tags.tags).unwrap_or_default())
        };
        timeout(SIDE_QUESTION, ask).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

/// A request for a manifest that goes from host to host.
struct Asking<'a> {
    policy: &'a RetryPolicy,
    call: Call,
    attempts: Attempts,
    rest: std::vec::IntoIter<Call>,
    mirrors: Vec<String>,
}

impl<'a> Asking<'a> {
    fn new(registry: &'a Registry, image: &ImageReference, method: Method, selector: &str) -> Self {
        let call = |host: &_| {
            let path = format!("manifests/{selector}");
            Call::new(method.clone(), host, &image.repository, &path).header(ACCEPT, ACCEPTED)
        };
        let hosts = Host::all(&image.registry, &registry.config);
        let mut rest = hosts.iter().map(call).collect::<Vec<_>>().into_iter();
        let policy = &registry.connections.policy;
        let call = rest.next().unwrap_or_else(|| call(&Host::of(&image.registry, &registry.config)));
        let attempts = Attempts::new(policy, &call);
        Self { policy, call, attempts, rest, mirrors: Vec::new() }
    }

    /// Lets the host rest, or turns to the next one.
    async fn overcome(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let Err(last) = self.attempts.after(error).await else { return Ok(()) };
        let Some(next) = self.rest.next() else {
            return Err(RegistryError { mirrors: std::mem::take(&mut self.mirrors), ..last });
        };
        self.mirrors.push(last.short());
        (self.attempts, self.call) = (Attempts::new(self.policy, &next), next);
        Ok(())
    }
}
