//! The REST API: HTTP/JSON over the session's unix socket. The declarations of `spec` are its schema.
//!
//! ```text
//! POST   /v1/leases                  Lease            → 200, one line LeaseGranted, then open until the client goes
//! DELETE /v1/leases/{id}                              → 204 (answers when nothing of the lease is left)
//! GET    /v1/info                                     → 200 Info
//! POST   /v1/builds                  BuildBody        → 200, lines of BuildLine; the last is no event
//! GET    /v1/containers                               → 200 [ContainerState]
//! POST   /v1/containers              Start            → 201 Started        (returns when the container is ready)
//! GET    /v1/containers/{id}                          → 200 ContainerState
//! DELETE /v1/containers/{id}                          → 204
//! POST   /v1/containers/{id}/stop                     → 200 Exit           (stop signal, then SIGKILL)
//! POST   /v1/containers/{id}/start                    → 200 Started        (again, with the same files and ports)
//! POST   /v1/containers/{id}/restart                  → 200 Started        (stop, then start)
//! POST   /v1/containers/{id}/pause                    → 204
//! POST   /v1/containers/{id}/unpause                  → 204
//! POST   /v1/containers/{id}/kill?signal=SIGTERM      → 204
//! GET    /v1/containers/{id}/exit                     → 200 Exit           (returns when it has ended)
//! GET    /v1/containers/{id}/stats                    → 200 Usage
//! GET    /v1/containers/{id}/logs?follow=&from=&tail=&since_us=&until_us=&stream= → 200, lines of LogEntry
//! POST   /v1/containers/{id}/exec    ExecBody         → 200 ExecResult, or 202 if it is detached
//! POST   /v1/containers/{id}/exec/stream  ExecRequest → 101, then frames both ways (see `frames`)
//! POST   /v1/containers/{id}/attach?replay=           → 101, then frames both ways (see `frames`)
//! PUT    /v1/containers/{id}/files?path=DIR   tar     → 204
//! GET    /v1/containers/{id}/files?path=PATH          → 200 tar
//! POST   /v1/containers/{id}/networks  Attachment     → 204                (joins the network, running or not)
//! DELETE /v1/containers/{id}/networks?network=KEY     → 204                (leaves it)
//! GET    /v1/networks                                 → 200 [NetworkState]
//! GET    /v1/session/references                       → 200 [String]       (images that containers were started from)
//! POST   /v1/containers/{id}/commit  NewImage         → 201 Image          (of what was written to it so far)
//! GET    /v1/images                                   → 200 [ListedImage]
//! POST   /v1/images                  ImageName        → 200 Image          (there, else pulled or made)
//! DELETE /v1/images?image=NAME                        → 204
//! POST   /v1/images/tag              ImageTag         → 204
//! POST   /v1/images/push             ImageTag         → 204
//! POST   /v1/images/save             ImagesToSave     → 200 tar            (what `docker load` takes, or OCI)
//! POST   /v1/images/load             tar              → 200 [LoadedImage]
//! POST   /v1/images/import?name=&changes=&message=&author=   tar → 201 Image
//! DELETE /v1/session                                  → 204 (everything is taken away, the keeper ends)
//! ```
//!
//! Every error is a [`Failure`] as JSON. Its status says whose fault it was: 400 the request's
//! (404 what it names is not there, 413 a body over 4 MiB, or 64 MiB for containers and commands, 501 the driver cannot
//! do it), 424 the service's (not ready, exited, image unusable), 503 there is no driver or the session ends, 500 the
//! keeper's or the machine's. Deleting what is not there succeeds.
//!
//! Containers belong to a lease: when the connection
//! that holds the lease closes, for whatever reason, the keeper removes them. A client that goes away while
//! `POST /v1/containers` is under way cancels it.

use serde::{Deserialize, Serialize};
use shakedown_runtime::build::BuildEvent;
use shakedown_runtime::{ArchiveForm, Capability, ExecRequest, Exit, Health, Image};
use shakedown_spec::{Build, Container, Endpoints, Failure, Network, PullPolicy, Stream};

/// Asks for a lease: the share of one client (usually a test process) in the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Who asks, for messages and listings: the test binary's name.
    pub client: String,
    /// Where relative paths in declarations begin, and where the search for `shakedown.toml` starts: absolute.
    pub directory: String,
}

