//! `shakedown build`: an image from a Dockerfile.

use super::{Done, chosen, here, say};
use clap::Args;
use futures_util::StreamExt;
use shakedown_runtime::DriverChoice;
use shakedown_runtime::build::BuildEvent;
use shakedown_server::api::BuildLine;
use shakedown_server::client::Client;
use shakedown_server::session::{Orders, ProcessIdentity, RunDirectory};
use shakedown_spec::{Build, BuildSecret, Dockerfile, Failure, FailureKind};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

/// What is built, and how.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The Dockerfile; CONTEXT/Dockerfile when unset, standard input for `-`.
    #[arg(short, long)]
    file: Option<String>,
    /// Names the image; may be given several times.
    #[arg(short, long = "tag")]
    tag: Vec<String>,
    /// Sets an `ARG`: NAME=VALUE, or NAME for the value that the variable has here.
    #[arg(long)]
    build_arg: Vec<String>,
    /// The stage to build; the last when unset.
    #[arg(long)]
    target: Option<String>,
    /// Adds a label to the image: NAME=VALUE.
    #[arg(long)]
    label: Vec<String>,
    /// What the image is for, such as linux/arm64.
    #[arg(long)]
    platform: Option<String>,
    /// Does everything again.
    #[arg(long)]
    no_cache: bool,
    /// Asks registries for newer base images.
    #[arg(long)]
    pull: bool,
    /// A file for RUN --mount=type=secret: id=ID,src=FILE, or id=ID,env=VARIABLE.
    #[arg(long)]
    secret: Vec<String>,
    /// Lets steps ask for more: network.host, security.insecure.
    #[arg(long)]
    allow: Vec<String>,
    /// The network of RUN: default, none or host.
    #[arg(long)]
    network: Option<String>,
    /// Adds a line to /etc/hosts during RUN: NAME:ADDRESS.
    #[arg(long)]
    add_host: Vec<String>,
    /// `auto`, `native` or `docker`.
    #[arg(long)]
    driver: Option<DriverChoice>,
    /// Prints nothing but the image's id.
    #[arg(short, long)]
    quiet: bool,
    /// The directory that COPY takes files from.
    context: String,
}

pub(super) async fn build(options: Options) -> Done {
    let build = declared(&options)?;
    let this = ProcessIdentity::this();
    let place = RunDirectory::find()?.place(&format!("build-{}-{:x}", this.pid, this.started))?;
    let client = Client::of_session(Orders::new(&place, Some(this), chosen(options.driver)?)).await?;
    let lease = client.lease("build", &here()?).await?;
    let built = follow(&client, lease.id(), &build, &options).await;
    client.end_session().await?;
    drop(lease);
    say(format!("{}\n", built?).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// The image's id.
async fn follow(client: &Client, lease: &str, build: &Build, options: &Options) -> Result<String, Failure> {
    let mut lines = client.build(lease, build, &options.tag).await?;
    while let Some(line) = lines.next().await {
        match line? {
            BuildLine::Image(image) => return Ok(image.id),
            BuildLine::Failure(failure) => return Err(failure),
            BuildLine::Event(event) if !options.quiet => show(&event),
            BuildLine::Event(_) => {}
        }
    }
    Err(Failure::new(FailureKind::SessionLost, "the keeper ended before the build did"))
}

/// To standard error: standard output has the image's id, for scripts.
fn show(event: &BuildEvent) {
    let line = match event {
        BuildEvent::Step { number, total, text, .. } => format!("[{number}/{total}] {text}\n"),
        BuildEvent::Cached => "  (as before)\n".to_owned(),
        BuildEvent::Output { line } => format!("  {line}\n"),
        // A layer's progress is told many times a second; its end once.
        BuildEvent::Pull { what, done, total } if done == total && *total > 0 => format!("  {what}\n"),
        BuildEvent::Pull { .. } => return,
    };
    // Nobody reads standard error if this fails.
    drop(io::stderr().write_all(line.as_bytes()));
}

fn declared(options: &Options) -> Result<Build, Failure> {
    let mut build = Build::directory(&options.context);
    build.dockerfile = match options.file.as_deref() {
        None => None,
        Some("-") => Some(Dockerfile::Text(standard_input()?)),
        // As `docker build -f`: from where the command is run, not from the context.
        Some(path) => Some(Dockerfile::Path(here()?.join(path).to_string_lossy().into_owned())),
    };
    for arg in &options.build_arg {
        if let Some((name, value)) = arg.split_once('=') {
            build = build.arg(name, value);
        } else if let Ok(value) = std::env::var(arg) {
            build = build.arg(arg, value);
        }
    }
    for label in &options.label {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        build = build.label(name, value);
    }
    for host in &options.add_host {
        let (name, address) =
            host.split_once([':', '=']).ok_or_else(|| wrong("--add-host", host, "NAME:ADDRESS"))?;
        build = build.extra_host(name, address);
    }
    for secret in &options.secret {
        let (id, secret) = read_secret(secret)?;
        build.secrets.insert(id, secret);
    }
    build.target.clone_from(&options.target);
    build.platform.clone_from(&options.platform);
    build.network.clone_from(&options.network);
    build.allow.extend(options.allow.iter().cloned());
    (build.no_cache, build.pull) = (options.no_cache, options.pull);
    Ok(build)
}

fn standard_input() -> Result<String, Failure> {
    let mut text = String::new();
    let read = io::stdin().read_to_string(&mut text);
    read.map(|_| text).map_err(|error| super::io_failure("the Dockerfile cannot be read", &error))
}

/// `id=ID,src=FILE` or `id=ID,env=VARIABLE`; the file and the variable are called as the id when not given.
fn read_secret(text: &str) -> Result<(String, BuildSecret), Failure> {
    let form = "id=ID,src=FILE or id=ID,env=VARIABLE";
    let (mut id, mut file, mut variable) = (None, None, None);
    for field in text.split(',') {
        let value = field.split_once('=').map(|(_, value)| value.to_owned());
        match field.split_once('=').map(|(name, _)| name) {
            Some("id") => id = value,
            Some("src" | "source") => file = value,
            Some("env") => variable = value,
            Some("type") => {}
            _ => return Err(wrong("--secret", text, form)),
        }
    }
    let id = id.ok_or_else(|| wrong("--secret", text, form))?;
    if let (None, Ok(value)) = (&file, std::env::var(variable.as_deref().unwrap_or(&id))) {
        return Ok((id, BuildSecret::Value(value.into_bytes())));
    }
    let file = file.unwrap_or_else(|| id.clone());
    let path = here()?.join(Path::new(&file)).to_string_lossy().into_owned();
    Ok((id, BuildSecret::File(path)))
}

fn wrong(option: &str, text: &str, form: &str) -> Failure {
    Failure::new(FailureKind::Invalid, format!("`{option} {text}` is not understood"))
        .hint(format!("write it as `{option} {form}`"))
}
