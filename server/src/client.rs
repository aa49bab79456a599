//! The client of a keeper: what testkit and the command line use.
//!
//! Every request has a connection to itself. Dropping a request's future closes it, and the keeper cancels what was
//! asked; dropping a [`Lease`] gives it back. The connection of a request that was answered is used for the next one.

use crate::api::{
    self, BuildBody, BuildLine, ContainerState, ExecBody, ExecResult, ImageName, ImageTag, ImagesToSave,
    Info, LeaseGranted, LogEntry, LogQuery, NetworkState, Start, Started,
};
use crate::config::Config;
use crate::frames::{Asked, Told};
use crate::session::{self, Orders, Place, ProcessIdentity, SOCKET_VARIABLE};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shakedown_runtime::{ExecRequest, Exit, Image, ListedImage, LoadedImage, NewImage, Usage};
use shakedown_spec::{Attachment, Build, Container, Failure, FailureKind};
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// How often a lease is asked for anew when the keeper ends at that very moment.
const ATTEMPTS: u32 = 5;

/// Where the keeper is.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    /// How to start a keeper again; `None` if the user named the socket.
    orders: Option<Orders>,
    idle: Arc<Idle>,
}

impl Client {
    /// Finds the keeper of this process's session, starting it if it does not run. `SHAKEDOWN_SOCKET` names another.
    ///
    /// `directory` is where the search for `shakedown.toml` begins, which may name the driver.
    ///
    /// # Errors
    ///
    /// The keeper could not be started, `shakedown.toml` is wrong, or nobody listens on the named socket.
    pub async fn connect(directory: &Path) -> Result<Self, Failure> {
        if let Some(socket) = std::env::var_os(SOCKET_VARIABLE).filter(|value| !value.is_empty()) {
            return Self::at(PathBuf::from(socket)).await;
        }
        let driver = Config::find(directory)?.driver;
        let place = Place::of_this_process(driver)?;
        Self::of_session(Orders::new(&place, Some(ProcessIdentity::runner()), driver)).await
    }

    /// The keeper with these orders, starting it if it does not run.
    ///
    /// # Errors
    ///
    /// It could not be started.
    pub async fn of_session(orders: Orders) -> Result<Self, Failure> {
        let client = Self { socket: orders.place().socket(), orders: Some(orders), idle: Arc::default() };
        client.make_sure_it_runs().await?;
        Ok(client)
    }

