//! How much a layer may ask for.

use serde::{Deserialize, Serialize};

/// How much one layer may ask for. The defaults are far above real images and far below what fills a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of the uncompressed stream; 64 GiB.
    pub bytes: u64,
    /// Entries; 4 million.
    pub entries: u64,
    /// Bytes of a path or link target; 4095, which is what the kernel takes in one call.
    pub path: usize,
    /// Bytes of an extended header or long name; 1 MiB, as Go's archive/tar.
    pub header: u64,
    /// Uncompressed bytes per compressed byte, once more than [`ratio_from`](Self::ratio_from) bytes came; 250.
    pub ratio: u64,
    /// From how many uncompressed bytes on the ratio counts; 1 GiB, so that a preallocated file is no bomb.
    pub ratio_from: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 4_000_000,
            path: 4095,
            header: 1 << 20,
            ratio: 250,
            ratio_from: 1 << 30,
        }
    }
}
