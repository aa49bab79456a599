//! `RUN`: a process in the image under construction.

use super::Builder;
use super::mounts::Mounted;
use super::sandbox::Sandbox;
use super::stage::{Files, Stage};
use crate::build::BuildEvent;
use crate::build::dockerfile::ast::{Instruction, RunNetwork, Security};
use crate::build::progress::{Tail, step_failed};
use crate::build::step::{RunMount, RunStep};
use crate::driver::{ImageConfig, Result};
use crate::native::bundle::Facts;
use crate::native::image::StepRecord;
use crate::native::launcher::{Identity, Request};
use crate::native::streams::Streams;
use crate::native::users::User;
use bytes::BytesMut;
use futures_util::StreamExt;
use shakedown_spec::{Container, Failure, FailureKind, NetworkMode};
use std::path::PathBuf;

impl Builder<'_> {
    /// Runs the process, and makes a layer of what it wrote.
    pub(super) async fn run(&self, stage: &mut Stage, step: &RunStep, about: &Instruction) -> Result<()> {
        self.check(step, about)?;
        let mut key = stage.files.key("run").with(self.plan.platforms[stage.index].to_string());
        key =
            key.with_all(&step.argv).with_all(step.env.iter().map(|(name, value)| format!("{name}={value}")));
        key = key.with(&step.workdir).with(&step.user).with(format!("{:?}", step.script));
        key = key.with(format!("{:?} {:?}", self.network(step), step.security));
        key =
            key.with_all(self.request.extra_hosts.iter().map(|(name, address)| format!("{name} {address}")));
        for mount in &step.mounts {
            key = key.with(self.mount_key(mount, stage, about).await?);
        }
        let files = stage.files.clone();
        let index = stage.clone();
        let make = self.ran(&index, &files, step, about);
        self.layer(&mut stage.files, &[key.finish()], make).await
    }

    pub(super) fn network(&self, step: &RunStep) -> RunNetwork {
        if step.network == RunNetwork::Default { self.request.network } else { step.network }
    }

    /// What this driver cannot do here.
    fn check(&self, step: &RunStep, about: &Instruction) -> Result<()> {
        let unsupported = |what: &str| self.broken(about, FailureKind::Unsupported, what);
        if step.mounts.iter().any(|mount| matches!(mount, RunMount::Ssh { required: true, .. })) {
            return Err(unsupported("the native driver has no `--mount=type=ssh`"));
        }
        // The Dockerfile may be somebody else's, and the triggers of its base image are: whoever builds has to agree.
        let denied = |entitlement: &str| !self.request.allow.contains(entitlement);
        let asked = [
            (step.security == Security::Insecure, "--security=insecure", "security.insecure"),
            (step.network == RunNetwork::Host, "--network=host", "network.host"),
        ];
        if let Some((_, flag, entitlement)) =
            asked.into_iter().find(|(asked, _, entitlement)| *asked && denied(entitlement))
        {
            let failure = self.broken(about, FailureKind::Invalid, &format!("`{flag}` was not allowed"));
            return Err(
                failure.hint(format!("`--allow {entitlement}`, or `.allow(\"{entitlement}\")`, allows it"))
            );
        }
        if step.security == Security::Insecure && self.driver.launcher.identity() != Identity::Root {
            return Err(unsupported("`--security=insecure` needs root"));
        }
        Ok(())
    }

    async fn ran(
        &self,
        stage: &Stage,
        files: &Files,
        step: &RunStep,
        about: &Instruction,
    ) -> Result<StepRecord> {
        let mut container = self.container(step);
        let sandbox = Sandbox::open_for(self.driver, &files.trees, &container).await?;
        let resolver = self.driver.resolver_file(&container);
        let mounted = self.mounts(step, &resolver, stage, about).await?;
        container.env.extend(mounted.env.iter().cloned());
        container.mounts = mounted.mounts.clone();
        let user = sandbox.accounts.resolve(&step.user);
        let user = user.map_err(|reason| self.wrong(about, &step.user, reason))?;
        self.process(&sandbox, &container, &mounted, &user, about).await?;
        let record = self.captured(&sandbox, &files.trees, mounted.left_out()).await?;
        sandbox.close().await?;
        mounted.close().await?;
        Ok(record)
    }

    /// The process as a container.
    fn container(&self, step: &RunStep) -> Container {
        let network_mode = match self.network(step) {
            RunNetwork::Default => NetworkMode::Default,
            RunNetwork::None => NetworkMode::None,
            RunNetwork::Host => NetworkMode::Host,
        };
        Container {
            entrypoint: Some(step.argv.clone()),
            env: step.env.iter().cloned().collect(),
            workdir: Some(step.workdir.clone()),
            privileged: step.security == Security::Insecure,
            extra_hosts: self.request.extra_hosts.clone(),
            network_mode,
            ..Container::of("build")
        }
    }

    /// Runs the process to its end, which has to be a good one.
    async fn process(
        &self,
        sandbox: &Sandbox,
        container: &Container,
        mounted: &Mounted,
        user: &User,
        about: &Instruction,
    ) -> Result<()> {
        let broken = |what: String| self.broken(about, FailureKind::LaunchFailed, &what);
        let image = ImageConfig::default();
        let facts = Facts {
            container,
            image: &image,
            user,
            identity: self.driver.launcher.identity(),
            remapped: false,
            cgroups: self.driver.cgroups.views(),
            devices: &[],
        };
        let bundle = facts.bundle()?;
        let streams = Streams::new(false).map_err(|error| broken(format!("cannot make pipes: {error}")))?;
        let request = Request::Start {
            id: sandbox.id().to_owned(),
            spec: Box::new(bundle.spec),
            filter: bundle.filter,
            live_nodes: container.privileged,
            files: Vec::new(),
            parts: mounted.parts.clone(),
            init: false,
        };
        let child = self.driver.launcher.start(request, &streams.theirs()).await.map_err(|trouble| {
            let failure = broken(format!("cannot {}", trouble.doing));
            let failure = match trouble.call {
                Some(call) => failure.fact("call", call),
                None => failure,
            };
            match trouble.reason {
                Some(reason) => failure.fact("reason", reason),
                None => failure,
            }
        })?;
        let mut output = Output::default();
        let say = |line: &str| (self.progress)(BuildEvent::Output { line: line.to_owned() });
        let (mut chunks, _) = streams.into_stream();
        while let Some(chunk) = chunks.next().await {
            let Ok((_, bytes)) = chunk else { break };
            output.take(&bytes, &say);
        }
        output.end(&say);
        let mut exit = child.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
        match ended {
            Some((0, None)) => Ok(()),
            Some((code, signal)) => Err(self.ended(about, code, signal, container, output)),
            None => Err(broken("the launcher has ended".to_owned())),
        }
    }

    fn ended(
        &self,
        about: &Instruction,
        code: i32,
        signal: Option<i32>,
        container: &Container,
        output: Output,
    ) -> Failure {
        let how = match signal {
            Some(signal) => format!("it was ended by signal {signal}"),
            None => format!("exit code {code}"),
        };
        let failure = step_failed(&self.plan.dockerfile, about.lines, &about.text, &how, &output.tail);
        if output.not_mapped && self.driver.launcher.identity() == Identity::Single {
            return failure.hint(
                "steps have one user and one group here, and no file can be given to another: docs/errors/id-not-mapped.md",
            );
        }
        let offline = output.offline;
        if !offline {
            return failure;
        }
        if container.network_mode == NetworkMode::None {
            return failure.hint("this step has no network: take `none` away");
        }
        match self.driver.outbound.missing() {
            Some(reason) => failure.hint(format!("steps have no network here: {reason}")),
            None => failure,
        }
    }
}

