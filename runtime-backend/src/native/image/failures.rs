//! How the store says what did not work.

use super::unpack::UnpackError;
pub(crate) use crate::image_files::failures::*;
use shakedown_spec::{Failure, FailureKind, ImageSource};
use std::io;
use std::path::Path;

/// The image, or a part of it, is not in the store, and nothing may be fetched.
pub(crate) fn offline(source: &ImageSource, root: &Path) -> Failure {
    not_found(source)
        .fact("store", root.display().to_string())
        .fact("reason", "it is not in the local store, and nothing is fetched offline")
        .hint("bring it with `shakedown bundle import FILE`, or run once without `offline`")
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
