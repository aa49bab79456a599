//! Who is asking: challenges, token servers, and the answers that are still valid.

use super::Registry;
use super::call::{Call, Payload, RegistryError};
use super::client::LARGEST_ANSWER;
use super::credentials::{Credential, Found};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use hyper::{Method, Response, StatusCode, Uri};
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What a token without a date is good for, by the specification of Docker's token authentication.
const USUAL_LIFE: u64 = 60;
/// A token is not used for the last part of its life: the request takes time, too.
const MARGIN: Duration = Duration::from_secs(5);

/// `Authorization` values that are valid, by registry and scope.
#[derive(Default)]
pub(super) struct Grants {
    known: Mutex<HashMap<(String, String), Grant>>,
    /// Held by the one that asks for a new one; the others use its answer.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone, PartialEq)]
struct Grant {
    header: String,
    /// Whether there is a password or token of the user's behind it.
    authenticated: bool,
    until: Option<Instant>,
}

/// Token servers use either name, or both.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Grants {
    fn get(&self, call: &Call) -> Option<Grant> {
        let grants = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let grant = grants.get(&key(call))?;
        grant.until.is_none_or(|until| Instant::now() < until).then(|| grant.clone())
    }

    fn put(&self, call: &Call, grant: Grant) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key(call), grant);
    }
}

fn key(call: &Call) -> (String, String) {
    (call.host.origin(), format!("{} {}", call.scope(), call.also.as_deref().unwrap_or_default()))
}

impl Registry {
    /// Sends a request, with what the registry demands to know about the caller. A refusal after that is final.
    pub(super) async fn send(&self, call: &Call) -> Result<Response<Incoming>, RegistryError> {
        let granted = self.grants.get(call);
        let authenticated = granted.as_ref().is_some_and(|grant| grant.authenticated);
        let header = granted.as_ref().map(|grant| grant.header.as_str());
        let (response, own) = self.connections.follow(call, header).await?;
        // Another host's challenge is not answered: it would say where the password is to be sent (CVE-2020-15157).
        if response.status() != StatusCode::UNAUTHORIZED || !own {
            return self.connections.success(call, response, authenticated, None).await;
        }
        let challenges = challenges(response.headers());
        let (grant, trouble) = self.grant(call, &challenges, granted).await?;
        let Some(Grant { header, authenticated, .. }) = grant else {
            return self.connections.success(call, response, false, trouble).await;
        };
        let (response, _own) = self.connections.follow(call, Some(&header)).await?;
        self.connections.success(call, response, authenticated, trouble).await
    }

    /// What answers the challenges, other than `refused`; and what kept a password from being found out.
    async fn grant(
        &self,
        call: &Call,
        challenges: &[Challenge],
        refused: Option<Grant>,
    ) -> Result<(Option<Grant>, Option<String>), RegistryError> {
        let _asking = self.grants.asking.lock().await;
        let current = self.grants.get(call);
        if current.is_some() && current != refused {
            return Ok((current, None));
        }
        let Found { credential, trouble } = self.credentials.find(&call.host.name, &call.repository).await;
        let grant = self.authorize(call, challenges, credential.as_ref()).await?;
        if let Some(grant) = &grant {
            self.grants.put(call, grant.clone());
        }
        Ok((grant, trouble))
    }

    async fn authorize(
        &self,
        call: &Call,
        challenges: &[Challenge],
        credential: Option<&Credential>,
    ) -> Result<Option<Grant>, RegistryError> {
        let lasting = |header| Grant { header, authenticated: true, until: None };
        let wanted = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        if let Some(token @ Credential::RegistryToken(_)) = credential {
            return Ok(token.header().map(lasting));
        }
        if let Some(bearer) = wanted("bearer") {
            return self.token(call, bearer, credential).await.map(Some);
        }
        Ok(credential.and_then(Credential::header).filter(|_| wanted("basic").is_some()).map(lasting))
    }

    /// Exchanges what is known of the user, or nothing, for a token.
    async fn token(
        &self,
        call: &Call,
        challenge: &Challenge,
        credential: Option<&Credential>,
    ) -> Result<Grant, RegistryError> {
        let Some(realm) = challenge.parameters.get("realm") else {
            return Err(call.protocol("it asks for a token and does not say from where"));
        };
        let service = challenge.parameters.get("service");
        let own = call.scope();
        // A look before a push is challenged for looking only.
        let told = challenge.parameters.get("scope").filter(|_| call.actions == "pull");
        let scope = told.unwrap_or(&own);
        let scopes: Vec<&str> = [Some(scope.as_str()), call.also.as_deref()].into_iter().flatten().collect();
        let address = |query: &str| {
            let joint = if realm.contains('?') { '&' } else { '?' };
            let text = if query.is_empty() { realm.clone() } else { format!("{realm}{joint}{query}") };
            text.parse::<Uri>()
                .map_err(|_error| call.protocol(format!("its token server `{realm}` is no address")))
        };
        let side = match credential {
            // The OAuth 2 form, which a refresh token needs.
            Some(Credential::IdentityToken(token)) => {
                let mut form = "grant_type=refresh_token&client_id=shakedown".to_owned();
                let service = service.map_or("", String::as_str);
                for (name, value) in
                    [("service", service), ("scope", &scopes.join(" ")), ("refresh_token", token)]
                {
                    let _ = write!(form, "&{name}={}", escaped(value, b"-._~"));
                }
                call.at(Method::POST, address("")?)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .payload(Payload::Bytes(form.into()))
            }
            _ => {
                let service = service.map(|service| ("service", service.as_str()));
                let asked = service.into_iter().chain(scopes.into_iter().map(|scope| ("scope", scope)));
                let query: Vec<_> =
                    asked.map(|(name, value)| format!("{name}={}", escaped(value, b"-._~:/,"))).collect();
                call.at(Method::GET, address(&query.join("&"))?)
            }
        };
        let basic = credential.and_then(Credential::header);
        let response = self.connections.request(&side, &side.uri, basic.as_deref()).await?;
        let response = self.connections.success(&side, response, credential.is_some(), None).await?;
        let bytes = self.connections.pace().collect(&side, response.into_body(), LARGEST_ANSWER).await?;
        grant_of(call, &bytes, credential.is_some())
    }
}

fn grant_of(call: &Call, answer: &[u8], authenticated: bool) -> Result<Grant, RegistryError> {
    let token: Token = serde_json::from_slice(answer)
        .map_err(|error| call.protocol(format!("its token server's answer is no token: {error}")))?;
    let life = Duration::from_secs(token.expires_in.unwrap_or(USUAL_LIFE));
    let until = Instant::now().checked_add(life.saturating_sub(MARGIN));
    let token = token.token.filter(|token| !token.is_empty()).or(token.access_token);
    let token = token.ok_or_else(|| call.protocol("its token server answers without a token"))?;
    Ok(Grant { header: format!("Bearer {token}"), authenticated, until })
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

/// Percent-encoded but for letters, digits and these bytes.
pub(super) fn escaped(text: &str, also: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || also.contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
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
}
