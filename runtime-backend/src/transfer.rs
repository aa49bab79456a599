//! Images as a whole: listed, named, sent, written to archives and read from them, made from a container.

use crate::driver::{Image, Result};
use serde::{Deserialize, Serialize};
use shakedown_spec::{Failure, FailureKind, ImageReference};
use std::pin::Pin;
use tokio::io::AsyncRead;

/// Bytes as they come: an archive, a layer.
pub type ByteStream = Pin<Box<dyn AsyncRead + Send>>;

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedImage {
    /// The digest of its configuration, `sha256:…`: Docker's image id.
    pub id: String,
    /// What it is called, in short form: `redis:7`.
    #[serde(default)]
    pub names: Vec<String>,
    /// When it was made: seconds since 1970, or what it says itself (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Bytes on disk.
    pub size: u64,
}

/// An image that came out of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedImage {
    /// The digest of its configuration, `sha256:…`.
    pub id: String,
    /// What it is called from now on, in short form.
    #[serde(default)]
    pub names: Vec<String>,
}

/// An image on its way into an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedImage {
    /// The image, resolved by the same driver.
    pub image: Image,
    /// What it is called in the archive.
    pub name: Option<ImageReference>,
}

/// What is said about an image that is made of a container or of files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewImage {
    /// What it is called from then on; its id alone when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Instructions of a Dockerfile: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `HEALTHCHECK`, `LABEL`, `ONBUILD`,
    /// `STOPSIGNAL`, `USER`, `VOLUME`, `WORKDIR`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// A comment in its history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
}

impl NewImage {
    /// An image of this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }

    /// Adds an instruction of a Dockerfile, such as `CMD ["serve"]`.
    #[must_use]
    pub fn change(mut self, instruction: impl Into<String>) -> Self {
        self.changes.push(instruction.into());
        self
    }

    /// Sets the comment in its history.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// Says who made it.
    #[must_use]
    pub fn author(mut self, author: impl Into<String>) -> Self {
        self.author = Some(author.into());
        self
    }

    /// The name, read.
    ///
    /// # Errors
    ///
    /// It is no reference, or has a digest: what the digest will be, nobody knows yet.
    pub fn reference(&self) -> Result<Option<ImageReference>> {
        self.name.as_deref().map(tagged).transpose()
    }
}

impl<S: Into<String>> From<S> for NewImage {
    fn from(name: S) -> Self {
        Self::named(name)
    }
}

/// A name that an image can be given.
///
/// # Errors
///
/// It is no reference, or has a digest.
pub fn tagged(name: &str) -> Result<ImageReference> {
    let wrong = |reason: String| {
        Failure::new(FailureKind::Invalid, format!("`{name}` cannot be the name of an image"))
            .fact("reason", reason)
    };
    let reference: ImageReference =
        name.parse().map_err(|error: shakedown_spec::ReferenceError| wrong(error.to_string()))?;
    if reference.digest.is_some() {
        return Err(wrong("it has a digest".to_owned()));
    }
    Ok(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A digest in a name would be a promise about bytes that are not there yet.
    #[test]
    fn names_have_no_digest() {
        assert_eq!(NewImage::named("orders").reference().unwrap().unwrap().familiar(), "orders:latest");
        let digest = format!("orders@sha256:{}", "0".repeat(64));
        insta::assert_snapshot!(tagged(&digest).unwrap_err(), @r"
        `orders@sha256:0000000000000000000000000000000000000000000000000000000000000000` cannot be the name of an image
          reason: it has a digest
        ");
        insta::assert_snapshot!(tagged("Orders").unwrap_err(), @r"
        `Orders` cannot be the name of an image
          reason: `Orders` is not an image reference: the name has to be lower case; try `orders`
        ");
    }
}
