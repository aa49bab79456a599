//! Builds.

use super::Refusal;
use super::document::{Document, LARGE};
use crate::api::{BuildBody, BuildLine};
use crate::fixtures::{self, Session};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use futures_util::stream;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Answers line by line; a client that goes away ends the build.
pub(super) async fn build(
    State(session): State<Arc<Session>>,
    Document(request): Document<BuildBody, LARGE>,
) -> Result<Response, Refusal> {
    // A lease that is not there is told by the status.
    session.lease(&request.lease)?;
    let (lines, heard) = unbounded_channel();
    let building: BoxFuture<'static, ()> = Box::pin(async move {
        let events = lines.clone();
        let progress = Arc::new(move |event| drop(events.send(BuildLine::Event(event))));
        let BuildBody { lease, build, names } = request;
        let last = match fixtures::build(&session, &lease, build, &names, progress).await {
            Ok(image) => BuildLine::Image(Box::new(image)),
            Err(failure) => BuildLine::Failure(failure),
        };
        // Nobody listens any more if this fails.
        drop(lines.send(last));
    });
    let body = Body::from_stream(stream::unfold((heard, Some(building)), next));
    Ok((StatusCode::OK, [(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

type Building = (UnboundedReceiver<BuildLine>, Option<BoxFuture<'static, ()>>);

/// The next line; the build goes on while it is waited for.
async fn next((mut heard, mut building): Building) -> Option<(Result<Bytes, Infallible>, Building)> {
    loop {
        let line = match &mut building {
            None => heard.recv().await,
            Some(future) => tokio::select! {
                biased;
                line = heard.recv() => line,
                () = future => {
                    building = None;
                    continue;
                }
            },
        };
        // The types of `api` have no maps with keys that are no strings, the only thing that could fail here.
        let mut bytes = serde_json::to_vec(&line?).unwrap_or_default();
        bytes.push(b'\n');
        return Some((Ok(Bytes::from(bytes)), (heard, building)));
    }
}
