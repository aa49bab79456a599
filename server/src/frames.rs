//! What goes over the connection of an interactive command once it is no longer HTTP.
//!
//! ```text
//! frame  = kind (1 byte), length (4 bytes, the highest first), so many bytes
//! client → keeper:  0 input   1 end of the input   2 size of the terminal (JSON: {"rows":24,"columns":80})
//! keeper → client:  0 standard output   1 standard error   2 the end (JSON: Exit)   3 a failure (JSON: Failure)
//! ```
//!
//! A connection that the client closes before the end is given up: a command with a terminal is hung up on, one without
//! goes on without a reader.

use bytes::Bytes;
use shakedown_runtime::{Exit, TerminalSize};
use shakedown_spec::{Failure, Stream};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest frame; longer pieces are sent in several.
pub const LONGEST: usize = 1 << 20;

/// From the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Input for the process.
    Input(Bytes),
    /// There is no more of it.
    End,
    /// The terminal has another size.
    Size(TerminalSize),
}

/// From the keeper.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Output of the process.
    Output(Stream, Bytes),
    /// It has ended.
    Exit(Exit),
    /// How it ended cannot be told, or it could not be run.
    Failure(Failure),
}

impl Asked {
    /// Writes it as one frame.
    ///
    /// # Errors
    ///
    /// The connection is closed.
    pub async fn write(&self, out: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        match self {
            Self::Input(bytes) => pieces(out, 0, bytes).await,
            Self::End => frame(out, 1, &[]).await,
            Self::Size(size) => frame(out, 2, &json(size)).await,
        }
    }

    /// Reads one; `None` when the other side is gone.
    ///
    /// # Errors
    ///
    /// It is no frame, or the connection broke.
    pub async fn read(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let Some((kind, bytes)) = next(input).await? else { return Ok(None) };
        Ok(Some(match kind {
            0 => Self::Input(bytes),
            1 => Self::End,
            2 => Self::Size(serde_json::from_slice(&bytes)?),
            other => return Err(unknown(other)),
        }))
    }
}

impl Told {
    /// Writes it as one frame.
    ///
    /// # Errors
    ///
    /// The connection is closed.
    pub async fn write(&self, out: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        match self {
            Self::Output(stream, bytes) => pieces(out, u8::from(*stream == Stream::Stderr), bytes).await,
            Self::Exit(exit) => frame(out, 2, &json(exit)).await,
            Self::Failure(failure) => frame(out, 3, &json(failure)).await,
        }
    }

    /// Reads one; `None` when the other side is gone.
    ///
    /// # Errors
    ///
    /// It is no frame, or the connection broke.
    pub async fn read(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let Some((kind, bytes)) = next(input).await? else { return Ok(None) };
        Ok(Some(match kind {
            0 => Self::Output(Stream::Stdout, bytes),
            1 => Self::Output(Stream::Stderr, bytes),
            2 => Self::Exit(serde_json::from_slice(&bytes)?),
            3 => Self::Failure(serde_json::from_slice(&bytes)?),
            other => return Err(unknown(other)),
        }))
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // These types have no maps with keys that are no strings, the only thing that could fail here.
    serde_json::to_vec(value).unwrap_or_default()
}

fn unknown(kind: u8) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{kind} is no kind of frame"))
}

async fn pieces(out: &mut (impl AsyncWrite + Unpin), kind: u8, bytes: &[u8]) -> io::Result<()> {
    for piece in bytes.chunks(LONGEST) {
        frame(out, kind, piece).await?;
    }
    Ok(())
}

async fn frame(out: &mut (impl AsyncWrite + Unpin), kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut whole = Vec::with_capacity(bytes.len() + 5);
    whole.push(kind);
    whole.extend_from_slice(&length.to_be_bytes());
    whole.extend_from_slice(bytes);
    out.write_all(&whole).await?;
    out.flush().await
}

async fn next(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(u8, Bytes)>> {
    let mut head = [0; 5];
    if input.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    input.read_exact(&mut head[1..]).await?;
    let length =
        usize::try_from(u32::from_be_bytes([head[1], head[2], head[3], head[4]])).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes is too long"),
        ));
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes).await?;
    Ok(Some((head[0], bytes.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is read, in order, up to the end.
    #[tokio::test]
    async fn frames_come_as_they_were_sent() {
        let size = TerminalSize { rows: 24, columns: 80 };
        let asked = [Asked::Input("ls\n".into()), Asked::Size(size), Asked::End];
        let mut wire = Vec::new();
        for one in &asked {
            one.write(&mut wire).await.unwrap();
        }
        let mut wire = &wire[..];
        for one in asked {
            assert_eq!(Asked::read(&mut wire).await.unwrap(), Some(one));
        }
        assert_eq!(Asked::read(&mut wire).await.unwrap(), None);
        let exit = Exit { code: 7, signal: None, out_of_memory: false };
        let mut wire = Vec::new();
        Told::Output(Stream::Stderr, vec![0; LONGEST + 1].into()).write(&mut wire).await.unwrap();
        Told::Exit(exit).write(&mut wire).await.unwrap();
        let mut wire = &wire[..];
        let mut read = 0;
        while let Some(Told::Output(Stream::Stderr, bytes)) = Told::read(&mut wire).await.unwrap() {
            read += bytes.len();
            if read > LONGEST {
                break;
            }
        }
        assert_eq!(read, LONGEST + 1);
        assert_eq!(Told::read(&mut wire).await.unwrap(), Some(Told::Exit(exit)));
    }

    /// A length that nobody sends does not make the keeper allocate it.
    #[tokio::test]
    async fn frames_have_a_longest_length() {
        let error = Asked::read(&mut &[0, 0xff, 0xff, 0xff, 0xff, 0][..]).await.unwrap_err();
        assert_eq!(error.to_string(), "a frame of 4294967295 bytes is too long");
        assert!(Asked::read(&mut &[9, 0, 0, 0, 0][..]).await.is_err());
    }
}
