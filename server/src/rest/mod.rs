//! The REST API as [`api`](crate::api) documents it: requests in, answers out, nothing decided here.

mod builds;
mod containers;
mod document;
mod files;
mod images;
mod leases;
mod logs;
mod networks;
mod streams;

pub(crate) use streams::PROTOCOL as FRAMES;

use crate::fixtures::Session;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde::Serialize;
use shakedown_spec::{Failure, FailureKind};
use std::sync::Arc;

/// Every route.
pub(crate) fn router(session: &Arc<Session>) -> Router {
    Router::new()
        .route("/v1/info", get(leases::info))
        .route("/v1/leases", post(leases::grant))
        .route("/v1/leases/{id}", delete(leases::give_back))
        .route("/v1/session", delete(end))
        .route("/v1/session/references", get(leases::references))
        .route("/v1/builds", post(builds::build))
        .route("/v1/containers", get(containers::list).post(containers::start))
        .route("/v1/containers/{id}", get(containers::state).delete(containers::remove))
        .route("/v1/containers/{id}/stop", post(containers::stop))
        .route("/v1/containers/{id}/start", post(containers::start_again))
        .route("/v1/containers/{id}/restart", post(containers::restart))
        .route("/v1/containers/{id}/pause", post(containers::pause))
        .route("/v1/containers/{id}/unpause", post(containers::unpause))
        .route("/v1/containers/{id}/kill", post(containers::kill))
        .route("/v1/containers/{id}/exit", get(containers::exit))
        .route("/v1/containers/{id}/logs", get(logs::logs))
        .route("/v1/containers/{id}/stats", get(containers::stats))
        .route("/v1/containers/{id}/exec", post(containers::exec))
        .route("/v1/containers/{id}/exec/stream", post(streams::exec))
        .route("/v1/containers/{id}/attach", post(streams::attach))
        .route("/v1/containers/{id}/files", get(files::copy_out).put(files::copy_in))
        .route("/v1/containers/{id}/commit", post(images::commit))
        .route("/v1/containers/{id}/networks", post(networks::join).delete(networks::leave))
        .route("/v1/networks", get(networks::list))
        .route("/v1/images", get(images::list).post(images::resolve).delete(images::remove))
        .route("/v1/images/tag", post(images::tag))
        .route("/v1/images/push", post(images::push))
        .route("/v1/images/save", post(images::save))
        .route("/v1/images/load", post(images::load))
        .route("/v1/images/import", post(images::import))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(Arc::clone(session))
}

async fn end(State(session): State<Arc<Session>>) -> Result<StatusCode, Refusal> {
    if session.end().await {
        return Ok(StatusCode::NO_CONTENT);
    }
    let failure = Failure::new(FailureKind::Other, "something of the session could not be removed")
        .hint("the next session tries again; `shakedown doctor` says whether the driver works");
    Err(failure.into())
}

async fn no_route(method: Method, uri: Uri) -> Refusal {
    let title = format!("there is no {method} {}", uri.path());
    Refusal(StatusCode::NOT_FOUND, Failure::new(FailureKind::Invalid, title))
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    let title = format!("{} cannot be asked with {method}", uri.path());
    Refusal(StatusCode::METHOD_NOT_ALLOWED, Failure::new(FailureKind::Invalid, title))
}

/// A failure on its way to the client.
#[derive(Debug)]
pub(crate) struct Refusal(StatusCode, Failure);

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(status(failure.kind), failure)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        answer(self.0, &self.1)
    }
}

/// The status for a kind of failure. 424 (failed dependency) is the service's fault, 5xx the keeper's or the machine's.
fn status(kind: FailureKind) -> StatusCode {
    match kind {
        FailureKind::Invalid => StatusCode::BAD_REQUEST,
        FailureKind::ImageNotFound | FailureKind::NoSuchContainer | FailureKind::PortNotDeclared => {
            StatusCode::NOT_FOUND
        }
        FailureKind::NotReady
        | FailureKind::ExitedEarly
        | FailureKind::OutOfMemory
        | FailureKind::ImageUnusable
        | FailureKind::LaunchFailed
        | FailureKind::CopyFailed
        | FailureKind::ExecFailed => StatusCode::FAILED_DEPENDENCY,
        FailureKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        FailureKind::NoDriver | FailureKind::SessionLost => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An answer with a JSON body.
pub(crate) fn answer(status: StatusCode, body: &impl Serialize) -> Response {
    // The types of `api` have no maps with keys that are no strings, the only thing that could fail here.
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    (status, [(CONTENT_TYPE, "application/json")], Body::from(bytes)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client in another language sees from the status whose fault it was.
    #[test]
    fn the_status_says_whose_fault_it_was() {
        assert_eq!(status(FailureKind::Invalid), 400);
        assert_eq!(status(FailureKind::ImageNotFound), 404);
        assert_eq!(status(FailureKind::NotReady), 424);
        assert_eq!(status(FailureKind::Unsupported), 501);
        assert_eq!(status(FailureKind::NoDriver), 503);
        assert_eq!(status(FailureKind::Other), 500);
    }
}
