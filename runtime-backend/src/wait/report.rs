//! Why a container is not ready, in the form every failure is shown.

use super::hold::Unmet;
use super::plan::{self, Kind, Plan};
use super::{Missed, Span, Waiting};
use crate::driver::Exit;
use shakedown_spec::{Failure, FailureKind, Stream};

/// How much of the log a failure shows.
const TAIL: usize = 20;

/// The failure for a condition that was not met.
pub(super) async fn failure(waiting: &Waiting<'_>, unmet: Unmet) -> Failure {
    match unmet {
        Unmet::Lost(failure) => failure,
        Unmet::Missed { title, missed } => not_ready(waiting, &title, &missed).await,
        Unmet::Exited { title, exit, last } => {
            // The last lines say why; they are there once the log is closed.
            rest_of_the_log(waiting).await;
            exited(waiting, &title, exit, last.as_ref())
        }
    }
}

async fn not_ready(waiting: &Waiting<'_>, waited_for: &str, missed: &Missed) -> Failure {
    let target = waiting.target;
    let name = target.container.display_name();
    let (title, label) = if missed.never {
        (format!("{name} will not become ready"), "reason")
    } else {
        (format!("{name} was not ready after {}", Span(waiting.begin.elapsed())), "last check")
    };
    let value = if missed.never { missed.status.clone() } else { missed.to_string() };
    let state = format!("running {}, image {}", Span(waiting.begin.elapsed()), target.container.image);
    let failure = Failure::new(FailureKind::NotReady, title)
        .fact("waited for", waited_for)
        .fact(label, value)
        .fact("container", state)
        .log(target.log.tail(&name, TAIL));
    let hints = hints(waiting, waited_for).await;
    hints.into_iter().fold(failure, Failure::hint)
}

fn exited(waiting: &Waiting<'_>, waited_for: &str, exit: Exit, last: Option<&Missed>) -> Failure {
    let target = waiting.target;
    let name = target.container.display_name();
    let mut failure = if exit.out_of_memory {
        Failure::new(FailureKind::OutOfMemory, format!("{name} was killed for its use of memory"))
    } else {
        Failure::new(FailureKind::ExitedEarly, format!("{name} exited before it was ready"))
    };
    failure = failure.fact("exit", exit.to_string()).fact("waited for", waited_for);
    if let Some(last) = last {
        failure = failure.fact("last check", last.to_string());
    }
    failure = failure.fact("image", target.container.image.clone());
    let limit = target.container.resources.memory.filter(|_| exit.out_of_memory);
    if let Some(limit) = limit {
        failure = failure.fact("limit", bytes(limit)).hint("raise the limit with `.memory(..)`");
    }
    let text = target.log.text(None);
    if text.windows(17).any(|window| window.eq_ignore_ascii_case(b"exec format error")) {
        failure = failure
            .hint(format!("the image is for another processor; this machine is {}", std::env::consts::ARCH));
    }
    failure.log(target.log.tail(&name, TAIL))
}

/// Waits until the driver has read all output; bounded, because the failure matters more than its last line.
async fn rest_of_the_log(waiting: &Waiting<'_>) {
    let log = &waiting.target.log;
    let mut changes = log.watch();
    let closed = async { while !log.read(usize::MAX).1 && changes.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), closed).await;
}

/// What may help, each looked up now.
async fn hints(waiting: &Waiting<'_>, waited_for: &str) -> Vec<String> {
    let target = waiting.target;
    let plans = plan::plan(&target.container, &target.image).unwrap_or_default();
    let mut leaves = Vec::new();
    plans.iter().for_each(|plan| collect(plan, &mut leaves));
    let Some(missed) = leaves.into_iter().find(|plan| plan.title == waited_for) else { return Vec::new() };
    match &missed.kind {
        Kind::Port(port) | Kind::Http { port, .. } | Kind::Probe { port, .. } => {
            open_instead(waiting, *port).await.into_iter().collect()
        }
        Kind::Log { pattern, stream, .. } => {
            let other =
                stream.map(|stream| if stream == Stream::Stdout { Stream::Stderr } else { Stream::Stdout });
            let on_other = other.filter(|other| pattern.is_in(&target.log.text(Some(*other))));
            if let Some(other) = on_other {
                let name = if other == Stream::Stdout { "stdout" } else { "stderr" };
                return vec![format!("it is in {name}; wait for it there")];
            }
            let text = target.log.text(*stream);
            let case = !pattern.is_in(&text) && pattern.is_in_other_case(&text);
            case.then(|| "the log has it in other upper and lower case".to_owned()).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn collect<'a>(plan: &'a Plan, leaves: &mut Vec<&'a Plan>) {
    match &plan.kind {
        Kind::All(plans) | Kind::Any(plans) => plans.iter().for_each(|plan| collect(plan, leaves)),
        _ => leaves.push(plan),
    }
}

/// A port that the container does listen on, among those it declares or its image exposes.
async fn open_instead(waiting: &Waiting<'_>, port: u16) -> Option<String> {
    let target = waiting.target;
    if target.driver.listening(&target.id, port).await.unwrap_or(true) {
        return None;
    }
    let exposed =
        target.image.exposed.iter().filter_map(|port| port.strip_suffix("/tcp")?.parse::<u16>().ok());
    let declared = target.container.ports.iter().map(|port| port.container);
    for other in declared.chain(exposed).filter(|other| *other != port) {
        if target.driver.listening(&target.id, other).await.unwrap_or(false) {
            return Some(format!("the container listens on port {other}"));
        }
    }
    None
}

fn bytes(count: u64) -> String {
    match count {
        c if c >= 1 << 30 && c % (1 << 30) == 0 => format!("{} GiB", c >> 30),
        c if c >= 1 << 20 => format!("{} MiB", c >> 20),
        c => format!("{c} bytes"),
    }
}
