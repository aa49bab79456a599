//! Sends images to a registry: what it has not got yet, then the manifest.
//!
//! ```text
//! HEAD blob ──► there
//!      └──► POST uploads (mount) ──► there, from another repository
//!                └──► PATCH the bytes ──► PUT digest ──► there
//!                        ▲    │ broken off
//!                        └── GET upload: how much has come?
//! ```

use super::Registry;
use super::auth::escaped;
use super::call::{Call, Payload, Reason, RegistryError};
use super::client::{content_digest, location};
use super::hosts::Host;
use super::retry::Attempts;
use crate::native::image::digest::Digest;
use crate::native::image::unpacker::Blob;
use bytes::Bytes;
use hyper::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE};
use hyper::{Method, StatusCode, Uri};
use shakedown_spec::ImageReference;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// A blob to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) content: ParcelContent,
}

/// Its bytes.
#[derive(Clone, Debug)]
pub(crate) enum ParcelContent {
    Bytes(Bytes),
    Blob(Blob),
}

impl Parcel {
    fn payload(&self, from: u64) -> Payload {
        match &self.content {
            ParcelContent::Bytes(bytes) => Payload::Bytes(
                bytes.slice(usize::try_from(from).map_or(bytes.len(), |at| at.min(bytes.len()))..),
            ),
            ParcelContent::Blob(blob) => {
                Payload::Blob { blob: blob.clone(), from, sent: Arc::new(AtomicU64::new(0)) }
            }
        }
    }
}

impl Registry {
    fn writing(&self, method: Method, image: &ImageReference, path: &str) -> Call {
        let host = Host::of(&image.registry, &self.config);
        Call { actions: "pull,push", ..Call::new(method, &host, &image.repository, path) }
    }