/// The answer to [`Lease`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGranted {
    /// Names the lease in later requests.
    pub lease: String,
    /// The session's name.
    pub session: String,
    /// The driver: `native` or `docker`.
    pub driver: String,
    /// What the driver is here, in one line.
    pub description: String,
    /// What it can do here.
    pub capabilities: Vec<Capability>,
}

/// What the keeper is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Version of this API's implementation.
    pub version: String,
    /// The session's name.
    pub session: String,
    /// The keeper's process id.
    pub pid: u32,
    /// The driver: `native` or `docker`; empty if none works.
    pub driver: String,
    /// What the driver is here, in one line.
    pub description: String,
    /// What it can do here.
    pub capabilities: Vec<Capability>,
}

/// Asks for a container, started and ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The lease it belongs to.
    pub lease: String,
    /// What should run.
    pub container: Container,
}

/// Asks for an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildBody {
    /// The lease whose directory and rules apply.
    pub lease: String,
    /// What is built.
    pub build: Build,
    /// Names the image gets.
    #[serde(default)]
    pub names: Vec<String>,
}

/// A line of a build's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildLine {
    /// Something happened.
    Event(BuildEvent),
    /// The end: the image.
    Image(Box<Image>),
    /// The end: why there is none.
    Failure(Failure),
}

/// A container that is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Names it in later requests.
    pub id: String,
    /// The service's name in messages.
    pub name: String,
    /// Where it is reached.
    pub endpoints: Endpoints,
    /// How long each stage took.
    pub timings: Timings,
}

/// How long each stage of a start took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Finding the image, fetching it if needed.
    pub resolve_us: u64,
    /// Making the file system, the network, the ports; putting files in.
    pub prepare_us: u64,
    /// Starting the first process.
    pub launch_us: u64,
    /// Waiting until it was ready.
    pub wait_us: u64,
}

/// Names an image, as a declaration does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageName {
    /// The lease whose directory and `shakedown.toml` apply.
    pub lease: String,
    /// A reference, an id (`sha256:…`), or a source (`oci:DIR`, `debian:SUITE?include=…`, …).
    pub image: String,
    /// When to ask the registry.
    #[serde(default)]
    pub policy: PullPolicy,
}

/// Names an image, and what else it is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageTag {
    /// The image.
    pub image: ImageName,
    /// The name, such as `registry.example/orders:7`.
    pub name: String,
}

/// Asks for an archive of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesToSave {
    /// The lease whose directory and `shakedown.toml` apply.
    pub lease: String,
    /// The images, as [`ImageName::image`].
    pub images: Vec<String>,
    /// The form of the archive.
    #[serde(default)]
    pub form: ArchiveForm,
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// The service's name in messages.
    pub name: String,
    /// The image as it was asked for.
    pub image: String,
    /// The lease it belongs to.
    pub lease: String,
    /// `starting`, `ready`, `paused`, `restarting`, or `exited`.
    pub status: String,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Where it is reached.
    pub endpoints: Endpoints,
    /// Whether its first process has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// How often its policy has started it again.
    #[serde(default)]
    pub restarts: u32,
    /// How it fares by its health check, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// Which lines of a log are asked for, in the query of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogQuery {
    /// Whether to go on until the output ends.
    pub follow: bool,
    /// The first line's number.
    pub from: usize,
    /// Of the lines that are there now, only the last so many.
    pub tail: Option<usize>,
    /// Only lines from this time on: microseconds since 1970-01-01 00:00 UTC.
    pub since_us: Option<u64>,
    /// Only lines before this time; nothing is followed beyond it.
    pub until_us: Option<u64>,
    /// Only this stream.
    pub stream: Option<Stream>,
}

/// A network of the session, and who is on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// As it was declared.
    pub network: Network,
    /// The ids of its containers.
    pub containers: Vec<String>,
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its number in the log, from 0.
    pub number: usize,
    /// Which stream it was written to.
    pub stream: Stream,
    /// When its first byte was read: microseconds since 1970-01-01 00:00 UTC.
    pub time_us: u64,
    /// Whether no line feed came after it: a piece of a line of more than 64 KiB, or the end of the output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// The line without its line feed, base64.
    pub bytes: String,
}

/// Asks for a command in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecBody {
    /// The command.
    pub request: ExecRequest,
    /// Its input, base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub input: String,
    /// Whether nobody waits for it; its output is thrown away.
    #[serde(default)]
    pub detach: bool,
}

/// A command that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecResult {
    /// Standard output, base64.
    pub stdout: String,
    /// Standard error, base64.
    pub stderr: String,
    /// How it ended.
    pub exit: Exit,
}
