//! Every kind of wait: it waits, it is enough, and the exit of the container ends it.

use crate::check::{idle, refused, sh};
use shakedown::prelude::*;
use shakedown::{Answer, FailureKind, Healthcheck, HttpCheck, Pattern, Stream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A web server that opens after half a second.
fn late_web() -> GenericContainer {
    sh("mkdir /www; echo open > /www/health; sleep 0.5; exec httpd -f -p 8080 -h /www").name("web").port(8080)
}

/// The wait is content in the end.
#[track_caller]
fn ready(container: GenericContainer) {
    drop(container.start().blocking().unwrap_or_else(|failure| panic!("{failure}")));
}

#[test]
fn a_port() -> shakedown::Result {
    let web = late_web().wait(Wait::port(8080)).start().blocking()?;
    std::net::TcpStream::connect((web.host(), web.port(8080)?))?;
    Ok(())
}

#[test]
fn http() {
    ready(late_web().wait(Wait::http(8080, "/health")));
    let body = Some(Pattern::Text("open".to_owned()));
    ready(
        late_web().wait(HttpCheck { path: "/health".into(), response: body, ..HttpCheck::default() }.into()),
    );
    ready(
        late_web().wait(HttpCheck { path: "/gone".into(), status: vec![404], ..HttpCheck::default() }.into()),
    );
}

#[test]
fn a_log_line() {
    ready(sh("sleep 0.3; echo ready; exec sleep 3600").wait(Wait::log("ready")));
    ready(sh("echo ready; sleep 0.3; echo ready >&2; exec sleep 3600").wait(Wait::log("ready").times(2)));
    ready(sh("printf 'login: '; exec sleep 3600").wait(Wait::log_regex("^login: $")));
    let other_stream = sh("echo ready; exec sleep 3600").wait(Wait::log("ready").stream(Stream::Stderr));
    assert_eq!(refused(other_stream.timeout(Duration::from_millis(300))).kind, FailureKind::NotReady);
}

/// A pattern is found although its line was written in pieces, with output of the other stream between.
#[test]
fn a_log_line_across_reads() {
    let pieces =
        "printf 'database sys'; sleep 0.2; echo noise >&2; printf 'tem is rea'; sleep 0.2; echo 'dy'";
    ready(sh(&format!("{pieces}; exec sleep 3600")).wait(Wait::log_regex("database .* ready")));
}

#[test]
fn a_command() {
    let late = "sleep 0.3; touch /ready; exec sleep 3600";
    ready(sh(late).wait(Wait::command(["test", "-e", "/ready"])));
    ready(sh(late).wait(Wait::command(["test", "-e", "/ready"]).times(3)));
}

#[test]
fn an_exit() {
    ready(sh("exit 0").wait(Wait::exit()));
    ready(sh("exit 7").wait(Wait::exit_code(7)));
    let failure = refused(sh("exit 7").wait(Wait::exit()));
    assert!(failure.to_string().contains("code 7"), "{failure}");
}

#[test]
fn a_health_check() {
    let late = || sh("sleep 0.3; touch /healthy; exec sleep 3600").wait(Wait::healthy());
    let check = Healthcheck::shell("test -e /healthy").interval(Duration::from_millis(100)).retries(50);
    ready(late().healthcheck(check));
    let sick = Healthcheck::command(["false"]).interval(Duration::from_millis(50)).retries(2);
    let failure = refused(late().healthcheck(sick).timeout(Duration::from_millis(500)));
    assert_eq!(failure.kind, FailureKind::NotReady, "{failure}");
}

/// All in order, any whichever is first, and the one inside the other.
#[test]
fn compositions() {
    let container = || sh("echo one; sleep 0.2; echo two; exec sleep 3600");
    ready(container().wait(Wait::log("one").and(Wait::log("two"))));
    ready(container().wait(Wait::log("never").or(Wait::log("two"))));
    ready(container().wait(Wait::log("never").or(Wait::log("one").and(Wait::running()))));
    let all = container().wait(Wait::log("one").and(Wait::log("never"))).timeout(Duration::from_millis(500));
    assert_eq!(refused(all).kind, FailureKind::NotReady);
}

/// Waits that are added one by one all have to hold.
#[test]
fn waits_add_up() {
    let container = sh("echo one; exec sleep 3600").wait(Wait::log("one")).wait(Wait::log("never"));
    assert_eq!(refused(container.timeout(Duration::from_millis(300))).kind, FailureKind::NotReady);
}

/// The time of one condition is up before the container's.
#[test]
fn a_condition_has_its_own_time() {
    let begin = Instant::now();
    let failure = refused(idle().wait(Wait::log("never").timeout(Duration::from_millis(200))));
    assert_eq!(failure.kind, FailureKind::NotReady, "{failure}");
    assert!(begin.elapsed() < Duration::from_secs(30));
}

/// No kind of wait outlasts the container: it fails at once, not at its time limit.
#[test]
fn an_exit_ends_every_wait() {
    let sick = Healthcheck::command(["false"]).interval(Duration::from_millis(100)).retries(1000);
    for wait in [
        Wait::port(8080),
        Wait::http(8080, "/"),
        Wait::log("never"),
        Wait::command(["false"]),
        Wait::healthy(),
        Wait::log("never").or(Wait::port(1)),
    ] {
        let begin = Instant::now();
        let container = sh("sleep 0.3; echo gone; exit 3").port(8080).healthcheck(sick.clone());
        let failure = refused(container.wait(wait.clone()));
        assert_eq!(failure.kind, FailureKind::ExitedEarly, "{wait}: {failure}");
        assert!(failure.to_string().contains("code 3"), "{wait}: {failure}");
        assert!(begin.elapsed() < Duration::from_secs(30), "{wait}: {:?}", begin.elapsed());
    }
}

/// A check of the user's own is asked until it is content, with the connection info in hand.
#[test]
fn a_check_of_ones_own() -> shakedown::Result {
    let asked = AtomicU32::new(0);
    let web = late_web()
        .wait_for("the third time", async move |web| {
            assert_eq!(web.host(), "127.0.0.1");
            match asked.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => Answer::NotYet("patience".to_owned()),
                _ => Answer::Ready,
            }
        })
        .start()
        .blocking()?;
    drop(web);
    Ok(())
}

/// A check of the user's own can give up, times out with its last word, and ends with the container.
#[test]
fn a_check_of_ones_own_that_fails() {
    let never = idle().wait_for("good news", async |_| Answer::Never("the shop is closed".to_owned()));
    let failure = never.start().blocking().unwrap_err();
    assert!(failure.to_string().contains("the shop is closed"), "{failure}");

    let late =
        idle().timeout(Duration::from_secs(2)).wait_for("good news", async |_| Err::<(), _>("still closed"));
    let failure = late.start().blocking().unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotReady, "{failure}");
    assert!(failure.to_string().contains("still closed"), "{failure}");

    let gone = sh("sleep 0.3; exit 3").wait_for("good news", async |_| Answer::NotYet("closed".to_owned()));
    let failure = gone.start().blocking().unwrap_err();
    assert_eq!(failure.kind, FailureKind::ExitedEarly, "{failure}");
}
