//! `ADD` of an address: what a web server has there.

use super::Builder;
use super::written::Written;
use crate::build::dockerfile::ast::Instruction;
use crate::build::step::Origin;
use crate::driver::Result;
use crate::native::image::{Hasher, Limits};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::header::{ACCEPT, HeaderMap, LAST_MODIFIED, LOCATION, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use shakedown_spec::FailureKind;
use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

/// As many as browsers follow.
const MOST_REDIRECTIONS: usize = 10;
/// How long nothing may come.
const STALL: Duration = Duration::from_secs(60);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(20);

impl Builder<'_> {
    /// Fetches `address` into `directory`, under the last part of its path.
    pub(super) async fn fetch(
        &self,
        address: &str,
        checksum: Option<&str>,
        directory: &mut Written,
        about: &Instruction,
    ) -> Result<()> {
        let failed = |reason: String| {
            let message = format!("`{address}` could not be fetched");
            self.broken(about, FailureKind::CopyFailed, &message).fact("reason", reason)
        };
        if self.offline() {
            return Err(failed("nothing is fetched offline".to_owned()));
        }
        let uri: Uri = address.parse().map_err(|error| failed(format!("it is no address: {error}")))?;
        let name = uri.path().rsplit('/').next().filter(|name| !name.is_empty());
        let name =
            name.ok_or_else(|| failed("its path ends with no name for the file".to_owned()))?.to_owned();
        let response = get(uri).await.map_err(&failed)?;
        let modified = modified(response.headers());
        let mut file = directory.create(&name, 0o600).map_err(|error| self.storing(&error))?;
        let mut hasher = Hasher::new();
        let mut body = response.into_body();
        let (mut got, most) = (0, Limits::default().bytes);
        while let Some(frame) = in_time(body.frame()).await.map_err(&failed)? {
            let frame = frame.map_err(|error| failed(format!("it broke off: {error}")))?;
            let Some(bytes) = frame.data_ref() else { continue };
            got += bytes.len() as u64;
            if got > most {
                return Err(failed(format!("it is larger than {most} bytes")));
            }
            hasher.update(bytes);
            file.write_all(bytes).map_err(|error| self.storing(&error))?;
        }
        let digest = hasher.finish().to_string();
        if let Some(wanted) = checksum.filter(|wanted| *wanted != digest) {
            return Err(failed("it is not what the Dockerfile says".to_owned())
                .fact("wanted", wanted)
                .fact("got", digest));
        }
        file.set_modified(modified).map_err(|error| self.storing(&error))
    }

    /// Whether the base images of the build may not be fetched; then nothing else may.
    fn offline(&self) -> bool {
        self.plan.bases.iter().any(|base| match base {
            Origin::Image(name) => self.request.base(name).is_ok_and(|wanted| wanted.offline),
            _ => false,
        })
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> std::result::Result<T, String> {
    let late = |_| format!("nothing came for {} seconds", STALL.as_secs());
    tokio::time::timeout(STALL, work).await.map_err(late)
}

async fn get(mut uri: Uri) -> std::result::Result<Response<hyper::body::Incoming>, String> {
    let mut plain = HttpConnector::new();
    plain.enforce_http(false);
    plain.set_connect_timeout(Some(CONNECT));
    // Named, because a process where two providers are compiled in has no default one.
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
        .map_err(|error| format!("the certificates of this machine cannot be read: {error}"))?
        .https_or_http()
        .enable_http1()
        .wrap_connector(plain);
    let client: Client<hyper_rustls::HttpsConnector<HttpConnector>, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build(connector);
    for _ in 0..MOST_REDIRECTIONS {
        let request = Request::get(uri.clone())
            .header(ACCEPT, "*/*")
            .header(USER_AGENT, concat!("shakedown/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        let response = in_time(client.request(request)).await?.map_err(|error| root_cause(&error))?;
        if !response.status().is_redirection() {
            let status = response.status();
            return if status.is_success() {
                Ok(response)
            } else {
                Err(format!("the server answered {status}"))
            };
        }
        let to = redirected(&uri, response.headers())?;
        if is_own(&to).await && !is_own(&uri).await {
            return Err(format!(
                "the server redirects to `{to}`, which is not the server's but this machine's"
            ));
        }
        uri = to;
    }
    Err(format!("it was redirected more than {MOST_REDIRECTIONS} times"))
}

fn redirected(from: &Uri, headers: &HeaderMap) -> std::result::Result<Uri, String> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or("the server redirects to nowhere")?;
    let whole = match (location.starts_with('/'), from.scheme_str(), from.authority()) {
        (true, Some(scheme), Some(authority)) => format!("{scheme}://{authority}{location}"),
        _ => location.to_owned(),
    };
    let to: Uri = whole.parse().map_err(|_| format!("the server redirects to `{location}`"))?;
    // What was asked for in secret is not told to everybody.
    if from.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
        return Err(format!("the server redirects to `{location}`, which is not encrypted"));
    }
    Ok(to)
}

/// Whether an address leads to this machine or what only this machine reaches, as the addresses do where clouds keep
/// the machine's secrets. A server elsewhere must not choose what is fetched from there.
async fn is_own(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let Ok(mut found) = tokio::net::lookup_host((host, 80)).await else { return false };
    found.any(|address| match address.ip().to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
    })
}

/// The time of the file is the server's, as far as it tells one.
fn modified(headers: &HeaderMap) -> std::time::SystemTime {
    let told = headers.get(LAST_MODIFIED).and_then(|value| value.to_str().ok());
    told.and_then(super::time::http_date).unwrap_or(std::time::SystemTime::UNIX_EPOCH)
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server elsewhere gets nobody to fetch what only this machine reaches.
    #[tokio::test]
    async fn own_addresses_are_known() {
        for own in [
            "http://127.0.0.1:8/x",
            "http://[::1]/x",
            "http://169.254.169.254/latest",
            "http://[::ffff:127.1.1.1]/",
            "http://localhost/",
            "http://0.0.0.0/",
        ] {
            assert!(is_own(&own.parse().unwrap()).await, "{own}");
        }
        for other in ["http://192.0.2.1/x", "https://[2001:db8::1]/x"] {
            assert!(!is_own(&other.parse().unwrap()).await, "{other}");
        }
    }

    /// Where two providers of TLS are compiled in, a connection is an error at most, and no panic.
    #[tokio::test]
    async fn a_closed_port_is_an_error() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = get(format!("http://127.0.0.1:{port}/x").parse().unwrap()).await.unwrap_err();
        insta::assert_snapshot!(error, @"Connection refused (os error 111)");
    }
}