/// What programs say that did not find a network.
fn looked_for_network(line: &str) -> bool {
    const SAID: [&str; 9] = [
        "Temporary failure resolving",
        "Temporary failure in name resolution",
        "Could not resolve host",
        "could not resolve",
        "bad address",
        "Network is unreachable",
        "network is unreachable",
        "getaddrinfo",
        "Name or service not known",
    ];
    SAID.iter().any(|said| line.contains(said))
}

/// What programs say that gave a file to an id, or became one, which the user namespace does not have (EINVAL).
fn met_unmapped_id(line: &str) -> bool {
    let lower = line.to_ascii_lowercase();
    lower.contains("invalid argument")
        && ["chown", "chgrp", "owner", "setuid", "setgid", "seteuid", "setegid", "setgroups"]
            .iter()
            .any(|call| lower.contains(call))
}

/// What a process wrote, line by line.
#[derive(Debug, Default)]
struct Output {
    tail: Tail,
    /// Whether a line says that there was no network.
    offline: bool,
    /// Whether a line says that an id is not there.
    not_mapped: bool,
    rest: BytesMut,
}

impl Output {
    fn take(&mut self, bytes: &[u8], say: &dyn Fn(&str)) {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(end + 1);
            self.line(&line[..end], say);
        }
        // Who writes no line feeds must not fill the memory.
        if self.rest.len() > 64 << 10 {
            self.end(say);
        }
    }

    fn end(&mut self, say: &dyn Fn(&str)) {
        let rest = self.rest.split();
        if !rest.is_empty() {
            self.line(&rest, say);
        }
    }

    fn line(&mut self, line: &[u8], say: &dyn Fn(&str)) {
        let line = String::from_utf8_lossy(line).trim_end_matches('\r').to_owned();
        say(&line);
        self.not_mapped |= met_unmapped_id(&line);
        self.offline |= looked_for_network(&line);
        self.tail.push(line);
    }
}

/// Where the driver mounts something itself: no image gets these directories by a build.
pub(super) fn own_mounts() -> Vec<PathBuf> {
    ["/proc", "/sys", "/dev"].map(PathBuf::from).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hint about ids is given where programs complain of them, and not for any wrong argument.
    #[test]
    fn unmapped_ids_are_seen_in_output() {
        assert!(met_unmapped_id("chown: /v: Invalid argument"));
        assert!(met_unmapped_id("E: setgroups 65534 failed - setgroups (22: Invalid argument)"));
        assert!(!met_unmapped_id("dd: Invalid argument"));
    }

    /// Output is told line by line, also what has no line feed at its end.
    #[test]
    fn output_is_told_by_lines() {
        let said = std::sync::Mutex::new(Vec::new());
        let say = |line: &str| said.lock().unwrap().push(line.to_owned());
        let mut output = Output::default();
        for number in 0..30 {
            output.take(format!("line {number}\r\n").as_bytes(), &say);
        }
        output.take(b"the e", &say);
        output.take(b"nd", &say);
        output.end(&say);
        let said = said.lock().unwrap();
        assert_eq!((said.len(), &*said[3], &*said[30]), (31, "line 3", "the end"));
    }
}
