//! Where a registry is reached: its mirrors in order, then itself.

use crate::native::image::options::{RegistriesConfig, RegistryConfig};
use hyper::Uri;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// A registry, or a mirror of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// As references name it; passwords are kept under it.
    pub(super) name: String,
    /// What addresses name: Docker's own registry is reached under another name than its images have.
    authority: String,
    /// In front of repositories' names, with a slash at its end.
    prefix: String,
    plain: bool,
    pub(super) ca: Option<PathBuf>,
    pub(super) is_mirror: bool,
}

impl Host {
    /// The registry itself.
    pub(super) fn of(registry: &str, config: &RegistriesConfig) -> Arc<Self> {
        let (host, path) = (registry.to_owned(), String::new());
        Arc::new(Self::new(host, path, false, config.registries.get(registry), false))
    }

    /// All that may be asked, in order.
    pub(super) fn all(registry: &str, config: &RegistriesConfig) -> Vec<Arc<Self>> {
        let mirrors = config.registries.get(registry).map_or(&[][..], |config| &config.mirrors);
        let mirror = |text: &String| {
            // Docker's configuration has addresses here; plain HTTP is then asked for by name.
            let plain = text.starts_with("http://");
            let rest = text.split_once("://").map_or(text.as_str(), |(_scheme, rest)| rest);
            let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
            let path = path.trim_matches('/');
            let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
            Arc::new(Self::new(name.to_owned(), prefix, plain, config.registries.get(name), true))
        };
        mirrors.iter().map(mirror).chain([Self::of(registry, config)]).collect()
    }

    fn new(
        name: String,
        prefix: String,
        plain: bool,
        config: Option<&RegistryConfig>,
        is_mirror: bool,
    ) -> Self {
        let ca = config.and_then(|config| config.ca.clone());
        let insecure = config.is_some_and(|config| config.insecure);
        let plain = plain || insecure || (is_loopback(host_of(&name)) && ca.is_none());
        let authority = if name == "docker.io" { "registry-1.docker.io".to_owned() } else { name.clone() };
        Self { name, authority, prefix, plain, ca, is_mirror }
    }

    /// Scheme, host and port.
    pub(super) fn origin(&self) -> String {
        format!("{}://{}", if self.plain { "http" } else { "https" }, self.authority)
    }

    /// Whether this is an address of the registry itself, and not of a host that it sends to.
    pub(super) fn is_at(&self, uri: &Uri) -> bool {
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
        self.origin().eq_ignore_ascii_case(&format!("{scheme}://{authority}"))
    }

    pub(super) fn address(&self, repository: &str, path: &str) -> String {
        format!("{}/v2/{}{repository}/{path}", self.origin(), self.prefix)
    }

    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(host_of(&self.authority))
    }

    /// Whether this may be spoken to in plain HTTP on the registry's behalf: only a registry that is itself plain can
    /// send there, and only to itself, or from this machine to this machine.
    pub(super) fn may_be_plain(&self, uri: &Uri) -> bool {
        let Some(host) = uri.host() else { return false };
        self.plain && (host == host_of(&self.authority) || (self.is_loopback() && is_loopback(host)))
    }
}

fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn config(entries: &[(&str, RegistryConfig)]) -> RegistriesConfig {
        let registries = entries.iter().map(|(name, config)| ((*name).to_owned(), config.clone()));
        RegistriesConfig { registries: registries.collect::<BTreeMap<_, _>>() }
    }

    /// Mirrors are asked first, each in the scheme that is declared for it; the registry comes last.
    #[test]
    fn mirrors_come_first() {
        let mirrors =
            ["localhost:5000", "https://cache.example/hub/", "http://near.example:81", "plain.example"];
        let hub = RegistryConfig { mirrors: mirrors.map(str::to_owned).into(), ..RegistryConfig::default() };
        let plain = RegistryConfig { insecure: true, ..RegistryConfig::default() };
        let hosts = Host::all("docker.io", &config(&[("docker.io", hub), ("plain.example", plain)]));
        let addresses: Vec<_> =
            hosts.iter().map(|host| host.address("library/redis", "manifests/7")).collect();
        assert_eq!(
            addresses,
            [
                "http://localhost:5000/v2/library/redis/manifests/7",
                "https://cache.example/v2/hub/library/redis/manifests/7",
                "http://near.example:81/v2/library/redis/manifests/7",
                "http://plain.example/v2/library/redis/manifests/7",
                "https://registry-1.docker.io/v2/library/redis/manifests/7",
            ]
        );
    }

    /// A plain registry cannot send a password or a request into the network around it.
    #[test]
    fn plain_http_stays_where_it_was_allowed() {
        let may =
            |registry: &str, uri: &str| Host::of(registry, &config(&[])).may_be_plain(&uri.parse().unwrap());
        assert!(may("localhost:5000", "http://127.0.0.1:81/token"));
        assert!(may("[::1]:5000", "http://[::1]:81/token"));
        assert!(!may("localhost:5000", "http://192.0.2.1/"));
        assert!(!may("shop.example", "http://127.0.0.1/"));
        assert!(!may("shop.example", "http://shop.example/"));
        let plain = RegistryConfig { insecure: true, ..RegistryConfig::default() };
        let host = Host::of("shop.example:5000", &config(&[("shop.example:5000", plain)]));
        assert!(host.may_be_plain(&"http://shop.example:81/token".parse().unwrap()));
        assert!(!host.may_be_plain(&"http://127.0.0.1/".parse().unwrap()));
    }
}
