//! Who is on which network, under which names.

use crate::driver::Exit;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The members of all networks of a session.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    networks: Mutex<BTreeMap<String, Vec<Member>>>,
    /// Which of several containers of one name comes first; it is another one each time.
    turn: AtomicUsize,
}

/// A container on a network.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// The container.
    pub(crate) id: String,
    /// What it is called there.
    pub(crate) names: Vec<String>,
    /// Where it is.
    pub(crate) addresses: Vec<IpAddr>,
    /// How it ended; one that has is not found any more.
    pub(crate) exit: watch::Receiver<Option<Exit>>,
}

impl Member {
    fn lives(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// A network's name may follow the container's, as with Docker.
    fn is_called(&self, name: &str, key: &str) -> bool {
        let own = |given: &String| {
            given.eq_ignore_ascii_case(name)
                || name.len() == given.len() + 1 + key.len()
                    && name.get(..given.len()).is_some_and(|start| start.eq_ignore_ascii_case(given))
                    && name.get(given.len()..=given.len()) == Some(".")
                    && name.get(given.len() + 1..).is_some_and(|end| end.eq_ignore_ascii_case(key))
        };
        self.names.iter().any(own)
    }
}

impl Directory {
    fn networks(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Member>>> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a container, in place of what is known of it there.
    pub(crate) fn enter(&self, key: &str, member: Member) {
        let mut networks = self.networks();
        let members = networks.entry(key.to_owned()).or_default();
        members.retain(|other| other.id != member.id);
        members.push(member);
    }

    /// Strikes a container from one network.
    pub(crate) fn leave(&self, key: &str, id: &str) {
        if let Some(members) = self.networks().get_mut(key) {
            members.retain(|member| member.id != id);
        }
    }

    /// Strikes a container from all networks.
    pub(crate) fn forget(&self, id: &str) {
        self.networks().values_mut().for_each(|members| members.retain(|member| member.id != id));
    }

    /// Strikes a network.
    pub(crate) fn remove(&self, key: &str) {
        self.networks().remove(key);
    }

    /// The addresses of this name, as the container `id` sees it; none if no container on its networks is called so.
    pub(crate) fn addresses(&self, id: &str, name: &str) -> Vec<IpAddr> {
        let mut found: Vec<Vec<IpAddr>> = Vec::new();
        for (key, members) in self.networks().iter() {
            if members.iter().any(|member| member.id == id) {
                let called = members.iter().filter(|member| member.lives() && member.is_called(name, key));
                found.extend(called.map(|member| member.addresses.clone()));
            }
        }
        if !found.is_empty() {
            let first = self.turn.fetch_add(1, Ordering::Relaxed) % found.len();
            found.rotate_left(first);
        }
        found.concat()
    }

    /// The first name of the container at this address, as the container `id` sees it.
    pub(crate) fn name_at(&self, id: &str, address: IpAddr) -> Option<String> {
        let networks = self.networks();
        let seen = networks.values().filter(|members| members.iter().any(|member| member.id == id));
        let mut seen = seen.flatten().filter(|member| member.lives());
        seen.find(|member| member.addresses.contains(&address))
            .and_then(|member| member.names.first().cloned())
    }

    /// The others on this network.
    pub(crate) fn others(&self, key: &str, id: &str) -> Vec<Member> {
        let networks = self.networks();
        let members = networks.get(key).into_iter().flatten();
        members.filter(|member| member.id != id && member.lives()).cloned().collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A directory with three containers: `web` twice on `front`, and `db` on `back`, which the first `web` is on, too.
    pub(crate) fn shop() -> (Directory, watch::Sender<Option<Exit>>) {
        let directory = Directory::default();
        let (told, exit) = watch::channel(None);
        let member = |id: &str, names: &[&str], addresses: &[&str]| Member {
            id: id.to_owned(),
            names: names.iter().map(ToString::to_string).collect(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            exit: exit.clone(),
        };
        directory.enter("front", member("web-1", &["web", "one"], &["10.128.0.2", "fd73::2"]));
        directory.enter("front", member("web-2", &["web"], &["10.128.0.3"]));
        directory.enter("back", member("web-1", &["web"], &["10.128.1.2"]));
        directory.enter("back", member("db-1", &["db"], &["10.128.1.3"]));
        (directory, told)
    }

    /// Names are those of one's own networks, however they are spelled; several containers of a name take turns.
    #[test]
    fn names_are_those_of_ones_own_networks() {
        let (directory, told) = shop();
        let found = |id: &str, name: &str| {
            let found = directory.addresses(id, name).into_iter();
            found.filter(IpAddr::is_ipv4).map(|address| address.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found("web-1", "DB"), ["10.128.1.3"]);
        assert_eq!(found("web-2", "db"), [""; 0]);
        assert_eq!(found("web-2", "one.FRONT"), ["10.128.0.2"]);
        assert_eq!(found("web-2", "one.back"), [""; 0]);
        let (one, two) = (found("web-2", "web"), found("web-2", "web"));
        assert!(one.len() == 2 && one[0] == two[1] && one[1] == two[0], "{one:?} {two:?}");
        let name = |id, address: &str| directory.name_at(id, address.parse().unwrap());
        assert_eq!(name("web-2", "fd73::2").as_deref(), Some("web"));
        assert_eq!(name("web-2", "10.128.1.3"), None);
        directory.leave("back", "web-1");
        assert_eq!(found("web-1", "db"), [""; 0]);
        told.send_replace(Some(Exit { code: 0, signal: None, out_of_memory: false }));
        assert_eq!(found("web-2", "web"), [""; 0], "they have ended");
    }
}
