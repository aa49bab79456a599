//! What a container's `/etc/resolv.conf` says (resolv.conf(5)).

use super::addresses::{HOST, RESOLVER};
use std::net::{IpAddr, Ipv4Addr};

/// The host's resolvers, as containers with a way out may use them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    servers: Vec<Ipv4Addr>,
    /// The same as the host itself asks them.
    pub(crate) asked: Vec<IpAddr>,
    /// What is behind [`HOST`]: a resolver that listens on the host's loopback interface, on a link-local address, as
    /// those of clouds do, or on IPv6.
    pub(crate) behind_host: Option<IpAddr>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    /// As the host is set up now: it may have changed networks since the last container.
    pub(crate) fn of_host() -> Self {
        Self::read(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    fn read(text: &str) -> Self {
        let mut resolver = Self::default();
        let mut servers: Vec<IpAddr> = Vec::new();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let keyword = words.next().unwrap_or_default();
            let words = words.map(str::to_owned);
            match keyword {
                // One with a zone (`fe80::1%eth0`) is not read.
                "nameserver" => servers.extend(words.take(1).filter_map(|word| word.parse::<IpAddr>().ok())),
                // The last line counts.
                "search" | "domain" => resolver.search = words.collect(),
                "options" => resolver.options.extend(words),
                _ => {}
            }
        }
        if servers.is_empty() {
            servers.push(Ipv4Addr::LOCALHOST.into());
        }
        resolver.asked.clone_from(&servers);
        for server in servers {
            let reached = match server {
                IpAddr::V4(address)
                    if !address.is_loopback() && !address.is_unspecified() && !address.is_link_local() =>
                {
                    address
                }
                _ => {
                    resolver.behind_host.get_or_insert(server);
                    HOST
                }
            };
            if !resolver.servers.contains(&reached) {
                resolver.servers.push(reached);
            }
        }
        resolver
    }

    /// The file of a container that declares these servers and domains of its own, or none. One that has no way out
    /// and declares nothing has no resolver.
    pub(crate) fn file(&self, servers: &[String], search: &[String], outbound: bool) -> String {
        let mut text = String::new();
        let own: Vec<String> = self.servers.iter().filter(|_| outbound).map(Ipv4Addr::to_string).collect();
        let servers = if servers.is_empty() { &own } else { servers };
        if servers.is_empty() {
            return text;
        }
        servers.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n")));
        text + &self.rest(search, &self.options)
    }

    /// The file of a container on networks, which asks for names in its own namespace.
    pub(crate) fn file_on_networks(&self, search: &[String], outbound: bool) -> String {
        // A name without dots is asked for as it stands first: it is one of the networks'.
        let mut options = vec!["ndots:0".to_owned()];
        options.extend(self.options.iter().filter(|option| !option.starts_with("ndots:")).cloned());
        let none = Self::default();
        let host = if outbound { self } else { &none };
        format!("nameserver {RESOLVER}\n{}", host.rest(search, &options))
    }

    fn rest(&self, search: &[String], options: &[String]) -> String {
        let search = if search.is_empty() { &self.search } else { search };
        let lines = [("search", search), ("options", options)].into_iter();
        let lines = lines.filter(|(_, words)| !words.is_empty());
        lines.map(|(keyword, words)| format!("{keyword} {}\n", words.join(" "))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names resolve in a container as on the host, also where the host's resolver listens on loopback.
    #[test]
    fn a_resolver_on_loopback_is_reached_through_the_host() {
        let host = "# stub\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver ::1\noptions edns0\nsearch shop.example\n";
        let resolver = Resolver::read(host);
        assert_eq!(resolver.behind_host, Some("127.0.0.53".parse().unwrap()));
        insta::assert_snapshot!(resolver.file(&[], &[], true), @r"
        nameserver 10.88.0.1
        nameserver 192.0.2.1
        search shop.example
        options edns0
        ");
    }

    /// What a container declares replaces the host's.
    #[test]
    fn declared_servers_are_used() {
        let resolver = Resolver::read("nameserver 192.0.2.1\nsearch shop.example\n");
        assert_eq!(resolver.behind_host, None);
        insta::assert_snapshot!(resolver.file(&["192.0.2.9".into()], &["till.example".into()], false), @r"
        nameserver 192.0.2.9
        search till.example
        ");
        assert!(!resolver.file(&[], &[], false).contains("nameserver"));
    }

    /// A container on networks asks in its own namespace, and finds names without dots there first.
    #[test]
    fn names_of_networks_come_first() {
        let resolver = Resolver::read("nameserver 192.0.2.1\nsearch shop.example\noptions ndots:5 edns0\n");
        insta::assert_snapshot!(resolver.file_on_networks(&[], true), @r"
        nameserver 127.0.0.11
        search shop.example
        options ndots:0 edns0
        ");
        insta::assert_snapshot!(resolver.file_on_networks(&[], false), @r"
        nameserver 127.0.0.11
        options ndots:0 edns0
        ");
    }

    /// A host without a file has a resolver on loopback (resolv.conf(5)).
    #[test]
    fn an_empty_file_means_loopback() {
        assert_eq!(Resolver::read("").behind_host, Some("127.0.0.1".parse().unwrap()));
    }
}
