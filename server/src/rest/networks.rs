//! Networks.

use super::containers::bad_query;
use super::document::{Document, SMALL};
use super::{Refusal, answer};
use crate::fixtures::Session;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use shakedown_spec::Attachment;
use std::sync::Arc;

pub(super) async fn list(State(session): State<Arc<Session>>) -> Response {
    answer(StatusCode::OK, &session.list_networks())
}

pub(super) async fn join(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    Document(joined): Document<Attachment, SMALL>,
) -> Result<StatusCode, Refusal> {
    session.connect(&session.container(&id)?, joined).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
pub(super) struct Leave {
    network: String,
}

pub(super) async fn leave(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    leave: Result<Query<Leave>, QueryRejection>,
) -> Result<StatusCode, Refusal> {
    let Query(Leave { network }) = leave.map_err(|error| bad_query(&error.body_text()))?;
    session.disconnect(&session.container(&id)?, network).await?;
    Ok(StatusCode::NO_CONTENT)
}
