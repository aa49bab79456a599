//! Which address belongs to whom.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The address of a container that is on no network: it stands on the loopback interface, so that a connection from
/// outside does not look like one from the container itself (which services trust more).
pub(crate) const LONE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
/// The host, as containers see it: its resolver, and for those that asked for it, its own services.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// The length of a network's prefix.
pub(crate) const PREFIX: u8 = 24;

/// The addresses of one network, `10.128.0.0/24` and up.
#[derive(Debug)]
pub(crate) struct Subnet {
    base: u32,
    taken: BTreeSet<u8>,
    last: u8,
}

impl Subnet {
    /// The subnet of this number; there are 32,768.
    pub(crate) fn numbered(number: u16) -> Self {
        let base = u32::from(Ipv4Addr::new(10, 128, 0, 0)) + (u32::from(number) << 8);
        Self { base, taken: BTreeSet::new(), last: 1 }
    }

    /// The bridge's own address.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    /// A free address, or none if all 253 are taken. One that was given back comes up again as late as possible:
    /// neighbours remember for half a minute which interface it belonged to.
    pub(crate) fn take(&mut self) -> Option<Ipv4Addr> {
        let host = (self.last + 1..=254).chain(2..=self.last).find(|host| !self.taken.contains(host))?;
        self.taken.insert(host);
        self.last = host;
        Some(Ipv4Addr::from(self.base + u32::from(host)))
    }

    /// Gives an address back.
    pub(crate) fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address.octets()[3]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No two containers get one address, and a full network says so.
    #[test]
    fn addresses_are_taken_once() {
        let mut subnet = Subnet::numbered(257);
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 129, 1, 1));
        let all: BTreeSet<_> = std::iter::from_fn(|| subnet.take()).collect();
        assert_eq!(all.len(), 253);
        subnet.give_back(Ipv4Addr::new(10, 129, 1, 77));
        assert_eq!(subnet.take(), Some(Ipv4Addr::new(10, 129, 1, 77)));
    }
}
