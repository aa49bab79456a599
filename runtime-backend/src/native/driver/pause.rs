//! Pause and unpause, by the kernel's freezer.

use super::NativeDriver;
use crate::driver::Result;
use crate::native::instance::Instance;
use crate::native::launcher::{Job, Request};
use shakedown_spec::{Failure, FailureKind};
use std::os::fd::AsFd;

impl NativeDriver {
    /// Halts all processes of a container.
    ///
    /// Where the container has no group that can be frozen, one is made by the first pause, and frozen before the processes
    /// are moved into it: so they fork no more, and none escapes. Started again, the container begins outside of it, and
    /// the next pause moves it once more.
    pub(super) async fn pause_container(&self, id: &str) -> Result<()> {
        let (instance, running) = self.running(id)?;
        let title = format!("{} could not be paused", instance.create.container.display_name());
        let failed = |reason: String| Failure::new(FailureKind::Other, title.clone()).fact("reason", reason);
        let session = &instance.create.session;
        let mut slot = instance.freezing.lock().await;
        // Only once: after the first pause, the group that it is in is the one that was made for that.
        if slot.is_none() {
            if let Some(reason) = self.cgroups.missing("freezer") {
                return Err(Failure::new(FailureKind::Unsupported, title)
                    .fact("reason", reason)
                    .hint("as root it can, or in a control group that was delegated to this user"));
            }
            self.open_groups(&instance.create).await?;
            let group = self.cgroups.freezing(session, id, running.pid());
            *slot = Some(group.map_err(|error| failed(error.to_string()))?);
        }
        let Some(group) = slot.as_ref() else { return Ok(()) };
        let halted = async {
            group.freeze().map_err(|error| error.to_string())?;
            if group.gathers() {
                let procs = group.joining().map_err(|error| error.to_string())?;
                let gather = Job::Gather { id: id.to_owned() };
                let gathered = self.launcher.work::<()>(gather, procs.as_fd()).await;
                gathered.map_err(|trouble| trouble.to_string())?;
            }
            group.frozen().await
        };
        let halted = halted.await;
        if halted.is_err() {
            // Better all of it runs than a part.
            let _ = group.thaw();
        }
        halted.map_err(failed)
    }

    /// Kills a container that may be paused: what is frozen in version 1 of control groups does not end before it goes on,
    /// and what was killed goes on to its end only.
    pub(super) async fn end_frozen(&self, instance: &Instance) {
        if instance.freezing.lock().await.is_none() {
            return;
        }
        if let Some(running) = instance.running() {
            let kill = Request::Signal { child: running.child.number, signal: libc::SIGKILL };
            // The removal that follows tells what went wrong.
            let _ = self.launcher.ask(kill).await;
        }
        let _ = thaw(instance).await;
    }

    /// Lets the processes go on.
    pub(super) async fn unpause_container(&self, id: &str) -> Result<()> {
        let instance = self.instance(id)?;
        thaw(&instance).await.map_err(|error| {
            let title = format!("{} could not be unpaused", instance.create.container.display_name());
            Failure::new(FailureKind::Other, title).fact("reason", error.to_string())
        })
    }
}

/// Lets a container go on, if it was ever paused.
pub(super) async fn thaw(instance: &Instance) -> std::io::Result<()> {
    instance.freezing.lock().await.as_ref().map_or(Ok(()), |group| group.thaw())
}
