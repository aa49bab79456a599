//! Further processes in a running container, and the way into the first one.

use super::NativeDriver;
use super::failures::exec_failed;
use super::options::with_groups;
use crate::LogBook;
use crate::driver::{Abort, Attached, Exec, ExecRequest, Exit, Resize, Result};
use crate::native::console::Console;
use crate::native::launcher::{Child, Request};
use crate::native::streams::{Streams, chunks, terminal_into_log};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{BoxStream, StreamExt};
use shakedown_spec::{Failure, FailureKind, Stream};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::AsyncWrite;

/// How a process is connected to the keeper.
#[derive(Debug)]
pub(super) enum Connected {
    /// By three streams.
    Streams(Streams),
    /// By a terminal.
    Terminal(Console),
}

type Output = BoxStream<'static, io::Result<(Stream, Bytes)>>;
type Input = Option<Pin<Box<dyn AsyncWrite + Send>>>;

impl Connected {
    pub(super) fn new(tty: bool, stdin: bool) -> std::result::Result<Self, String> {
        let made =
            if tty { Console::new().map(Self::Terminal) } else { Streams::new(stdin).map(Self::Streams) };
        made.map_err(|error| error.to_string())
    }

    pub(super) fn theirs(&self) -> [BorrowedFd<'_>; 3] {
        match self {
            Self::Streams(streams) => streams.theirs(),
            Self::Terminal(console) => console.theirs(),
        }
    }

    /// Lets the output go to the log; gives the way in.
    pub(super) fn into_log(self, log: Arc<LogBook>, stdin: bool) -> std::result::Result<Attached, String> {
        let shared = |input: Pin<Box<dyn AsyncWrite + Send>>| Arc::new(tokio::sync::Mutex::new(Some(input)));
        match self {
            Self::Streams(streams) => {
                let input = streams.into_log(log).map(|sender| shared(Box::pin(sender)));
                Ok(Attached { input, resize: None })
            }
            Self::Terminal(console) => {
                let master = console.master().map_err(|error| error.to_string())?;
                let resize = Some(master.resize());
                let input = stdin.then(|| shared(Box::pin(master.clone())));
                terminal_into_log(master, log);
                Ok(Attached { input, resize })
            }
        }
    }

    /// The keeper's ends, once the process runs its program.
    fn ours(self, stdin: bool) -> std::result::Result<(Output, Input, Option<Resize>), String> {
        match self {
            Self::Streams(streams) => {
                let (output, stdin) = streams.into_stream();
                let stdin = stdin.map(|sender| Box::pin(sender) as Pin<Box<dyn AsyncWrite + Send>>);
                Ok((output, stdin, None))
            }
            Self::Terminal(console) => {
                let master = console.master().map_err(|error| error.to_string())?;
                let resize = master.resize();
                let input = stdin.then(|| Box::pin(master.clone()) as Pin<Box<dyn AsyncWrite + Send>>);
                Ok((chunks(master, Stream::Stdout).boxed(), input, Some(resize)))
            }
        }
    }
}

impl NativeDriver {
    /// Starts a further process.
    pub(super) async fn run(&self, id: &str, request: ExecRequest) -> Result<Exec> {
        let (instance, running) = self.running(id)?;
        let container = &instance.create.container;
        let title =
            || format!("`{}` could not be run in {}", request.argv.join(" "), container.display_name());
        let failed = |reason: String| Failure::new(FailureKind::ExecFailed, title()).fact("reason", reason);
        let user = match &request.user {
            Some(user) => self.accounts_now(&instance).await.resolve(user).map_err(failed)?,
            None => self.user(&instance)?,
        };
        let user = with_groups(&instance, user)?;
        let facts = self.facts(&instance.create, &instance.extras, &user);
        let (process, filter) = facts.exec(&request)?;
        let connected = Connected::new(request.tty, request.stdin).map_err(failed)?;
        let joining = running.joining().map_err(|error| failed(error.to_string()))?;
        let mut descriptors = connected.theirs().to_vec();
        descriptors.extend(joining.iter().map(AsFd::as_fd));
        let exec = Request::Exec { id: id.to_owned(), process: Box::new(process), filter };
        let child =
            self.launcher.start(exec, &descriptors).await.map_err(|trouble| exec_failed(title(), trouble))?;
        drop(descriptors);
        let abort = self.abort(&child);
        let (output, stdin, resize) = connected.ours(request.stdin).map_err(failed)?;
        let exit = async move {
            let mut exit = child.exit.clone();
            let ended = exit.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
            let (code, signal) = ended.unwrap_or((137, Some(libc::SIGKILL)));
            Ok(Exit { code, signal, out_of_memory: false })
        };
        Ok(Exec { output, stdin, exit: exit.boxed(), resize, abort: Some(abort) })
    }

    fn abort(&self, child: &Child) -> Abort {
        let (launcher, child) = (self.launcher.clone(), child.number);
        Arc::new(move || {
            let launcher = launcher.clone();
            // One that has ended by itself is no error, nor is one that ended with the launcher.
            async move { drop(launcher.ask(Request::Signal { child, signal: libc::SIGKILL }).await) }.boxed()
        })
    }

    /// The way into the first process.
    pub(super) fn attached(&self, id: &str) -> Result<Attached> {
        Ok(self.running(id)?.1.attached.clone())
    }
}
