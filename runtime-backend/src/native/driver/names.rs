//! The names by which containers know themselves and each other.

use super::NativeDriver;
use super::failures::launch_failed;
use crate::driver::{Create, ImageConfig, Result};
use crate::native::instance::{Instance, Place};
use crate::native::launch::Trouble;
use crate::native::launcher::{Request, WrittenFile};
use crate::native::network::addresses::HOST;
use crate::native::network::names::{self, Asker, Member, Upstream};
use crate::native::network::resolver::Resolver;
use crate::native::outbound::host_address;
use shakedown_spec::{Attachment, Container, NetworkMode};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// By which containers know the host.
const HOST_NAMES: [&str; 2] = ["host.docker.internal", "host.testcontainers.internal"];

/// Whether a container asks for names in its own network. One that is a name server itself needs the port for that, on
/// every address: the names of its networks are in its hosts file.
pub(super) fn asks_for_names(container: &Container, image: &ImageConfig) -> bool {
    const DNS: u16 = 53;
    let declared = container.ports.iter().any(|port| port.container == DNS);
    !declared && !image.exposed.iter().any(|port| port.split('/').next() == Some("53"))
}

/// What a container is called on a network.
pub(super) fn names_on(container: &Container, joined: &Attachment) -> Vec<String> {
    let mut names = joined.aliases.clone();
    names.push(container.display_name());
    names.extend(container.hostname.clone());
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

impl NativeDriver {
    /// The files that name the container and its neighbours.
    pub(super) fn name_files(&self, instance: &Instance) -> Vec<WrittenFile> {
        let container = &instance.create.container;
        let hostname = container.hostname.clone().unwrap_or_else(|| container.display_name());
        let declared =
            |file: &WrittenFile| container.files.iter().any(|own| file.path == Path::new(&own.path));
        let files = vec![
            WrittenFile { path: "/etc/hosts".into(), content: self.hosts(instance, &hostname) },
            WrittenFile { path: "/etc/hostname".into(), content: format!("{hostname}\n") },
            WrittenFile { path: "/etc/resolv.conf".into(), content: self.resolver_text(instance) },
        ];
        // What the declaration brings itself is left as it is.
        files.into_iter().filter(|file| !declared(file)).collect()
    }

    fn hosts(&self, instance: &Instance, hostname: &str) -> String {
        let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        let mut line = |address: &str, names: &str| text.push_str(&format!("{address}\t{names}\n"));
        let container = &instance.create.container;
        let (places, hosts_own) = (instance.places(), container.network_mode == NetworkMode::Host);
        let mut own: Vec<IpAddr> =
            places.iter().filter(|place| !place.key.is_empty()).flat_map(Place::all).collect();
        if own.is_empty() {
            own.push(instance.address().into());
        }
        own.iter().for_each(|address| line(&address.to_string(), hostname));
        for (name, address) in &container.extra_hosts {
            line(&host_address(address, hosts_own), name);
        }
        let host =
            if hosts_own { Some(Ipv4Addr::LOCALHOST) } else { instance.reaches_outside().then_some(HOST) };
        let names: Vec<_> =
            HOST_NAMES.into_iter().filter(|name| !container.extra_hosts.contains_key(*name)).collect();
        if let (Some(host), false) = (host, names.is_empty()) {
            line(&host.to_string(), &names.join(" "));
        }
        if !instance.asks_for_names() {
            let others = places.iter().flat_map(|place| self.names.others(&place.key, &instance.create.id));
            for (address, names) in others.flat_map(|member| {
                let names = member.names.join(" ");
                member.addresses.into_iter().map(move |address| (address, names.clone()))
            }) {
                line(&address.to_string(), &names);
            }
        }
        text
    }

    /// The container's `/etc/resolv.conf`; that of another one, if it has the network of that.
    fn resolver_text(&self, instance: &Instance) -> String {
        let container = &instance.create.container;
        if let NetworkMode::Container(other) = &container.network_mode
            && let Ok(other) = self.instance(other)
            && container.dns.is_empty()
            && container.dns_search.is_empty()
        {
            return self.resolver_text(&other);
        }
        if instance.asks_for_names() {
            return Resolver::of_host().file_on_networks(&container.dns_search, instance.reaches_outside());
        }
        self.resolver_file(container)
    }

    /// Answers what the container asks for at these sockets, if it has been given some.
    pub(super) fn serve_names(&self, instance: &Instance, sockets: Vec<OwnedFd>) -> Result<()> {
        if sockets.is_empty() {
            return Ok(());
        }
        let container = &instance.create.container;
        let servers: Vec<IpAddr> = container.dns.iter().filter_map(|server| server.parse().ok()).collect();
        let upstream = match instance.reaches_outside() {
            _ if !servers.is_empty() => Upstream::Declared(self.launcher.clone(), servers),
            true => Upstream::Host,
            false => Upstream::Nobody,
        };
        let asker = Asker { id: instance.create.id.clone(), directory: Arc::clone(&self.names), upstream };
        let tasks = names::serve(sockets, asker).map_err(|error| {
            launch_failed(container, Trouble::new("answer its queries for names", error.to_string()))
        })?;
        instance.answers_queries(tasks);
        Ok(())
    }

    /// Enters the container in one of its networks.
    pub(super) fn enter(&self, instance: &Instance, place: &Place) {
        let member = Member {
            id: instance.create.id.clone(),
            names: place.names.clone(),
            addresses: place.all().collect(),
            exit: instance.exit_receiver(),
        };
        self.names.enter(&place.key, member);
    }

    /// Enters the container in its networks.
    pub(super) fn enter_networks(&self, instance: &Instance) {
        let places = instance.places();
        places.iter().filter(|place| !place.key.is_empty()).for_each(|place| self.enter(instance, place));
    }

    /// Tells those of the same networks who is there now whose names are in their hosts files.
    pub(super) async fn tell_neighbours(&self, create: &Create, places: &[Place]) {
        let others = places.iter().flat_map(|place| self.names.others(&place.key, &create.id));
        let neighbours = others.filter_map(|member| self.instance(&member.id).ok());
        for neighbour in neighbours.filter(|neighbour| !neighbour.asks_for_names()).collect::<Vec<_>>() {
            self.write_hosts(&neighbour).await;
        }
    }

    /// Writes the hosts file of a container that runs, or is about to. One that is being removed at this moment needs no
    /// names any more.
    pub(super) async fn write_hosts(&self, instance: &Instance) {
        let hosts = |file: &WrittenFile| file.path != Path::new("/etc/hostname");
        let files = self.name_files(instance).into_iter().filter(hosts).collect();
        let _ = self.launcher.ask(Request::Write { id: instance.create.id.clone(), files }).await;
    }
}
