//! Files into and out of containers, as tar streams that are never held in memory as a whole.

use super::{DockerDriver, daemon_failure};
use crate::driver::Result;
use crate::pack::pack;
use crate::pipe::ChannelWriter;
use bollard::query_parameters::{DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder};
use bollard::{body_try_stream, errors::Error};
use futures_util::{StreamExt, TryStreamExt};
use shakedown_spec::{Failure, FailureKind, File};
use std::io::{self, Write};
use std::pin::Pin;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

impl DockerDriver {
    /// Puts the declared files into a container that is made and not started.
    pub(crate) async fn put_files(&self, name: &str, service: &str, files: Vec<File>) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let (writer, chunks) = ChannelWriter::new();
        let packing = tokio::task::spawn_blocking(move || {
            let mut buffered = io::BufWriter::with_capacity(64 << 10, writer.clone());
            let packed = pack(&files, &mut buffered)
                .and_then(|()| buffered.flush().map_err(|error| ("the upload".to_owned(), error)));
            if let Err((_, error)) = &packed {
                writer.abort(error);
            }
            packed
        });
        // Extracted at the root, the daemon makes missing parents itself and leaves those that exist as they are.
        let options = UploadToContainerOptionsBuilder::new().path("/").build();
        let uploaded =
            self.inner.docker.upload_to_container(name, Some(options), body_try_stream(chunks)).await;
        let title = format!("the files for {service} could not be copied");
        match (packing.await, uploaded) {
            (Ok(Err((path, error))), _) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(FailureKind::CopyFailed, title).fact("reason", format!("{path}: {error}")))
            }
            (_, Err(error)) => Err(daemon_failure(FailureKind::CopyFailed, title, &error)),
            _ => Ok(()),
        }
    }

    pub(crate) async fn upload(
        &self,
        id: &str,
        path: &str,
        tar: Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<()> {
        let instance = self.instance(id)?;
        let options = UploadToContainerOptionsBuilder::new().path(path).build();
        let body = body_try_stream(ReaderStream::with_capacity(tar, 64 << 10));
        self.inner.docker.upload_to_container(&instance.name, Some(options), body).await.map_err(|error| {
            let title = format!("nothing could be copied to {path} of {}", instance.service);
            daemon_failure(FailureKind::CopyFailed, title, &error)
        })
    }

    pub(crate) async fn download(&self, id: &str, path: &str) -> Result<Pin<Box<dyn AsyncRead + Send>>> {
        let instance = self.instance(id)?;
        let options = DownloadFromContainerOptionsBuilder::new().path(path).build();
        let mut stream = self.inner.docker.download_from_container(&instance.name, Some(options)).boxed();
        // The daemon's refusal comes instead of the first chunk.
        let first = match stream.next().await {
            Some(Err(error)) => {
                let title = format!("{path} of {} could not be copied", instance.service);
                return Err(daemon_failure(FailureKind::CopyFailed, title, &error));
            }
            first => futures_util::stream::iter(first),
        };
        let to_io = |error: Error| io::Error::other(super::failures::words(&error));
        Ok(Box::pin(StreamReader::new(first.chain(stream).map_err(to_io).boxed())))
    }
}
