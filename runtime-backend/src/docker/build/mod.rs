//! Builds in the daemon.
//!
//! ```text
//! request ──► base images into the daemon ──► lower (a Dockerfile that it understands) ──► tar ──► answer ──► image
//! ```
//! The Dockerfile has been read and evaluated before the daemon hears of it, so that a mistake in it has the same message
//! as with the native driver. The daemon runs it with BuildKit where it has that.

mod follow;
mod http;
mod lower;
mod wire;

use super::failures::daemon_failure;

use super::image::config_of;
use super::{DockerDriver, Endpoint};
use crate::build::context::{Context, Files};
use crate::build::dockerfile::ast::RunNetwork;
use crate::build::{BuildEvent, BuildProgress, BuildRequest, as_written};
use crate::driver::{Image, Progress, Result};
use crate::pipe::ChannelWriter;
use bollard::query_parameters::TagImageOptionsBuilder;
use follow::Follower;
use futures_util::future::BoxFuture;
use lower::{Base, Engine, Lowered, OwnFile, lower};
use shakedown_spec::{Build, Failure, FailureKind, ImageSource};
use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Where the Dockerfile lies in what is sent.
const DOCKERFILE: &str = ".shakedown/Dockerfile";

impl DockerDriver {
    pub(super) async fn build_image(&self, request: BuildRequest, progress: BuildProgress) -> Result<Image> {
        let bases = self.bases(&request, &progress).await?;
        let lowered = lower(&request, &bases, self.engine())?;
        let (writer, chunks) = ChannelWriter::new();
        let sending = {
            let (context, text) = (request.context.clone(), lowered.text.clone());
            let (files, prefix) = (lowered.files.clone(), lowered.prefix);
            tokio::task::spawn_blocking(move || {
                let mut buffered = io::BufWriter::with_capacity(64 << 10, writer.clone());
                let sent = send(&context, prefix, &text, &files, &mut buffered);
                if let Err((_, error)) = &sent {
                    writer.abort(error);
                }
                sent
            })
        };
        let target = self.target(&request);
        let answered = follow(self.endpoint(), &target, chunks, &request, &lowered, &progress).await;
        match (sending.await, answered) {
            // The daemon only sees that the upload broke off.
            (Ok(Err((path, error))), _) if error.kind() != io::ErrorKind::BrokenPipe => {
                let title = format!("{} could not be built", request.plan.dockerfile.name);
                Err(Failure::new(FailureKind::ImageUnusable, title)
                    .fact("file", path.display().to_string())
                    .fact("reason", error.to_string()))
            }
            (_, Ok(id)) => self.built(&id, &request).await,
            (_, Err(failure)) => Err(failure),
        }
    }

    /// An image that is named by its build alone, without rules for what it is based on.
    pub(super) fn resolve_build(&self, build: Build) -> BoxFuture<'_, Result<Image>> {
        Box::pin(async move {
            let request = BuildRequest::open(build, as_written()).await?;
            self.build_image(request, Arc::new(|_| {})).await
        })
    }

    async fn built(&self, id: &str, request: &BuildRequest) -> Result<Image> {
        let inspected = self.find(id).await?.ok_or_else(|| {
            let title = format!("{} was built and its image is not there", request.plan.dockerfile.name);
            Failure::new(FailureKind::ImageUnusable, title).fact("image", id)
        })?;
        let reference = request.names.first().map_or_else(|| id.to_owned(), ToString::to_string);
        Ok(Image { id: id.to_owned(), reference, config: config_of(inspected) })
    }

    /// Gets every image that the build needs into the daemon, under a name that a Dockerfile can use.
    async fn bases(&self, request: &BuildRequest, progress: &BuildProgress) -> Result<HashMap<String, Base>> {
        let told = Arc::clone(progress);
        let pulled: Progress =
            Arc::new(move |what, done, total| told(BuildEvent::Pull { what: what.to_owned(), done, total }));
        let mut bases = HashMap::new();
        for (image, _platform) in request.plan.images()? {
            let wanted = request.base(&image)?;
            let resolved = self.obtain_image(&wanted, Arc::clone(&pulled)).await?;
            let name = match &wanted.source {
                // An image of a bundle has a digest that the daemon does not know it by.
                ImageSource::Registry(reference) if self.find(&reference.to_string()).await?.is_some() => {
                    reference.to_string()
                }
                _ => self.name_of(&resolved.id).await?,
            };
            let inspected = self.find(&resolved.id).await?.unwrap_or_default();
            let config = inspected.config.unwrap_or_default();
            let triggers = config.on_build.as_ref().is_some_and(|triggers| !triggers.is_empty());
            let document = serde_json::json!({
                "architecture": inspected.architecture, "os": inspected.os, "config": config,
            });
            let config = serde_json::to_vec(&document).unwrap_or_default();
            bases.insert(image, Base { name, config, triggers });
        }
        Ok(bases)
    }

    /// A Dockerfile cannot name an image by its id: it reads it as a name and a tag.
    async fn name_of(&self, id: &str) -> Result<String> {
        let tag = id.trim_start_matches("sha256:");
        let options = TagImageOptionsBuilder::new().repo("shakedown-import").tag(tag).build();
        self.inner.docker.tag_image(id, Some(options)).await.map_err(|error| {
            daemon_failure(FailureKind::Other, format!("image {id} could not be named for a build"), &error)
        })?;
        Ok(format!("shakedown-import:{tag}"))
    }

    fn engine(&self) -> Engine {
        let version = self.inner.info.server_version.as_deref().unwrap_or_default();
        let major = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(u32::MAX);
        // Podman counts its own versions, from 3 to 5; Docker has been above 17 since its API can build.
        Engine { major, other: major < 17 }
    }

    /// The request's path and options.
    fn target(&self, request: &BuildRequest) -> String {
        let json = |map: &std::collections::BTreeMap<String, String>| serde_json::json!(map).to_string();
        let settings = &request.plan.settings;
        let mut pairs = vec![
            ("dockerfile", DOCKERFILE.to_owned()),
            ("version", "2".to_owned()),
            ("buildargs", json(&settings.args)),
            ("labels", json(&settings.labels)),
            ("rm", "1".to_owned()),
            ("forcerm", "1".to_owned()),
        ];
        pairs.extend(request.no_cache.then(|| ("nocache", "1".to_owned())));
        pairs.extend(settings.platform.iter().map(|platform| ("platform", platform.to_string())));
        pairs.extend(request.names.iter().map(|name| ("t", name.to_string())));
        let hosts: Vec<String> =
            request.extra_hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect();
        if !hosts.is_empty() {
            pairs.push(("extrahosts", hosts.join(",")));
        }
        match request.network {
            RunNetwork::Default => {}
            RunNetwork::None => pairs.push(("networkmode", "none".to_owned())),
            RunNetwork::Host => pairs.push(("networkmode", "host".to_owned())),
        }
        let version = self.inner.docker.client_version();
        format!("/v{}.{}/build?{}", version.major_version, version.minor_version, http::query(&pairs))
    }
}

