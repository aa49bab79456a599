//! What a container's `/etc/resolv.conf` says (resolv.conf(5)).

use super::addresses::HOST;
use std::net::{IpAddr, Ipv4Addr};

/// The host's resolvers, as containers with a way out may use them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    servers: Vec<Ipv4Addr>,
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
        let mut text = "# names of this container's networks are in /etc/hosts\n".to_owned();
        let own: Vec<String> = self.servers.iter().filter(|_| outbound).map(Ipv4Addr::to_string).collect();
        let servers = if servers.is_empty() { &own } else { servers };
        if servers.is_empty() {
            return text;
        }
        servers.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n")));
        let search = if search.is_empty() { &self.search } else { search };
        for (keyword, words) in [("search", search), ("options", &self.options)] {
            if !words.is_empty() {
                text.push_str(&format!("{keyword} {}\n", words.join(" ")));
            }
        }
        text
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
        # names of this container's networks are in /etc/hosts
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
        # names of this container's networks are in /etc/hosts
        nameserver 192.0.2.9
        search till.example
        ");
        assert!(!resolver.file(&[], &[], false).contains("nameserver"));
    }

    /// A host without a file has a resolver on loopback (resolv.conf(5)).
    #[test]
    fn an_empty_file_means_loopback() {
        assert_eq!(Resolver::read("").behind_host, Some("127.0.0.1".parse().unwrap()));
    }
}
