//! A further process in a running container.
//!
//! Unlike the first one, it is among others from its first instant: they can see it, stop it, and with a capability
//! trace it. So it shares no memory with the launcher, and the launcher does not wait for it.

use super::{Launched, Program, Trouble, Trying};
use crate::native::sys::{self, Called};
use rustix::pipe::PipeFlags;
use rustix::process::DumpableBehavior;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The longest report of trouble: what a pipe takes at once.
const LONGEST_REPORT: u64 = 4096;

/// What of a container a further process joins.
#[derive(Debug)]
pub(crate) struct Joined<'a> {
    /// The container's first process.
    pub(crate) init: BorrowedFd<'a>,
    /// Its namespaces, apart from the pid namespace, as `CLONE_*` flags.
    pub(crate) namespaces: u32,
    /// Its pid namespace.
    pub(crate) pids: BorrowedFd<'a>,
    /// The launcher's own pid namespace, to which it returns.
    pub(crate) own_pids: BorrowedFd<'a>,
    /// `cgroup.procs` (or v1 `tasks`) files to join, open for writing.
    pub(crate) cgroups: &'a [OwnedFd],
}

/// A process on its way to its program.
#[derive(Debug)]
pub(crate) struct Joining {
    process: Launched,
    /// Closed by the kernel when the program is executed; before that, trouble is written to it.
    report: OwnedFd,
}

impl Joining {
    /// Becomes readable when it is known what has come of the process.
    pub(crate) fn report(&self) -> &OwnedFd {
        &self.report
    }

    /// What has come of it. To be called when [`report`](Self::report) is readable.
    pub(crate) fn finish(self) -> Result<Launched, Trouble> {
        let mut text = Vec::new();
        let read = File::from(self.report).take(LONGEST_REPORT).read_to_end(&mut text);
        if read.is_ok() && text.is_empty() {
            return Ok(self.process);
        }
        super::super::reap::collect(&self.process.pidfd);
        let lost = || Trouble::new("run a command in the container", "how far it got is not known");
        Err(serde_json::from_slice(&text).unwrap_or_else(|_| lost()))
    }
}

/// Begins to start a further process in a container.
///
/// A pid namespace is joined by children only, so the launcher joins it, forks, and goes back: this makes the new
/// process its own child, whose end it learns without help.
pub(crate) fn join(
    program: &Program,
    joined: &Joined<'_>,
    stdio: &[BorrowedFd<'_>; 3],
) -> Result<Joining, Trouble> {
    let doing = || "join the container's processes".to_owned();
    let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).call(|| "pipe2(O_CLOEXEC)".to_owned());
    let (report, write) = pipe.trying(doing)?;
    let enter = |pids| {
        rustix::thread::move_into_link_name_space(pids, Some(LinkNameSpaceType::ProcessID))
            .call(|| "setns(…, CLONE_NEWPID)".to_owned())
    };
    // Inherited by the fork: until it executes its program, nobody in there may trace or read it (CVE-2019-5736).
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let process = enter(joined.pids).and_then(|()| {
        sys::fork_namespaces(0, || enter_and_tell(program, joined, stdio, &write))
            .call(|| "clone3(0)".to_owned())
    });
    let back = enter(joined.own_pids);
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable);
    // A launcher that cannot go back would start everything else in there: better none.
    if back.is_err() {
        std::process::abort();
    }
    Ok(Joining { process: process.trying(doing)?, report })
}

fn enter_and_tell(
    program: &Program,
    joined: &Joined<'_>,
    stdio: &[BorrowedFd<'_>; 3],
    report: &OwnedFd,
) -> i32 {
    let Err(trouble) = enter_and_run(program, joined, stdio, report);
    let text = serde_json::to_vec(&trouble).unwrap_or_default();
    if let Ok(copy) = report.as_fd().try_clone_to_owned() {
        let _ = File::from(copy).write_all(&text);
    }
    127
}

fn enter_and_run(
    program: &Program,
    joined: &Joined<'_>,
    stdio: &[BorrowedFd<'_>; 3],
    report: &OwnedFd,
) -> Result<std::convert::Infallible, Trouble> {
    // It is among the container's processes already: what it holds of other containers must be out of their reach as
    // soon as can be (CVE-2016-9962).
    let needed = [joined.init, report.as_fd()].into_iter().chain(*stdio);
    let needed = needed.chain(joined.cgroups.iter().map(AsFd::as_fd));
    sys::close_other_than(&needed.collect::<Vec<_>>());
    rustix::thread::move_into_thread_name_spaces(
        joined.init,
        ThreadNameSpaceType::from_bits_retain(joined.namespaces),
    )
    .call(|| format!("setns(pidfd, {:#x})", joined.namespaces))
    .trying(|| "join the container's namespaces".to_owned())?;
    program.connect(stdio)?;
    program.lead_session()?;
    program.set_limits()?;
    for cgroup in joined.cgroups {
        rustix::io::write(cgroup, b"0")
            .call(|| "write(cgroup.procs, \"0\")".to_owned())
            .trying(|| "join the control group".to_owned())?;
    }
    sys::close_other_than(&[report.as_fd()]);
    program.run()
}
