//! One container of the native driver, as the keeper knows it.

use super::cgroup::{Cgroup, Freezing};
use super::driver::Extras;
use super::launcher::{Child, Pending};
use super::network::addresses::Address;
use super::network::gateway::Gateway;
use super::network::ports::{Taken, Target};
use super::users::Accounts;
use crate::driver::{Attached, Create, Exit};
use crate::native::image::StoredImage;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// One container. Everything it owns is released when it is dropped, except for what the launcher holds.
#[derive(Debug)]
pub(crate) struct Instance {
    /// What was asked for.
    pub(crate) create: Create,
    /// Whether it asks for names in its own network when it is on others.
    would_ask: bool,
    /// The address by which it is reached from outside.
    reached: watch::Sender<Ipv4Addr>,
    /// The users its image knows.
    pub(crate) accounts: Accounts,
    /// Its own way to the outside; a container on networks uses theirs.
    gateway: OnceLock<Gateway>,
    /// Keeps the image from being removed.
    pub(crate) image: Arc<StoredImage>,
    /// What it gets besides its own files.
    pub(crate) extras: Extras,
    state: Mutex<State>,
    exit: watch::Sender<Option<Exit>>,
    /// Its group for pausing, from the first pause on. Declared last: removed when all processes have ended.
    pub(crate) freezing: tokio::sync::Mutex<Option<Freezing>>,
}

/// Where a container is: on a network, or, without a key, on its loopback interface.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The network.
    pub(crate) key: String,
    /// Whether the network leads nowhere else.
    pub(crate) internal: bool,
    /// What the container is called there.
    pub(crate) names: Vec<String>,
    /// Its address there.
    pub(crate) address: Address,
}

impl Place {
    /// All its addresses.
    pub(crate) fn all(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(IpAddr::V4(self.address.v4)), self.address.v6.map(IpAddr::V6)].into_iter().flatten()
    }
}

#[derive(Debug, Default)]
struct State {
    bound: Vec<(u16, Taken)>,
    places: Vec<Place>,
    /// Whether its queries for names are answered.
    asks: bool,
    /// Whether it may reach the outside.
    reaches: bool,
    carrying: Vec<JoinSet<()>>,
    pending: Option<Pending>,
    running: Option<Arc<Running>>,
}

/// What was made for a container before it is one.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Where it is.
    pub(crate) places: Vec<Place>,
    /// The users its image knows.
    pub(crate) accounts: Accounts,
    /// Its own way to the outside.
    pub(crate) gateway: Option<Gateway>,
    /// Whether it may reach the outside.
    pub(crate) reaches: bool,
    /// Whether it is to ask for names in its own network when it is on others.
    pub(crate) would_ask: bool,
    /// What the launcher has been asked for and has not answered yet.
    pub(crate) pending: Option<Pending>,
}

/// A container's first process.
#[derive(Debug)]
pub(crate) struct Running {
    /// The process.
    pub(crate) child: Child,
    /// Its control groups. Declared after the process: removed when it has ended.
    pub(crate) cgroup: Option<Cgroup>,
    /// The way into it.
    pub(crate) attached: Attached,
}

impl Instance {
    pub(crate) fn new(
        create: Create,
        prepared: Prepared,
        image: Arc<StoredImage>,
        extras: Extras,
        bound: Vec<(u16, Taken)>,
    ) -> Self {
        let Prepared { places, accounts, gateway, reaches, would_ask, pending } = prepared;
        let reached = places.first().map_or(Ipv4Addr::LOCALHOST, |place| place.address.v4);
        let state = Mutex::new(State { bound, places, reaches, pending, ..State::default() });
        let gateway = gateway.map_or_else(OnceLock::new, OnceLock::from);
        let (reached, exit) = (watch::Sender::new(reached), watch::Sender::new(None));
        let freezing = tokio::sync::Mutex::default();
        Self { create, would_ask, reached, accounts, gateway, image, extras, state, exit, freezing }
    }

