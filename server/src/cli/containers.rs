//! `ps`, `logs`, `exec`: a look into a session that runs.

use super::{Done, say};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use shakedown_runtime::ExecRequest;
use shakedown_server::client::Client;
use shakedown_server::session::{Place, RunDirectory, SOCKET_VARIABLE};
use shakedown_spec::{Endpoints, Failure, FailureKind, Stream};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::SystemTime;

/// The server of `SHAKEDOWN_SOCKET`, else the session that began last.
pub(super) async fn server() -> Result<Client, Failure> {
    if let Some(socket) = std::env::var_os(SOCKET_VARIABLE).filter(|value| !value.is_empty()) {
        return Client::at(socket.into()).await;
    }
    let mut places = RunDirectory::find()?.all();
    places.sort_by_key(|place| std::cmp::Reverse(began(place)));
    for place in places {
        if let Ok(client) = Client::at(place.socket()).await {
            return Ok(client);
        }
    }
    Err(Failure::new(FailureKind::SessionLost, "no session runs")
        .hint(format!("start one with `shakedown serve`, or name its socket in {SOCKET_VARIABLE}")))
}

fn began(place: &Place) -> Option<SystemTime> {
    std::fs::metadata(place.socket()).ok()?.modified().ok()
}

pub(super) async fn ps() -> Done {
    let mut table = vec![["ID", "IMAGE", "STATUS", "PORTS"].map(str::to_owned)];
    for container in server().await?.containers().await? {
        let status = match container.exit {
            Some(exit) => format!("{}, {exit}", container.status),
            None => container.status,
        };
        table.push([container.id, container.image, status, ports(&container.endpoints)]);
    }
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    for [id, image, status, ports] in &table {
        let line = format!("{id:0$}  {image:1$}  {status:2$}  {ports}", widths[0], widths[1], widths[2]);
        say(format!("{}\n", line.trim_end()).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn ports(endpoints: &Endpoints) -> String {
    let shown = endpoints.published.iter();
    let shown = shown
        .map(|port| format!("{}:{}->{}/{}", endpoints.url_host(), port.host, port.container, port.protocol));
    shown.collect::<Vec<_>>().join(", ")
}

pub(super) async fn logs(id: &str, follow: bool) -> Done {
    let mut entries = server().await?.logs(id, follow, 0).await?;
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        let mut line = STANDARD.decode(&entry.bytes).map_err(|error| {
            Failure::new(FailureKind::Other, "the log is not understood").fact("reason", error.to_string())
        })?;
        line.push(b'\n');
        match entry.stream {
            Stream::Stdout => say(&line)?,
            // As the container does: what cannot be written to standard error is lost.
            Stream::Stderr => drop(io::stderr().write_all(&line)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn exec(id: &str, argv: Vec<String>) -> Done {
    let result = server().await?.exec(id, ExecRequest::of(argv), &[]).await?;
    let decode = |text: &str| STANDARD.decode(text).unwrap_or_default();
    say(&decode(&result.stdout))?;
    drop(io::stderr().write_all(&decode(&result.stderr)));
    Ok(ExitCode::from(u8::try_from(result.exit.code).unwrap_or(u8::MAX)))
}
