//! The bytes of a blob, wherever they lie, and what is in them if they are compressed.

use rustix::io::Errno;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

const CHUNK: usize = 256 << 10;

/// The bytes of a blob: a file, or a part of one such as a member of an archive.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The file, open for reading. Its position means nothing; it may be shared.
    pub file: Arc<File>,
    /// Where in the file the blob begins.
    pub offset: u64,
    /// How long it is, or will be.
    pub length: u64,
    /// Of a blob that is still being written: its end comes with the end of this pipe.
    ticks: Option<Arc<OwnedFd>>,
}

/// The writer's side of a blob that is still being written.
#[derive(Clone, Debug)]
pub(crate) struct Growth {
    /// Taken when nothing more will come.
    ticks: Arc<Mutex<Option<OwnedFd>>>,
    /// As long as there is a reader, a tick cannot end this process with `SIGPIPE`.
    _reader: Arc<OwnedFd>,
}

/// Reads a [`Blob`] from its beginning, without moving the file's position.
#[derive(Debug)]
pub struct BlobReader {
    blob: Blob,
    done: u64,
}

impl Blob {
    /// All of `file`.
    ///
    /// # Errors
    ///
    /// The file's size cannot be found out.
    pub fn whole(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self::part(Arc::new(file), 0, length))
    }

    /// The part of `file` that begins at `offset`.
    #[must_use]
    pub fn part(file: Arc<File>, offset: u64, length: u64) -> Self {
        Self { file, offset, length, ticks: None }
    }

    /// All of `file`, which will have this length when it is written.
    pub(crate) fn growing(file: File, length: u64) -> io::Result<(Self, Growth)> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // A pipe that is full of ticks says all there is to say.
        rustix::io::ioctl_fionbio(&writer, true)?;
        let reader = Arc::new(reader);
        let growth = Growth { ticks: Arc::new(Mutex::new(Some(writer))), _reader: Arc::clone(&reader) };
        Ok((Self { file: Arc::new(file), offset: 0, length, ticks: Some(reader) }, growth))
    }

    /// The same for a process that was given the reading end of the pipe.
    pub(crate) fn followed(file: Arc<File>, offset: u64, length: u64, ticks: Option<OwnedFd>) -> Self {
        Self { file, offset, length, ticks: ticks.map(Arc::new) }
    }

    /// The reading end of the pipe, if the blob is still being written.
    pub(crate) fn ticks(&self) -> Option<BorrowedFd<'_>> {
        self.ticks.as_ref().map(|ticks| ticks.as_fd())
    }

    /// A reader from the beginning.
    #[must_use]
    pub fn reader(&self) -> BlobReader {
        BlobReader { blob: self.clone(), done: 0 }
    }
}

impl Growth {
    /// More of the file can be read.
    pub(crate) fn tick(&self) {
        if let Some(ticks) = &*self.ticks.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = rustix::io::write(ticks, &[0]);
        }
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        self.ticks.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.blob.length - self.done).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        loop {
            let read = self.blob.file.read_at(&mut buffer[..wanted], self.blob.offset + self.done)?;
            self.done += read as u64;
            let Some(ticks) = self.blob.ticks.as_ref().filter(|_| read == 0 && wanted > 0) else {
                return Ok(read);
            };
            // What was written before a tick can be read after it; a late look finds several ticks at once.
            match rustix::io::read(ticks, &mut [0; 4096]) {
                Ok(0) => return self.rest(&mut buffer[..wanted]),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl BlobReader {
    /// What was written before the last tick, if there is anything left.
    fn rest(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.blob.file.read_at(buffer, self.blob.offset + self.done)? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the rest of the layer did not come")),
            read => {
                self.done += read as u64;
                Ok(read)
            }
        }
    }
}

/// What is in a stream. Its first bytes tell how it is compressed, not a media type: every other implementation does
/// it like this.
///
/// # Errors
///
/// The first bytes cannot be read.
pub(crate) fn inflated<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(CHUNK, input);
    Ok(match input.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        _ => Box::new(input),
    })
}
