//! Limits on what a container may use.

use serde::{Deserialize, Serialize};

/// Limits of one container. `None` means unlimited, as in Docker.
///
/// A limit that the machine cannot enforce is an error at start, never silently dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Memory in bytes; the kernel kills the container's largest process beyond it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Memory plus swap in bytes; equal to `memory` means no swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<u64>,
    /// Memory in bytes that the container keeps when the machine runs short of it: a soft limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_reservation: Option<u64>,
    /// CPU time in thousandths of one processor: 1500 is one and a half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Weight against others where processors are scarce: 2 to 262,144; 1024 is that of a container without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Processors the container may use, by number: `0-2,7`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes the container may use, by number: `0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_mems: Option<String>,
    /// Weight against others where disks are busy: 10 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blkio_weight: Option<u16>,
    /// Number of processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Size of `/dev/shm` in bytes; 64 MiB when unset, as in Docker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// Resource limits (`RLIMIT_*`) of the first process.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
}

impl Resources {
    /// Whether a control group is needed to enforce these limits.
    #[must_use]
    pub fn need_cgroup(&self) -> bool {
        self.memory.is_some()
            || self.memory_swap.is_some()
            || self.cpu_millis.is_some()
            || self.pids.is_some()
            || self.memory_reservation.is_some()
            || self.cpu_shares.is_some()
            || self.cpuset_cpus.is_some()
            || self.cpuset_mems.is_some()
            || self.blkio_weight.is_some()
    }
}

/// One `RLIMIT_*` of the container's first process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// The name as Docker spells it: `nofile`, `nproc`, `core`, …
    pub name: String,
    /// The limit that applies.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}
