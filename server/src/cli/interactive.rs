//! `exec -it` and `attach`: this terminal becomes that of a process in a container.

use super::{Done, io_failure, say};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use shakedown_runtime::TerminalSize;
use shakedown_server::client::{Interactive, InteractiveInput};
use shakedown_server::frames::{Asked, Told};
use shakedown_spec::{Failure, FailureKind, Stream};
use std::io::{self, Read, Write};
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// This process's terminal in raw mode: every key goes to the other side. Restored when dropped.
#[derive(Debug)]
struct Raw(Termios);

impl Raw {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        let guard = Self(before);
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(guard)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Whether there is a terminal here to be given; if not, says so.
pub(super) fn need_terminal() -> Result<(), Failure> {
    if isatty(io::stdin()) {
        return Ok(());
    }
    Err(Failure::new(FailureKind::Invalid, "the standard input is not a terminal")
        .hint("leave `-t` out; `-i` alone sends the standard input"))
}

/// The size of this terminal.
pub(super) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    Some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// Passes input and output on until the process has ended, whose exit code is given. With `tty`, this terminal is raw
/// meanwhile, and its size is the other one's.
pub(super) async fn talk(process: Interactive, input: bool, tty: bool) -> Done {
    let cannot = |error: io::Error| io_failure("signals cannot be waited for", &error);
    let ends = [SignalKind::terminate(), SignalKind::hangup()];
    let [mut terminated, mut hung_up] = [signal(ends[0]).map_err(cannot)?, signal(ends[1]).map_err(cannot)?];
    let resized = signal(SignalKind::window_change()).map_err(cannot)?;
    let raw = tty.then(Raw::enter).transpose();
    let raw = raw.map_err(|error| io_failure("the terminal cannot be used", &error))?;
    let Interactive { input: to, mut output } = process;
    let sending = tokio::spawn(send(to, input, tty.then_some(resized)));
    let done = loop {
        let told = tokio::select! {
            told = output.next() => told,
            _ = terminated.recv() => break Ok(ExitCode::from(143)),
            _ = hung_up.recv() => break Ok(ExitCode::from(129)),
        };
        match told {
            Ok(Told::Output(Stream::Stdout, bytes)) => {
                if let Err(failure) = say(&bytes).and_then(|()| flush()) {
                    break Err(failure);
                }
            }
            // As the process does: what cannot be written to standard error is lost.
            Ok(Told::Output(Stream::Stderr, bytes)) => drop(io::stderr().write_all(&bytes)),
            Ok(Told::Exit(exit)) => break Ok(ExitCode::from(u8::try_from(exit.code).unwrap_or(u8::MAX))),
            Ok(Told::Failure(failure)) | Err(failure) => break Err(failure),
        }
    };
    sending.abort();
    drop(raw);
    done
}

fn flush() -> Result<(), Failure> {
    io::stdout().flush().map_err(|error| io_failure("standard output cannot be written", &error))
}

/// Sends what is typed, and the terminal's size whenever it changes. Ends with neither: the other half says when it is over.
async fn send(mut to: InteractiveInput, input: bool, mut resized: Option<Signal>) -> Result<(), Failure> {
    let mut typed = input.then(read_input);
    loop {
        let asked = tokio::select! {
            bytes = next_of(&mut typed) => match bytes {
                Some(bytes) => Asked::Input(bytes.into()),
                None => {
                    typed = None;
                    Asked::End
                }
            },
            () = changed(&mut resized) => match size() {
                Some(size) => Asked::Size(size),
                None => continue,
            },
        };
        to.send(&asked).await?;
    }
}

async fn next_of(typed: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match typed {
        Some(typed) => typed.recv().await,
        None => std::future::pending().await,
    }
}

async fn changed(resized: &mut Option<Signal>) {
    match resized {
        Some(resized) => drop(resized.recv().await),
        None => std::future::pending().await,
    }
}

/// Standard input as it comes. The thread is not waited for: a read of a terminal ends with a key only.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
