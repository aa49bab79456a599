//! From a compressed stream to plain bytes and their digest: three threads, bounded memory.
//!
//! ```text
//! inflate ──► chunk ──► digest
//!                └────► apply (the caller's thread)
//! ```
//! Inflating and hashing cost about the same, creating files half of it, so each gets a thread of its own.

use super::error::UnpackError;
use super::limits::Limits;
use crate::image_files::blob::inflated;
use crate::native::image::digest::{Digest, Hasher};
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

const CHUNK: usize = 256 << 10;
/// How many chunks may wait; bounds the memory to a few MiB per layer.
const WAITING: usize = 8;

type Chunk = Arc<Vec<u8>>;

/// Plain bytes as they come out of the decompressor.
pub(crate) struct Plain {
    chunks: Receiver<Result<Chunk, UnpackError>>,
    current: Chunk,
    used: usize,
    spare: Spare,
    failed: Option<UnpackError>,
}

/// Used-up buffers on their way back to the decompressor: a fresh one costs a page fault per 4 KiB.
#[derive(Clone, Default)]
struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

/// Decompresses and hashes `input` while `apply` reads the plain bytes. Returns what `apply` returns, the digest of
/// the whole plain stream and its length. `apply` need not read to the end, the digest covers everything.
pub(crate) fn decompress<T>(
    input: impl Read + Send,
    limits: &Limits,
    apply: impl FnOnce(&mut Plain) -> Result<T, UnpackError>,
) -> Result<(T, Digest, u64), UnpackError> {
    let spare = Spare::default();
    let (to_apply, chunks) = sync_channel(WAITING);
    let (to_hash, hashing) = sync_channel::<Chunk>(WAITING);
    let given_up = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hasher = scope.spawn({
            let spare = spare.clone();
            move || hash(&hashing, &spare)
        });
        scope.spawn({
            let (spare, given_up) = (spare.clone(), &given_up);
            move || {
                let result = inflate(input, limits, &spare, given_up, &to_hash, &to_apply);
                if let Err(error) = result {
                    // Nobody listens once the other side has failed; its error is the one to report.
                    let _ = to_apply.send(Err(error));
                }
            }
        });
        let mut plain = Plain { chunks, current: Arc::default(), used: 0, spare, failed: None };
        let result = apply(&mut plain).and_then(|value| plain.drain().map(|()| value));
        given_up.store(result.is_err(), Ordering::Relaxed);
        // A stopped decompressor explains a stream that seems to end early, so its error goes first.
        let failed = plain.failed.take();
        drop(plain);
        let joined = hasher.join();
        if let Some(failed) = failed {
            return Err(failed);
        }
        let value = result?;
        let (digest, bytes) = joined.map_err(|_panic| broken("the digest thread ended early"))?;
        Ok((value, digest, bytes))
    })
}

fn broken(reason: &str) -> UnpackError {
    UnpackError::Compression { reason: reason.to_owned() }
}

fn hash(chunks: &Receiver<Chunk>, spare: &Spare) -> (Digest, u64) {
    let (mut hasher, mut bytes) = (Hasher::new(), 0);
    for chunk in chunks {
        hasher.update(&chunk);
        bytes += chunk.len() as u64;
        spare.give(chunk);
    }
    (hasher.finish(), bytes)
}

fn inflate(
    input: impl Read,
    limits: &Limits,
    spare: &Spare,
    given_up: &AtomicBool,
    to_hash: &SyncSender<Chunk>,
    to_apply: &SyncSender<Result<Chunk, UnpackError>>,
) -> Result<(), UnpackError> {
    let consumed = std::cell::Cell::new(0_u64);
    let input = Counting { input, bytes: &consumed };
    let mut decoder = inflated(input).map_err(|error| UnpackError::system("read the layer", error))?;
    let mut total = 0_u64;
    while !given_up.load(Ordering::Relaxed) {
        let mut buffer = spare.take();
        let read = fill(&mut decoder, &mut buffer)
            .map_err(|error| UnpackError::Compression { reason: error.to_string() })?;
        if read == 0 {
            break;
        }
        buffer.truncate(read);
        total += read as u64;
        if total > limits.bytes {
            return Err(UnpackError::limit("uncompressed bytes", limits.bytes));
        }
        // What the decompressor has read ahead counts as read, so the ratio errs towards the layer.
        if total > limits.ratio_from && total / consumed.get().max(1) > limits.ratio {
            return Err(UnpackError::limit("bytes for each compressed byte", limits.ratio));
        }
        let chunk = Arc::new(buffer);
        if to_hash.send(Arc::clone(&chunk)).is_err() || to_apply.send(Ok(chunk)).is_err() {
            break;
        }
    }
    Ok(())
}

fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

struct Counting<'a, R> {
    input: R,
    bytes: &'a std::cell::Cell<u64>,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.bytes.set(self.bytes.get() + read as u64);
        Ok(read)
    }
}

impl Spare {
    fn take(&self) -> Vec<u8> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = spare.unwrap_or_default();
        buffer.resize(CHUNK, 0);
        buffer
    }

    /// Whichever thread lets go last gives the buffer back.
    fn give(&self, chunk: Chunk) {
        if let Some(buffer) = Arc::into_inner(chunk) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
    }
}

impl Plain {
    /// The next bytes, at least one unless the stream is at its end.
    pub(crate) fn peek(&mut self) -> Result<&[u8], UnpackError> {
        if self.used == self.current.len() {
            match self.chunks.recv() {
                Ok(Ok(chunk)) => {
                    self.spare.give(std::mem::replace(&mut self.current, chunk));
                    self.used = 0;
                }
                Ok(Err(error)) => {
                    self.failed = Some(error.clone());
                    return Err(error);
                }
                // The decompressor is done.
                Err(_disconnected) => return Ok(&[]),
            }
        }
        Ok(&self.current[self.used..])
    }

    /// Takes `count` bytes that were seen with [`peek`](Self::peek).
    pub(crate) fn consume(&mut self, count: usize) {
        self.used = (self.used + count).min(self.current.len());
    }

    /// Reads to the end, so that the digest covers what follows the archive's end.
    fn drain(&mut self) -> Result<(), UnpackError> {
        loop {
            let length = self.peek()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }
}