    /// A server that runs already, at the socket `socket`.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub async fn at(socket: PathBuf) -> Result<Self, Failure> {
        UnixStream::connect(&socket).await.map_err(|error| {
            Failure::new(FailureKind::SessionLost, format!("no server listens on {}", socket.display()))
                .fact("reason", error.to_string())
                .hint(format!("start one with `shakedown serve`, or unset {SOCKET_VARIABLE}"))
        })?;
        Ok(Self { socket, orders: None, idle: Arc::default() })
    }

    async fn make_sure_it_runs(&self) -> Result<(), Failure> {
        let Some(orders) = &self.orders else { return Ok(()) };
        if UnixStream::connect(&self.socket).await.is_ok() {
            return Ok(());
        }
        let orders = orders.clone();
        // Waits for a lock and for the keeper: not in the thread that runs the other futures.
        let started = tokio::task::spawn_blocking(move || session::start(&orders)).await;
        started.unwrap_or_else(|panic| Err(self.lost(&panic)))
    }

    /// The keeper's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for a lease; `directory` is where relative paths of its declarations begin.
    ///
    /// # Errors
    ///
    /// No driver works here, `shakedown.toml` is wrong, or the keeper is gone and could not be started again.
    pub async fn lease(&self, client: &str, directory: &Path) -> Result<Lease, Failure> {
        let body =
            api::Lease { client: client.to_owned(), directory: directory.to_string_lossy().into_owned() };
        let mut attempts = 1;
        loop {
            match self.try_lease(&body).await {
                // The keeper ended between the connection and the lease: its successor waits for it by its lock.
                Err(failure)
                    if failure.kind == FailureKind::SessionLost
                        && self.orders.is_some()
                        && attempts < ATTEMPTS =>
                {
                    attempts += 1;
                    self.make_sure_it_runs().await?;
                }
                other => return other,
            }
        }
    }

    async fn try_lease(&self, body: &api::Lease) -> Result<Lease, Failure> {
        let answer = self.send(Method::POST, "/v1/leases", json(body)).await?;
        let mut lines = Box::pin(lines(answer));
        let line = lines.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
        let line = line.map_err(|error| self.lost(&error))?;
        let granted = serde_json::from_slice(&line).map_err(|error| self.lost(&error))?;
        Ok(Lease { granted, rest: lines })
    }

    /// What the keeper is.
    ///
    /// # Errors
    ///
    /// The keeper is gone.
    pub async fn info(&self) -> Result<Info, Failure> {
        self.get("/v1/info").await
    }

    /// The references to images that containers of the session were started from, as they were asked for.
    ///
    /// # Errors
    ///
    /// The keeper is gone.
    pub async fn references(&self) -> Result<Vec<String>, Failure> {
        self.get("/v1/session/references").await
    }

    /// All containers of the session.
    ///
    /// # Errors
    ///
    /// The keeper is gone.
    pub async fn containers(&self) -> Result<Vec<ContainerState>, Failure> {
        self.get("/v1/containers").await
    }

    /// Starts a container and waits until it is ready. Dropping the future cancels the start.
    ///
    /// # Errors
    ///
    /// Why it did not become ready.
    pub async fn start_container(&self, lease: &str, container: &Container) -> Result<Started, Failure> {
        let mut container = container.clone();
        // The keeper has another environment, and maybe another directory.
        let here = std::env::current_dir().unwrap_or_default();
        crate::environment::settle(&mut container, &here, Some(&|name| std::env::var(name).ok()))?;
        let start = Start { lease: lease.to_owned(), container };
        self.json(Method::POST, "/v1/containers", json(&start)).await
    }

    /// Builds an image: what happens, and at the end the image or why there is none. Dropping the stream ends the build.
    ///
    /// # Errors
    ///
    /// The lease or the keeper is gone.
    pub async fn build(
        &self,
        lease: &str,
        build: &Build,
        names: &[String],
    ) -> Result<BoxStream<'static, Result<BuildLine, Failure>>, Failure> {
        let body = BuildBody { lease: lease.to_owned(), build: build.clone(), names: names.to_vec() };
        let answer = self.send(Method::POST, "/v1/builds", json(&body)).await?;
        Ok(self.documents(answer))
    }

    /// What a container is doing.
    ///
    /// # Errors
    ///
    /// There is no such container, or the keeper is gone. The same holds for the methods below.
    pub async fn state(&self, id: &str) -> Result<ContainerState, Failure> {
        self.get(&container(id, "")).await
    }

    /// Removes a container; one that is gone already is no error.
    ///
    /// # Errors
    ///
    /// The driver could not remove it.
    pub async fn remove(&self, id: &str) -> Result<(), Failure> {
        self.done(Method::DELETE, &container(id, ""), empty()).await
    }

    /// Stops a container: its stop signal, then SIGKILL.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn stop(&self, id: &str) -> Result<Exit, Failure> {
        self.json(Method::POST, &container(id, "/stop"), empty()).await
    }

    /// Starts a container that has ended, and waits until it is ready. One that runs is left as it is.
    ///
    /// # Errors
    ///
    /// Why it did not become ready; see also [`state`](Self::state).
    pub async fn start_again(&self, id: &str) -> Result<Started, Failure> {
        self.json(Method::POST, &container(id, "/start"), empty()).await
    }

    /// Stops a container and starts it again.
    ///
    /// # Errors
    ///
    /// See [`start_again`](Self::start_again).
    pub async fn restart(&self, id: &str) -> Result<Started, Failure> {
        self.json(Method::POST, &container(id, "/restart"), empty()).await
    }

    /// Halts all processes of a container.
    ///
    /// # Errors
    ///
    /// The driver cannot do that here; see also [`state`](Self::state).
    pub async fn pause(&self, id: &str) -> Result<(), Failure> {
        self.done(Method::POST, &container(id, "/pause"), empty()).await
    }

    /// Lets them go on.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn unpause(&self, id: &str) -> Result<(), Failure> {
        self.done(Method::POST, &container(id, "/unpause"), empty()).await
    }

    /// Sends a signal, such as `SIGHUP`, to a container's first process.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn kill(&self, id: &str, signal: &str) -> Result<(), Failure> {
        self.done(Method::POST, &container(id, &format!("/kill?signal={}", encode(signal))), empty()).await
    }

    /// Connects a container with a network.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn join_network(&self, id: &str, joined: &Attachment) -> Result<(), Failure> {
        self.done(Method::POST, &container(id, "/networks"), json(joined)).await
    }

    /// Takes a container from a network.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn leave_network(&self, id: &str, key: &str) -> Result<(), Failure> {
        let rest = format!("/networks?network={}", encode(key));
        self.done(Method::DELETE, &container(id, &rest), empty()).await
    }

    /// The networks of the session.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn networks(&self) -> Result<Vec<NetworkState>, Failure> {
        self.get("/v1/networks").await
    }

    /// Resolves when the container's first process has ended.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn exit(&self, id: &str) -> Result<Exit, Failure> {
        self.get(&container(id, "/exit")).await
    }

    /// The lines of a container's log from number `from` on; with `follow`, until its output ends.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn logs(
        &self,
        id: &str,
        query: &LogQuery,
    ) -> Result<BoxStream<'static, Result<LogEntry, Failure>>, Failure> {
        let LogQuery { follow, from, tail, since_us, until_us, stream } = query;
        let mut path = container(id, &format!("/logs?follow={follow}&from={from}"));
        for (name, number) in
            [("tail", tail.map(|count| count as u64)), ("since_us", *since_us), ("until_us", *until_us)]
        {
            path.extend(number.map(|number| format!("&{name}={number}")));
        }
        path.extend(stream.map(|stream| match stream {
            shakedown_spec::Stream::Stdout => "&stream=stdout",
            shakedown_spec::Stream::Stderr => "&stream=stderr",
        }));
        let answer = self.send(Method::GET, &path, empty()).await?;
        Ok(self.documents(answer))
    }

    /// What a container uses now.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn usage(&self, id: &str) -> Result<Usage, Failure> {
        self.json(Method::GET, &container(id, "/stats"), empty()).await
    }

    /// One document a line.
    fn documents<T: DeserializeOwned + 'static>(
        &self,
        answer: Answer,
    ) -> BoxStream<'static, Result<T, Failure>> {
        let keeper = self.clone();
        let documents = lines(answer).map(move |line| {
            let line = line.map_err(|error| keeper.lost(&error))?;
            serde_json::from_slice(&line).map_err(|error| keeper.lost(&error))
        });
        documents.boxed()
    }

    /// Runs a command in a container to its end.
    ///
    /// # Errors
    ///
    /// It could not be run; see also [`state`](Self::state).
    pub async fn exec(&self, id: &str, request: ExecRequest, input: &[u8]) -> Result<ExecResult, Failure> {
        let body = ExecBody { request, input: STANDARD.encode(input), detach: false };
        self.json(Method::POST, &container(id, "/exec"), json(&body)).await
    }

    /// Starts a command in a container and does not wait for it.
    ///
    /// # Errors
    ///
    /// It could not be run; see also [`state`](Self::state).
    pub async fn exec_detached(&self, id: &str, request: ExecRequest, input: &[u8]) -> Result<(), Failure> {
        let body = ExecBody { request, input: STANDARD.encode(input), detach: true };
        self.done(Method::POST, &container(id, "/exec"), json(&body)).await
    }

    /// Starts a command in a container and talks to it.
    ///
    /// # Errors
    ///
    /// It could not be run; see also [`state`](Self::state).
    pub async fn exec_stream(&self, id: &str, request: &ExecRequest) -> Result<Interactive, Failure> {
        self.interactive(&container(id, "/exec/stream"), json(request)).await
    }

    /// Talks to the first process of a container. With `replay`, its output begins with what it wrote so far.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn attach(&self, id: &str, replay: bool) -> Result<Interactive, Failure> {
        self.interactive(&container(id, &format!("/attach?replay={replay}")), empty()).await
    }

    async fn interactive(&self, path: &str, body: Body) -> Result<Interactive, Failure> {
        let upgrade = [(header::CONNECTION, "upgrade"), (header::UPGRADE, crate::rest::FRAMES)];
        let (response, _connection) = self.request(Method::POST, path, body, &upgrade).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.refusal(response).await);
        }
        let connection = hyper::upgrade::on(response).await.map_err(|error| self.lost(&error))?;
        let (reader, writer) = tokio::io::split(TokioIo::new(connection));
        Ok(Interactive {
            input: InteractiveInput { writer, client: self.clone() },
            output: InteractiveOutput { reader, client: self.clone() },
        })
    }

    /// Unpacks a tar stream at the directory `path` of a container.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn copy_in(
        &self,
        id: &str,
        path: &str,
        tar: impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static,
    ) -> Result<(), Failure> {
        let body = BodyExt::boxed(StreamBody::new(tar.map_ok(Frame::data)));
        self.done(Method::PUT, &container(id, &format!("/files?path={}", encode(path))), body).await
    }

    /// A tar stream with one top entry: the file or directory at `path` of a container.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state).
    pub async fn copy_out(
        &self,
        id: &str,
        path: &str,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, Failure> {
        let path = container(id, &format!("/files?path={}", encode(path)));
        Ok(chunks(self.send(Method::GET, &path, empty()).await?).boxed())
    }

    /// Makes an image of a container, with what was written to it so far.
    ///
    /// # Errors
    ///
    /// See [`state`](Self::state); or a change is no instruction.
    pub async fn commit(&self, id: &str, new: &NewImage) -> Result<Image, Failure> {
        self.json(Method::POST, &container(id, "/commit"), json(new)).await
    }

    /// The images that are there.
    ///
    /// # Errors
    ///
    /// The keeper is gone, or the driver does not tell.
    pub async fn images(&self) -> Result<Vec<ListedImage>, Failure> {
        self.get("/v1/images").await
    }

    /// Finds an image, pulling or making it if need be.
    ///
    /// # Errors
    ///
    /// It is nowhere, or cannot be used.
    pub async fn image(&self, name: &ImageName) -> Result<Image, Failure> {
        self.json(Method::POST, "/v1/images", json(name)).await
    }

    /// Takes a name from an image, and removes the image with its last name.
    ///
    /// # Errors
    ///
    /// It is not there, or is in use.
    pub async fn remove_image(&self, image: &str) -> Result<(), Failure> {
        self.done(Method::DELETE, &format!("/v1/images?image={}", encode(image)), empty()).await
    }

    /// Gives an image a further name.
    ///
    /// # Errors
    ///
    /// The image is nowhere, or the name is none.
    pub async fn tag(&self, tag: &ImageTag) -> Result<(), Failure> {
        self.done(Method::POST, "/v1/images/tag", json(tag)).await
    }

    /// Sends an image to a registry.
    ///
    /// # Errors
    ///
    /// The image is nowhere, or the registry refuses it.
    pub async fn push(&self, tag: &ImageTag) -> Result<(), Failure> {
        self.done(Method::POST, "/v1/images/push", json(tag)).await
    }

    /// Images as one archive, each layer once.
    ///
    /// # Errors
    ///
    /// One is nowhere, or its layers are not at hand any more.
    pub async fn save(
        &self,
        images: &ImagesToSave,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, Failure> {
        Ok(chunks(self.send(Method::POST, "/v1/images/save", json(images)).await?).boxed())
    }

    /// Takes all images of an archive, compressed or not.
    ///
    /// # Errors
    ///
    /// The archive is none, or broken.
    pub async fn load(
        &self,
        archive: impl Stream<Item = io::Result<Vec<u8>>> + Send + Sync + 'static,
    ) -> Result<Vec<LoadedImage>, Failure> {
        let body = BodyExt::boxed(StreamBody::new(archive.map_ok(|chunk| Frame::data(chunk.into()))));
        self.json(Method::POST, "/v1/images/load", body).await
    }

    /// Makes an image of a root file system: a tar archive, compressed or not.
    ///
    /// # Errors
    ///
    /// The archive is broken, or a change is no instruction.
    pub async fn import(
        &self,
        tar: impl Stream<Item = io::Result<Vec<u8>>> + Send + Sync + 'static,
        new: &NewImage,
    ) -> Result<Image, Failure> {
        let mut path = format!("/v1/images/import?changes={}", encode(&new.changes.join("\n")));
        for (key, value) in [("name", &new.name), ("message", &new.message), ("author", &new.author)] {
            if let Some(value) = value {
                path.push_str(&format!("&{key}={}", encode(value)));
            }
        }
        let body = BodyExt::boxed(StreamBody::new(tar.map_ok(|chunk| Frame::data(chunk.into()))));
        self.json(Method::POST, &path, body).await
    }

    /// Gives a lease back and waits until nothing of it is left. Dropping the [`Lease`] does not wait.
    ///
    /// # Errors
    ///
    /// Something could not be removed.
    pub async fn give_back(&self, lease: Lease) -> Result<(), Failure> {
        self.done(Method::DELETE, &format!("/v1/leases/{}", encode(&lease.granted.lease)), empty()).await
    }

    /// Ends the session: everything is taken away, and the keeper ends.
    ///
    /// # Errors
    ///
    /// Something could not be removed.
    pub async fn end_session(&self) -> Result<(), Failure> {
        self.done(Method::DELETE, "/v1/session", empty()).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.json(Method::GET, path, empty()).await
    }

    async fn json<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T, Failure> {
        let bytes = self.whole(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.lost(&error))
    }

    async fn done(&self, method: Method, path: &str, body: Body) -> Result<(), Failure> {
        self.whole(method, path, body).await.map(drop)
    }

    /// The whole body of an answer.
    async fn whole(&self, method: Method, path: &str, body: Body) -> Result<Bytes, Failure> {
        let Answer { body, connection } = self.send(method, path, body).await?;
        let bytes = body.collect().await.map_err(|error| self.lost(&error))?.to_bytes();
        self.idle.keep(connection);
        Ok(bytes)
    }

    /// Sends a request and reads the head of the answer. An answer that is none of success is the keeper's failure.
    async fn send(&self, method: Method, path: &str, body: Body) -> Result<Answer, Failure> {
        let (response, connection) = self.request(method, path, body, &[]).await?;
        if response.status().is_success() {
            return Ok(Answer { body: response.into_body(), connection });
        }
        Err(self.refusal(response).await)
    }

    async fn refusal(&self, response: Response<Incoming>) -> Failure {
        let (head, body) = response.into_parts();
        match body.collect().await {
            Ok(body) => {
                let bytes = body.to_bytes();
                serde_json::from_slice(&bytes).unwrap_or_else(|_| not_a_failure(head.status, &bytes))
            }
            Err(error) => self.lost(&error),
        }
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Body,
        headers: &[(header::HeaderName, &str)],
    ) -> Result<(Response<Incoming>, Connection), Failure> {
        let mut connection = match self.idle.take().await {
            Some(connection) => connection,
            None => self.connection().await?,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "shakedown")
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(body).map_err(|error| self.lost(&error))?;
        let response = connection.sender.send_request(request).await.map_err(|error| self.lost(&error))?;
        Ok((response, connection))
    }

    async fn connection(&self) -> Result<Connection, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.lost(&error))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.lost(&error))?;
        // An error of the connection is an error of the request or its body, too.
        let task = tokio::spawn(async move { drop(connection.with_upgrades().await) });
        Ok(Connection { task, sender })
    }

    /// The keeper does not answer (any more).
    fn lost(&self, reason: &dyn Display) -> Failure {
        let failure = Failure::new(FailureKind::SessionLost, "the session keeper is gone")
            .fact("reason", reason.to_string())
            .fact("socket", self.socket.display().to_string());
        let Some(orders) = &self.orders else { return failure };
        let log = orders.place().log();
        match session::log_tail(&log) {
            Some(tail) => failure.fact("log", log.display().to_string()).log(tail),
            None => failure,
        }
    }
}

