//! Finding and starting the keeper.

use crate::actor::Actor;
use crate::lab::{check, ended};
use shakedown_server::client::Client;
use std::collections::HashSet;

/// nextest starts many test processes at once: they have to meet in one session.
#[test]
fn eight_processes_that_start_at_once_get_one_keeper() {
    check(async |lab| {
        let mut actors: Vec<_> = (0..8).map(|_| Actor::start(lab, "lease", &[])).collect();
        let keepers: HashSet<String> = actors.iter_mut().map(Actor::says).collect();
        assert_eq!(keepers.len(), 1, "{keepers:?}");
        assert_eq!(lab.places().len(), 1);
        actors.into_iter().for_each(Actor::dismiss);
    });
}

/// Test binaries run one after the other share a keeper while there is one, and get a new one afterwards.
#[test]
fn a_keeper_that_is_not_needed_ends_and_the_next_lease_starts_another() {
    check(async |lab| {
        let (client, lease) = lab.lease().await;
        let first = client.info().await.unwrap().pid;
        drop(lease);
        ended(lab.place()).await;
        let lease = client.lease("orders", lab.path()).await.unwrap();
        assert_ne!(client.info().await.unwrap().pid, first);
        client.give_back(lease).await.unwrap();
    });
}

/// The keeper looks like a keeper in `ps`, has a session of its own, and holds nothing of the test's open.
#[test]
fn the_keeper_is_a_process_of_its_own() {
    check(async |lab| {
        let (client, _lease) = lab.lease().await;
        let pid = client.info().await.unwrap().pid;
        let proc = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        assert!(proc("cmdline").starts_with("shakedown: keeper  "));
        let session = proc("stat").rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned();
        assert_eq!(session, pid.to_string());
        let open = |fd: u32| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        assert_eq!(open(0), std::path::Path::new("/dev/null"));
        assert_eq!(open(1), std::path::Path::new("/dev/null"));
        assert_eq!(open(2), lab.place().log());
    });
}

/// A machine without any driver: the first lease says why.
#[test]
fn without_a_driver_the_lease_says_why() {
    check(async |lab| {
        let socket = lab.path().join("docker.sock");
        let host = format!("unix://{}", socket.display());
        let mut actor = Actor::start(lab, "lease", &[("SHAKEDOWN_DOCKER_HOST", &host)]);
        let said = actor.says().replace(lab.path().to_str().unwrap(), "LAB");
        insta::assert_snapshot!(said, @r"
        no way to run containers here
          docker: LAB/docker.sock: no such socket
        hint: `shakedown doctor` checks every requirement
        ");
        actor.dismiss();
    });
}

/// A wrong `shakedown.toml` is told before anything starts.
#[test]
fn a_wrong_configuration_is_told() {
    check(async |lab| {
        std::fs::write(lab.path().join("shakedown.toml"), "\ndirver = \"docker\"\n").unwrap();
        let mut actor = Actor::start(lab, "lease", &[]);
        let said = actor.says().replace(lab.path().to_str().unwrap(), "LAB");
        insta::assert_snapshot!(said, @r"
        shakedown.toml is not understood
          file:   LAB/shakedown.toml:2
          reason: unknown field `dirver`, expected one of `driver`, `timeout_scale`, `pull_policy`, `offline`, `locked`, `images`, `registries`, `store`
        ");
        actor.dismiss();
    });
}

/// A keeper that cannot work says why to the one who started it: here its session's directory is a file.
#[test]
fn a_keeper_that_cannot_start_is_told() {
    check(async |lab| {
        let sessions = lab.run().join("sessions");
        std::fs::create_dir_all(&sessions).unwrap();
        std::fs::write(sessions.join(&lab.name), "").unwrap();
        let failure = Client::of_session(lab.orders(None)).await.unwrap_err().to_string();
        let said = failure.replace(lab.path().to_str().unwrap(), "LAB").replace(&lab.name, "NAME");
        std::fs::remove_file(sessions.join(&lab.name)).unwrap();
        insta::assert_snapshot!(said, @r"
        the session keeper could not be started
          reason: File exists (os error 17)
          log:    LAB/run/sessions/NAME/keeper.log
        ");
    });
}
