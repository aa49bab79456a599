//! `shakedown run CMD`: a session around a command of any language.

use super::{Done, chosen, here, io_failure};
use rustix::process::{Pid, Signal, kill_process};
use shakedown_runtime::DriverChoice;
use shakedown_server::client::Client;
use shakedown_server::config::Overrides;
use shakedown_server::session::{Orders, ProcessIdentity, RunDirectory, SOCKET_VARIABLE};
use shakedown_spec::{Failure, FailureKind};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

pub(super) async fn run(driver: Option<DriverChoice>, images: Overrides, argv: Vec<String>) -> Done {
    Ok(in_session(driver, images, argv, async |_| Ok(())).await?.0)
}

/// Runs a command in a session of its own. `asked` is asked of the session when the command has ended.
pub(super) async fn in_session<T>(
    driver: Option<DriverChoice>,
    images: Overrides,
    argv: Vec<String>,
    asked: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
) -> Result<(ExitCode, T), Failure> {
    let this = ProcessIdentity::this();
    let place = RunDirectory::find()?.place(&format!("run-{}-{:x}", this.pid, this.started))?;
    let orders = Orders { overrides: images, ..Orders::new(&place, Some(this), chosen(driver)?) };
    let client = Client::of_session(orders).await?;
    // Held for the life of the command, so that the keeper stays between its tests; a killed `run` gives it back.
    let lease = client.lease("run", &here()?).await?;

    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).env(SOCKET_VARIABLE, client.socket()).env("SHAKEDOWN_SESSION", &place.name);
    let child = command.spawn().map_err(|error| {
        Failure::new(FailureKind::Invalid, format!("`{}` cannot be run", argv[0]))
            .fact("reason", error.to_string())
    })?;
    let status = attend(child).await;
    let answer = asked(&client).await;
    client.end_session().await?;
    drop(lease);
    Ok((exit_code(&status?), answer?))
}

/// Waits for the command. A terminal sends SIGINT to the command as well: it decides, and this process reaps after it.
async fn attend(mut child: Child) -> Result<ExitStatus, Failure> {
    let cannot = |error: std::io::Error| io_failure("the command could not be waited for", &error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    loop {
        tokio::select! {
            status = child.wait() => return status.map_err(cannot),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {
                let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
                if let Some(pid) = pid {
                    // It has not been waited for, so that the id is still its own.
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
        }
    }
}

/// As shells count: 128 plus the signal's number.
fn exit_code(status: &ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
