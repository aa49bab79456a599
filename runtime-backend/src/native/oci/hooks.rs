//! Hooks: programs that are told the container's state at points of its life (OCI runtime specification, "POSIX-platform
//! Hooks").

use super::state::{Record, Status};
use crate::native::launch::Trouble;
use oci_spec::runtime::Hook;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The state as hooks and `state` print it.
pub(super) fn state_json(record: &Record, status: Status) -> serde_json::Value {
    let mut state = serde_json::json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "status": status.name(),
        "bundle": record.bundle,
        "annotations": record.annotations,
    });
    if !matches!(status, Status::Stopped | Status::Creating) || record.pid != 0 && status == Status::Creating
    {
        state["pid"] = record.pid.into();
    }
    state
}

/// Runs hooks in order; the first that fails ends it.
pub(super) fn run(name: &str, hooks: Option<&Vec<Hook>>, state: &serde_json::Value) -> Result<(), Trouble> {
    hooks.into_iter().flatten().try_for_each(|hook| run_one(name, hook, state))
}

fn run_one(name: &str, hook: &Hook, state: &serde_json::Value) -> Result<(), Trouble> {
    let doing = || format!("run the {name} hook {}", hook.path().display());
    let failed = |reason: String| Trouble::new(doing(), reason);
    let mut command = Command::new(hook.path());
    command.stdin(Stdio::piped());
    if hook.env().is_some() {
        command.env_clear();
    }
    if let Some([first, rest @ ..]) = hook.args().as_deref() {
        command.arg0(first).args(rest);
    }
    for pair in hook.env().iter().flatten() {
        if let Some((key, value)) = pair.split_once('=') {
            command.env(key, value);
        }
    }
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook may end without reading its input.
        let _ = stdin.write_all(state.to_string().as_bytes());
    }
    if let Some(seconds) = hook.timeout() {
        let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        if !ends_within(&child, limit) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(format!("it has not ended after {seconds} s")));
        }
    }
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(status.to_string())) }
}

fn ends_within(child: &std::process::Child, limit: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) else {
        return true;
    };
    let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return true;
    };
    let limit = Timespec { tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).is_ok_and(|ready| ready > 0)
}
