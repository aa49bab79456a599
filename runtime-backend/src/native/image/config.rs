//! An image's configuration: what its containers run, and the digests of its layers.

use super::digest::Digest;
use crate::driver::ImageConfig;
use serde::Deserialize;
use shakedown_spec::{Healthcheck, Platform};
use std::collections::BTreeMap;
use std::time::Duration;

/// The parts of a configuration that matter for running it.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) config: ImageConfig,
    /// The digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
    /// When it was made, as it says (RFC 3339).
    pub(crate) created: Option<String>,
    /// What it runs on, as far as it says.
    pub(crate) platform: Platform,
}

// Docker writes `null` where it means "nothing" in any of these, hence the options everywhere.
#[derive(Deserialize)]
struct RawImage {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    config: Option<RawConfig>,
    rootfs: Option<RawRootfs>,
    created: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
    /// Docker's; not in the OCI specification, and kept by every tool all the same.
    healthcheck: Option<RawHealthcheck>,
}

/// Times are in nanoseconds; 0 means Docker's default.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawHealthcheck {
    test: Option<Vec<String>>,
    interval: Option<i64>,
    timeout: Option<i64>,
    start_period: Option<i64>,
    start_interval: Option<i64>,
    retries: Option<i64>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

/// Reads a configuration. The error says what is wrong with it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let raw: RawImage = serde_json::from_slice(bytes)
        .map_err(|error| format!("its configuration cannot be read: {error}"))?;
    let created = raw.created;
    let named = |name: Option<String>| name.unwrap_or_default();
    let platform = Platform::new(&named(raw.os), &named(raw.architecture), raw.variant.as_deref());
    let diff_ids = raw.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
    let raw = raw.config.unwrap_or_default();
    let keys =
        |map: Option<BTreeMap<String, serde_json::Value>>| map.unwrap_or_default().into_keys().collect();
    let config = ImageConfig {
        env: raw.env.unwrap_or_default(),
        entrypoint: raw.entrypoint.unwrap_or_default(),
        command: raw.cmd.unwrap_or_default(),
        user: raw.user.unwrap_or_default(),
        workdir: raw.working_dir.unwrap_or_default(),
        exposed: keys(raw.exposed_ports),
        volumes: keys(raw.volumes),
        labels: raw.labels.unwrap_or_default(),
        platform: Some(platform.clone())
            .filter(|platform| !platform.os.is_empty() && !platform.architecture.is_empty()),
        stop_signal: raw.stop_signal.filter(|signal| !signal.is_empty()),
        healthcheck: raw.healthcheck.and_then(healthcheck),
    };
    Ok(Parsed { config, diff_ids, created, platform })
}

fn healthcheck(raw: RawHealthcheck) -> Option<Healthcheck> {
    let test = raw.test.filter(|test| !test.is_empty())?;
    let time = |nanos: Option<i64>| {
        let nanos = nanos.and_then(|nanos| u64::try_from(nanos).ok()).filter(|nanos| *nanos > 0);
        nanos.map(Duration::from_nanos)
    };
    let retries = raw.retries.and_then(|retries| u32::try_from(retries).ok()).filter(|retries| *retries > 0);
    let (interval, timeout, start_period) = (time(raw.interval), time(raw.timeout), time(raw.start_period));
    let start_interval = time(raw.start_interval);
    Some(Healthcheck { test, interval, timeout, start_period, start_interval, retries })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything a Dockerfile can say about running reaches the container, the health check included.
    #[test]
    fn a_docker_configuration_is_read_whole() {
        let parsed = parse(
            br#"{"architecture":"amd64","os":"linux","config":{
            "Env":["PATH=/bin"],"Entrypoint":["/entry"],"Cmd":null,"User":"999","WorkingDir":"/data",
            "ExposedPorts":{"6379/tcp":{}},"Volumes":{"/data":{}},"Labels":null,"StopSignal":"SIGINT",
            "Healthcheck":{"Test":["CMD-SHELL","redis-cli ping"],"Interval":5000000000,"Timeout":0,"Retries":7},
            "OnBuild":null},"rootfs":{"type":"layers","diff_ids":[]}}"#,
        );
        let check = Healthcheck::shell("redis-cli ping").interval(Duration::from_secs(5)).retries(7);
        let expected = ImageConfig {
            env: vec!["PATH=/bin".to_owned()],
            entrypoint: vec!["/entry".to_owned()],
            user: "999".to_owned(),
            workdir: "/data".to_owned(),
            exposed: vec!["6379/tcp".to_owned()],
            volumes: vec!["/data".to_owned()],
            stop_signal: Some("SIGINT".to_owned()),
            platform: Some("linux/amd64".parse().unwrap()),
            healthcheck: Some(check),
            ..ImageConfig::default()
        };
        assert_eq!(parsed.unwrap().config, expected);
    }

    /// An image that says nothing runs with nothing.
    #[test]
    fn an_empty_configuration_is_one() {
        assert_eq!(parse(br#"{"config":null}"#).unwrap().config, ImageConfig::default());
        assert!(parse(b"[]").is_err());
        assert!(parse(br#"{"rootfs":{"diff_ids":["sha256:../x"]}}"#).is_err());
    }
}
