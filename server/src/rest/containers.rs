//! Containers.

use super::document::{Document, LARGE};
use super::{Refusal, answer};
use crate::api::{ExecBody, ExecResult, LogEntry, Start};
use crate::fixtures::{self, Instance, Session};
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::stream;
use serde::Deserialize;
use shakedown_runtime::{Exec, LogLine};
use shakedown_spec::{Failure, FailureKind};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// How long a container may take to stop if its declaration does not say: Docker's default.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn list(State(session): State<Arc<Session>>) -> Response {
    let states: Vec<_> = session.containers().iter().map(|instance| instance.state()).collect();
    answer(StatusCode::OK, &states)
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
    Ok(answer(StatusCode::OK, &session.container(&id)?.state()))
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
    let driver = session.driver()?;
    if instance.state().exit.is_none() {
        driver.kill(&id, instance.stop_signal()).await?;
        let patience = instance.container.stop_timeout.unwrap_or(STOP_TIMEOUT);
        if timeout(patience, instance.exited()).await.is_err() {
            driver.kill(&id, "SIGKILL").await?;
        }
    }
    Ok(answer(StatusCode::OK, &instance.exited().await?))
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
    session.container(&id)?;
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

#[derive(Debug, Deserialize)]
pub(super) struct Logs {
    /// Whether to go on until the output ends.
    #[serde(default)]
    follow: bool,
    /// The first line's number.
    #[serde(default)]
    from: usize,
}

pub(super) async fn logs(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    logs: Result<Query<Logs>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(Logs { follow, from }) = logs.map_err(|error| bad_query(&error.body_text()))?;
    let instance = session.container(&id)?;
    let body = Body::from_stream(log_lines(instance, follow, from));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// Chunks of lines. The subscription is older than the first look, so that no line falls between the two.
fn log_lines(
    instance: Arc<Instance>,
    follow: bool,
    from: usize,
) -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
    let changes = instance.log.watch();
    stream::unfold(Some((changes, from)), move |position| {
        let instance = Arc::clone(&instance);
        async move {
            let (mut changes, from) = position?;
            loop {
                changes.mark_unchanged();
                let (lines, closed) = instance.log.read(from);
                let next = lines.last().map_or(from, |line| line.number + 1);
                let chunk: Vec<u8> = lines.iter().flat_map(entry).collect();
                if closed || !follow {
                    return Some((Ok(chunk.into()), None));
                }
                if !chunk.is_empty() {
                    return Some((Ok(chunk.into()), Some((changes, next))));
                }
                changes.changed().await.ok()?;
            }
        }
    })
}

fn entry(line: &LogLine) -> Vec<u8> {
    let since_epoch = line.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let entry = LogEntry {
        number: line.number,
        stream: line.stream,
        time_us: u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX),
        bytes: STANDARD.encode(&line.bytes),
    };
    let mut bytes = serde_json::to_vec(&entry).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

pub(super) async fn exec(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    Document(body): Document<ExecBody, LARGE>,
) -> Result<Response, Refusal> {
    let instance = session.container(&id)?;
    let ExecBody { mut request, input } = body;
    if request.argv.is_empty() {
        let title = format!("the command for {} is empty", instance.name);
        return Err(Failure::new(FailureKind::Invalid, title).hint("name a program in `argv`").into());
    }
    let input =
        STANDARD.decode(&input).map_err(|error| bad_query(&format!("`input` is not base64: {error}")))?;
    request.stdin = !input.is_empty();
    let mut exec = session.driver()?.exec(&id, request).await?;
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
