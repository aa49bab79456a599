//! How anything that has to do with images says what did not work.

use super::digest::Digest;
use shakedown_spec::{Failure, FailureKind, ImageSource};
use std::io;

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
