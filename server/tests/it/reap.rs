//! Nothing is left behind, whoever is killed.

use crate::actor::Actor;
use crate::lab::{Lab, check, ended, shell};
use rustix::process::{Pid, Signal, kill_process};
use shakedown_server::client::Client;
use shakedown_server::session::{Orders, ProcessIdentity};
use shakedown_spec::{Configure, FailureKind, Network, Wait};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::time::timeout;

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

async fn names(lab: &Lab) -> usize {
    lab.left().await.len()
}

/// A test killed by its time limit leaves no container.
#[test]
fn a_killed_test_leaves_nothing() {
    check(async |lab| {
        let mut actor = Actor::start(lab, "container", &[]);
        actor.says();
        assert_eq!(lab.places().len(), 1);
        assert_eq!(names(lab).await, 1);
        actor.kill();
    });
}

/// What a killed keeper leaves is taken away by the next session, whatever its name.
#[test]
fn a_killed_keeper_is_swept_by_the_next_session() {
    check(async |lab| {
        let (client, mut lease) = lab.lease().await;
        client.start_container(lease.id(), &shell().network(&Network::new())).await.unwrap();
        assert_eq!(names(lab).await, 2);
        signal(client.info().await.unwrap().pid, Signal::KILL);
        lease.ended().await;
        let failure = client.state("orders").await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::SessionLost);
        assert_eq!(names(lab).await, 2);

        let place = lab.place_of("it-next");
        let orders =
            Orders { session: place.name.clone(), directory: place.directory.clone(), ..lab.orders(None) };
        Client::of_session(orders).await.unwrap();
        ended(place).await;
    });
}

/// A cancelled start (a test's time limit, Ctrl-C) leaves nothing, at whatever stage it was.
#[test]
fn a_start_cancelled_at_any_point_leaves_nothing() {
    check(async |lab| {
        let (client, lease) = lab.lease().await;
        let never = shell().network(&Network::new()).wait(Wait::log("never"));
        for millis in [0, 1, 2, 5, 10, 20, 50, 100, 200, 400, 800] {
            let start = client.start_container(lease.id(), &never);
            timeout(Duration::from_millis(millis), start).await.unwrap_err();
        }
        client.give_back(lease).await.unwrap();
        assert_eq!(lab.left().await, [""; 0]);
    });
}

/// A start that fails takes away what it made before it says so.
#[test]
fn a_start_that_fails_leaves_nothing() {
    check(async |lab| {
        let (client, lease) = lab.lease().await;
        let doomed = shell().command(["sh", "-c", "echo no database; exit 4"]).network(&Network::new());
        let failure = client.start_container(lease.id(), &doomed).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::ExitedEarly);
        assert_eq!(lab.left().await, [""; 0]);
        assert!(client.containers().await.unwrap().is_empty());
    });
}

/// The run is over (Ctrl-C of nextest): the keeper does not wait.
#[test]
fn the_keeper_ends_with_the_runner() {
    check(async |lab| {
        let mut runner = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let orders = lab.orders(ProcessIdentity::of(runner.id()));
        let client = Client::of_session(orders).await.unwrap();
        let lease = client.lease("orders", lab.path()).await.unwrap();
        client.start_container(lease.id(), &shell()).await.unwrap();
        runner.kill().unwrap();
        runner.wait().unwrap();
        // A test that outlives its runner keeps what it holds.
        assert_eq!(names(lab).await, 1);
        drop(lease);
        ended(lab.place()).await;
        assert_eq!(names(lab).await, 0);
    });
}

/// `kill` and `systemctl stop` of a keeper are orderly ends.
#[test]
fn a_keeper_that_is_told_to_end_reaps_first() {
    check(async |lab| {
        let (client, mut lease) = lab.lease().await;
        client.start_container(lease.id(), &shell()).await.unwrap();
        signal(client.info().await.unwrap().pid, Signal::TERM);
        lease.ended().await;
        assert_eq!(lab.left().await, [""; 0]);
    });
}

/// `DELETE /v1/session` answers when nothing is left.
#[test]
fn the_end_of_a_session_waits_for_its_removals() {
    check(async |lab| {
        let (client, lease) = lab.lease().await;
        client.start_container(lease.id(), &shell()).await.unwrap();
        client.end_session().await.unwrap();
        assert_eq!(lab.left().await, [""; 0]);
        ended(lab.place()).await;
        let failure = client.start_container(lease.id(), &shell()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::SessionLost);
    });
}

/// A network lives as long as its members.
#[test]
fn a_network_goes_with_its_last_member() {
    check(async |lab| {
        let (client, lease) = lab.lease().await;
        let net = Network::new();
        let one = client.start_container(lease.id(), &shell().network(&net)).await.unwrap();
        let two = client.start_container(lease.id(), &shell().name("refunds").network(&net)).await.unwrap();
        assert_eq!(names(lab).await, 3);
        client.remove(&one.id).await.unwrap();
        assert_eq!(names(lab).await, 2);
        client.remove(&two.id).await.unwrap();
        client.remove(&two.id).await.unwrap();
        assert_eq!(names(lab).await, 0);
    });
}

/// Somebody empties `/tmp` while a session runs: its containers are taken away all the same, who asks next gets a new
/// session, and the end of the old one does not touch that.
#[test]
fn a_session_outlives_its_directory() {
    check(async |lab| {
        let (client, lease) = lab.lease().await;
        client.start_container(lease.id(), &shell()).await.unwrap();
        let old = client.info().await.unwrap().pid;
        let held = std::fs::File::open(lab.place().directory.join("lock")).unwrap();
        let removed = Command::new("rm").arg("-r").arg(lab.run()).status().unwrap();
        assert!(removed.success());
        // Whoever is connected still reaches it, but nobody else.
        let failure = Client::at(lab.place().socket()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::SessionLost, "{failure}");

        let (next, next_lease) = lab.lease().await;
        assert_ne!(next.info().await.unwrap().pid, old);
        let container = next.start_container(next_lease.id(), &shell()).await.unwrap();
        assert_eq!(names(lab).await, 2);
        drop(lease);
        // The old keeper ends when nothing is leased from it.
        tokio::task::spawn_blocking(move || held.lock().unwrap()).await.unwrap();
        assert_eq!(names(lab).await, 1);
        assert_eq!(next.state(&container.id).await.unwrap().status, "ready");
        drop(next_lease);
        ended(lab.place()).await;
        assert!(lab.places().is_empty());
    });
}