    /// Where it is now.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.state().places.clone()
    }

    /// Notes that it is on one more network.
    pub(crate) fn joined(&self, place: Place) {
        let mut state = self.state();
        state.reaches |= !place.internal && self.create.container.outbound != Some(false);
        state.places.push(place);
        self.follow(&state.places);
    }

    /// Notes that it is on a network no longer.
    pub(crate) fn left(&self, key: &str) -> Option<Place> {
        let mut state = self.state();
        let at = state.places.iter().position(|place| place.key == key)?;
        let place = state.places.remove(at);
        self.follow(&state.places);
        Some(place)
    }

    /// Published ports lead to where it is.
    fn follow(&self, places: &[Place]) {
        if let Some(first) = places.first() {
            self.reached.send_replace(first.address.v4);
        }
    }

    /// What a published port leads to.
    pub(crate) fn target(&self, port: u16) -> Target {
        Target { at: self.reached.subscribe(), port }
    }

    /// Whether it may reach the outside.
    pub(crate) fn reaches_outside(&self) -> bool {
        self.state().reaches
    }

    /// Whether it is to ask for names in its own network as soon as it is on others.
    pub(crate) fn would_ask(&self) -> bool {
        self.would_ask
    }

    /// Whether it asks for names in its own network.
    pub(crate) fn asks_for_names(&self) -> bool {
        self.state().asks
    }

    /// Keeps the tasks that answer its queries for names.
    pub(crate) fn answers_queries(&self, tasks: JoinSet<()>) {
        self.state().asks = true;
        self.carry(tasks);
    }

    /// Follows its end.
    pub(crate) fn exit_receiver(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    /// Whether it has a way to the outside of its own.
    pub(crate) fn has_gateway(&self) -> bool {
        // One that has been asked for will be there at the start.
        let state = self.state();
        self.gateway.get().is_some() || (state.pending.is_some() && state.reaches)
    }

    /// Keeps its way to the outside.
    pub(crate) fn set_gateway(&self, gateway: Option<Gateway>) {
        // It is given one once.
        let _ = gateway.map(|gateway| self.gateway.set(gateway));
    }

    /// What the launcher was asked for before its start.
    pub(crate) fn take_pending(&self) -> Option<Pending> {
        self.state().pending.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the ports that were bound and are not served yet.
    pub(crate) fn take_bound(&self) -> Vec<(u16, Taken)> {
        std::mem::take(&mut self.state().bound)
    }

    /// Keeps the tasks that carry connections; they end with the instance.
    pub(crate) fn carry(&self, tasks: JoinSet<()>) {
        self.state().carrying.push(tasks);
    }

    /// Ends what carries connections, and returns when its ports are free again.
    pub(crate) async fn put_down(&self) {
        let (bound, carrying) = {
            let mut state = self.state();
            (std::mem::take(&mut state.bound), std::mem::take(&mut state.carrying))
        };
        drop(bound);
        for mut tasks in carrying {
            tasks.shutdown().await;
        }
    }

    pub(crate) fn set_running(&self, running: Arc<Running>) {
        self.state().running = Some(running);
    }

    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        self.state().running.clone()
    }

    /// Forgets the run before, whose control groups go with it, for another to begin.
    pub(crate) fn begin_anew(&self) {
        let before = self.state().running.take();
        drop(before);
        self.exit.send_replace(None);
    }

    /// Tells everyone who waits how the first process ended.
    pub(crate) fn ended(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }

    /// Waits for the end of the first process.
    pub(crate) async fn exit(&self) -> Option<Exit> {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.ok()?;
        *ended
    }

    /// The address by which the container is reached from outside.
    pub(crate) fn address(&self) -> Ipv4Addr {
        *self.reached.borrow()
    }
}

impl Running {
    /// The files to which a process writes `0` to join its control groups.
    pub(crate) fn joining(&self) -> io::Result<Vec<OwnedFd>> {
        self.cgroup.as_ref().map(Cgroup::joining).transpose().map(Option::unwrap_or_default)
    }

    /// The first process's id as this process sees it.
    pub(crate) fn pid(&self) -> Option<i32> {
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.child.pidfd.as_raw_fd())).ok()?;
        let pid: i32 = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
        (pid > 0).then_some(pid)
    }
}