/// A share of the session. Dropping it gives it back: the keeper removes all its containers.
pub struct Lease {
    granted: LeaseGranted,
    rest: std::pin::Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.granted).finish()
    }
}

impl Lease {
    /// Its name, for [`Client::start_container`].
    #[must_use]
    pub fn id(&self) -> &str {
        &self.granted.lease
    }

    /// What the keeper said.
    #[must_use]
    pub fn granted(&self) -> &LeaseGranted {
        &self.granted
    }

    /// Resolves when the lease is void: the session has ended, or its keeper has died.
    pub async fn ended(&mut self) {
        while let Some(Ok(_)) = self.rest.next().await {}
    }
}

/// A process that is talked to. Dropping both halves lets go of it.
#[derive(Debug)]
pub struct Interactive {
    /// What goes there.
    pub input: InteractiveInput,
    /// What comes from there.
    pub output: InteractiveOutput,
}

/// The way to a process.
#[derive(Debug)]
pub struct InteractiveInput {
    writer: WriteHalf<TokioIo<Upgraded>>,
    client: Client,
}

/// The way from a process.
#[derive(Debug)]
pub struct InteractiveOutput {
    reader: ReadHalf<TokioIo<Upgraded>>,
    client: Client,
}

impl InteractiveInput {
    /// Sends input, the end of it, or the terminal's size.
    ///
    /// # Errors
    ///
    /// The process has ended, or the keeper is gone.
    pub async fn send(&mut self, asked: &Asked) -> Result<(), Failure> {
        asked.write(&mut self.writer).await.map_err(|error| self.client.lost(&error))
    }
}

