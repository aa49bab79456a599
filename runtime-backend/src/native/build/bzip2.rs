//! Reads bzip2 with all its streams: packers that use several processors write one behind another.
//!
//! The decoder of one stream reads ahead and does not tell how far. Where the next stream begins is found by its first
//! bytes, which cannot be mistaken: they are aligned, and ten.

use bzip2_rs::decoder::{Decoder, ReadState, WriteState};
use std::io::{self, Read};

/// More than the decoder ever holds: one block of 900,000 bytes.
const KEPT: usize = 1 << 20;
const CHUNK: usize = 64 << 10;
/// A decoder that has got nothing more and has nothing to give by then waits in vain.
const MOST_ENDS: u8 = 8;

/// The plain bytes of all streams.
pub(super) struct Bzip2<R> {
    input: R,
    decoder: Decoder,
    /// What was read of the input: what this stream's decoder got last, and from `given` on what it has not got.
    bytes: Vec<u8>,
    given: usize,
    /// How often the decoder was told that there is nothing more, which it wants to hear for each block.
    ended: u8,
}

impl<R: Read> Bzip2<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, decoder: Decoder::new(), bytes: Vec::new(), given: 0, ended: 0 }
    }

    /// Gives the decoder at most `space` bytes.
    fn feed(&mut self, space: usize) -> io::Result<()> {
        if self.given == self.bytes.len() {
            if self.bytes.len() > 2 * KEPT {
                self.bytes.drain(..self.bytes.len() - KEPT);
            }
            self.given = self.bytes.len();
            (&mut self.input).take(CHUNK as u64).read_to_end(&mut self.bytes)?;
        }
        let chunk = &self.bytes[self.given..];
        let chunk = &chunk[..chunk.len().min(space)];
        if chunk.is_empty() && space > 0 {
            self.ended += 1;
            if self.ended > MOST_ENDS {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        match self.decoder.write(chunk).map_err(io::Error::from)? {
            WriteState::Written(length) => self.given += length,
            WriteState::NeedsRead => {}
        }
        Ok(())
    }

    /// Goes on with the stream behind this one, if there is one.
    fn next_stream(&mut self) -> io::Result<bool> {
        loop {
            if let Some(start) = next_stream(&self.bytes) {
                self.bytes.drain(..start);
                (self.given, self.ended, self.decoder) = (0, 0, Decoder::new());
                return Ok(true);
            }
            // The first bytes of the next one may not be read yet.
            let length = self.bytes.len();
            (&mut self.input).take(CHUNK as u64).read_to_end(&mut self.bytes)?;
            if self.bytes.len() == length || length > 4 * KEPT {
                return Ok(false);
            }
        }
    }
}

/// Where a stream begins behind the first byte.
fn next_stream(bytes: &[u8]) -> Option<usize> {
    // π and its root begin a block and the end of a stream that has none.
    const BLOCK: [u8; 6] = [0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
    const END: [u8; 6] = [0x17, 0x72, 0x45, 0x38, 0x50, 0x90];
    let begins = |start: &[u8]| {
        start.starts_with(b"BZh")
            && matches!(start[3], b'1'..=b'9')
            && [BLOCK, END].iter().any(|m| start[4..] == m[..])
    };
    bytes.windows(10).skip(1).position(begins).map(|at| at + 1)
}

impl<R: Read> Read for Bzip2<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.decoder.read(buffer).map_err(io::Error::from)? {
                ReadState::Read(length) => {
                    self.ended = 0;
                    return Ok(length);
                }
                ReadState::NeedsWrite(space) => self.feed(space)?,
                ReadState::Eof if self.next_stream()? => {}
                ReadState::Eof => return Ok(0),
            }
        }
    }
}
