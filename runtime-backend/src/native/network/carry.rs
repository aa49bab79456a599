//! Carries bytes between two TCP connections, as the kernel would if they were one.
//!
//! ```text
//! small pieces: read into a buffer that all connections of a thread share, write at once
//! much at once: socket ─splice─► pipe ─splice─► socket, without a copy
//! ```
//! An idle connection costs two descriptors and no buffer. What one side reads of the other's end is what the other one
//! did: an orderly end of one direction stays one, a reset becomes a reset.

use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown, sockopt::set_socket_linger};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::cell::RefCell;
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// How much is copied at once.
const PIECE: usize = 64 << 10;
/// After so many full pieces one after the other, there is enough to come for a pipe to pay.
const FULL_PIECES: u32 = 2;
/// How much a pipe holds, where the user may have as much.
const PIPE: usize = 256 << 10;
/// A stream that brings less at once is copied again.
const LITTLE: usize = 16 << 10;

thread_local! {
    /// Nothing stays in it: what cannot be written at once is set aside.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into());
}

/// The sender has broken the connection off.
#[derive(Debug)]
struct Reset;

/// Carries until both directions have ended, or one side has broken off.
pub(super) async fn carry(mut one: TcpStream, mut two: TcpStream) {
    let _ = (one.set_nodelay(true), two.set_nodelay(true));
    let carried = {
        let ((read_one, write_one), (read_two, write_two)) = (one.split(), two.split());
        tokio::try_join!(direction(read_one, write_two), direction(read_two, write_one))
    };
    if carried.is_err() {
        // Closed like this, a socket tells its peer of a reset instead of an end.
        for side in [&one, &two] {
            let _ = set_socket_linger(side, Some(Duration::ZERO));
        }
    }
}

/// One direction, to its end. A receiver that takes nothing more ends it as well: what that side has sent before is still
/// carried by the other direction, which then hears of the end itself.
async fn direction(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), Reset> {
    let (mut full, mut spliced) = (0, true);
    loop {
        let Piece { read, rest } = match copy_piece(&mut from, &mut to).await {
            Ok(piece) => piece,
            Err(Broken::Sender) => return Err(Reset),
            Err(Broken::Receiver) => return Ok(()),
        };
        if read == 0 {
            let _ = shutdown(to.as_ref(), Shutdown::Write);
            return Ok(());
        }
        if !rest.is_empty() && to.write_all(&rest).await.is_err() {
            return Ok(());
        }
        full = if read == PIECE { full + 1 } else { 0 };
        if spliced && full >= FULL_PIECES {
            full = 0;
            match splice_much(from.as_ref(), to.as_ref()).await {
                Ok(()) => {}
                Err(Spliced::Ended) => return Ok(()),
                // What is wrong, if anything is, the next copy will find as well.
                Err(Spliced::NotHere) => spliced = false,
            }
        }
    }
}

/// What was read, and what of it could not be written at once.
struct Piece {
    read: usize,
    rest: Vec<u8>,
}

/// Which side is gone.
enum Broken {
    Sender,
    Receiver,
}

/// Reads a piece and writes it as far as the receiver takes it.
async fn copy_piece(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> Result<Piece, Broken> {
    poll_fn(|context| BUFFER.with_borrow_mut(|buffer| poll_piece(context, buffer, from, to))).await
}

fn poll_piece(
    context: &mut Context<'_>,
    buffer: &mut [u8],
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
) -> Poll<Result<Piece, Broken>> {
    let mut piece = ReadBuf::new(buffer);
    if ready!(Pin::new(from).poll_read(context, &mut piece)).is_err() {
        return Poll::Ready(Err(Broken::Sender));
    }
    let bytes = piece.filled();
    let written = match bytes.is_empty() {
        true => 0,
        false => match Pin::new(to).poll_write(context, bytes) {
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Receiver)),
            Poll::Pending => 0,
        },
    };
    Poll::Ready(Ok(Piece { read: bytes.len(), rest: bytes[written..].to_vec() }))
}

