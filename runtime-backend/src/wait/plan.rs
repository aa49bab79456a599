//! What was declared, checked and completed: a condition here can be evaluated without further questions.

use crate::driver::{ImageConfig, Result};
use regex::bytes::{Regex, RegexBuilder};
use shakedown_spec::{
    Container, Failure, FailureKind, HttpCheck, Pattern, ProbeProtocol, Protocol, Stream, Wait, WaitKind,
};
use std::time::Duration;

/// A condition, ready to be evaluated.
#[derive(Debug)]
pub(super) struct Plan {
    /// Completes the sentence "waited for …".
    pub(super) title: String,
    pub(super) kind: Kind,
    pub(super) timeout: Option<Duration>,
    /// How often in a row it has to hold, at least once.
    pub(super) successes: u32,
}

#[derive(Debug)]
pub(super) enum Kind {
    Running,
    Port(u16),
    Log { pattern: Matcher, times: usize, stream: Option<Stream> },
    Http { port: u16, check: HttpCheck, response: Option<Matcher> },
    Command { argv: Vec<String>, exit_code: i32, output: Option<Matcher> },
    Exit { code: Option<i32> },
    Healthy { argv: Vec<String>, timeout: Duration },
    Probe { protocol: ProbeProtocol, port: u16 },
    All(Vec<Plan>),
    Any(Vec<Plan>),
}

/// A pattern that can be looked for in bytes.
#[derive(Debug)]
pub(super) struct Matcher {
    regex: Regex,
}

impl Matcher {
    fn new(pattern: &Pattern) -> Result<Self> {
        let source = match pattern {
            Pattern::Text(text) => regex::escape(text),
            Pattern::Regex(source) => source.clone(),
        };
        let regex = RegexBuilder::new(&source).multi_line(true).crlf(true).build().map_err(|error| {
            Failure::new(FailureKind::Invalid, format!("{pattern} is not a regular expression"))
                .fact("reason", error.to_string())
                .hint("a text that is meant literally is waited for with `Wait::log(..)`")
        })?;
        Ok(Self { regex })
    }

    pub(super) fn count(&self, text: &[u8]) -> usize {
        self.regex.find_iter(text).count()
    }

    pub(super) fn is_in(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }

    /// Whether it is there in another case, for a hint.
    pub(super) fn is_in_other_case(&self, text: &[u8]) -> bool {
        let built =
            RegexBuilder::new(self.regex.as_str()).multi_line(true).crlf(true).case_insensitive(true).build();
        built.is_ok_and(|regex| regex.is_match(text))
    }
}

/// The declared conditions, or those of a container that declares none.
pub(super) fn plan(container: &Container, image: &ImageConfig) -> Result<Vec<Plan>> {
    if !container.waits.is_empty() {
        return container.waits.iter().map(|wait| one(wait, container, image)).collect();
    }
    let ports = container.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let mut waits: Vec<Wait> = ports.map(|port| Wait::port(port.container)).collect();
    if waits.is_empty() {
        waits.push(Wait::running());
    }
    waits.iter().map(|wait| one(wait, container, image)).collect()
}

fn one(wait: &Wait, container: &Container, image: &ImageConfig) -> Result<Plan> {
    let list =
        |waits: &[Wait]| waits.iter().map(|wait| one(wait, container, image)).collect::<Result<Vec<_>>>();
    let matcher = |pattern: &Option<Pattern>| pattern.as_ref().map(Matcher::new).transpose();
    let kind = match &wait.condition {
        WaitKind::Running => Kind::Running,
        WaitKind::Port(port) => Kind::Port(*port),
        WaitKind::Log { pattern, times, stream } => {
            Kind::Log { pattern: Matcher::new(pattern)?, times: *times as usize, stream: *stream }
        }
        WaitKind::Http(check) => Kind::Http {
            port: http_port(check, container)?,
            check: check.clone(),
            response: matcher(&check.response)?,
        },
        WaitKind::Command { argv, .. } if argv.is_empty() => {
            return Err(Failure::new(FailureKind::Invalid, "a wait for a command has no command"));
        }
        WaitKind::Command { argv, exit_code, output } => {
            Kind::Command { argv: argv.clone(), exit_code: *exit_code, output: matcher(output)? }
        }
        WaitKind::Exit { code } => Kind::Exit { code: *code },
        WaitKind::Healthy => healthy(container, image)?,
        WaitKind::Probe { protocol, port } => Kind::Probe { protocol: *protocol, port: *port },
        WaitKind::Any(waits) if waits.is_empty() => {
            return Err(Failure::new(
                FailureKind::Invalid,
                "a wait for one of several conditions has no conditions",
            ));
        }
        WaitKind::All(waits) => Kind::All(list(waits)?),
        WaitKind::Any(waits) => Kind::Any(list(waits)?),
    };
    let successes = wait.successes.unwrap_or(1).max(1);
    Ok(Plan { title: wait.to_string(), kind, timeout: wait.timeout, successes })
}

