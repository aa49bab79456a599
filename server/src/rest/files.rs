//! Files in and out of containers, as tar streams of any size.

use super::Refusal;
use super::containers::bad_query;
use crate::fixtures::Session;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;
use serde::Deserialize;
use shakedown_spec::{Failure, FailureKind};
use std::io;
use std::sync::Arc;
use tokio_util::io::{ReaderStream, StreamReader};

#[derive(Debug, Deserialize)]
pub(super) struct At {
    path: String,
}

fn path(at: Result<Query<At>, QueryRejection>) -> Result<String, Failure> {
    let Query(At { path }) = at.map_err(|error| bad_query(&error.body_text()))?;
    if path.starts_with('/') {
        return Ok(path);
    }
    Err(Failure::new(FailureKind::Invalid, format!("`{path}` is not an absolute path in the container"))
        .hint("begin the path with `/`"))
}

pub(super) async fn copy_in(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    at: Result<Query<At>, QueryRejection>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    session.container(&id)?;
    let tar = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    session.driver()?.copy_in(&id, &path(at)?, Box::pin(tar)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn copy_out(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    at: Result<Query<At>, QueryRejection>,
) -> Result<Response, Refusal> {
    session.container(&id)?;
    let tar = session.driver()?.copy_out(&id, &path(at)?).await?;
    Ok(([(CONTENT_TYPE, "application/x-tar")], Body::from_stream(ReaderStream::new(tar))).into_response())
}
