//! The terminal of a `run` or `exec` in the foreground that has no console socket: what is typed here goes there, and
//! what is written there comes here.

use super::talk::Line;
use crate::native::launch::Trouble;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios};
use std::os::fd::{AsFd, OwnedFd};

/// The master, and the terminal of this process, which is as it was when this is dropped.
#[derive(Debug)]
pub(super) struct Terminal {
    master: OwnedFd,
    before: Option<Termios>,
    open: bool,
}

impl Terminal {
    /// Takes the master, which the container's process has sent.
    pub(super) fn take(line: &Line) -> Result<Self, Trouble> {
        let master = line.take()?;
        let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw);
        }
        let terminal = Self { master, before, open: true };
        terminal.resize();
        Ok(terminal)
    }

    /// Gives it the size of this process's terminal, if there is one.
    pub(super) fn resize(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    /// What to wait for: the master's output, and as long as there is one, this process's input.
    pub(super) fn polled(&self) -> [PollFd<'_>; 2] {
        let input = if self.open { PollFlags::IN } else { PollFlags::empty() };
        [PollFd::new(&self.master, PollFlags::IN), PollFd::from_borrowed_fd(rustix::stdio::stdin(), input)]
    }

    /// Carries what is ready; false once nothing more comes.
    pub(super) fn carry(&mut self, output: bool, input: bool) -> bool {
        let mut buffer = [0; 4096];
        if input && self.open {
            match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(0) | Err(_) => self.open = false,
                Ok(read) => write_all(&self.master, &buffer[..read]),
            }
        }
        if !output {
            return true;
        }
        match rustix::io::read(&self.master, &mut buffer) {
            // EIO: the last process that had the slave has ended.
            Ok(0) | Err(Errno::IO) => false,
            Ok(read) => {
                write_all(rustix::stdio::stdout(), &buffer[..read]);
                true
            }
            Err(_interrupted) => true,
        }
    }

    /// Carries what is left when the process has ended.
    pub(super) fn drain(&mut self) {
        let ready = |terminal: &Self| {
            let mut set = [PollFd::new(&terminal.master, PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut set, Some(&now)).is_ok_and(|ready| ready > 0)
        };
        while ready(self) && self.carry(true, false) {}
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

fn write_all(to: impl AsFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Nobody reads it any more.
            Err(_) => return,
        }
    }
}
