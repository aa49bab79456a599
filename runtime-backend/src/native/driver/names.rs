//! The names by which containers know themselves and each other.

use super::NativeDriver;
use crate::driver::Create;
use crate::native::instance::Instance;
use crate::native::launcher::{Request, WrittenFile};
use crate::native::outbound::host_address;
use shakedown_spec::NetworkMode;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: String,
    address: Ipv4Addr,
    names: Vec<String>,
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
            WrittenFile { path: "/etc/resolv.conf".into(), content: self.resolver_file(container) },
        ];
        // What the declaration brings itself is left as it is.
        files.into_iter().filter(|file| !declared(file)).collect()
    }

    pub(super) fn hosts(&self, instance: &Instance, hostname: &str) -> String {
        let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        let mut line = |address: &str, names: &str| text.push_str(&format!("{address}\t{names}\n"));
        line(&instance.address().to_string(), hostname);
        for (name, address) in &instance.create.container.extra_hosts {
            line(&host_address(address, instance.create.container.network_mode == NetworkMode::Host), name);
        }
        let books = self.books();
        for joined in &instance.create.container.networks {
            for member in books.members.get(&joined.network.key).into_iter().flatten() {
                line(&member.address.to_string(), &member.names.join(" "));
            }
        }
        text
    }

    /// Enters the container in its networks.
    pub(super) fn enter_networks(&self, instance: &Instance) {
        let create = &instance.create;
        let mut books = self.books();
        for (joined, address) in create.container.networks.iter().zip(&instance.addresses) {
            let mut names = joined.aliases.clone();
            names.push(create.container.display_name());
            names.dedup();
            let member = Member { id: create.id.clone(), address: *address, names };
            books.members.entry(joined.network.key.clone()).or_default().push(member);
        }
    }

    /// Tells the other containers of the same networks who is there now.
    pub(super) async fn tell_neighbours(&self, create: &Create) {
        let neighbours: Vec<Arc<Instance>> = {
            let books = self.books();
            let keys = create.container.networks.iter().map(|joined| &joined.network.key);
            let members = keys.filter_map(|key| books.members.get(key)).flatten();
            members
                .filter(|m| m.id != create.id)
                .filter_map(|m| books.instances.get(&m.id).cloned())
                .collect()
        };
        for neighbour in neighbours {
            let hosts = |file: &WrittenFile| file.path == Path::new("/etc/hosts");
            let files = self.name_files(&neighbour).into_iter().filter(hosts).collect();
            // One that is being removed at this moment needs no names any more.
            let _ = self.launcher.ask(Request::Write { id: neighbour.create.id.clone(), files }).await;
        }
    }
}
