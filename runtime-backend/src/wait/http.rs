//! An HTTP request over the driver's own connection: no port has to be published for it.

use super::Poll;
use super::plan::Matcher;
use crate::driver::{Driver, Socket};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use shakedown_spec::HttpCheck;

/// A health page is short; a larger answer is searched as far as this.
const LONGEST_BODY: usize = 1 << 20;

/// Asks once.
pub(super) async fn ask(
    driver: &dyn Driver,
    id: &str,
    port: u16,
    check: &HttpCheck,
    response: Option<&Matcher>,
) -> Poll {
    let socket = match driver.connect(id, port).await {
        Ok(socket) => socket,
        Err(error) => return Poll::NotYet(error.to_string()),
    };
    let request = match request(check, port) {
        Ok(request) => request,
        Err(error) => return Poll::Never(format!("the request cannot be sent: {error}")),
    };
    match exchange(socket, request, response.is_some()).await {
        Ok((status, _)) if !accepted(check, status) => Poll::NotYet(format!("the answer is {status}")),
        Ok((status, body)) if response.is_some_and(|pattern| !pattern.is_in(&body)) => {
            Poll::NotYet(format!("the answer is {status}, without the expected text"))
        }
        Ok(_) => Poll::Ready(()),
        Err(reason) => Poll::NotYet(reason),
    }
}

fn accepted(check: &HttpCheck, status: StatusCode) -> bool {
    match &check.status[..] {
        [] => (200..400).contains(&status.as_u16()),
        list => list.contains(&status.as_u16()),
    }
}

fn request(check: &HttpCheck, port: u16) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let path = if check.path.starts_with('/') { check.path.clone() } else { format!("/{}", check.path) };
    let mut request = Request::builder().method(check.method.as_str()).uri(path);
    let named =
        |name: header::HeaderName| check.headers.keys().any(|key| key.eq_ignore_ascii_case(name.as_str()));
    if !named(header::HOST) {
        request = request.header(header::HOST, format!("localhost:{port}"));
    }
    if !named(header::CONNECTION) {
        request = request.header(header::CONNECTION, "close");
    }
    for (name, value) in &check.headers {
        request = request.header(name, value);
    }
    request.body(Full::new(Bytes::from(check.body.clone().unwrap_or_default())))
}

async fn exchange(
    socket: Box<dyn Socket>,
    request: Request<Full<Bytes>>,
    want_body: bool,
) -> Result<(StatusCode, Bytes), String> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(socket)).await.map_err(|error| words(&error))?;
    let answer = async {
        let response: Response<_> = sender.send_request(request).await.map_err(|error| words(&error))?;
        let status = response.status();
        if !want_body {
            return Ok((status, Bytes::new()));
        }
        let body = Limited::new(response.into_body(), LONGEST_BODY).collect().await;
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    };
    // The connection is driven by this task alone, and ends with it.
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match answer.await {
            Ok(answer) => Ok(answer),
            Err(reason) => Err(ended.err().map_or(reason, |error| words(&error))),
        },
    }
}

/// hyper's words, in those of a network user where they are about the connection.
fn words(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return "the connection was closed before an answer".to_owned();
    }
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    match source {
        Some(io) if io.kind() == std::io::ErrorKind::ConnectionReset => "the connection was reset".to_owned(),
        Some(io) => io.to_string(),
        None => format!("the answer is not HTTP: {error}"),
    }
}
