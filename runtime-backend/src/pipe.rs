//! From code that writes without `async` to a stream of bytes.

use crate::transfer::ByteStream;
use bytes::Bytes;
use futures_util::Stream;
use std::io::{self, Write};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

/// The writing end of a stream, for code that writes without `async`. Blocks while the reader is behind.
#[derive(Clone)]
pub(crate) struct ChannelWriter {
    chunks: mpsc::Sender<io::Result<Bytes>>,
}

impl ChannelWriter {
    pub(crate) fn new() -> (Self, impl Stream<Item = io::Result<Bytes>> + Send + 'static) {
        let (chunks, receiver) = mpsc::channel(8);
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        });
        (Self { chunks }, stream)
    }

    /// Breaks the stream off, so that its reader does not take what came for the whole.
    pub(crate) fn abort(&self, error: &io::Error) {
        let _ = self.chunks.blocking_send(Err(io::Error::other(error.to_string())));
    }
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = Bytes::copy_from_slice(bytes);
        self.chunks.blocking_send(Ok(chunk)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `write` writes, in a thread of its own, as it comes.
pub(crate) fn written(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> ByteStream {
    let (writer, chunks) = ChannelWriter::new();
    tokio::task::spawn_blocking(move || {
        let mut buffered = io::BufWriter::with_capacity(256 << 10, writer.clone());
        if let Err(error) = write(&mut buffered).and_then(|()| buffered.flush()) {
            writer.abort(&error);
        }
    });
    Box::pin(StreamReader::new(Box::pin(chunks)))
}
