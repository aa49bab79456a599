//! Connections: accept, check who it is, serve, and an orderly end.

use super::Listening;
use crate::fixtures::Session;
use crate::rest;
use axum::body::Body;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use shakedown_spec::{Failure, FailureKind};
use std::convert::Infallible;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// How long a client may take to send the head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long answers that are under way at the end may take to be read. What they could still tell is that everything
/// is gone.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves until `end` resolves, then takes everything away. Whether nothing is left.
pub(super) async fn until(
    session: &Arc<Session>,
    Listening { listener, socket }: Listening,
    end: impl Future<Output = &'static str>,
) -> bool {
    let connections = TaskTracker::new();
    let bound = identity(&socket);
    let reason = tokio::select! {
        reason = end => reason,
        never = accept(session, &listener, &connections) => match never {},
    };
    super::note(&format!("the session ends: {reason}"));
    // The socket goes first: who connects from now on begins a new session instead of being refused by this one.
    drop(listener);
    // Somebody may have removed the directory meanwhile: then it is another keeper's.
    if bound.is_some() && identity(&socket) == bound {
        let _ = std::fs::remove_file(socket);
    }
    let clean = session.end().await;
    connections.close();
    // Clients that do not read their answers are cut off by the end of the runtime.
    let _ = timeout(FAREWELL, connections.wait()).await;
    clean
}

/// Which file is at this path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

async fn accept(session: &Arc<Session>, listener: &UnixListener, connections: &TaskTracker) -> Infallible {
    let router = rest::router(session);
    let own = rustix::process::geteuid();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) if peer.uid() == own.as_raw() || peer.uid() == 0 => {
                    connections.spawn(serve(stream, router.clone(), Arc::clone(session)));
                }
                Ok(peer) => super::note(&format!("refused a connection of user {}", peer.uid())),
                Err(error) => super::note(&format!("refused a connection of unknown origin: {error}")),
            },
            // Out of descriptors, usually. Yielding lets the requests that hold them go on.
            Err(error) => {
                super::note(&format!("accept: {error}"));
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn serve(stream: UnixStream, router: axum::Router, session: Arc<Session>) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = hyper::service::Service::call(&router, request);
        async move { AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| Ok(panicked())) }
    });
    // `half_close` stays off: a client that closes its side is gone, and hyper drops what it asked for.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ending = session.ending();
    // A connection that breaks is a client that went away; nobody is left to be told.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// The keeper lives on: it is the second owner of other tests' containers too.
fn panicked() -> Response<Body> {
    let failure = Failure::new(FailureKind::Other, "the session keeper panicked while it answered")
        .hint("this is a bug in shakedown; the keeper's log has the message");
    rest::answer(hyper::StatusCode::INTERNAL_SERVER_ERROR, &failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A bug in one handler does not end the keeper, on which every other test's containers depend.
    #[tokio::test]
    async fn a_panic_is_answered_and_the_connection_goes_on() {
        async fn panics() {
            panic!("as it should");
        }
        let router = axum::Router::new().route("/panics", axum::routing::get(panics));
        let session = Session::new(
            "orders".into(),
            Err(Failure::new(FailureKind::NoDriver, "none")),
            Overrides::default(),
        );
        let (mut client, server) = UnixStream::pair().unwrap();
        let serving = tokio::spawn(serve(server, router, session));
        let request = "GET /panics HTTP/1.1\r\nhost: x\r\n\r\nGET /panics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        assert_eq!(answers.matches("500 Internal Server Error").count(), 2, "{answers}");
        assert_eq!(answers.matches("the session keeper panicked while it answered").count(), 2, "{answers}");
        serving.await.unwrap();
    }
}
