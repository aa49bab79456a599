//! What the daemon says, as failures.

use bollard::errors::Error;
use shakedown_spec::{Failure, FailureKind};
use std::error::Error as _;

/// The words of the daemon, or of the connection to it, without bollard's frame around them.
pub(crate) fn words(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Error::DockerStreamError { error } | Error::DockerContainerWaitError { error, .. } => {
            error.trim().to_owned()
        }
        other => {
            // hyper's outer error says "client error (Connect)"; the reason is the innermost one.
            let mut reason = other.to_string();
            let mut source = other.source();
            while let Some(inner) = source {
                reason = inner.to_string();
                source = inner.source();
            }
            reason
        }
    }
}

/// A failure of this kind and title, with the daemon's words as its reason.
pub(crate) fn daemon_failure(kind: FailureKind, title: impl Into<String>, error: &Error) -> Failure {
    Failure::new(kind, title).fact("reason", words(error))
}

/// The status code of the daemon's refusal.
pub(crate) fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Whether the thing is not there, or someone else is removing it now.
pub(crate) fn is_gone(error: &Error) -> bool {
    match error {
        Error::DockerResponseServerError { status_code: 404, .. } => true,
        Error::DockerResponseServerError { status_code: 409, message } => {
            message.contains("already in progress")
        }
        _ => false,
    }
}
