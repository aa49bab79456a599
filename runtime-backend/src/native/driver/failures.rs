//! What could not be done, for the user.

use crate::native::launch::Trouble;
use shakedown_spec::{Container, Failure, FailureKind};
use std::io;

pub(super) fn port_failed(container: &Container, port: u16, error: &io::Error) -> Failure {
    let title = format!("port {port} of this machine could not be taken for {}", container.display_name());
    let failure = Failure::new(FailureKind::LaunchFailed, title).fact("reason", error.to_string());
    if error.kind() == io::ErrorKind::AddrInUse {
        failure.hint("leave the host's port out: a free one is chosen, and `port()` tells which")
    } else {
        failure
    }
}

pub(super) fn copy_failed(container: &Container, reason: &str) -> Failure {
    let title = format!("the files for {} could not be copied", container.display_name());
    Failure::new(FailureKind::CopyFailed, title).fact("reason", reason)
}

pub(super) fn launch_failed(container: &Container, trouble: Trouble) -> Failure {
    failure(&container.display_name(), "launched", trouble)
}

pub(super) fn failure(what: &str, done: &str, trouble: Trouble) -> Failure {
    let mut failure = Failure::new(
        FailureKind::LaunchFailed,
        format!("{what} could not be {done}: cannot {}", trouble.doing),
    );
    if let Some(call) = trouble.call {
        failure = failure.fact("call", call);
    }
    if let Some((step, steps)) = trouble.step {
        failure = failure.fact("stage", format!("launch, in init, step {step} of {steps}"));
    }
    if let Some(reason) = trouble.reason {
        failure = failure.fact("reason", reason);
    }
    failure
}

pub(super) fn exec_failed(title: String, trouble: Trouble) -> Failure {
    let mut failure = Failure::new(FailureKind::ExecFailed, title);
    if let Some(call) = trouble.call {
        failure = failure.fact("call", call);
    }
    failure.fact("reason", trouble.reason.unwrap_or_else(|| format!("cannot {}", trouble.doing)))
}
