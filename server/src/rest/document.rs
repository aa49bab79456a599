//! A request's JSON body, read up to a limit; what is wrong with it is told as a failure.

use super::Refusal;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use shakedown_spec::{Failure, FailureKind};

const MIB: usize = 1 << 20;
/// Bodies that carry no files.
pub(super) const SMALL: usize = 4 * MIB;
/// Bodies that carry declared files or a command's input, base64.
pub(super) const LARGE: usize = 64 * MIB;

/// A JSON body of at most `LIMIT` bytes.
#[derive(Debug)]
pub(super) struct Document<T, const LIMIT: usize>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned, const LIMIT: usize> FromRequest<S> for Document<T, LIMIT> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        let read = Limited::new(request.into_body(), LIMIT).collect().await;
        let bytes = match read {
            Ok(read) => read.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(too_large(LIMIT)),
            Err(error) => return Err(not_understood(&error.to_string())),
        };
        serde_json::from_slice(&bytes).map(Self).map_err(|error| not_understood(&error.to_string()))
    }
}

fn too_large(limit: usize) -> Refusal {
    let failure =
        Failure::new(FailureKind::Invalid, format!("the request is larger than {} MiB", limit / MIB))
            .hint("name large files by their path on the host instead of sending their bytes");
    Refusal(StatusCode::PAYLOAD_TOO_LARGE, failure)
}

fn not_understood(reason: &str) -> Refusal {
    Failure::new(FailureKind::Invalid, "the request's body is not understood").fact("reason", reason).into()
}
