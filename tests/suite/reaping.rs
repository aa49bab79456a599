//! Nothing is left of a container when the test lets go of it, however it does.

use crate::check::{idle, refused, sh};
use crate::traces::{self, all_gone, are_there, marker, of};
use shakedown::prelude::*;
use shakedown_runtime::wait::{Poll, poll};
use std::panic::catch_unwind;
use std::time::Duration;

fn sleeping(marker: &str) -> GenericContainer {
    sh(&format!("exec sleep {marker}")).port(80).network(&traces::network(marker)).wait(Wait::running())
}

/// When `drop` returns, the container is gone: process, mounts, control groups, all.
#[test]
fn a_drop_reaps() -> shakedown::Result {
    let marker = marker();
    let container = sleeping(&marker).start().blocking()?;
    let ids = [container.id().to_owned()];
    are_there(&marker, &ids);
    drop(container);
    assert_eq!(of(&marker, &ids), Vec::<String>::new());
    Ok(())
}

/// A test that panics leaves nothing but the log: shown in its output, kept whole in a file.
#[test]
fn a_panic_reaps_and_keeps_the_log() {
    let marker = marker();
    let test = format!("reaping::panics_{marker}");
    let script = format!("for i in $(seq 30); do echo line $i; done; exec sleep {marker}");
    let panics = std::thread::Builder::new().name(test.clone()).spawn(move || {
        let container = sh(&script).wait(Wait::log("line 30")).start().blocking().unwrap();
        assert_eq!(container.name(), "orders", "the test panics here");
    });
    assert!(panics.unwrap().join().is_err());
    all_gone(&marker, &[]);
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().find(|path| path.join("CACHEDIR.TAG").exists()).unwrap();
    let log = std::fs::read_to_string(target.join("shakedown").join(test.replace("::", ".")).join("box.log"));
    assert_eq!(log.unwrap().lines().count(), 30);
}

/// A start that is called off takes away what it has made by then.
#[tokio::test]
async fn a_dropped_start_reaps() {
    let marker = marker();
    let pending = sleeping(&marker).wait(Wait::log("never")).start();
    let there = poll(Duration::from_secs(30), || {
        let there = !of(&marker, &[]).is_empty();
        std::future::ready(if there { Poll::Ready(()) } else { Poll::NotYet("no process yet".to_owned()) })
    });
    there.await.unwrap();
    drop(pending);
    tokio::task::spawn_blocking(move || all_gone(&marker, &[])).await.unwrap();
}

/// A start that is called off at any moment leaves nothing: the moments are spread over its whole length.
#[tokio::test]
async fn a_start_can_be_called_off_at_any_moment() {
    let marker = marker();
    for step in 0..20 {
        let pending = sleeping(&marker).wait(Wait::log("never")).start();
        assert!(tokio::time::timeout(Duration::from_millis(step * 40), pending).await.is_err());
    }
    tokio::task::spawn_blocking(move || all_gone(&marker, &[])).await.unwrap();
}

/// A start that fails, at whatever stage, leaves nothing.
#[test]
fn a_failed_start_reaps() {
    let marker = marker();
    let declared = || sleeping(&marker).timeout(Duration::from_millis(300));
    refused(declared().copy(File::host("/x", "/no/such/source")));
    refused(declared().entrypoint(["/no/such/program"]));
    refused(declared().wait(Wait::log("never")));
    refused(declared().wait(Wait::log_regex("unclosed (")));
    all_gone(&marker, &[]);
}

/// A drop while the runtime of the test shuts down, and one on a thread without any, both reap.
#[test]
fn a_drop_needs_no_runtime() {
    let marker = marker();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (one, two) = runtime.block_on(sleeping(&marker).start().and(sleeping(&marker).start())).unwrap();
    // Owned by a task that is still there when its runtime ends.
    runtime.spawn(async move {
        let _one = one;
        std::future::pending::<()>().await;
    });
    runtime.block_on(tokio::task::yield_now());
    drop(runtime);
    std::thread::spawn(move || drop(two)).join().unwrap();
    all_gone(&marker, &[]);
}

/// Containers dropped while a panic unwinds through several of them are all reaped.
#[test]
fn all_of_a_panicking_test_are_reaped() {
    let marker = marker();
    let panicked = catch_unwind(|| {
        let started = sleeping(&marker).start().and(idle().start()).and(sleeping(&marker).start());
        let _all = started.blocking().unwrap();
        panic!("the test panics here");
    });
    assert!(panicked.is_err());
    all_gone(&marker, &[]);
}
