//! Instructions that change the configuration alone.

use super::State;
use crate::build::dockerfile::ast::{Check, Command, Kind};
use crate::build::document::{Empty, Health};
use std::time::Duration;

impl State {
    pub(super) fn configure(&mut self, kind: &Kind) -> Result<(), String> {
        match kind {
            Kind::Env(pairs) => {
                // All of them see what was before the instruction.
                for (name, value) in self.pairs(pairs)? {
                    self.set_environment(&name, &value);
                }
            }
            Kind::Label(pairs) => {
                let labels = self.pairs(pairs)?;
                self.document.config.labels.extend(labels);
            }
            Kind::Arg(args) => {
                for (name, default) in args {
                    self.argument(name, default.as_deref())?;
                }
            }
            Kind::User(user) => self.document.config.user = self.word(user)?,
            Kind::Expose(ports) => self.expose(ports)?,
            Kind::Volume(volumes) => {
                for volume in volumes {
                    let volume = self.word(volume)?;
                    self.document.config.volumes.insert(volume, Empty {});
                }
            }
            Kind::Cmd(command) => {
                self.document.config.cmd = Some(self.command(command));
                self.has_command = true;
            }
            Kind::Entrypoint(command) => {
                self.document.config.entrypoint = Some(self.command(command)).filter(|argv| !argv.is_empty());
                if !self.has_command {
                    self.document.config.cmd = None;
                }
            }
            Kind::Shell(shell) => self.document.config.shell = Some(shell.clone()),
            Kind::StopSignal(signal) => {
                let signal = self.word(signal)?;
                check_signal(&signal)?;
                self.document.config.stop_signal = Some(signal);
            }
            Kind::Healthcheck(check) => self.document.config.healthcheck = Some(self.health(check.as_ref())),
            Kind::Onbuild(trigger) => self.document.config.on_build.push(trigger.clone()),
            Kind::Maintainer(author) => self.document.author = Some(author.clone()),
            Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_) => {}
        }
        Ok(())
    }

    fn pairs(&self, pairs: &[(String, String)]) -> Result<Vec<(String, String)>, String> {
        let pair = |(name, value): &(String, String)| {
            let (name, value) = (self.word(name)?, self.word(value)?);
            if name.is_empty() { Err("a name is empty".to_owned()) } else { Ok((name, value)) }
        };
        pairs.iter().map(pair).collect()
    }

    /// From outside, else the default, else what the same name is before the first `FROM`.
    fn argument(&mut self, name: &str, default: Option<&str>) -> Result<(), String> {
        let outside = self.plan.settings.args.get(name).cloned();
        let value = match (outside, default) {
            (Some(value), _) => Some(value),
            (None, Some(default)) => Some(self.word(default)?),
            (None, None) => self.plan.globals.get(name).cloned(),
        };
        if let Some(value) = value {
            self.set_variable(name, &value);
        }
        Ok(())
    }

    fn command(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(argv) => argv.clone(),
            Command::Shell(line) => self.with_shell(line),
        }
    }

    fn expose(&mut self, ports: &[String]) -> Result<(), String> {
        for text in ports {
            for port in self.expanded(|with| with.words(text))? {
                let exposed = read_ports(&port)?.into_iter().map(|port| (port, Empty {}));
                self.document.config.exposed_ports.extend(exposed);
            }
        }
        Ok(())
    }

    fn health(&self, check: Option<&Check>) -> Health {
        let Some(check) = check else {
            return Health { test: vec!["NONE".to_owned()], ..Health::default() };
        };
        let test = match &check.command {
            Command::Exec(argv) => std::iter::once("CMD".to_owned()).chain(argv.iter().cloned()).collect(),
            Command::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
        };
        let nanos = |time: Option<Duration>| {
            time.map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
        };
        Health {
            test,
            interval: nanos(check.interval),
            timeout: nanos(check.timeout),
            start_period: nanos(check.start_period),
            start_interval: nanos(check.start_interval),
            retries: check.retries.map_or(0, i64::from),
        }
    }

    /// The file that the image is to have: with the labels from outside, its layers and its time.
    #[must_use]
    pub fn finish(&self, diff_ids: Vec<String>, created: &str) -> crate::build::document::Document {
        let mut document = self.document.clone();
        document.config.labels.extend(self.plan.settings.labels.clone());
        document.rootfs.kind = "layers".to_owned();
        document.rootfs.diff_ids = diff_ids;
        document.created = Some(created.to_owned());
        for entry in &mut document.history {
            entry.created.get_or_insert_with(|| created.to_owned());
        }
        document
    }
}

/// `8080`, `8000-8010/udp`; addresses and ports of the host are read and mean nothing here.
fn read_ports(text: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("`{text}` is not a port, such as `8080`, `53/udp` or `8000-8010`");
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_ascii_lowercase() };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("`{protocol}` is no protocol of a port: there are `tcp`, `udp` and `sctp`"));
    }
    let ports = ports.rsplit(':').next().unwrap_or(ports);
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
    if first > last {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// Names with or without `SIG`, and numbers.
fn check_signal(text: &str) -> Result<(), String> {
    const NAMES: &str = "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT \
        STOP SYS TERM TRAP TSTP TTIN TTOU UNUSED URG USR1 USR2 VTALRM WINCH XCPU XFSZ";
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = name.strip_prefix("RTM").is_some_and(|rest| matches!(rest.get(..2), Some("IN" | "AX")));
    let known = match text.parse::<u32>() {
        Ok(number) => (1..=64).contains(&number),
        Err(_) => real_time || NAMES.split_whitespace().any(|known| known == name),
    };
    if known { Ok(()) } else { Err(format!("`{text}` is not a signal")) }
}
