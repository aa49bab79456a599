//! What the tests share: containers to test with, and the form of a failure without what differs from run to run.

use shakedown::prelude::*;
use shakedown::{Failure, FailureKind};

/// A container that does nothing until it is taken away.
pub(crate) fn idle() -> GenericContainer {
    sh("exec sleep 3600")
}

/// A container that runs `script` with the shell.
pub(crate) fn sh(script: &str) -> GenericContainer {
    GenericContainer::new("busybox").name("box").command(["sh", "-c", script])
}

/// What `script` writes to standard output, in a container of its own that is declared by `declare`.
#[track_caller]
pub(crate) fn said(script: &str, declare: impl FnOnce(GenericContainer) -> GenericContainer) -> String {
    let done = declare(sh(script)).wait(Wait::exit()).start().blocking();
    done.and_then(|done| done.logs().blocking()).unwrap_or_else(|failure| panic!("{failure}")).stdout()
}

/// The failure of a start that must not succeed.
#[track_caller]
pub(crate) fn refused(module: impl Module) -> Failure {
    module.start().blocking().expect_err("the start should have failed")
}

/// Whether the driver can do `capability` here. If not, this says so and checks that `asked` is refused clearly.
#[track_caller]
pub(crate) fn can(capability: &str, asked: impl FnOnce() -> GenericContainer) -> bool {
    let Some(reason) = missing(capability) else { return true };
    say(&format!("cannot run here: no {capability}: {reason}"));
    let failure = refused(asked());
    assert_eq!(failure.kind, FailureKind::Unsupported, "{failure}");
    assert!(failure.to_string().contains(&reason), "the reason `{reason}` is missing in:\n{failure}");
    false
}

/// Whether containers are started by an engine, which has to withstand an attack itself. What it does is not judged: old
/// ones do not. If so, this says it.
pub(crate) fn is_the_engines_affair() -> bool {
    let session = shakedown::session().blocking().unwrap_or_else(|failure| panic!("{failure}"));
    let engine = session.driver() != "native";
    if engine {
        say("not tried: the engine starts containers, and answers for that");
    }
    engine
}

/// Why the driver cannot do `capability` here, if it cannot.
#[track_caller]
pub(crate) fn missing(capability: &str) -> Option<String> {
    let session = shakedown::session().blocking().unwrap_or_else(|failure| panic!("{failure}"));
    session.missing(capability).map(str::to_owned)
}

/// Says something in the test's output.
#[expect(clippy::print_stderr, reason = "why a test could not run belongs into its output")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// Compares a message with its snapshot; ids, times, ports, lines of code and drivers' own words are replaced.
macro_rules! assert_message {
    ($failure:expr, @$expected:literal) => {
        insta::with_settings!({filters => crate::check::FILTERS.to_vec()}, {
            insta::assert_snapshot!($failure.to_string(), @$expected);
        });
    };
}
pub(crate) use assert_message;

/// What differs from run to run.
pub(crate) const FILTERS: &[(&str, &str)] = &[
    (r"suite/(\w+)\.rs:\d+:\d+", "suite/$1.rs:LINE"),
    (r"\(1 check, [^)]*\)|\(\d+ checks, [^)]*\)", "(CHECKS)"),
    (r"\d+(\.\d+)? (ms|s)\b", "TIME"),
    (r"/[^ `]*/target/images/", "IMAGES/"),
    (r"sha256:[0-9a-f]{64}", "DIGEST"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
];
