//! Limits as the files of a control group: what is written where, on either version.

use shakedown_spec::Resources;

/// The period of a CPU quota, in microseconds.
const PERIOD: u64 = 100_000;

/// A file of a group, and what is written to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// Names of the file, best first: kernels differ.
    pub(super) files: &'static [&'static str],
    /// What is written, one for each name.
    pub(super) values: Vec<String>,
    /// Whether the limit holds without the file, too.
    pub(super) optional: bool,
}

impl Setting {
    fn new(file: &'static [&'static str], value: impl ToString) -> Self {
        Self { files: file, values: vec![value.to_string()], optional: false }
    }
}

/// Whether the declaration asks for something of this controller.
pub(super) fn wanted(controller: &str, resources: &Resources) -> bool {
    match controller {
        "memory" => {
            resources.memory.is_some()
                || resources.memory_swap.is_some()
                || resources.memory_reservation.is_some()
        }
        "pids" => resources.pids.is_some(),
        "cpu" => resources.cpu_millis.is_some() || resources.cpu_shares.is_some(),
        "cpuset" => resources.cpuset_cpus.is_some() || resources.cpuset_mems.is_some(),
        "blkio" => resources.blkio_weight.is_some(),
        _ => false,
    }
}

/// The settings of a controller, in an order the kernel accepts: memory before memory plus swap.
pub(super) fn settings(controller: &str, v2: bool, resources: &Resources) -> Vec<Setting> {
    match controller {
        "memory" => memory(v2, resources),
        "pids" => resources.pids.map(|pids| Setting::new(&["pids.max"], pids)).into_iter().collect(),
        "cpu" => cpu(v2, resources),
        "cpuset" => {
            let cpus = resources.cpuset_cpus.as_ref().map(|list| Setting::new(&["cpuset.cpus"], list));
            let mems = resources.cpuset_mems.as_ref().map(|list| Setting::new(&["cpuset.mems"], list));
            cpus.into_iter().chain(mems).collect()
        }
        "blkio" => resources.blkio_weight.map(|weight| blkio(v2, weight)).into_iter().collect(),
        _ => Vec::new(),
    }
}

fn memory(v2: bool, resources: &Resources) -> Vec<Setting> {
    let mut list = Vec::new();
    if let Some(soft) = resources.memory_reservation {
        list.push(Setting::new(if v2 { &["memory.low"] } else { &["memory.soft_limit_in_bytes"] }, soft));
    }
    if let Some(memory) = resources.memory {
        list.push(Setting::new(if v2 { &["memory.max"] } else { &["memory.limit_in_bytes"] }, memory));
    }
    // As Docker does: with a memory limit alone, as much swap again.
    let total = resources.memory_swap.or(resources.memory.map(|memory| memory.saturating_mul(2)));
    if let Some(total) = total {
        let swap = total.saturating_sub(resources.memory.unwrap_or(0));
        let setting = if v2 {
            Setting::new(&["memory.swap.max"], swap)
        } else {
            Setting::new(&["memory.memsw.limit_in_bytes"], total)
        };
        // Swap is counted only where the kernel was built and booted so. What nobody asked for may be missing then.
        list.push(Setting { optional: resources.memory_swap.is_none(), ..setting });
    }
    list
}

fn cpu(v2: bool, resources: &Resources) -> Vec<Setting> {
    let mut list = Vec::new();
    if let Some(shares) = resources.cpu_shares {
        list.push(if v2 {
            Setting::new(&["cpu.weight"], weight_of_shares(shares))
        } else {
            Setting::new(&["cpu.shares"], shares)
        });
    }
    if let Some(quota) = resources.cpu_millis.map(|millis| millis * PERIOD / 1000) {
        if v2 {
            list.push(Setting::new(&["cpu.max"], format!("{quota} {PERIOD}")));
        } else {
            list.push(Setting::new(&["cpu.cfs_period_us"], PERIOD));
            list.push(Setting::new(&["cpu.cfs_quota_us"], quota));
        }
    }
    list
}

/// The weight of v2 (1 to 10,000) for shares of v1 (2 to 262,144), as the OCI runtimes convert it: 1024 becomes 39.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Of the schedulers, only BFQ has weights, and they are 1 to 1000; `io.weight` is 1 to 10,000.
fn blkio(v2: bool, weight: u16) -> Setting {
    let wide = 1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990;
    let files: &[&str] =
        if v2 { &["io.bfq.weight", "io.weight"] } else { &["blkio.bfq.weight", "blkio.weight"] };
    let second = if v2 { wide.to_string() } else { weight.to_string() };
    Setting { files, values: vec![weight.to_string(), second], optional: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(controller: &str, resources: &Resources, v1: &[&str], v2: &[&str]) {
        for (version, expected) in [(false, v1), (true, v2)] {
            let settings = settings(controller, version, resources);
            let lines: Vec<_> = settings
                .iter()
                .flat_map(|setting| setting.files.iter().zip(setting.values.iter()))
                .map(|(file, value)| format!("{file} {value}"))
                .collect();
            assert_eq!(lines, expected);
            assert!(wanted(controller, resources));
        }
    }

    /// The same declaration limits the same on both versions.
    #[test]
    fn limits_are_written_for_each_version() {
        let limits = Resources { memory: Some(64), memory_reservation: Some(32), ..Resources::default() };
        check(
            "memory",
            &limits,
            &["memory.soft_limit_in_bytes 32", "memory.limit_in_bytes 64", "memory.memsw.limit_in_bytes 128"],
            &["memory.low 32", "memory.max 64", "memory.swap.max 64"],
        );
        let limits = Resources { cpu_millis: Some(1500), cpu_shares: Some(1024), ..Resources::default() };
        check(
            "cpu",
            &limits,
            &["cpu.shares 1024", "cpu.cfs_period_us 100000", "cpu.cfs_quota_us 150000"],
            &["cpu.weight 39", "cpu.max 150000 100000"],
        );
        let limits = Resources { cpuset_cpus: Some("0-1".into()), ..Resources::default() };
        check("cpuset", &limits, &["cpuset.cpus 0-1"], &["cpuset.cpus 0-1"]);
        let limits = Resources { blkio_weight: Some(500), ..Resources::default() };
        check(
            "blkio",
            &limits,
            &["blkio.bfq.weight 500", "blkio.weight 500"],
            &["io.bfq.weight 500", "io.weight 4950"],
        );
    }

    /// Swap that was asked for is not silently unlimited; swap that comes with the memory limit may be.
    #[test]
    fn only_swap_that_nobody_asked_for_may_be_missing() {
        let last = |swap| {
            let limits = Resources { memory: Some(64), memory_swap: swap, ..Resources::default() };
            settings("memory", true, &limits).pop().map(|setting| setting.optional)
        };
        assert_eq!((last(None), last(Some(64))), (Some(true), Some(false)));
    }
}