impl InteractiveOutput {
    /// What the process writes next, or how it ended; nothing comes after that.
    ///
    /// # Errors
    ///
    /// The keeper is gone, or the end cannot be told.
    pub async fn next(&mut self) -> Result<Told, Failure> {
        match Told::read(&mut self.reader).await {
            Ok(Some(Told::Failure(failure))) => Err(failure),
            Ok(Some(told)) => Ok(told),
            Ok(None) => Err(self.client.lost(&"the connection was closed")),
            Err(error) => Err(self.client.lost(&error)),
        }
    }
}

type Body = BoxBody<Bytes, io::Error>;

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn json(value: &impl Serialize) -> Body {
    // The types of `api` have no maps with keys that are no strings, the only thing that could fail here.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}

/// The task that moves a connection's bytes. Dropping it closes the connection, and with it what was asked.
#[derive(Debug)]
struct Connection {
    task: JoinHandle<()>,
    sender: http1::SendRequest<Body>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connections whose requests have been answered.
#[derive(Debug, Default)]
struct Idle(Mutex<Vec<(Instant, Connection)>>);

impl Idle {
    /// How many are kept.
    const MOST: usize = 4;
    /// For how long one is used again: the keeper closes those that ask for nothing for ten times as long.
    const LONGEST: Duration = Duration::from_secs(1);

    fn kept(&self) -> MutexGuard<'_, Vec<(Instant, Connection)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, connection: Connection) {
        let mut kept = self.kept();
        kept.retain(|(since, _)| since.elapsed() < Self::LONGEST);
        if kept.len() < Self::MOST {
            kept.push((Instant::now(), connection));
        }
    }

    /// One that can be used at once.
    async fn take(&self) -> Option<Connection> {
        loop {
            let (since, mut connection) = self.kept().pop()?;
            // One whose runtime has ended is not ready either.
            if since.elapsed() < Self::LONGEST && connection.sender.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }
}

#[derive(Debug)]
struct Answer {
    body: Incoming,
    /// Open as long as the body is read.
    connection: Connection,
}

fn chunks(answer: Answer) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::unfold(answer, |mut answer| async move {
        loop {
            match answer.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some((Ok(data), answer));
                    }
                }
                Err(error) => return Some((Err(io::Error::other(error)), answer)),
            }
        }
    })
}

/// The body's lines, without their line feeds.
fn lines(answer: Answer) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let chunks = Box::pin(chunks(answer));
    stream::unfold((chunks, BytesMut::new()), |(mut chunks, mut buffer)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1).freeze();
                return Some((Ok(line.slice(..end)), (chunks, buffer)));
            }
            match chunks.next().await? {
                Ok(chunk) => buffer.extend_from_slice(&chunk),
                Err(error) => return Some((Err(error), (chunks, buffer))),
            }
        }
    })
}

fn container(id: &str, rest: &str) -> String {
    format!("/v1/containers/{}{rest}", encode(id))
}

/// Percent-encoding for a part of a path or a query.
fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

fn not_a_failure(status: StatusCode, body: &[u8]) -> Failure {
    Failure::new(FailureKind::Other, format!("the server answered {status}, not as a keeper does"))
        .fact("answer", String::from_utf8_lossy(&body[..body.len().min(500)]))
}
