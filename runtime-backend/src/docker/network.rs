//! Networks: one bridge for each key of the session.

use super::{DockerDriver, daemon_failure, is_gone};
use crate::driver::Result;
use crate::image_files::digest::Digest;
use bollard::models::{
    EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, NetworkConnectRequest, NetworkCreateRequest,
    NetworkDisconnectRequest,
};
use bollard::query_parameters::ListNetworksOptionsBuilder;
use shakedown_spec::{Attachment, Failure, FailureKind, Network};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// What a container is called and where it is on a network.
pub(super) fn endpoint(names: Vec<String>, joined: &Attachment) -> EndpointSettings {
    let address = joined.ip.map(|ip| ip.to_string());
    let ipam_config = address
        .map(|ipv4_address| EndpointIpamConfig { ipv4_address: Some(ipv4_address), ..Default::default() });
    EndpointSettings { aliases: Some(names), ipam_config, ..EndpointSettings::default() }
}

/// What a declaration says about addresses. The daemon has none of its own for IPv6 before version 27, so it is given a
/// unique local prefix (RFC 4193).
fn addresses(network: &Network) -> Option<Ipam> {
    let mut config = Vec::new();
    if let Some(subnet) = &network.subnet {
        let gateway = network.gateway.map(|gateway| gateway.to_string());
        config.push(IpamConfig { subnet: Some(subnet.clone()), gateway, ..IpamConfig::default() });
    }
    if network.ipv6 {
        let random = RandomState::new().hash_one(&network.key);
        let [a, b, c, d] = [48, 32, 16, 0].map(|shift| (random >> shift) as u16);
        let subnet = format!("fd{:02x}:{b:x}:{c:x}:{d:x}::/64", a & 0xff);
        config.push(IpamConfig { subnet: Some(subnet), ..IpamConfig::default() });
    }
    (!config.is_empty()).then(|| Ipam { config: Some(config), ..Ipam::default() })
}

impl DockerDriver {
    /// The name of a network in the daemon. Keys may hold what names may not, so they are spelled with a digest then.
    pub(crate) fn network_name(&self, key: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if key.chars().all(plain) && !key.is_empty() {
            return format!("shakedown-{}-{key}", self.inner.session);
        }
        let digest = Digest::of(key.as_bytes()).hex();
        format!("shakedown-{}-{}", self.inner.session, &digest[..16])
    }

    pub(crate) async fn make_network(&self, network: &Network) -> Result<()> {
        let one_at_a_time = Arc::clone(&self.inner.networks).lock_owned().await;
        let (driver, network) = (self.clone(), network.clone());
        // In a task of its own that keeps the lock: a caller that goes away leaves no request half way, and a removal
        // comes after.
        let making = tokio::spawn(async move {
            let made = driver.find_or_make(&network).await;
            drop(one_at_a_time);
            made
        });
        making.await.map_err(|error| Failure::new(FailureKind::Other, error.to_string()))?
    }

    async fn find_or_make(&self, network: &Network) -> Result<()> {
        let name = self.network_name(&network.key);
        let title = || format!("network `{}` could not be made", network.key);
        let filters = HashMap::from([("name", vec![name.as_str()])]);
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let listed = self.inner.docker.list_networks(Some(options)).await;
        let listed = listed.map_err(|error| daemon_failure(FailureKind::Other, title(), &error))?;
        // The filter matches any part of the name.
        if listed.iter().any(|found| found.name.as_deref() == Some(&name)) {
            return Ok(());
        }
        let mut labels = self.labels();
        labels.extend(network.labels.clone());
        let request = NetworkCreateRequest {
            name,
            driver: Some("bridge".to_owned()),
            internal: Some(network.internal),
            labels: Some(labels),
            enable_ipv6: network.ipv6.then_some(true),
            ipam: addresses(network),
            ..NetworkCreateRequest::default()
        };
        self.inner.docker.create_network(request).await.map(drop).map_err(|error| {
            let failure = daemon_failure(FailureKind::LaunchFailed, title(), &error);
            if super::failures::words(&error).contains("address pool") {
                failure.hint("the daemon has no subnet left; `docker network prune` removes unused networks")
            } else {
                failure
            }
        })
    }

    pub(crate) async fn join_network(&self, id: &str, joined: &Attachment) -> Result<()> {
        let instance = self.instance(id)?;
        let (key, service) = (&joined.network.key, &instance.service);
        let mut names = joined.aliases.clone();
        names.push(service.clone());
        let endpoint_config = Some(endpoint(names, joined));
        let join = NetworkConnectRequest { container: instance.name.clone(), endpoint_config };
        self.inner.docker.connect_network(&self.network_name(key), join).await.map_err(|error| {
            let title = format!("{service} could not be connected with network {key}");
            daemon_failure(FailureKind::LaunchFailed, title, &error)
        })
    }

    pub(crate) async fn leave_network(&self, id: &str, key: &str) -> Result<()> {
        let instance = self.instance(id)?;
        let leave = NetworkDisconnectRequest { container: instance.name.clone(), force: Some(false) };
        self.inner.docker.disconnect_network(&self.network_name(key), leave).await.map_err(|error| {
            let title = format!("{} could not be disconnected from network {key}", instance.service);
            daemon_failure(FailureKind::LaunchFailed, title, &error)
        })
    }

    pub(crate) async fn drop_network(&self, key: &str) -> Result<()> {
        let _one_at_a_time = self.inner.networks.lock().await;
        match self.inner.docker.remove_network(&self.network_name(key)).await {
            Err(error) if !is_gone(&error) => Err(daemon_failure(
                FailureKind::Other,
                format!("network `{key}` could not be removed"),
                &error,
            )),
            _ => Ok(()),
        }
    }
}
