//! The name under which the store remembers what a step made: the digest of everything the step depends on.

use crate::native::image::{Digest, Hasher};

/// A digest in the making. Each part goes in with its length, so that two lists of parts never look the same.
pub(super) struct Key(Hasher);

impl Key {
    /// The key of a step of this kind.
    pub(super) fn of(kind: &str) -> Self {
        // Raised when the same step would make another layer.
        const FORM: &str = "1";
        Self(Hasher::new()).with(FORM).with(kind)
    }

    /// Adds a part.
    pub(super) fn with(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    /// Adds any number of parts, and how many they are.
    pub(super) fn with_all(self, parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let parts: Vec<_> = parts.into_iter().collect();
        let counted = self.with(parts.len().to_string());
        parts.into_iter().fold(counted, |key, part| key.with(part))
    }

    /// The digest.
    pub(super) fn finish(self) -> Digest {
        self.0.finish()
    }
}
