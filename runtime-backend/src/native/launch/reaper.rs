//! The init that stands in front of a program: process 1 of the container, without a file of the container.
//!
//! It is a fork of the launcher that has given up all privileges but the program's, holds no descriptor but the
//! standard streams, and executes nothing. `/proc/1/exe` is the launcher's program, which is executed from a read-only
//! mount, so that writing to it is refused (CVE-2019-5736); and process 1 may neither be traced nor read.

use super::init::Init;
use super::{Launched, Trouble, Trying, remapped};
use crate::native::sys::{self, Called};
use rustix::pipe::PipeFlags;
use rustix::process::DumpableBehavior;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Starts process 1 and waits until it has started the program, or says why it has not. Without an init it is the program
/// itself: this is how the first process is started, too, that shares no memory with the launcher.
pub(super) fn launch(
    init: &Init<'_>,
    users: Option<BorrowedFd<'_>>,
) -> Result<(Launched, Option<Trouble>), Trouble> {
    let doing = || "make the container's namespaces".to_owned();
    let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).call(|| "pipe2(O_CLOEXEC)".to_owned());
    let (report, write) = pipe.trying(doing)?;
    let mut write = Some(write);
    let child = remapped::fork(init.namespaces(), users, || match write.take() {
        Some(write) => enter(init, write),
        None => 127,
    })?;
    drop(write);
    Ok((child, hear(report)))
}

/// The new process, until it is the program or waits for it. Returns the exit code.
pub(super) fn enter(init: &Init<'_>, report: OwnedFd) -> i32 {
    if init.has_reaper() {
        be_first(init, report)
    } else {
        tell(&report, &init.run_but_for(&[report.as_fd()]))
    }
}

/// What the new process reports, if it is trouble; waits until that is known.
fn hear(report: OwnedFd) -> Option<Trouble> {
    let text = read(report);
    (!text.is_empty()).then(|| trouble(&text))
}

/// What is written to a report until everybody has closed it. One that cannot be read is no good news.
pub(super) fn read(report: OwnedFd) -> Vec<u8> {
    let mut text = Vec::new();
    match File::from(report).read_to_end(&mut text) {
        Ok(_) => text,
        Err(error) => error.to_string().into_bytes(),
    }
}

/// The trouble that is reported.
pub(super) fn trouble(text: &[u8]) -> Trouble {
    let lost = || Trouble::new("run the program", "how far its init got is not known");
    serde_json::from_slice(text).unwrap_or_else(|_| lost())
}

/// Process 1: sets the container up, starts the program, and stays until it has ended.
fn be_first(init: &Init<'_>, report: OwnedFd) -> i32 {
    let started = init.set_up().and_then(|()| {
        sys::overwrite_arguments("shakedown: init");
        sys::close_other_than(&[report.as_fd()]);
        // Before the program runs: its signals must find somebody who listens.
        sys::block_signals();
        init.program.give_up_privileges(&|_listener| Ok(())).map_err(Init::at_last)?;
        let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
        sys::fork(|| be_program(init, &report))
            .call(|| "fork()".to_owned())
            .trying(|| "start the program".to_owned())
    });
    let child = match started {
        Ok(child) => child,
        Err(trouble) => return tell(&report, &trouble),
    };
    // The program's copy of the report closes when it is executed; with this one open, the launcher would wait for ever.
    drop(report);
    sys::close_other_than(&[]);
    sys::forward_and_reap(child)
}

/// The program's process, until it is the program.
fn be_program(init: &Init<'_>, report: &OwnedFd) -> i32 {
    let Err(trouble) = init.program.lead_session().and_then(|()| {
        sys::reset_signals();
        Err::<std::convert::Infallible, _>(init.program.execute())
    });
    tell(report, &Init::at_last(trouble))
}

/// Reports trouble; returns the exit code.
pub(super) fn tell(report: &OwnedFd, trouble: &Trouble) -> i32 {
    let text = serde_json::to_vec(trouble).unwrap_or_default();
    if let Ok(copy) = report.try_clone() {
        let _ = File::from(copy).write_all(&text);
    }
    127
}
