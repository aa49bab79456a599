//! `ps`, `logs`, `exec`, `attach`, `stop` and the like: a look into a session that runs, and a hand in it.

use super::{Done, interactive, say};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use shakedown_runtime::ExecRequest;
use shakedown_server::api::ContainerState;
use shakedown_server::api::{LogEntry, LogQuery};
use shakedown_server::client::Client;
use shakedown_server::frames::Asked;
use shakedown_server::session::{Place, RunDirectory, SOCKET_VARIABLE};
use shakedown_spec::{Endpoints, Failure, FailureKind, Stream};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

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
        let status = status(&container);
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

fn status(container: &ContainerState) -> String {
    let mut status = container.status.clone();
    match (&container.exit, &container.health) {
        (Some(exit), _) => status.push_str(&format!(", {exit}")),
        (None, Some(health)) => status.push_str(&format!(", {}", health.status)),
        (None, None) => {}
    }
    if container.restarts > 0 {
        status.push_str(&format!(", started again {} times", container.restarts));
    }
    status
}

fn ports(endpoints: &Endpoints) -> String {
    let shown = endpoints.published.iter();
    let shown = shown
        .map(|port| format!("{}:{}->{}/{}", endpoints.url_host(), port.host, port.container, port.protocol));
    shown.collect::<Vec<_>>().join(", ")
}

/// Which lines of a log are shown, and how.
#[derive(Debug, clap::Args)]
pub(super) struct LogOptions {
    /// Goes on until the container's output ends.
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines.
    #[arg(short = 'n', long)]
    tail: Option<usize>,
    /// Only lines from this time on: `10m`, `1h30m` ago, or `2026-01-31T12:00:00Z`.
    #[arg(long, value_parser = moment)]
    since: Option<SystemTime>,
    /// Only lines before this time.
    #[arg(long, value_parser = moment)]
    until: Option<SystemTime>,
    /// Shows when each line was written.
    #[arg(short, long)]
    timestamps: bool,
    /// Only standard output.
    #[arg(long, conflicts_with = "stderr")]
    stdout: bool,
    /// Only standard error.
    #[arg(long)]
    stderr: bool,
}

/// A time as people write it: how long ago, or when.
fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    SystemTime::now().checked_sub(ago).ok_or_else(|| format!("{text} ago is too long ago"))
}

fn microseconds(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}

pub(super) async fn logs(id: &str, options: &LogOptions) -> Done {
    let stream = match (options.stdout, options.stderr) {
        (true, _) => Some(Stream::Stdout),
        (_, true) => Some(Stream::Stderr),
        _ => None,
    };
    let query = LogQuery {
        follow: options.follow,
        from: 0,
        tail: options.tail,
        since_us: options.since.map(microseconds),
        until_us: options.until.map(microseconds),
        stream,
    };
    let mut entries = server().await?.logs(id, &query).await?;
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        let line = shown(&entry, options.timestamps)?;
        match entry.stream {
            Stream::Stdout => say(&line)?,
            // As the container does: what cannot be written to standard error is lost.
            Stream::Stderr => drop(io::stderr().write_all(&line)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The line as it was written, with the time before it if that is wanted.
fn shown(entry: &LogEntry, timestamps: bool) -> Result<Vec<u8>, Failure> {
    let mut line = Vec::new();
    if timestamps {
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(entry.time_us);
        line.extend(format!("{} ", humantime::format_rfc3339_micros(time)).bytes());
    }
    line.extend(STANDARD.decode(&entry.bytes).map_err(|error| {
        Failure::new(FailureKind::Other, "the log is not understood").fact("reason", error.to_string())
    })?);
    line.extend((!entry.partial).then_some(b'\n'));
    Ok(line)
}

pub(super) async fn stats(ids: Vec<String>) -> Done {
    let server = server().await?;
    let all = server.containers().await?;
    let chosen = match ids.as_slice() {
        [] => all
            .into_iter()
            .filter(|container| container.exit.is_none())
            .map(|container| container.id)
            .collect(),
        _ => ids,
    };
    let mut table = vec![["ID", "MEMORY", "LIMIT", "CPU TIME", "PIDS"].map(str::to_owned)];
    for id in chosen {
        let usage = server.usage(&id).await?;
        let unknown = || "-".to_owned();
        let size = |bytes: Option<u64>| {
            bytes.map_or_else(unknown, |bytes| indicatif::BinaryBytes(bytes).to_string())
        };
        let cpu = usage
            .cpu_ns
            .map_or_else(unknown, |ns| format!("{:.3} s", Duration::from_nanos(ns).as_secs_f64()));
        let pids = usage.pids.map_or_else(unknown, |pids| pids.to_string());
        table.push([id, size(usage.memory), size(usage.memory_limit), cpu, pids]);
    }
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    for [id, memory, limit, cpu, pids] in &table {
        let [a, b, c, d] = widths;
        say(format!("{id:a$}  {memory:>b$}  {limit:>c$}  {cpu:>d$}  {pids}\n").as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What `exec` is told.
#[derive(Debug, clap::Args)]
pub(super) struct ExecOptions {
    /// Sends the standard input.
    #[arg(short, long)]
    interactive: bool,
    /// Gives the command a terminal: this one.
    #[arg(short, long)]
    tty: bool,
    /// Does not wait for the command; its output is thrown away.
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Sets a variable, `NAME=VALUE`.
    #[arg(short, long, value_parser = variable)]
    env: Vec<(String, String)>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    #[arg(short, long)]
    user: Option<String>,
    /// The working directory.
    #[arg(short, long)]
    workdir: Option<String>,
    /// The container's id.
    id: String,
    /// The command.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a variable is `NAME=VALUE`")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) async fn exec(options: ExecOptions) -> Done {
    let ExecOptions { interactive, tty, detach, env, user, workdir, id, command } = options;
    if tty {
        interactive::need_terminal()?;
    }
    let env = env.into_iter().collect();
    let size = interactive::size().filter(|_| tty);
    let request =
        ExecRequest { env, user, workdir, stdin: interactive, tty, size, ..ExecRequest::of(command) };
    let server = server().await?;
    if detach {
        server.exec_detached(&id, request, &[]).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let process = server.exec_stream(&id, &request).await?;
    interactive::talk(process, interactive, tty).await
}

/// This terminal, if there is one, becomes that of the container, whether it has one or not.
pub(super) async fn attach(id: &str, input: bool) -> Done {
    let server = server().await?;
    let tty = server.state(id).await?.tty && interactive::need_terminal().is_ok();
    let mut process = server.attach(id, false).await?;
    if let Some(size) = interactive::size().filter(|_| tty) {
        process.input.send(&Asked::Size(size)).await?;
    }
    interactive::talk(process, input, tty).await
}

/// Containers by their ids.
#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// The containers' ids.
    #[arg(required = true)]
    ids: Vec<String>,
}

/// Does something with each, and prints its id.
pub(super) async fn each(named: &Named, done: impl AsyncFn(&Client, &str) -> Result<(), Failure>) -> Done {
    let server = server().await?;
    for id in &named.ids {
        done(&server, id).await?;
        say(format!("{id}\n").as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}
