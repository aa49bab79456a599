//! Resolve stage of the native driver: which bytes is that image?
//!
//! ```text
//! source ──► manifest, configuration ──► blobs, verified ──► trees, one for each layer ──► StoredImage
//!            files, fetch                fetch               unpack, by an Unpacker        obtain, store
//! ```
//! The [`Store`] is shared by all processes of a user. Everything in it is named by its digest and appears whole or not
//! at all (`disk`), so a process may be killed, and the disk may be full, at any moment.

mod config;
mod digest;
mod disk;
mod failures;
mod fetch;
mod files;
mod manifest;
mod obtain;
mod registry;
mod remove;
mod store;
mod unpack;
mod unpacker;

pub use digest::Digest;
pub use remove::remove_tree;
pub use store::{InUse, Store, StoredImage};
pub use unpack::{Limits, Owners, Resolver, UnpackError, UnpackOptions, Unpacked, Unsettled, unpack};
pub use unpacker::{Blob, BlobReader, LocalUnpacker, Unpacker, unpack_into};
