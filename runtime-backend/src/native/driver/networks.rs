//! Networks, and containers that join and leave them while they run.

use super::NativeDriver;
use super::failures::failure;
use super::names::names_on;
use crate::driver::Result;
use crate::native::instance::{Instance, Place};
use crate::native::launch::Trouble;
use crate::native::launcher::{Joining, Reply, Request};
use crate::native::network::addresses::Plan;
use crate::native::outbound::missing_ipv6;
use shakedown_spec::{Attachment, Failure, FailureKind, Network};

impl NativeDriver {
    pub(super) async fn make_network(&self, network: &Network) -> Result<()> {
        let name = format!("network {}", network.key);
        if let Some(reason) = missing_ipv6().filter(|_| network.ipv6) {
            let title = format!("the native driver cannot make {name} with IPv6: {reason}");
            return Err(Failure::new(FailureKind::Unsupported, title));
        }
        let subnet = network.parsed_subnet().map_err(|reason| {
            Failure::new(FailureKind::Invalid, format!("{name} could not be made")).fact("subnet", reason)
        })?;
        let plan = Plan { subnet, gateway: network.gateway, ipv6: network.ipv6 };
        let request = Request::CreateNetwork { key: network.key.clone(), internal: network.internal, plan };
        let made = self.launcher.ask(request).await;
        made.map(drop).map_err(|trouble| failure(&name, "made", trouble))
    }

    pub(super) async fn join_network(&self, id: &str, joined: &Attachment) -> Result<()> {
        let instance = self.instance(id)?;
        let container = &instance.create.container;
        let (key, name) = (&joined.network.key, container.display_name());
        let failed = |trouble| failure(&name, &format!("connected with network {key}"), trouble);
        if instance.places().iter().any(|place| place.key == *key) {
            return Err(failed(Trouble::new("join a network", "it is on it")));
        }
        let outbound = self.outbound.wanted(container);
        if outbound && !joined.network.internal && !instance.has_gateway() {
            self.outbound.open(&self.launcher, joined.network.ipv6).await.map_err(failed)?;
        }
        let request = Request::JoinNetwork {
            id: id.to_owned(),
            joining: Joining { key: key.clone(), ip: joined.ip },
            outbound,
            resolver: instance.would_ask() && !instance.asks_for_names(),
        };
        let (reply, sockets) = self.launcher.ask_for(request).await.map_err(failed)?;
        let Reply::Prepared { addresses, .. } = reply else { return Ok(()) };
        for address in addresses {
            let (internal, names) = (joined.network.internal, names_on(container, joined));
            let place = Place { key: key.clone(), internal, names, address };
            if outbound && !internal && !instance.has_gateway() {
                self.outbound.admit_at(container, &address);
            }
            self.enter(&instance, &place);
            instance.joined(place);
        }
        self.serve_names(&instance, sockets)?;
        self.names_changed(&instance).await;
        Ok(())
    }

    pub(super) async fn leave_network(&self, id: &str, key: &str) -> Result<()> {
        let instance = self.instance(id)?;
        let container = &instance.create.container;
        let before = instance.places();
        let outbound = self.outbound.wanted(container);
        let request = Request::LeaveNetwork { id: id.to_owned(), key: key.to_owned(), outbound };
        self.launcher.ask(request).await.map_err(|trouble| {
            failure(&container.display_name(), &format!("disconnected from network {key}"), trouble)
        })?;
        self.names.leave(key, id);
        if let Some(place) = instance.left(key)
            && !instance.has_gateway()
        {
            self.outbound.dismiss_at(&place.address);
        }
        self.write_hosts(&instance).await;
        self.tell_neighbours(&instance.create, &before).await;
        Ok(())
    }

    async fn names_changed(&self, instance: &Instance) {
        self.write_hosts(instance).await;
        self.tell_neighbours(&instance.create, &instance.places()).await;
    }
}
