//! Resolve stage of the native driver: which bytes is that image?
//!
//! ```text
//! source ──► manifest, configuration ──► blobs, verified ──► trees, one for each layer ──► StoredImage
//!            files, fetch                fetch               unpack, by an Unpacker        obtain, store
//! ```
//! The [`Store`] is shared by all processes of a user. Everything in it is named by its digest and appears whole or not
//! at all (`disk`), so a process may be killed, and the disk may be full, at any moment.

mod bundle;
mod collect;
mod config;
mod content;
mod disk;
mod export;
mod failures;
mod fetch;
mod ingest;
mod lookup;
mod obtain;
mod options;
mod push;
mod refusal;
mod registry;
mod remove;
mod sources;
mod steps;
mod store;
mod survival;
mod unpack;
mod unpacker;
mod upkeep;
mod verify;

use crate::image_files::{digest, manifest, read as files};
pub use bundle::{Bundled, Carried, bundled};
pub use collect::{PruneRules, StoreLimits};
pub use content::{Content, ContentLayer};
pub use digest::Digest;
pub(crate) use digest::Hasher;
pub(crate) use disk::Scratch;
pub use export::Shape;
pub use ingest::{BlobWriter, Ingest};
pub use lookup::{LookedUp, look_up};
pub use manifest::Descriptor;
pub use options::{RegistriesConfig, RegistryConfig, RetryPolicy, StoreOptions};
pub use registry::Credentials;
pub use remove::remove_tree;
pub(crate) use steps::{Shared as Sharing, StepRecord};
pub use store::{InUse, Store, StoredImage};
pub(crate) use unpack::{Archive, EntryPath, Header, Kind, Lower, decompress};
pub use unpack::{
    Limits, Owners, Resolver, TreeSum, UnpackError, UnpackOptions, Unpacked, Unsettled, unpack,
};
pub use unpacker::{Blob, BlobReader, LocalUnpacker, Unpacker, unpack_into};
pub(crate) use unpacker::{copy_trees, merge_trees, sum_tree};
pub use upkeep::{Freed, ImageDetails, ImageSummary, LayerDetails};
pub use verify::{Finding, Remedy};