    /// Whether the repository has the blob already.
    pub(crate) async fn has_blob(
        &self,
        image: &ImageReference,
        digest: Digest,
    ) -> Result<bool, RegistryError> {
        let call = self.writing(Method::HEAD, image, &format!("blobs/{digest}"));
        let mut attempts = Attempts::new(&self.connections.policy, &call);
        loop {
            match self.send(&call).await {
                Ok(_there) => return Ok(true),
                Err(RegistryError { reason: Reason::Status { code: 404, .. }, .. }) => return Ok(false),
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    /// Brings the blob into the repository, unless it is there: from the repository `mount` of the same registry, if
    /// that has it, else from here. Gives whether bytes were sent.
    pub(crate) async fn push_blob(
        &self,
        image: &ImageReference,
        parcel: &Parcel,
        mount: Option<&str>,
    ) -> Result<bool, RegistryError> {
        if self.has_blob(image, parcel.digest).await? {
            return Ok(false);
        }
        let call = self.writing(Method::POST, image, "blobs/uploads/");
        let mut attempts = Attempts::new(&self.connections.policy, &call);
        let mut upload = None;
        loop {
            match self.upload(image, parcel, mount, &mut upload).await {
                Ok(sent) => return Ok(sent),
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    /// One attempt. `upload` is where an earlier one got to.
    async fn upload(
        &self,
        image: &ImageReference,
        parcel: &Parcel,
        mount: Option<&str>,
        upload: &mut Option<Uri>,
    ) -> Result<bool, RegistryError> {
        let (address, from) = match upload.take() {
            Some(address) => self.progress_of(image, address).await?,
            None => match self.begin(image, parcel, mount).await? {
                Some(address) => (address, 0),
                None => return Ok(false),
            },
        };
        // Should this break, the next attempt asks how much has come.
        *upload = Some(address.clone());
        let address = self.send_bytes(image, parcel, address, from).await?;
        *upload = None;
        let joint = if address.query().is_some() { '&' } else { '?' };
        let last = format!("{address}{joint}digest={}", parcel.digest);
        let call = self.writing(Method::PUT, image, "blobs/uploads/");
        let last = last.parse().map_err(|_error| call.protocol("it gives no address for an upload"))?;
        let call = call.at(Method::PUT, last);
        self.send(&call.header(CONTENT_TYPE, "application/octet-stream")).await?;
        Ok(true)
    }

    /// Where to send the blob, or nothing if it was taken from another repository.
    async fn begin(
        &self,
        image: &ImageReference,
        parcel: &Parcel,
        mount: Option<&str>,
    ) -> Result<Option<Uri>, RegistryError> {
        let query = mount.map_or(String::new(), |from| {
            format!("?mount={}&from={}", parcel.digest, escaped(from, b"-._~/"))
        });
        let mut call = self.writing(Method::POST, image, &format!("blobs/uploads/{query}"));
        call.also = mount.map(|from| format!("repository:{from}:pull"));
        let response = self.send(&call).await?;
        if mount.is_some() && response.status() == StatusCode::CREATED {
            return Ok(None);
        }
        let address = location(&call.uri, response.headers());
        address.map(Some).ok_or_else(|| call.protocol("it gives no address for an upload"))
    }

    /// Where to go on with an upload, and from which byte on. One that is not known any more is begun anew.
    async fn progress_of(&self, image: &ImageReference, address: Uri) -> Result<(Uri, u64), RegistryError> {
        let call = self.writing(Method::GET, image, "blobs/uploads/").at(Method::GET, address.clone());
        let response = self.send(&call).await.map_err(begin_anew)?;
        let from = received(response.headers());
        Ok((location(&address, response.headers()).unwrap_or(address), from))
    }

    async fn send_bytes(
        &self,
        image: &ImageReference,
        parcel: &Parcel,
        address: Uri,
        from: u64,
    ) -> Result<Uri, RegistryError> {
        if from >= parcel.size && parcel.size > 0 {
            return Ok(address);
        }
        let mut call =
            self.writing(Method::PATCH, image, "blobs/uploads/").at(Method::PATCH, address.clone());
        call = call.header(CONTENT_TYPE, "application/octet-stream").payload(parcel.payload(from));
        if from > 0 {
            call = call.header(CONTENT_RANGE, &format!("{from}-{}", parcel.size - 1));
        }
        let response = self.send(&call).await;
        let response = if from > 0 { response.map_err(begin_anew)? } else { response? };
        Ok(location(&address, response.headers()).unwrap_or(address))
    }

    /// Puts the manifest under the reference's tag, or under its digest if it has none.
    pub(crate) async fn push_manifest(
        &self,
        image: &ImageReference,
        media_type: &str,
        manifest: &[u8],
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(manifest);
        let selector = image.tag.clone().unwrap_or_else(|| digest.to_string());
        let call = self.writing(Method::PUT, image, &format!("manifests/{selector}"));
        let payload = Payload::Bytes(Bytes::copy_from_slice(manifest));
        let call = call.header(CONTENT_TYPE, media_type).payload(payload);
        let mut attempts = Attempts::new(&self.connections.policy, &call);
        let response = loop {
            match self.send(&call).await {
                Ok(response) => break response,
                Err(error) => attempts.after(error).await?,
            }
        };
        match content_digest(response.headers()) {
            Some(other) if other != digest => {
                Err(call.protocol(format!("it has stored the manifest as {other} instead of {digest}")))
            }
            _ => Ok(digest),
        }
    }
}

/// An upload that cannot be gone on with is no reason to give up.
fn begin_anew(error: RegistryError) -> RegistryError {
    match &error.reason {
        Reason::Status { code: 400 | 404 | 405 | 416, .. } => {
            let reason = Reason::Range(format!("an upload cannot be continued: {}", error.reason));
            RegistryError { reason, ..error }
        }
        _ => error,
    }
}

/// `Range: 0-99` says that a hundred bytes have come. So does `0-0` that none have, and that one has: none is safe.
fn received(headers: &HeaderMap) -> u64 {
    let last = headers.get(RANGE).and_then(|value| value.to_str().ok());
    let last = last.and_then(|text| text.trim_start_matches("bytes=").split_once('-')?.1.parse().ok());
    match last {
        None | Some(0) => 0,
        Some(last) => last + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A broken upload goes on right behind the last byte that came.
    #[test]
    fn the_range_of_an_upload_is_read() {
        let read = |value: &str| received(&HeaderMap::from_iter([(RANGE, value.parse().unwrap())]));
        assert_eq!(["0-0", "0-99", "bytes=0-99", "nonsense"].map(read), [0, 100, 100, 0]);
        assert_eq!(received(&HeaderMap::new()), 0);
    }
}
