//! What a container uses, in the daemon's words.

use super::{DockerDriver, daemon_failure};
use crate::driver::{Result, Usage};
use bollard::models::{ContainerMemoryStats, ContainerStatsResponse};
use bollard::query_parameters::StatsOptionsBuilder;
use futures_util::StreamExt;
use shakedown_spec::{Failure, FailureKind};

impl DockerDriver {
    pub(crate) async fn used(&self, id: &str) -> Result<Usage> {
        let instance = self.instance(id)?;
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
        let title = || format!("what {} uses could not be learnt", instance.service);
        let mut answers = std::pin::pin!(self.inner.docker.stats(&instance.name, Some(options)));
        match answers.next().await {
            Some(Ok(answer)) => Ok(usage(&answer)),
            Some(Err(error)) => Err(daemon_failure(FailureKind::Other, title(), &error)),
            None => Err(Failure::new(FailureKind::Other, title()).fact("reason", "the daemon said nothing")),
        }
    }
}

fn usage(answer: &ContainerStatsResponse) -> Usage {
    let memory = answer.memory_stats.as_ref();
    let pids = answer.pids_stats.as_ref();
    let cpu = answer.cpu_stats.as_ref().and_then(|cpu| cpu.cpu_usage.as_ref());
    Usage {
        memory: memory.and_then(used_memory),
        memory_limit: memory.and_then(|memory| memory.limit),
        cpu_ns: cpu.and_then(|cpu| cpu.total_usage),
        pids: pids.and_then(|pids| pids.current),
        // The daemon writes the largest number for "no limit".
        pids_limit: pids.and_then(|pids| pids.limit).filter(|limit| *limit > 0 && *limit < u64::MAX),
    }
}

/// As `docker stats` counts: without the part of the page cache that can be had back at once, which cgroup v1 calls
/// `total_inactive_file` and v2 `inactive_file`.
fn used_memory(memory: &ContainerMemoryStats) -> Option<u64> {
    let stats = memory.stats.as_ref();
    let idle = ["total_inactive_file", "inactive_file"];
    let cache = stats.and_then(|stats| idle.into_iter().find_map(|name| stats.get(name)));
    memory.usage.map(|usage| usage.saturating_sub(cache.copied().unwrap_or(0)))
}
