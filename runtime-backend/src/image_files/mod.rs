//! Images in files, read and written: what both drivers know of layouts and archives.
//!
//! ```text
//! oci:, oci-archive:, docker-archive: ──► Files ──► FoundInFiles ──► the store, or Outgoing ──► archive(), layout()
//! ```
//! Everything is read as what a stranger wrote: documents are bounded, digests checked, and names of members are only
//! looked up, never opened.

pub(crate) mod blob;
pub(crate) mod created;
pub(crate) mod digest;
pub(crate) mod failures;
pub(crate) mod manifest;
pub(crate) mod read;
pub(crate) mod spool;
pub(crate) mod write;

pub use blob::{Blob, BlobReader};
pub use write::ArchiveForm;
