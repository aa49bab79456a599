//! Output and input of processes: pipes between a process of a container and the keeper.

use super::console::Master;
use super::launch::Trouble;
use super::launcher::{Handle, Job, receiving_pipe, sending_pipe};
use super::sys::CallError;
use crate::LogBook;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt};
use shakedown_spec::Stream;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::task::JoinHandle;

/// The process's ends of its standard streams, and the keeper's.
#[derive(Debug)]
pub(crate) struct Streams {
    theirs: [OwnedFd; 3],
    /// What the process writes to standard output.
    pub(crate) stdout: Receiver,
    /// What the process writes to standard error.
    pub(crate) stderr: Receiver,
    /// What the process reads, if it is to read anything.
    pub(crate) stdin: Option<Sender>,
}

impl Streams {
    /// Makes the pipes; without `stdin`, the process reads from `/dev/null`.
    pub(crate) fn new(stdin: bool) -> Result<Self, CallError> {
        let (stdout, their_stdout) = receiving_pipe()?;
        let (stderr, their_stderr) = receiving_pipe()?;
        let (stdin, their_stdin) = if stdin {
            let (sender, theirs) = sending_pipe()?;
            (Some(sender), theirs)
        } else {
            (None, null()?)
        };
        Ok(Self { theirs: [their_stdin, their_stdout, their_stderr], stdout, stderr, stdin })
    }

    /// The process's ends, to be passed to it.
    pub(crate) fn theirs(&self) -> [BorrowedFd<'_>; 3] {
        self.theirs.each_ref().map(AsFd::as_fd)
    }

    /// Writes all output to the log, and closes it after the last byte. The process's ends are closed here: while one
    /// is open, its pipe has no end.
    /// Gives the input, if there is one.
    pub(crate) fn into_log(self, log: Arc<LogBook>) -> Option<Sender> {
        drop(self.theirs);
        let (mut stdout, mut stderr) = (self.stdout, self.stderr);
        tokio::spawn(async move {
            tokio::join!(copy(&mut stdout, Stream::Stdout, &log), copy(&mut stderr, Stream::Stderr, &log));
            log.close();
        });
        self.stdin
    }

    /// All output as it comes, and the input.
    pub(crate) fn into_stream(self) -> (BoxStream<'static, io::Result<(Stream, Bytes)>>, Option<Sender>) {
        drop(self.theirs);
        let output = stream::select(chunks(self.stdout, Stream::Stdout), chunks(self.stderr, Stream::Stderr));
        (output.boxed(), self.stdin)
    }
}

/// Writes all that is written to a terminal to the log, and closes it after the last byte.
pub(crate) fn terminal_into_log(mut master: Master, log: Arc<LogBook>) {
    tokio::spawn(async move {
        copy(&mut master, Stream::Stdout, &log).await;
        log.close();
    });
}

/// The output of a worker, which ends well only if the worker did.
#[derive(Debug)]
pub(crate) struct Checked {
    /// What the worker writes.
    pub(crate) read: Receiver,
    /// What came of it; `None` once that has been told.
    pub(crate) work: Option<JoinHandle<Result<(), Trouble>>>,
}

impl Checked {
    /// Lets a worker do a job that writes a stream; the job's own outcome is of the type `T`.
    pub(crate) fn of<T>(launcher: &Handle, job: Job) -> Result<Self, CallError>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        let (read, write) = receiving_pipe()?;
        let launcher = launcher.clone();
        let work = tokio::spawn(async move {
            let outcome = launcher.work::<T>(job, write.as_fd()).await;
            drop(write);
            outcome.map(drop)
        });
        Ok(Self { read, work: Some(work) })
    }
}

impl AsyncRead for Checked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.read).poll_read(cx, buffer))?;
        let Some(work) = self.work.as_mut().filter(|_| buffer.filled().len() == before) else {
            return Poll::Ready(Ok(()));
        };
        let outcome = ready!(Pin::new(work).poll(cx));
        self.work = None;
        Poll::Ready(match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(trouble)) => Err(io::Error::other(trouble.to_string())),
            Err(error) => Err(io::Error::other(error)),
        })
    }
}

fn null() -> Result<OwnedFd, CallError> {
    use super::sys::Called;
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .call(|| "open(\"/dev/null\")".to_owned())
}

async fn copy(pipe: &mut (impl AsyncRead + Unpin), which: Stream, log: &LogBook) {
    let mut buffer = BytesMut::with_capacity(16 << 10);
    while pipe.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
        log.write(which, SystemTime::now(), &buffer);
        buffer.clear();
    }
}

/// What is read of a pipe or a terminal, as it comes.
pub(super) fn chunks(
    pipe: impl AsyncRead + Unpin + Send,
    which: Stream,
) -> impl futures_util::Stream<Item = io::Result<(Stream, Bytes)>> + Send {
    stream::unfold(pipe, move |mut pipe| async move {
        let mut buffer = BytesMut::with_capacity(16 << 10);
        match pipe.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((Ok((which, buffer.freeze())), pipe)),
            Err(error) => Some((Err(error), pipe)),
        }
    })
}
