//! How the resolve stage says what did not work.

use super::digest::Digest;
use super::unpack::UnpackError;
use shakedown_spec::{Failure, FailureKind, ImageSource};
use std::io;
use std::path::Path;

/// The image's name in messages, as the user would write it.
pub(crate) fn name(source: &ImageSource) -> String {
    match source {
        ImageSource::Registry(reference) => reference.familiar(),
        other => other.to_string(),
    }
}

/// The image is nowhere.
pub(crate) fn not_found(source: &ImageSource) -> Failure {
    Failure::new(FailureKind::ImageNotFound, format!("image {} was not found", name(source)))
}

/// The image is there, and `what` is wrong with it: a fragment that follows its name.
pub(crate) fn unusable(source: &ImageSource, what: &str) -> Failure {
    Failure::new(FailureKind::ImageUnusable, format!("image {} {what}", name(source)))
}

/// A file of the image has other bytes than its digest says.
pub(crate) fn wrong_digest(source: &ImageSource, what: &str, expected: Digest, actual: Digest) -> Failure {
    unusable(source, &format!("has the wrong bytes: {what} does not match its digest"))
        .fact("expected", expected.to_string())
        .fact("actual", actual.to_string())
        .hint(damaged(source))
}

/// A file of the image is longer or shorter than its manifest says.
pub(crate) fn wrong_size(source: &ImageSource, what: &str, expected: u64, actual: u64) -> Failure {
    let relation = if actual < expected { "shorter" } else { "longer" };
    unusable(source, &format!("is broken: {what} is {relation} than its manifest says"))
        .fact("expected", format!("{expected} bytes"))
        .fact("actual", format!("{actual} bytes"))
        .hint(damaged(source))
}

/// What to do about bytes that are not those that were written.
fn damaged(source: &ImageSource) -> String {
    match source {
        ImageSource::Registry(reference) => {
            format!(
                "the copy at {} is damaged, or was on its way here; try again, then push it again",
                reference.registry
            )
        }
        other => format!("write `{other}` again; it was damaged or changed after it was written"),
    }
}

/// The store's directory does not let itself be used.
pub(crate) fn store(source: &ImageSource, root: &Path, error: &io::Error) -> Failure {
    let failure = unusable(source, "could not be stored");
    disk_full(with_store(failure, root, &plain(error)), is_full(error), root)
}

/// A layer could not be unpacked.
pub(crate) fn unpack(source: &ImageSource, layer: &str, root: &Path, error: &UnpackError) -> Failure {
    let full = error.is_disk_full();
    let mut failure =
        unusable(source, "could not be unpacked").fact("layer", layer).fact("reason", error.to_string());
    if matches!(error, UnpackError::Refused { .. }) {
        failure = failure.hint("no usual tool writes such an entry; build the image anew, or do not use it");
    }
    disk_full(if full { failure.fact("store", root.display().to_string()) } else { failure }, full, root)
}

pub(crate) fn opening(root: &Path, error: &io::Error) -> Failure {
    let failure = Failure::new(FailureKind::Other, "the image store could not be opened");
    disk_full(with_store(failure, root, &plain(error)), is_full(error), root)
}

fn with_store(failure: Failure, root: &Path, reason: &str) -> Failure {
    failure.fact("store", root.display().to_string()).fact("reason", reason)
}

fn disk_full(failure: Failure, full: bool, root: &Path) -> Failure {
    if !full {
        return failure;
    }
    failure
        .hint(format!("free space on the file system of `{}`; nothing of the image was kept", root.display()))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An error's text as `strerror(3)` has it, without its number, as a fragment.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match (error.raw_os_error(), letters.next()) {
        (Some(_), Some(first)) => first.to_lowercase().chain(letters).collect(),
        _ => text.to_owned(),
    }
}
