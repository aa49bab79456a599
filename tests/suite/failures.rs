//! What a user reads when something does not work. These messages are the product as much as the containers are.

use crate::check::{assert_message, idle, refused, sh};
use shakedown::modules::{Postgres, Redis};
use shakedown::prelude::*;
use shakedown::{FailureKind, PullPolicy};
use std::time::Duration;

#[test]
fn not_ready() {
    let script = "for i in $(seq 25); do echo line $i; done; exec sleep 3600";
    let failure = refused(sh(script).wait(Wait::log("open for business")).timeout(Duration::from_secs(1)));
    assert_eq!(failure.kind, FailureKind::NotReady);
    assert_message!(failure, @r"
    box was not ready after TIME
      at tests/suite/failures.rs:LINE
      waited for: `open for business` in the log
      last check: not in the log (CHECKS)
      container:  running TIME, image busybox
    --- box, last 20 of 25 lines
    | line 6
    | line 7
    | line 8
    | line 9
    | line 10
    | line 11
    | line 12
    | line 13
    | line 14
    | line 15
    | line 16
    | line 17
    | line 18
    | line 19
    | line 20
    | line 21
    | line 22
    | line 23
    | line 24
    | line 25
    ");
}

#[test]
fn exited_early() {
    let failure = refused(sh("echo no stock >&2; exit 3").wait(Wait::log("open")));
    assert_eq!(failure.kind, FailureKind::ExitedEarly);
    assert_message!(failure, @r"
    box exited before it was ready
      at tests/suite/failures.rs:LINE
      exit:       code 3
      waited for: `open` in the log
      last check: not in the log (CHECKS)
      image:      busybox
    --- box, all of its log
    | no stock
    ");
}

#[test]
fn image_directory_is_not_there() {
    let failure = refused(GenericContainer::new("oci:/no/such/image"));
    assert_eq!(failure.kind, FailureKind::ImageNotFound);
    assert_eq!(failure.title, "image oci:/no/such/image was not found");
    assert!(failure.to_string().contains("/no/such/image/index.json"), "{failure}");
}

#[test]
fn image_is_in_no_store() {
    let failure = refused(GenericContainer::new("shop/orders:3").pull_policy(PullPolicy::Never));
    assert_eq!(failure.kind, FailureKind::ImageNotFound, "{failure}");
    assert!(failure.title.contains("shop/orders:3"), "{failure}");
}

#[test]
fn no_such_program() {
    let failure = refused(idle().entrypoint(["/usr/bin/oders"]).command(["serve"]));
    assert_eq!(failure.kind, FailureKind::LaunchFailed, "{failure}");
    assert!(failure.to_string().contains("/usr/bin/oders"), "{failure}");
    assert!(failure.to_string().contains("failures.rs") || failure.location.is_some(), "{failure}");
}

#[test]
fn no_such_user() {
    let failure = refused(idle().user("clerk"));
    assert_eq!(failure.kind, FailureKind::LaunchFailed, "{failure}");
    assert!(failure.to_string().contains("clerk"), "{failure}");
}

#[test]
fn a_declaration_that_cannot_work() {
    let failure = refused(idle().name("two words").port(80).port(80).file("etc/x", ""));
    assert_eq!(failure.kind, FailureKind::Invalid);
    assert_message!(failure, @r"
    two words is declared in a way that cannot work
      at tests/suite/failures.rs:LINE
      name:  `two words` cannot be a host name
      ports: 80/tcp is declared twice
      files: `etc/x` is not an absolute path
    hint: use up to 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit
    hint: declare a port once
    hint: give an absolute path in the container, without `..`
    ");
}

/// A user without a network is told which call is missing.
#[test]
fn no_network() -> shakedown::Result {
    let cache = Redis::new().start().blocking()?;
    assert_message!(cache.peer_url().unwrap_err(), @r"
    redis cannot be reached by other containers: it is on no network
    hint: let net = Network::new(); then `.network(&net)` on redis and on the other container
    ");
    Ok(())
}

/// A query that fails is shown with the test's line and the database's log, although it is another crate's error.
#[tokio::test]
async fn an_error_of_another_crate() -> shakedown::Result {
    let db = Postgres::new().name("orders-db").start().await?;
    let query = async || -> shakedown::Result {
        let (client, connection) = tokio_postgres::connect(&db.url(), tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        client.query("SELECT * FROM orders", &[]).await?;
        Ok(())
    };
    let error = query().await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Other);
    assert!(error.downcast_ref::<tokio_postgres::Error>().is_some());
    let text = format!("{error:?}");
    for part in [
        "db error\n  at tests/suite/failures.rs:",
        "caused by: ERROR: relation \"orders\" does not exist",
        "full log:  target/shakedown/failures.an_error_of_another_crate/orders-db.log",
        "--- orders-db, last ",
        "| ",
    ] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    Ok(())
}

/// The line of the test is in every failure: of the start, not of the library.
#[test]
fn the_line_is_the_tests() -> shakedown::Result {
    let start = refused(idle().image("oci:/no/such/image"));
    // `refused` passes its caller's line on.
    assert!(start.location.is_some_and(|line| line.starts_with("tests/suite/")));
    let container = idle().start().blocking()?;
    let line = line!() + 1;
    let failure = container.read_file("/no/such").blocking().unwrap_err();
    assert!(failure.location.is_some_and(|at| at.starts_with(&format!("tests/suite/failures.rs:{line}:"))));
    Ok(())
}
