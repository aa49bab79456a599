//! A process in a container that a test talks to.

use crate::{ExecOutput, Exit, Failure, FailureKind, Pending, Stream};
use shakedown_runtime::TerminalSize;
use shakedown_server::client::{Interactive, InteractiveInput, InteractiveOutput};
use shakedown_server::frames::{Asked, Told};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// How long [`Process::expect`] waits for a text.
const EXPECTED: Duration = Duration::from_secs(30);

/// A process that a test talks to: a command of [`Running::interact`](crate::Running::interact), or a container's first
/// process, of [`Running::attach`](crate::Running::attach).
///
/// Dropping it hangs up on a command that has a terminal; everything else goes on.
///
/// ```no_run
/// use shakedown::{Exec, prelude::*};
///
/// # async fn orders() -> shakedown::Result {
/// let container = GenericContainer::new("busybox").command(["sleep", "1000"]).start().await?;
/// let shell = container.interact(Exec::new(["sh"]).tty(true)).await?;
/// shell.write("stty size\n").await?;
/// shell.resize(50, 132).await?;
/// shell.expect("50 132").await?;
/// # Ok(()) }
/// ```
pub struct Process {
    inner: Arc<Inner>,
}

struct Inner {
    argv: Vec<String>,
    input: Mutex<InteractiveInput>,
    reading: Mutex<Reading>,
}

struct Reading {
    output: InteractiveOutput,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// How much of standard output [`Process::expect`] has gone past.
    passed: usize,
    exit: Option<Exit>,
}

impl Process {
    pub(crate) fn new(argv: Vec<String>, Interactive { input, output }: Interactive) -> Self {
        let reading = Reading { output, stdout: Vec::new(), stderr: Vec::new(), passed: 0, exit: None };
        Self { inner: Arc::new(Inner { argv, input: Mutex::new(input), reading: Mutex::new(reading) }) }
    }

    /// Writes to its input; nobody reads it, if it was declared without one. In a terminal, `\x03` is what Ctrl-C sends,
    /// and `\x04` at the beginning of a line is the end of the input.
    #[track_caller]
    pub fn write(&self, bytes: impl Into<Vec<u8>>) -> Pending<()> {
        self.send(Asked::Input(bytes.into().into()))
    }

    /// Closes its input. A terminal has no such end: write `\x04`.
    #[track_caller]
    pub fn end_input(&self) -> Pending<()> {
        self.send(Asked::End)
    }

    /// Sets the size of its terminal; programs in it get `SIGWINCH`. Without a terminal nothing happens.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) -> Pending<()> {
        self.send(Asked::Size(TerminalSize { rows, columns }))
    }

    #[track_caller]
    fn send(&self, asked: Asked) -> Pending<()> {
        let inner = Arc::clone(&self.inner);
        Pending::spawn(async move { inner.input.lock().await.send(&asked).await })
    }

    /// Waits until `text` is in its standard output, after what the `expect` before has found; gives the output up to
    /// there.
    ///
    /// # Errors
    ///
    /// It ended without that, or 30 s went by.
    #[track_caller]
    pub fn expect(&self, text: impl Into<String>) -> Pending<String> {
        let (inner, text) = (Arc::clone(&self.inner), text.into());
        Pending::spawn(async move {
            let mut reading = inner.reading.lock().await;
            let found = timeout(EXPECTED, reading.find(text.as_bytes())).await;
            let why = match found {
                Ok(Ok(true)) => return Ok(reading.pass(&text)),
                Ok(Ok(false)) => match reading.exit {
                    Some(exit) => format!("it ended before: {exit}"),
                    None => "its output ended before".to_owned(),
                },
                Ok(Err(failure)) => return Err(failure),
                Err(_) => format!("not within {} s", EXPECTED.as_secs()),
            };
            let title = format!("`{}` did not write {text:?}", inner.argv.join(" "));
            let rest = String::from_utf8_lossy(&reading.stdout[reading.passed..]).into_owned();
            Err(Failure::new(FailureKind::ExecFailed, title).fact("reason", why).fact("output", rest))
        })
    }

    /// Reads to its end: all that it wrote, and how it ended. Its input stays as it is; close it before if it waits for
    /// that.
    #[track_caller]
    pub fn wait(&self) -> Pending<ExecOutput> {
        let inner = Arc::clone(&self.inner);
        Pending::spawn(async move {
            let mut reading = inner.reading.lock().await;
            while reading.exit.is_none() {
                reading.read().await?;
            }
            let exit = reading.exit.unwrap_or(Exit { code: -1, signal: None, out_of_memory: false });
            let (stdout, stderr) = (reading.stdout.clone(), reading.stderr.clone());
            Ok(ExecOutput { argv: inner.argv.clone(), stdout, stderr, exit })
        })
    }
}

impl Reading {
    async fn read(&mut self) -> Result<(), Failure> {
        match self.output.next().await? {
            Told::Output(Stream::Stdout, bytes) => self.stdout.extend_from_slice(&bytes),
            Told::Output(Stream::Stderr, bytes) => self.stderr.extend_from_slice(&bytes),
            Told::Exit(exit) => self.exit = Some(exit),
            // `next` gives it as an error.
            Told::Failure(failure) => return Err(failure),
        }
        Ok(())
    }

    fn position(&self, text: &[u8]) -> Option<usize> {
        let rest = &self.stdout[self.passed..];
        if text.is_empty() {
            return Some(0);
        }
        rest.windows(text.len()).position(|window| window == text)
    }

    /// Reads until the text is there, or there is no more.
    async fn find(&mut self, text: &[u8]) -> Result<bool, Failure> {
        while self.position(text).is_none() {
            if self.exit.is_some() {
                return Ok(false);
            }
            self.read().await?;
        }
        Ok(true)
    }

    fn pass(&mut self, text: &str) -> String {
        let begin = self.passed;
        self.passed += self.position(text.as_bytes()).unwrap_or(0) + text.len();
        String::from_utf8_lossy(&self.stdout[begin..self.passed]).into_owned()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("argv", &self.inner.argv).finish_non_exhaustive()
    }
}
