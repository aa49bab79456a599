//! Bridges that are to go, all at once.
//!
//! The kernel takes an interface away in some 15 ms: it waits until no processor looks at it any more. For many of them it
//! waits once, if they are named together, which their group does.

use super::addresses::Subnet;
use super::netlink::Netlink;
use crate::native::sys::CallError;

/// The bridges of networks that were removed.
#[derive(Debug)]
pub(crate) struct Doomed {
    /// Those that nobody has begun to take away yet; their addresses are taken until then.
    waiting: Vec<Subnet>,
    /// The group of those.
    group: u32,
    /// Those that are being taken away.
    going: Vec<Subnet>,
}

impl Default for Doomed {
    fn default() -> Self {
        // All interfaces are in group 0 at first.
        Self { waiting: Vec::new(), group: 1, going: Vec::new() }
    }
}

impl Doomed {
    /// Adds a bridge.
    pub(super) fn add(&mut self, netlink: &Netlink, index: u32, subnet: Subnet) -> Result<(), CallError> {
        netlink.set_group(index, self.group)?;
        self.waiting.push(subnet);
        Ok(())
    }

    /// Whether one of them has addresses of this subnet.
    pub(super) fn overlaps(&self, subnet: &Subnet) -> bool {
        self.waiting.iter().chain(&self.going).any(|other| other.overlaps(subnet))
    }

    /// The group to take away now: none if there is none, or another is being taken away. Those that come meanwhile go
    /// together as well.
    pub(crate) fn begin(&mut self) -> Option<u32> {
        if self.waiting.is_empty() || !self.going.is_empty() {
            return None;
        }
        self.going = std::mem::take(&mut self.waiting);
        let group = self.group;
        self.group = group.wrapping_add(1).max(1);
        Some(group)
    }

    /// The group for which [`begin`](Self::begin) was called is gone.
    pub(crate) fn end(&mut self) {
        self.going.clear();
    }

    /// Takes all away before this returns, those included that somebody else has begun with: the kernel does one such
    /// removal after the other.
    pub(super) fn remove_now(&mut self, netlink: &Netlink) {
        let last = self.group.wrapping_sub(1);
        if !self.going.is_empty() {
            // An error means that there are none of them any more.
            let _ = netlink.remove_group(last);
        }
        if !self.waiting.is_empty() {
            let _ = netlink.remove_group(self.group);
            self.waiting.clear();
        }
    }
}

/// Takes all interfaces of a group away. May be called in a fork of the launcher.
pub(crate) fn remove(group: u32) -> Result<(), CallError> {
    Netlink::open()?.remove_group(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One group goes at a time, and addresses stay taken until their bridge is gone.
    #[test]
    fn groups_go_one_after_the_other() {
        let mut doomed = Doomed::default();
        assert_eq!(doomed.begin(), None);
        doomed.waiting.push(Subnet::numbered(7));
        let first = doomed.begin();
        assert!(first.is_some_and(|group| group != 0) && doomed.overlaps(&Subnet::numbered(7)));
        doomed.waiting.push(Subnet::numbered(8));
        assert_eq!(doomed.begin(), None, "the first are still there");
        doomed.end();
        assert!(!doomed.overlaps(&Subnet::numbered(7)) && doomed.overlaps(&Subnet::numbered(8)));
        assert!(doomed.begin() != first);
    }
}
