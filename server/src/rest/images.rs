//! Images: what is there, and their ways in and out.

use super::containers::bad_query;
use super::document::{Document, SMALL};
use super::{Refusal, answer};
use crate::api::{ImageName, ImageTag, ImagesToSave};
use crate::fixtures::Session;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;
use serde::Deserialize;
use shakedown_runtime::{ByteStream, Image, NewImage, Progress, SavedImage, tagged};
use shakedown_spec::{Failure, FailureKind, ImageReference, ImageSource, PullPolicy};
use std::io;
use std::sync::Arc;
use tokio_util::io::{ReaderStream, StreamReader};

pub(super) async fn list(State(session): State<Arc<Session>>) -> Result<Response, Refusal> {
    Ok(answer(StatusCode::OK, &session.driver()?.images().await?))
}

pub(super) async fn resolve(
    State(session): State<Arc<Session>>,
    Document(asked): Document<ImageName, SMALL>,
) -> Result<Response, Refusal> {
    let (_, image) = find(&session, &asked, asked.policy).await?;
    Ok(answer(StatusCode::OK, &image))
}

#[derive(Debug, Deserialize)]
pub(super) struct Named {
    image: String,
}

pub(super) async fn remove(
    State(session): State<Arc<Session>>,
    named: Result<Query<Named>, QueryRejection>,
) -> Result<StatusCode, Refusal> {
    let Query(Named { image }) = named.map_err(|error| bad_query(&error.body_text()))?;
    session.driver()?.remove_image(&source(&image)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn tag(
    State(session): State<Arc<Session>>,
    Document(asked): Document<ImageTag, SMALL>,
) -> Result<StatusCode, Refusal> {
    let name = tagged(&asked.name)?;
    let (_, image) = find(&session, &asked.image, PullPolicy::Missing).await?;
    session.driver()?.tag(&image, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn push(
    State(session): State<Arc<Session>>,
    Document(asked): Document<ImageTag, SMALL>,
) -> Result<StatusCode, Refusal> {
    let name = tagged(&asked.name)?;
    let (_, image) = find(&session, &asked.image, PullPolicy::Missing).await?;
    session.driver()?.push(&image, &name, quiet()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn save(
    State(session): State<Arc<Session>>,
    Document(asked): Document<ImagesToSave, SMALL>,
) -> Result<Response, Refusal> {
    let mut saved = Vec::new();
    for image in asked.images {
        let one = ImageName { lease: asked.lease.clone(), image, policy: PullPolicy::Missing };
        let (source, image) = find(&session, &one, PullPolicy::Missing).await?;
        let name = match source {
            ImageSource::Registry(name) | ImageSource::DockerDaemon(name) => Some(name),
            _ => None,
        };
        saved.push(SavedImage { image, name: name.filter(|name: &ImageReference| name.tag.is_some()) });
    }
    let archive = session.driver()?.save(&saved, asked.form).await?;
    Ok(([(CONTENT_TYPE, "application/x-tar")], Body::from_stream(ReaderStream::new(archive))).into_response())
}

pub(super) async fn load(State(session): State<Arc<Session>>, body: Body) -> Result<Response, Refusal> {
    let loaded = session.driver()?.load(stream(body), quiet()).await?;
    Ok(answer(StatusCode::OK, &loaded))
}

#[derive(Debug, Deserialize)]
pub(super) struct Import {
    name: Option<String>,
    message: Option<String>,
    author: Option<String>,
    /// One instruction a line.
    #[serde(default)]
    changes: String,
}

pub(super) async fn import(
    State(session): State<Arc<Session>>,
    import: Result<Query<Import>, QueryRejection>,
    body: Body,
) -> Result<Response, Refusal> {
    let Query(Import { name, message, author, changes }) =
        import.map_err(|error| bad_query(&error.body_text()))?;
    let changes = changes.lines().map(str::to_owned).collect();
    let new = NewImage { name, changes, message, author };
    let image = session.driver()?.import(stream(body), &new).await?;
    Ok(answer(StatusCode::CREATED, &image))
}

pub(super) async fn commit(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    Document(new): Document<NewImage, SMALL>,
) -> Result<Response, Refusal> {
    session.container(&id)?;
    let image = session.driver()?.commit(&id, &new).await?;
    Ok(answer(StatusCode::CREATED, &image))
}

/// The image, as the client's `shakedown.toml` and directory have it.
async fn find(
    session: &Arc<Session>,
    asked: &ImageName,
    policy: PullPolicy,
) -> Result<(ImageSource, Image), Failure> {
    crate::fixtures::image(session, &asked.lease, &asked.image, policy).await
}

fn source(image: &str) -> Result<ImageSource, Failure> {
    image.parse().map_err(|error| invalid(&error))
}

fn invalid(error: &shakedown_spec::ReferenceError) -> Failure {
    Failure::new(FailureKind::Invalid, error.to_string())
}

fn stream(body: Body) -> ByteStream {
    Box::pin(StreamReader::new(body.into_data_stream().map_err(io::Error::other)))
}

fn quiet() -> Progress {
    Arc::new(|_, _, _| {})
}
