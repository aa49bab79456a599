//! Interactive commands, and the way into a container's first process: connections that become frames.

use super::Refusal;
use super::containers::{bad_query, check_command};
use super::document::{Document, LARGE};
use crate::fixtures::Session;
use crate::frames::{Asked, Told};
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use shakedown_runtime::{Exec, ExecRequest, Exit, Resize, SharedInput};
use shakedown_spec::{Failure, FailureKind, Stream};
use std::future::Future;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

/// What the connection becomes, by its name in the headers.
pub(crate) const PROTOCOL: &str = "shakedown-frames";

pub(super) async fn exec(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let upgrade = upgrade(&mut request)?;
    let Document(command) = Document::<ExecRequest, LARGE>::from_request(request, &()).await?;
    check_command(&*session.container(&id)?, &command)?;
    let Exec { output, stdin, exit, resize, .. } = session.driver()?.exec(&id, command).await?;
    let input = stdin.map(|stdin| Arc::new(tokio::sync::Mutex::new(Some(stdin))));
    // When the client is gone, what is read of a terminal is dropped with its master, which hangs it up.
    tokio::spawn(talk(upgrade, output, exit, input, resize));
    Ok(switching())
}

#[derive(Debug, Deserialize)]
pub(super) struct Attach {
    /// Whether the output begins with what was written so far.
    #[serde(default)]
    replay: bool,
}

pub(super) async fn attach(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    attach: Result<Query<Attach>, QueryRejection>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let Query(Attach { replay }) = attach.map_err(|error| bad_query(&error.body_text()))?;
    let upgrade = upgrade(&mut request)?;
    let instance = session.container(&id)?;
    let driver = Arc::clone(session.driver()?);
    let attached = driver.attach(&id).await?;
    let (before, tap) = instance.log.tap(replay);
    let come = stream::unfold(tap, |mut tap| async move { Some((tap.recv().await?, tap)) });
    let output = stream::iter(before).chain(come).map(Ok).boxed();
    let exit = async move {
        if !instance.log.read(usize::MAX).1 {
            let title = format!("the output of {} came faster than it was read", instance.name);
            return Err(Failure::new(FailureKind::Other, title).hint("its log has all of it"));
        }
        driver.exited(&id).await
    };
    tokio::spawn(talk(upgrade, output, exit, attached.input, attached.resize));
    Ok(switching())
}

fn upgrade(request: &mut Request) -> Result<OnUpgrade, Refusal> {
    let asked = request.headers().get(UPGRADE).is_some_and(|value| value == PROTOCOL);
    if !asked {
        let reason = format!("it has to ask for `Upgrade: {PROTOCOL}`");
        return Err(bad_query(&reason).into());
    }
    Ok(hyper::upgrade::on(request))
}

fn switching() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, axum::http::HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, axum::http::HeaderValue::from_static(PROTOCOL));
    response
}

type Output = BoxStream<'static, io::Result<(Stream, Bytes)>>;

/// Until the process has ended or the client is gone.
async fn talk(
    upgrade: OnUpgrade,
    output: Output,
    exit: impl Future<Output = Result<Exit, Failure>>,
    input: Option<SharedInput>,
    resize: Option<Resize>,
) {
    let Ok(connection) = upgrade.await else { return };
    let (reader, writer) = tokio::io::split(TokioIo::new(connection));
    tokio::select! {
        // Nobody is left to be told what went wrong.
        _ = tell(writer, output, exit) => {}
        _ = listen(reader, input, resize) => {}
    }
}

async fn tell(
    mut writer: WriteHalf<TokioIo<Upgraded>>,
    mut output: Output,
    exit: impl Future<Output = Result<Exit, Failure>>,
) -> io::Result<()> {
    while let Some(Ok((stream, bytes))) = output.next().await {
        Told::Output(stream, bytes).write(&mut writer).await?;
    }
    exit.await.map_or_else(Told::Failure, Told::Exit).write(&mut writer).await?;
    writer.shutdown().await
}

/// Returns when the client is gone.
async fn listen(
    mut reader: ReadHalf<TokioIo<Upgraded>>,
    input: Option<SharedInput>,
    resize: Option<Resize>,
) -> io::Result<()> {
    while let Some(asked) = Asked::read(&mut reader).await? {
        match (asked, &input) {
            (Asked::Input(bytes), Some(input)) => {
                let mut input = input.lock().await;
                if let Some(open) = input.as_mut()
                    && open.write_all(&bytes).await.is_err()
                {
                    // A process that does not read any more is no reason to end: its output is still to come.
                    *input = None;
                }
            }
            (Asked::End, Some(input)) => {
                if let Some(mut open) = input.lock().await.take() {
                    let _ = open.shutdown().await;
                }
            }
            (Asked::Size(size), _) => {
                if let Some(resize) = &resize {
                    // A terminal that has just been closed has no size.
                    let _ = resize(size).await;
                }
            }
            (Asked::Input(_) | Asked::End, None) => {}
        }
    }
    Ok(())
}