fn http_port(check: &HttpCheck, container: &Container) -> Result<u16> {
    let first =
        || container.ports.iter().find(|port| port.protocol == Protocol::Tcp).map(|port| port.container);
    check.port.or_else(first).ok_or_else(|| {
        let title = format!("the HTTP check of {} has no port", container.display_name());
        Failure::new(FailureKind::Invalid, title)
            .hint("name it in the check, or declare a port with `.port(..)`")
    })
}

fn healthy(container: &Container, image: &ImageConfig) -> Result<Kind> {
    let check = container.healthcheck.as_ref().or(image.healthcheck.as_ref());
    let Some((check, argv)) = check.and_then(|check| Some((check, check.argv()?))) else {
        let title = format!("{} has no health check to wait for", container.display_name());
        return Err(Failure::new(FailureKind::Invalid, title)
            .fact("image", container.image.clone())
            .hint("declare one with `.healthcheck(..)`, or wait for something else"));
    };
    Ok(Kind::Healthy { argv, timeout: check.timeout.unwrap_or(Duration::from_secs(30)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(wait: Wait) -> Failure {
        let mut container = Container::of("redis:7");
        container.waits.push(wait);
        plan(&container, &ImageConfig::default()).unwrap_err()
    }

    /// A mistake in a wait is told before anything starts.
    #[test]
    fn mistakes_are_told_at_once() {
        insta::assert_snapshot!(refusal(Wait::log_regex("ready (in")), @r"
        /ready (in/ is not a regular expression
          reason: regex parse error:
                      ready (in
                            ^
                  error: unclosed group
        hint: a text that is meant literally is waited for with `Wait::log(..)`
        ");
        insta::assert_snapshot!(refusal(Wait::healthy()), @r"
        redis has no health check to wait for
          image: redis:7
        hint: declare one with `.healthcheck(..)`, or wait for something else
        ");
        insta::assert_snapshot!(refusal(HttpCheck::default().into()), @r"
        the HTTP check of redis has no port
        hint: name it in the check, or declare a port with `.port(..)`
        ");
    }

    /// `^` and `$` match at lines, also at those that end with a carriage return.
    #[test]
    fn patterns_match_at_lines() {
        let regex = Matcher::new(&Pattern::Regex("^ready$".to_owned())).unwrap();
        assert_eq!(regex.count(b"not ready\nready\r\nready\n"), 2);
        let text = Matcher::new(&Pattern::Text("(ready)".to_owned())).unwrap();
        assert_eq!(text.count(b"(ready)"), 1);
        assert!(!text.is_in(b"(Ready)") && text.is_in_other_case(b"(Ready)"));
    }

    /// Without conditions, the declared TCP ports are the condition.
    #[test]
    fn declared_ports_are_the_default() {
        let mut container = Container::of("redis:7");
        let titles = |container: &Container| {
            let plans = plan(container, &ImageConfig::default()).unwrap();
            plans.into_iter().map(|plan| plan.title).collect::<Vec<_>>()
        };
        assert_eq!(titles(&container), ["the container to run"]);
        container.ports = vec![shakedown_spec::Port::tcp(6379), shakedown_spec::Port::udp(53)];
        assert_eq!(titles(&container), ["port 6379 to accept connections"]);
    }
}
