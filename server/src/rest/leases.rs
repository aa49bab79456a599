//! Leases: open connections.

use super::document::{Document, SMALL};
use super::{Refusal, answer};
use crate::api::{Info, Lease, LeaseGranted};
use crate::fixtures::{LeaseHold, Session};
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use std::convert::Infallible;
use std::sync::Arc;

/// Grants a lease. The answer's body does not end before the session does; dropping it takes the lease back.
pub(super) async fn grant(
    State(session): State<Arc<Session>>,
    Document(request): Document<Lease, SMALL>,
) -> Result<Response, Refusal> {
    let hold = session.grant(&request)?;
    let driver = session.driver()?;
    let granted = LeaseGranted {
        lease: hold.id.clone(),
        session: session.name.clone(),
        driver: driver.name().to_owned(),
        description: driver.description(),
        capabilities: driver.capabilities(),
    };
    let mut line = serde_json::to_vec(&granted).unwrap_or_default();
    line.push(b'\n');
    let body = Body::from_stream(held_open(hold, line.into(), session));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn held_open(
    hold: LeaseHold,
    line: Bytes,
    session: Arc<Session>,
) -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
    let ending = session.ending();
    let until_the_end = async move {
        ending.cancelled().await;
        drop(hold);
        None
    };
    stream::iter([Ok(line)]).chain(stream::once(until_the_end).filter_map(std::future::ready))
}

/// Takes a lease back and answers when nothing of it is left.
pub(super) async fn give_back(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    session.end_lease(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The references to images that containers were started from.
pub(super) async fn references(State(session): State<Arc<Session>>) -> Response {
    answer(StatusCode::OK, &session.used_references())
}

/// What the keeper is.
pub(super) async fn info(State(session): State<Arc<Session>>) -> Response {
    let driver = session.driver();
    let info = Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        session: session.name.clone(),
        pid: std::process::id(),
        driver: driver.as_ref().map_or(String::new(), |driver| driver.name().to_owned()),
        description: driver
            .as_ref()
            .map_or_else(|failure| failure.title.clone(), |driver| driver.description()),
        capabilities: driver.as_ref().map_or(Vec::new(), |driver| driver.capabilities()),
    };
    answer(StatusCode::OK, &info)
}