async fn follow(
    endpoint: &Endpoint,
    target: &str,
    chunks: impl futures_util::Stream<Item = io::Result<bytes::Bytes>> + Send + 'static,
    request: &BuildRequest,
    lowered: &Lowered,
    progress: &BuildProgress,
) -> Result<String> {
    let broken = |reason: String| {
        let title =
            format!("{} could not be built: the daemon does not answer", request.plan.dockerfile.name);
        Failure::new(FailureKind::Other, title).fact("reason", reason)
    };
    let mut answer = http::post(endpoint, target, chunks).await.map_err(broken)?;
    let mut follower = Follower::new(request, lowered, progress);
    let refused = answer.refused();
    while let Some(line) = answer.line().await.map_err(broken)? {
        follower.line(&line);
    }
    match follower.finish() {
        Ok(_) if refused => Err(broken("it refused the build".to_owned())),
        finished => finished,
    }
}

type Sent = std::result::Result<(), (PathBuf, io::Error)>;

/// Writes the Dockerfile, the files that belong to it, and the context.
fn send(context: &Context, prefix: &str, text: &str, files: &[OwnFile], out: &mut impl Write) -> Sent {
    let mut tar = tar::Builder::new(out);
    file(&mut tar, DOCKERFILE, text.as_bytes(), 0o644, (0, 0))?;
    for own in files {
        file(&mut tar, &own.path, &own.content, own.mode, own.owner)?;
    }
    if !prefix.is_empty() {
        // An empty context is a directory all the same: `COPY .` copies nothing of it.
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        let path = prefix.trim_end_matches('/');
        tar.append_data(&mut header, path, io::empty()).map_err(|error| (path.into(), error))?;
    }
    match &context.files {
        Files::Memory(files) => {
            let patterns = context.patterns();
            for inline in files.iter().filter(|file| !patterns.matches(&file.path)) {
                let mode = inline.mode.unwrap_or(0o644);
                file(&mut tar, &format!("{prefix}{}", inline.path), &inline.bytes, mode, (0, 0))?;
            }
        }
        Files::Directory(root) => {
            for found in context.walk(root)? {
                // A socket is of no use without the process that made it.
                if found.metadata.file_type().is_socket() {
                    continue;
                }
                let path = format!("{prefix}{}", found.path);
                // Whoever owns them here: what is copied belongs to root unless `--chown` says otherwise.
                crate::pack::append(&mut tar, &found.file, &found.metadata, path.as_ref(), (0, 0), None)
                    .map_err(|error| (found.file.clone(), error))?;
            }
        }
    }
    tar.into_inner().and_then(|out| out.flush()).map_err(|error| (PathBuf::from("the upload"), error))
}

fn file(
    tar: &mut tar::Builder<impl Write>,
    path: &str,
    content: &[u8],
    mode: u32,
    (uid, gid): (u32, u32),
) -> Sent {
    let mut header = header(tar::EntryType::Regular, mode, content.len() as u64);
    header.set_uid(uid.into());
    header.set_gid(gid.into());
    tar.append_data(&mut header, path, content).map_err(|error| (path.into(), error))
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}
