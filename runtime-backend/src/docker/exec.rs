//! Further processes in a running container.

use super::{DockerDriver, daemon_failure};
use crate::driver::{Exec, ExecRequest, Exit, Resize, Result, TerminalSize};
use crate::wait::{Poll, poll};
use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use bollard::query_parameters::ResizeExecOptionsBuilder;
use futures_util::{FutureExt, StreamExt, TryFutureExt};
use shakedown_spec::{Failure, FailureKind, Stream};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;

/// How long the daemon may take from the end of a process's output to telling its exit code.
const SETTLE: Duration = Duration::from_secs(10);

impl DockerDriver {
    pub(crate) async fn run(&self, id: &str, request: ExecRequest) -> Result<Exec> {
        let instance = self.instance(id)?;
        let title = format!("`{}` could not be run in {}", request.argv.join(" "), instance.service);
        let failed = |error| daemon_failure(FailureKind::ExecFailed, title.clone(), &error);
        let size =
            request.size.filter(|_| request.tty).map(|size| vec![size.rows.into(), size.columns.into()]);
        let config = ExecConfig {
            attach_stdin: Some(request.stdin),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(request.tty),
            console_size: size,
            env: Some(request.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            cmd: Some(request.argv.clone()),
            user: request.user.clone(),
            working_dir: request.workdir.clone(),
            ..ExecConfig::default()
        };
        let exec = self.inner.docker.create_exec(&instance.name, config).await.map_err(failed)?.id;
        let options = StartExecOptions { detach: false, tty: request.tty, output_capacity: None };
        let (output, input) =
            match self.inner.docker.start_exec(&exec, Some(options)).await.map_err(failed)? {
                StartExecResults::Attached { output, input } => (output, input),
                StartExecResults::Detached => return Err(Failure::new(FailureKind::ExecFailed, title)),
            };
        if let Some(size) = request.size.filter(|_| request.tty) {
            // Engines before API 1.42 take no size in the request, and one only when the process is there.
            let (docker, exec) = (self.inner.docker.clone(), exec.clone());
            tokio::spawn(async move { poll(SETTLE, || sized(&docker, &exec, size)).await });
        }
        let resize = request.tty.then(|| self.resize_of(&exec, &instance.service));
        let (ended, end) = oneshot::channel::<()>();
        let output = output.map(|chunk| match chunk {
            Ok(LogOutput::StdErr { message }) => Ok((Stream::Stderr, message)),
            Ok(other) => Ok((Stream::Stdout, other.into_bytes())),
            Err(error) => Err(io::Error::other(super::failures::words(&error))),
        });
        let beginning = Arc::new(OnceLock::new());
        let noted = Arc::clone(&beginning);
        // The sender goes with the stream, at its end or before.
        let output =
            futures_util::stream::unfold((output, ended, noted), |(mut output, ended, noted)| async {
                let chunk = output.next().await?;
                if let Ok((_, bytes)) = &chunk {
                    let _ = noted.set(bytes.clone());
                }
                Some((chunk, (output, ended, noted)))
            });
        let docker = self.inner.docker.clone();
        let exit = async move {
            // Only the drop of the sender is awaited.
            let _ = end.await;
            let exit = exit_of(&docker, &exec).await?;
            match beginning.get().and_then(|beginning| refusal(exit, beginning)) {
                Some(reason) => Err(Failure::new(FailureKind::ExecFailed, title).fact("reason", reason)),
                None => Ok(exit),
            }
        };
        let stdin = request.stdin.then(|| feed(input));
        Ok(Exec { output: output.boxed(), stdin, exit: Box::pin(exit), resize, abort: None })
    }

    fn resize_of(&self, exec: &str, service: &str) -> Resize {
        let (docker, exec) = (self.inner.docker.clone(), exec.to_owned());
        let title = format!("the size of the terminal in {service} could not be set");
        Arc::new(move |size| {
            let (docker, exec, title) = (docker.clone(), exec.clone(), title.clone());
            let set = async move { resize(&docker, &exec, size).await };
            set.map_err(move |error| daemon_failure(FailureKind::ExecFailed, title, &error)).boxed()
        })
    }
}

async fn sized(docker: &Docker, exec: &str, size: TerminalSize) -> Poll {
    let options = ResizeExecOptionsBuilder::new().h(size.rows.into()).w(size.columns.into()).build();
    match docker.resize_exec(exec, options).await {
        Ok(()) => Poll::Ready(()),
        Err(error) => match docker.inspect_exec(exec).await {
            Ok(state) if state.exit_code.is_none() => Poll::NotYet(super::failures::words(&error)),
            _ => Poll::Never("it has ended".to_owned()),
        },
    }
}

async fn resize(docker: &Docker, exec: &str, size: TerminalSize) -> std::result::Result<(), Error> {
    let options = ResizeExecOptionsBuilder::new().h(size.rows.into()).w(size.columns.into()).build();
    match docker.resize_exec(exec, options).await {
        // One that has ended by now has no terminal any more.
        Err(Error::DockerResponseServerError { .. }) => Ok(()),
        other => other,
    }
}

/// The runtime's own words, if the command could not be started: the daemon sends them as the command's output, with the
/// exit codes that shells use.
fn refusal(exit: Exit, beginning: &[u8]) -> Option<String> {
    let words = String::from_utf8_lossy(beginning);
    let words = words.trim().strip_prefix("OCI runtime exec failed: ")?;
    matches!(exit.code, 126 | 127).then(|| words.to_owned())
}

/// The daemon closes the output before it notes the exit, so its first answer may be "running".
async fn exit_of(docker: &Docker, exec: &str) -> Result<Exit> {
    let ended = poll(SETTLE, || async {
        match docker.inspect_exec(exec).await {
            Ok(state) => match state.exit_code {
                Some(code) if state.running != Some(true) => Poll::Ready(code),
                _ => Poll::NotYet("running".to_owned()),
            },
            Err(error) => Poll::Never(super::failures::words(&error)),
        }
    });
    let code = ended.await.map_err(|missed| {
        let title = "how a command in the container ended is not known";
        Failure::new(FailureKind::ExecFailed, title).fact("reason", missed.status)
    })?;
    let code = i32::try_from(code).unwrap_or(-1);
    Ok(Exit { code, signal: None, out_of_memory: false })
}

/// An input whose drop is its end: the daemon's connection is one for both directions, so the end has to be sent as a
/// half-close.
pub(super) fn feed(mut input: Pin<Box<dyn AsyncWrite + Send>>) -> Pin<Box<dyn AsyncWrite + Send>> {
    let (near, mut far) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        // A process that ends without reading its input is no error.
        let _ = tokio::io::copy(&mut far, &mut input).await;
        let _ = input.shutdown().await;
    });
    Box::pin(near)
}
