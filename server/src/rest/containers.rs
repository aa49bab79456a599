//! Containers.

use super::document::{Document, LARGE};
use super::{Refusal, answer};
use crate::api::{ExecBody, ExecResult, Start};
use crate::fixtures::{self, Instance, Session};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use shakedown_runtime::{Exec, ExecRequest};
use shakedown_spec::{Failure, FailureKind};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

pub(super) async fn list(State(session): State<Arc<Session>>) -> Response {
    let Ok(driver) = session.driver() else { return answer(StatusCode::OK, &[(); 0]) };
    let instances = session.containers();
    let states = instances.iter().map(|instance| instance.seen_by(&**driver));
    answer(StatusCode::OK, &futures_util::future::join_all(states).await)
}

pub(super) async fn start(
    State(session): State<Arc<Session>>,
    Document(request): Document<Start, LARGE>,
) -> Result<Response, Refusal> {
    let started = fixtures::start(&session, request).await?;
    Ok(answer(StatusCode::CREATED, &started))
}

pub(super) async fn state(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let state = session.container(&id)?.seen_by(&**session.driver()?).await;
    Ok(answer(StatusCode::OK, &state))
}

/// A container that is not there is what was asked for.
pub(super) async fn remove(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    if let Ok(instance) = session.container(&id) {
        session.remove(&instance).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn stop(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let instance = session.container(&id)?;
    Ok(answer(StatusCode::OK, &fixtures::stop(&session, &instance).await?))
}

pub(super) async fn start_again(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let instance = session.container(&id)?;
    Ok(answer(StatusCode::OK, &fixtures::start_again(&session, &instance).await?))
}

pub(super) async fn restart(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let instance = session.container(&id)?;
    Ok(answer(StatusCode::OK, &fixtures::restart(&session, &instance).await?))
}

pub(super) async fn pause(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    fixtures::pause(&session, &session.container(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn unpause(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    fixtures::unpause(&session, &session.container(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
pub(super) struct Kill {
    #[serde(default = "sigkill")]
    signal: String,
}

fn sigkill() -> String {
    "SIGKILL".to_owned()
}

pub(super) async fn kill(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    kill: Result<Query<Kill>, QueryRejection>,
) -> Result<StatusCode, Refusal> {
    let Query(kill) = kill.map_err(|error| bad_query(&error.body_text()))?;
    let instance = session.container(&id)?;
    // As Docker sees it: who kills it, or sends its stop signal, does not want it to be started again.
    if ["SIGKILL", "KILL", "9", instance.stop_signal()].contains(&kill.signal.as_str()) {
        instance.call_off();
    }
    session.driver()?.kill(&id, &kill.signal).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn exit(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let instance = session.container(&id)?;
    Ok(answer(StatusCode::OK, &instance.exited().await?))
}

pub(super) async fn stats(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    session.container(&id)?;
    Ok(answer(StatusCode::OK, &session.driver()?.usage(&id).await?))
}

pub(super) async fn exec(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    Document(body): Document<ExecBody, LARGE>,
) -> Result<Response, Refusal> {
    let instance = session.container(&id)?;
    let ExecBody { mut request, input, detach } = body;
    check_command(&instance, &request)?;
    let input =
        STANDARD.decode(&input).map_err(|error| bad_query(&format!("`input` is not base64: {error}")))?;
    request.stdin = !input.is_empty();
    let mut exec = session.driver()?.exec(&id, request).await?;
    if detach {
        // Its output is read all the same: a pipe that is full would hold it up, one without a reader would end it.
        tokio::spawn(async move {
            let stdin = exec.stdin.take();
            let feed = async move {
                if let Some(mut stdin) = stdin {
                    let _ = stdin.write_all(&input).await;
                    let _ = stdin.shutdown().await;
                }
            };
            drop(futures_util::join!(collect(exec), feed));
        });
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    let output = match exec.stdin.take() {
        Some(mut stdin) => {
            // At the same time as the output is read: a program that answers before it has read everything would
            // otherwise fill the pipe of its output and wait for ever. One that stops reading its input may.
            let feed = async move {
                let _ = stdin.write_all(&input).await;
                let _ = stdin.shutdown().await;
            };
            futures_util::join!(collect(exec), feed).0?
        }
        None => collect(exec).await?,
    };
    Ok(answer(StatusCode::OK, &output))
}

/// Is it a command, and one that can run now?
pub(super) fn check_command(instance: &Instance, request: &ExecRequest) -> Result<(), Failure> {
    if request.argv.is_empty() {
        let title = format!("the command for {} is empty", instance.name);
        return Err(Failure::new(FailureKind::Invalid, title).hint("name a program in `argv`"));
    }
    if instance.is_paused() {
        let title = format!("`{}` could not be run in {}", request.argv.join(" "), instance.name);
        return Err(Failure::new(FailureKind::ExecFailed, title)
            .fact("reason", "the container is paused")
            .hint("let it go on first: `unpause`"));
    }
    Ok(())
}

async fn collect(exec: Exec) -> Result<ExecResult, Failure> {
    let output = exec.collect().await?;
    Ok(ExecResult {
        stdout: STANDARD.encode(output.stdout),
        stderr: STANDARD.encode(output.stderr),
        exit: output.exit,
    })
}

pub(super) fn bad_query(reason: &str) -> Failure {
    Failure::new(FailureKind::Invalid, "the request is not understood").fact("reason", reason)
}
