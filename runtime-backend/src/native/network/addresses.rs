//! Which address belongs to whom.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The address of a container that is on no network: it stands on the loopback interface, so that a connection from
/// outside does not look like one from the container itself (which services trust more).
pub(crate) const LONE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
/// The host, as containers see it: its resolver, and for those that asked for it, its own services.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// Where a container on networks finds names: the address that Docker uses, which configurations of programs name.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The length of a prefix on IPv6.
pub(crate) const PREFIX_V6: u8 = 64;

/// Of a unique local prefix (RFC 4193) that all sessions share: each network has 64 bits of it.
const UNIQUE_LOCAL: u128 = 0xfd73_686b_0000 << 80;

/// Whether it is an address of a network of this or another session.
pub(crate) fn is_ours(address: Ipv6Addr) -> bool {
    u128::from(address) >> 80 == UNIQUE_LOCAL >> 80
}

/// A container's place in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    /// Its address.
    pub(crate) v4: Ipv4Addr,
    /// Its address on IPv6, if the network has that.
    pub(crate) v6: Option<Ipv6Addr>,
    /// The network's own address.
    pub(crate) gateway: Ipv4Addr,
    /// The network's own address on IPv6.
    pub(crate) gateway_v6: Option<Ipv6Addr>,
}

impl Address {
    /// That of a container that is on no network.
    pub(crate) const ALONE: Self = Self { v4: LONE, v6: None, gateway: HOST, gateway_v6: None };
}

/// What a declaration says about a network's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The subnet and the length of its prefix.
    pub(crate) subnet: Option<(Ipv4Addr, u8)>,
    /// The network's own address.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Whether containers have addresses on IPv6 as well.
    pub(crate) ipv6: bool,
}

/// The addresses of one network: `10.128.0.0/24` and up, or what was declared.
#[derive(Debug)]
pub(crate) struct Subnet {
    base: u32,
    prefix: u8,
    gateway: u32,
    taken: BTreeSet<u32>,
    last: u32,
    v6: Option<u128>,
}

impl Subnet {
    /// The subnet of this number; there are 32,768.
    pub(crate) fn numbered(number: u16) -> Self {
        let base = u32::from(Ipv4Addr::new(10, 128, 0, 0)) + (u32::from(number) << 8);
        Self::new(base, 24, base + 1)
    }

    /// A subnet that was declared; the network's own address is the first one if it was not.
    pub(crate) fn declared(base: Ipv4Addr, prefix: u8, gateway: Option<Ipv4Addr>) -> Self {
        let base = u32::from(base);
        Self::new(base, prefix, gateway.map_or(base + 1, u32::from))
    }

    fn new(base: u32, prefix: u8, gateway: u32) -> Self {
        Self { base, prefix, gateway, taken: BTreeSet::from([gateway]), last: base, v6: None }
    }

    /// The same with addresses on IPv6.
    pub(crate) fn with_v6(mut self, number: u16) -> Self {
        self.v6 = Some(UNIQUE_LOCAL | u128::from(number) << 64);
        self
    }

    /// The bridge's own address.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.gateway)
    }

    /// The bridge's own address on IPv6.
    pub(crate) fn gateway_v6(&self) -> Option<Ipv6Addr> {
        self.on_v6(self.gateway)
    }

    /// The address on IPv6 of who has this one on IPv4.
    fn on_v6(&self, address: u32) -> Option<Ipv6Addr> {
        self.v6.map(|prefix| Ipv6Addr::from(prefix | u128::from(address)))
    }

    /// The length of its prefix.
    pub(crate) fn prefix(&self) -> u8 {
        self.prefix
    }

    fn end(&self) -> u32 {
        self.base | u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)
    }

    /// Whether the two have addresses in common.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.base <= other.end() && other.base <= self.end()
    }

    /// The address `wanted`, or a free one; none if it is taken, or all are. One that was given back comes up again as
    /// late as possible: neighbours remember for half a minute which interface it belonged to.
    pub(crate) fn take(&mut self, wanted: Option<Ipv4Addr>) -> Option<Address> {
        let free = |address: &u32| !self.taken.contains(address);
        let mut all = (self.last + 1..self.end()).chain(self.base + 1..=self.last);
        let address = match wanted.map(u32::from) {
            Some(wanted) => Some(wanted).filter(|wanted| (self.base + 1..self.end()).contains(wanted)),
            None => all.find(free),
        };
        let address = address.filter(free)?;
        self.taken.insert(address);
        self.last = address;
        let (v4, v6) = (Ipv4Addr::from(address), self.on_v6(address));
        Some(Address { v4, v6, gateway: self.gateway(), gateway_v6: self.gateway_v6() })
    }

    /// Gives an address back.
    pub(crate) fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&u32::from(address));
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
        let mut taken = || subnet.take(None).map(|address| address.v4);
        let all: BTreeSet<_> = std::iter::from_fn(&mut taken).collect();
        assert_eq!(all.len(), 253);
        subnet.give_back(Ipv4Addr::new(10, 129, 1, 77));
        assert_eq!(subnet.take(None).unwrap().v4, Ipv4Addr::new(10, 129, 1, 77));
    }

    /// A declared address is given to who asks for it, once, and to nobody else by chance.
    #[test]
    fn addresses_can_be_chosen() {
        let gateway = Ipv4Addr::new(10, 5, 0, 6);
        let mut subnet = Subnet::declared(Ipv4Addr::new(10, 5, 0, 0), 29, Some(gateway)).with_v6(3);
        let wanted = Ipv4Addr::new(10, 5, 0, 1);
        let found = subnet.take(Some(wanted)).unwrap();
        assert_eq!((found.v4, found.gateway), (wanted, gateway));
        assert_eq!(found.v6.unwrap().to_string(), "fd73:686b:0:3::a05:1");
        assert_eq!(found.gateway_v6.unwrap().to_string(), "fd73:686b:0:3::a05:6");
        assert!(is_ours(found.v6.unwrap()) && !is_ours("fd73:686c::1".parse().unwrap()));
        for taken in [wanted, gateway, Ipv4Addr::new(10, 5, 0, 7), Ipv4Addr::new(10, 5, 0, 8)] {
            assert_eq!(subnet.take(Some(taken)), None, "{taken}");
        }
        let rest: Vec<_> =
            std::iter::from_fn(|| subnet.take(None)).map(|address| address.v4.octets()[3]).collect();
        assert_eq!(rest, [2, 3, 4, 5]);
        assert!(subnet.overlaps(&Subnet::declared(Ipv4Addr::new(10, 0, 0, 0), 8, None)));
        assert!(!subnet.overlaps(&Subnet::numbered(0)));
    }
}
