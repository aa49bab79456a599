//! Launch and reap: start, output, end, signals, removal.

use super::{DockerDriver, Instance, SESSION_LABEL, daemon_failure, is_gone};
use crate::LogBook;
use crate::driver::{Exit, Result};
use crate::wait::{Poll, poll};
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::ContainerState;
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    ListNetworksOptionsBuilder, ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveVolumeOptions, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use shakedown_spec::{Failure, FailureKind, Stream};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

impl DockerDriver {
    pub(crate) async fn start_container(&self, id: &str, log: Arc<LogBook>) -> Result<()> {
        let instance = self.instance(id)?;
        instance.exit.send_replace(None);
        let started = self.attach_and_start(&instance, &log).await;
        if let Err(failure) = &started {
            log.close();
            // `exited` answers for a container that never ran, too.
            instance.exit.send_replace(Some(Err(failure.clone())));
        }
        instance.reserved.lock().unwrap_or_else(PoisonError::into_inner).release();
        started
    }

    async fn attach_and_start(&self, instance: &Arc<Instance>, log: &Arc<LogBook>) -> Result<()> {
        // Attached before the start, so that the first byte is not missed, whatever the daemon does with logs.
        let options = AttachContainerOptionsBuilder::new().stdin(instance.stdin_open);
        let options = options.stdout(true).stderr(true).stream(true).build();
        let attached = self.inner.docker.attach_container(&instance.name, Some(options)).await;
        let attached = attached.map_err(|error| not_started(instance, &error))?;

        // Before its first process looks for them.
        let shown = self.show_host_ports(&instance.host_ports).await.map_err(|error| {
            let title = format!("ports of this machine could not be shown to {}", instance.service);
            Failure::new(FailureKind::LaunchFailed, title).fact("reason", error.to_string())
        })?;
        *instance.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
        instance.reserved.lock().unwrap_or_else(PoisonError::into_inner).release_udp();
        let mut started = self.inner.docker.start_container(&instance.name, None).await;
        if started.as_ref().is_err_and(port_taken) {
            // A daemon whose proxies bind without SO_REUSEADDR meets the reservations themselves.
            instance.reserved.lock().unwrap_or_else(PoisonError::into_inner).release();
            started = self.inner.docker.start_container(&instance.name, None).await;
        }
        started.map_err(|error| not_started(instance, &error))?;

        let log = Arc::clone(log);
        let mut output = attached.output;
        let (input, held) = match instance.stdin_open {
            true => (Some(super::exec::feed(attached.input)), None),
            false => (None, Some(attached.input)),
        };
        let input = input.map(|input| Arc::new(tokio::sync::Mutex::new(Some(input))));
        instance.input.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&input);
        tokio::spawn(async move {
            let _input_stays_open = (input, held);
            while let Some(Ok(chunk)) = output.next().await {
                let stream =
                    if matches!(chunk, LogOutput::StdErr { .. }) { Stream::Stderr } else { Stream::Stdout };
                log.write(stream, SystemTime::now(), &chunk.into_bytes());
            }
            log.close();
        });
        self.note_process(instance).await;
        if instance.internal {
            match self.forward(instance).await {
                // A container that has ended by now has no address, and nothing to be forwarded to.
                Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                    let title = format!("the ports of {} could not be opened", instance.service);
                    return Err(
                        Failure::new(FailureKind::LaunchFailed, title).fact("reason", error.to_string())
                    );
                }
                _ => {}
            }
        }
        let (driver, instance) = (self.clone(), Arc::clone(instance));
        tokio::spawn(async move {
            let exit = driver.wait_for_exit(&instance).await;
            instance.exit.send_replace(Some(exit));
            driver.reserve_again(&instance).await;
        });
        Ok(())
    }

    /// Keeps what is needed to look at the container from outside.
    async fn note_process(&self, instance: &Instance) {
        if let Ok(inspected) = self.inner.docker.inspect_container(&instance.name, None).await {
            let pid = inspected.state.and_then(|state| state.pid).unwrap_or(0);
            let process = Some((pid, inspected.id.unwrap_or_default()));
            *instance.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        }
    }

    async fn wait_for_exit(&self, instance: &Instance) -> Result<Exit> {
        let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let mut wait = Box::pin(self.inner.docker.wait_container(&instance.name, Some(options)));
        let waited = match wait.next().await {
            Some(Ok(answer)) => Some(answer.status_code),
            // bollard turns every code but 0 into an error.
            Some(Err(Error::DockerContainerWaitError { code, .. })) => Some(code),
            Some(Err(error)) if !is_gone(&error) => {
                let title = format!("the daemon no longer tells about {}", instance.service);
                return Err(daemon_failure(FailureKind::SessionLost, title, &error));
            }
            _ => None,
        };
        let state = self.final_state(instance).await;
        // A container that is removed while it runs is killed.
        let code = waited.or(state.exit_code).and_then(|code| i32::try_from(code).ok()).unwrap_or(137);
        Ok(Exit { code, signal: signal_of(code), out_of_memory: state.oom_killed.unwrap_or(false) })
    }

    /// What the daemon says of a container that has ended. That a process was killed for its use of memory reaches the
    /// daemon beside the news of its end, and may be the later of the two.
    async fn final_state(&self, instance: &Instance) -> ContainerState {
        const LATE: Duration = Duration::from_secs(3);
        let last = Mutex::new(ContainerState::default());
        let told = poll(LATE, || async {
            let inspected = self.inner.docker.inspect_container(&instance.name, None).await;
            let Some(state) = inspected.ok().and_then(|inspected| inspected.state) else {
                return Poll::Ready(());
            };
            let killed = state.exit_code == Some(137) && instance.limited;
            let known = state.oom_killed == Some(true);
            *last.lock().unwrap_or_else(PoisonError::into_inner) = state;
            let asked = instance.signalled.load(Ordering::Relaxed);
            if killed && !known && !asked { Poll::NotYet(String::new()) } else { Poll::Ready(()) }
        });
        // Without that news it was somebody else who killed it.
        let _ = told.await;
        last.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn signal(&self, id: &str, signal: &str) -> Result<()> {
        let instance = self.instance(id)?;
        instance.signalled.store(true, Ordering::Relaxed);
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        match self.inner.docker.kill_container(&instance.name, Some(options)).await {
            Err(error) if super::failures::words(&error).contains("is not running") => Ok(()),
            Err(error) => {
                let title = format!("{} could not be sent {signal}", instance.service);
                Err(daemon_failure(FailureKind::Other, title, &error))
            }
            Ok(()) => Ok(()),
        }
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<()> {
        let known = self.inner.containers.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        let _made = match &known {
            Some(instance) => {
                Self::end_forwards(instance);
                Some(instance.making.lock().await)
            }
            None => None,
        };
        self.force_remove(&format!("shakedown-{id}")).await
    }

    async fn force_remove(&self, name: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.inner.docker.remove_container(name, Some(options)).await {
            Err(error) if !is_gone(&error) => Err(daemon_failure(
                FailureKind::Other,
                format!("container {name} could not be removed"),
                &error,
            )),
            _ => Ok(()),
        }
    }

    /// Waits for the requests under way: what they make is to be seen by what follows.
    async fn settle(&self) {
        let known = || {
            self.inner.containers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
        };
        let instances: Vec<Arc<Instance>> = known();
        for instance in instances {
            drop(instance.making.lock().await);
        }
        drop(self.inner.networks.lock().await);
    }

    /// Removes everything with the session's label. What a killed keeper had asked for may still be made by the daemon
    /// after a first look: it is gone when nothing more has come for a while.
    pub(crate) async fn sweep_session(&self, session: &str) -> Result<()> {
        const QUIET: Duration = Duration::from_secs(1);
        const PATIENCE: Duration = Duration::from_secs(10);
        self.settle().await;
        let failed = Mutex::new(None);
        let empty_since = Mutex::new(None);
        let swept = poll(PATIENCE, || async {
            let found = self.sweep_once(session).await;
            let mut since = empty_since.lock().unwrap_or_else(PoisonError::into_inner);
            match found {
                Ok(0) => {
                    let quiet = since.get_or_insert_with(Instant::now).elapsed();
                    if quiet >= QUIET {
                        Poll::Ready(())
                    } else {
                        Poll::NotYet("it was empty just now".to_owned())
                    }
                }
                Ok(found) => {
                    *since = None;
                    Poll::NotYet(format!("{found} things are being removed"))
                }
                Err(failure) => {
                    let title = failure.title.clone();
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                    Poll::Never(title)
                }
            }
        });
        swept.await.map_err(|missed| {
            failed.into_inner().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(|| {
                let title = format!("the remains of session {session} could not be removed");
                Failure::new(FailureKind::Other, title).fact("reason", missed.status)
            })
        })
    }

    /// Removes what has the session's label now, and tells how much it was; goes on after an error and reports all of them.
    async fn sweep_once(&self, session: &str) -> Result<usize> {
        let mut found = 0;
        let docker = &self.inner.docker;
        let filters = HashMap::from([("label", vec![format!("{SESSION_LABEL}={session}")])]);
        let title = || format!("the remains of session {session} could not be removed");
        let listing = |error: Error| daemon_failure(FailureKind::Other, title(), &error);
        let mut reasons = Vec::new();

        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        for container in docker.list_containers(Some(options)).await.map_err(listing)? {
            found += 1;
            let removed = self.force_remove(container.id.as_deref().unwrap_or_default()).await;
            reasons.extend(removed.err().map(|failure| failure.to_string()));
        }
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        for network in docker.list_networks(Some(options)).await.map_err(listing)? {
            found += 1;
            match docker.remove_network(network.id.as_deref().unwrap_or_default()).await {
                Err(error) if !is_gone(&error) => reasons.push(super::failures::words(&error)),
                _ => {}
            }
        }
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        for volume in docker.list_volumes(Some(options)).await.map_err(listing)?.volumes.unwrap_or_default() {
            found += 1;
            match docker.remove_volume(&volume.name, None::<RemoveVolumeOptions>).await {
                Err(error) if !is_gone(&error) => reasons.push(super::failures::words(&error)),
                _ => {}
            }
        }
        if reasons.is_empty() {
            return Ok(found);
        }
        Err(Failure::new(FailureKind::Other, title()).fact("reason", reasons.join("\n")))
    }
}

/// The daemon tells a signal as 128 plus its number, as shells do; a program that ends with such a code by itself
/// looks the same.
fn signal_of(code: i32) -> Option<i32> {
    (129..=128 + 64).contains(&code).then(|| code - 128)
}

fn port_taken(error: &Error) -> bool {
    let words = super::failures::words(error);
    words.contains("port is already allocated") || words.contains("address already in use")
}

fn not_started(instance: &Instance, error: &Error) -> Failure {
    let failure = daemon_failure(
        FailureKind::LaunchFailed,
        format!("{} could not be launched", instance.service),
        error,
    );
    if !port_taken(error) {
        return failure;
    }
    let endpoints = instance.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
    let ports: Vec<String> =
        endpoints.published.iter().map(|port| format!("{} for {}", port.host, port.container)).collect();
    failure
        .fact("host ports", ports.join(", "))
        .hint("another program has one of these ports; leave the host's port out, and a free one is chosen")
}
