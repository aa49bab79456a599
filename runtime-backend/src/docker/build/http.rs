//! The request of a build. bollard's own expects either the old builder's answers or a gRPC session.

use crate::docker::Endpoint;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::fmt::Write as _;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A connection of its own: it is closed with the answer, which ends the build in the daemon.
pub(super) async fn post(
    endpoint: &Endpoint,
    target: &str,
    body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Result<Answer, String> {
    let told = |error: io::Error| error.to_string();
    match endpoint {
        Endpoint::Unix(path) => {
            send(UnixStream::connect(path).await.map_err(told)?, "docker", target, body).await
        }
        Endpoint::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(told)?;
            send(stream, host, target, body).await
        }
    }
}

/// A daemon's answer, which goes on while it builds.
pub(super) struct Answer {
    response: Response<Incoming>,
    /// Drives the connection; ends with the answer.
    connection: tokio::task::JoinHandle<()>,
    rest: Vec<u8>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Answer {
    pub(super) fn refused(&self) -> bool {
        !self.response.status().is_success()
    }

    /// The next line; the last may have no end.
    pub(super) async fn line(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.rest.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            match self.response.body_mut().frame().await {
                Some(Ok(frame)) => self.rest.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(error.to_string()),
                None if self.rest.is_empty() => return Ok(None),
                None => return Ok(Some(std::mem::take(&mut self.rest))),
            }
        }
    }
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
    target: &str,
    body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Result<Answer, String> {
    let told = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(told)?;
    let connection = tokio::spawn(async move { drop(connection.await) });
    let body = BodyExt::boxed_unsync(StreamBody::new(body.map_ok(Frame::data)));
    let request = Request::post(target)
        .header("host", host)
        .header("content-type", "application/x-tar")
        .body(body)
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(told)?;
    Ok(Answer { response, connection, rest: Vec::new() })
}

/// `name=value&…`, encoded.
pub(super) fn query(pairs: &[(&str, String)]) -> String {
    let mut query = String::new();
    for (name, value) in pairs {
        if !query.is_empty() {
            query.push('&');
        }
        let _ = write!(query, "{name}=");
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    query.push(byte.into());
                }
                other => drop(write!(query, "%{other:02X}")),
            }
        }
    }
    query
}
