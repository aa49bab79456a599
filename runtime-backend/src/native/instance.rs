//! One container of the native driver, as the keeper knows it.

use super::cgroup::Cgroup;
use super::launcher::Child;
use super::network::gateway::Gateway;
use super::network::publish::Bound;
use super::users::Accounts;
use crate::driver::{Create, Exit};
use crate::native::image::StoredImage;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// One container. Everything it owns is released when it is dropped, except for what the launcher holds.
#[derive(Debug)]
pub(crate) struct Instance {
    /// What was asked for.
    pub(crate) create: Create,
    /// Its addresses: one in each of its networks, or one on its loopback interface.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// The users its image knows.
    pub(crate) accounts: Accounts,
    /// Its own way to the outside; a container on networks uses theirs.
    gateway: Option<Gateway>,
    /// Keeps the image from being removed.
    pub(crate) image: Arc<StoredImage>,
    state: Mutex<State>,
    exit: watch::Sender<Option<Exit>>,
}

#[derive(Debug, Default)]
struct State {
    bound: Vec<(u16, Bound)>,
    carrying: JoinSet<()>,
    running: Option<Arc<Running>>,
}

/// A container's first process.
#[derive(Debug)]
pub(crate) struct Running {
    /// The process.
    pub(crate) child: Child,
    /// Its control groups. Declared after the process: removed when it has ended.
    pub(crate) cgroup: Option<Cgroup>,
}

impl Instance {
    pub(crate) fn new(
        create: Create,
        addresses: Vec<Ipv4Addr>,
        accounts: Accounts,
        image: Arc<StoredImage>,
        bound: Vec<(u16, Bound)>,
        gateway: Option<Gateway>,
    ) -> Self {
        let state = Mutex::new(State { bound, ..State::default() });
        Self { create, addresses, accounts, gateway, image, state, exit: watch::Sender::new(None) }
    }

    /// Whether it has a way to the outside of its own.
    pub(crate) fn has_gateway(&self) -> bool {
        self.gateway.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the ports that were bound and are not served yet.
    pub(crate) fn take_bound(&self) -> Vec<(u16, Bound)> {
        std::mem::take(&mut self.state().bound)
    }

    /// Keeps the tasks that carry connections; they end with the instance.
    pub(crate) fn carry(&self, mut tasks: JoinSet<()>) {
        let mut state = self.state();
        state.carrying.spawn(async move { while tasks.join_next().await.is_some() {} });
    }

    pub(crate) fn set_running(&self, running: Arc<Running>) {
        self.state().running = Some(running);
    }

    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        self.state().running.clone()
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
        self.addresses.first().copied().unwrap_or(Ipv4Addr::LOCALHOST)
    }
}

impl Running {
    /// The first process's id as this process sees it.
    pub(crate) fn pid(&self) -> Option<i32> {
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.child.pidfd.as_raw_fd())).ok()?;
        let pid: i32 = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
        (pid > 0).then_some(pid)
    }
}