/// Why splicing has stopped, other than for want of bytes.
enum Spliced {
    /// The receiver takes nothing more.
    Ended,
    /// The sender has ended or broken off, or the kernel does not splice here.
    NotHere,
}

/// Moves bytes through a pipe as long as there are many.
async fn splice_much(from: &TcpStream, to: &TcpStream) -> Result<(), Spliced> {
    let Ok((read, write)) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) else {
        return Err(Spliced::NotHere);
    };
    // Refused where the user has too many; it is smaller then.
    let _ = fcntl_setpipe_size(&write, PIPE);
    loop {
        let moved = from.async_io(Interest::READABLE, || Ok(splice_all(from.as_fd(), &write)?)).await;
        let Ok(moved @ 1..) = moved else { return Err(Spliced::NotHere) };
        let mut left = moved;
        while left > 0 {
            let out = || Ok(splice(&read, None, to.as_fd(), None, left, FLAGS)?);
            match to.async_io(Interest::WRITABLE, out).await {
                Ok(out @ 1..) => left -= out,
                _ => return Err(Spliced::Ended),
            }
        }
        if moved < LITTLE {
            return Ok(());
        }
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

fn splice_all(from: impl AsFd, pipe: &OwnedFd) -> Result<usize, Errno> {
    splice(from, None, pipe, None, PIPE, FLAGS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    /// A client and a server with the carrier between them.
    async fn carried() -> (TcpStream, TcpStream, JoinHandle<()>) {
        let ((client, one), (two, server)) = (pair().await, pair().await);
        (client, server, tokio::spawn(carry(one, two)))
    }

    /// Bytes that tell where they belong.
    fn numbered(length: usize) -> Vec<u8> {
        (0..length).map(|number| (number / 251 + number) as u8).collect()
    }

    /// What is larger than all buffers on the way comes through whole, in both directions at once, with a slow reader.
    #[tokio::test]
    async fn much_comes_through_whole() {
        let (mut client, mut server, carrying) = carried().await;
        let sent = numbered(20 << 20);
        let (mut client_read, mut client_write) = client.split();
        let (mut server_read, mut server_write) = server.split();
        let (mut at_server, mut at_client) = (Vec::new(), Vec::new());
        let up = async {
            client_write.write_all(&sent).await.unwrap();
            client_write.shutdown().await.unwrap();
        };
        let down = async {
            server_write.write_all(&sent).await.unwrap();
            server_write.shutdown().await.unwrap();
        };
        let slow = async {
            let mut piece = [0; 1000];
            while let Ok(read @ 1..) = client_read.read(&mut piece).await {
                at_client.extend_from_slice(&piece[..read]);
            }
        };
        let (.., read) = tokio::join!(up, down, slow, server_read.read_to_end(&mut at_server));
        read.unwrap();
        assert!(at_server == sent && at_client == sent, "{} {}", at_server.len(), at_client.len());
        carrying.await.unwrap();
    }

    /// Who has said everything still hears the answer: HTTP/1.0 clients, `nc -N`, `pg_dump | psql`.
    #[tokio::test]
    async fn one_direction_may_end_first() {
        let (mut client, mut server, carrying) = carried().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answered = String::new();
        client.read_to_string(&mut answered).await.unwrap();
        assert_eq!((asked.as_str(), answered.as_str()), ("question", "answer"));
        carrying.await.unwrap();
    }

    /// A test that looks for "connection reset" sees it through a published port, too.
    #[tokio::test]
    async fn a_reset_stays_a_reset() {
        let (mut client, server, carrying) = carried().await;
        set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
        drop(server);
        let error = client.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        carrying.await.unwrap();
    }

    /// A sender is not read from when nobody reads what it sends: else a slow client would fill the keeper's memory.
    #[tokio::test]
    async fn a_sender_waits_for_the_reader() {
        let (client, mut server, carrying) = carried().await;
        let piece = numbered(1 << 20);
        let mut sent = 0;
        let stuck = async {
            loop {
                sent += server.write(&piece).await.unwrap();
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), stuck).await;
        assert!(sent < 64 << 20, "{} MiB went somewhere", sent >> 20);
        drop(client);
        carrying.await.unwrap();
    }
}
