//! The same again and again, and processes killed at random: what leaks a little each time, or hangs once in a thousand.
//!
//! `cargo xtask soak` runs these with large numbers.

use crate::chaos::{Dice, Target, child_of, find_keeper, keeper, seed};
use crate::check::say;
use rustix::process::{Pid, Signal, kill_process};
use shakedown_runtime::wait::{Poll, poll};
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

/// Longer than anything takes that has not come to a halt.
const HANGS: Duration = Duration::from_secs(120);
/// What is made ahead, and what closes a moment later.
const SLACK: usize = 24;
/// After so many, everything that is made once has been made.
const WARM: usize = 10;

fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Test,
    Keeper,
    Launcher,
    Container,
}

impl Victim {
    const ALL: [Self; 4] = [Self::Test, Self::Keeper, Self::Launcher, Self::Container];

    /// Its process, if there is one just now.
    async fn find(self, place: &Path, dice: &mut Dice) -> Option<Pid> {
        let keeper = async || find_keeper(place).await?.info().await.ok();
        let keeper = keeper().await?.pid;
        match self {
            Self::Test => None,
            Self::Keeper => Pid::from_raw(keeper.cast_signed()),
            Self::Launcher => child_of(keeper),
            Self::Container => {
                let launcher = child_of(keeper)?.as_raw_nonzero();
                let children =
                    fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).ok()?;
                let children: Vec<i32> =
                    children.split_whitespace().filter_map(|id| id.parse().ok()).collect();
                let chosen = dice.throw(u64::try_from(children.len()).ok().filter(|count| *count > 0)?);
                Pid::from_raw(*children.get(usize::try_from(chosen).ok()?)?)
            }
        }
    }
}

/// Whoever of the processes is killed at whatever moment: nothing is left, and the next session starts.
#[tokio::test]
async fn any_process_may_be_killed() {
    let (place, mut dice) = (TempDir::new().unwrap(), Dice(seed()));
    for round in 0..number("SHAKEDOWN_SOAK_KILLS", 20) {
        let victim = Victim::ALL[usize::try_from(dice.throw(4)).unwrap()];
        // Now and then later, for engines that take long to start anything.
        let latest = if round % 4 == 3 { 3000 } else { 600 };
        let moment = Duration::from_millis(dice.throw(latest));
        let one = timeout(HANGS, kill_one(place.path(), victim, moment, &mut dice));
        let (count, gone) =
            one.await.unwrap_or_else(|_| panic!("round {round}: {victim:?} after {moment:?}: hangs"));
        say(&format!(
            "round {round}: {victim:?} after {moment:?} with {count} containers, gone {gone:.1?} later"
        ));
    }
}

async fn kill_one(place: &Path, victim: Victim, moment: Duration, dice: &mut Dice) -> (usize, Duration) {
    let mut target = Target::launch(place, &[]);
    target.watch_until(Instant::now() + moment).await;
    if let Some(process) = victim.find(place, dice).await {
        // It may have ended meanwhile.
        let _ = kill_process(process, Signal::KILL);
    }
    // What the others do about it is a part of the round.
    target.watch_until(Instant::now() + Duration::from_millis(dice.throw(60))).await;
    target.kill().await;
    if matches!(victim, Victim::Keeper) {
        // What a killed keeper leaves with an engine is taken away by the next session.
        let mut next = Target::launch(place, &["once"]);
        next.until_ready().await;
        next.kill().await;
        next.is_gone().await;
    }
    (target.ids.len(), target.is_gone().await)
}

/// A keeper that has had many containers holds no more than one that has had a few.
#[tokio::test]
async fn many_containers_leave_nothing() {
    let (place, count) = (TempDir::new().unwrap(), number("SHAKEDOWN_SOAK_CONTAINERS", 50));
    let mut target = Target::launch(place.path(), &["many", &count.to_string()]);
    for _ in 0..WARM {
        target.until_ready().await;
    }
    let keeper = keeper(place.path()).await.info().await.unwrap().pid;
    let processes = [Pid::from_raw(keeper.cast_signed()), child_of(keeper)].map(|pid| pid.map(held));
    for _ in WARM..count {
        timeout(HANGS, target.until_ready()).await.expect("a container hangs");
    }
    let after = [Pid::from_raw(keeper.cast_signed()), child_of(keeper)].map(|pid| pid.map(held));
    say(&format!("descriptors of keeper and launcher: {processes:?} after {WARM}, {after:?} after {count}"));
    for (before, after) in processes.into_iter().flatten().zip(after.into_iter().flatten()) {
        assert!(
            after <= before + SLACK,
            "{before} descriptors after {WARM} containers, {after} after {count}"
        );
    }
    target.kill().await;
    target.is_gone().await;
}

/// Many containers run at the same time, and the keeper and its launcher grow by a fifth of a mebibyte for each at most.
#[tokio::test]
async fn many_containers_run_at_once() {
    let (one, all) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let count = number("SHAKEDOWN_SOAK_RUNNING", 30);
    let mut first = Target::launch(one.path(), &["once"]);
    first.until_ready().await;
    let mut target = Target::launch(all.path(), &["hold", &count.to_string()]);
    let begin = Instant::now();
    for _ in 0..count {
        timeout(HANGS, target.until_ready()).await.expect("a container hangs");
    }
    let took = begin.elapsed();
    let [alone, together] = [grown(one.path()).await, grown(all.path()).await];
    say(&format!("{count} containers after {took:.1?}: {together} KiB of memory, with one {alone} KiB"));
    assert!(
        together.saturating_sub(alone) <= count * 205,
        "{alone} KiB with one, {together} KiB with {count}"
    );
    for mut target in [first, target] {
        target.kill().await;
        target.is_gone().await;
    }
}

/// Many containers with a network each are gone as soon as others when their test is killed, and the keeper goes on.
#[tokio::test]
async fn many_networks_go_at_once() {
    hold_and_kill("each").await;
}

/// The same with one network for all of them.
#[tokio::test]
async fn a_large_network_goes_at_once() {
    hold_and_kill("one").await;
}

async fn hold_and_kill(networks: &str) {
    let (place, count) = (TempDir::new().unwrap(), number("SHAKEDOWN_SOAK_NETWORKS", 8));
    let mut target = Target::launch(place.path(), &["hold", &count.to_string(), networks]);
    for _ in 0..count {
        timeout(HANGS, target.until_ready()).await.expect("a container hangs");
    }
    target.kill().await;
    say(&format!("{count} containers, networks: {networks}: gone after {:.2?}", target.is_gone().await));
}

/// KiB of memory that are the keeper's and the launcher's alone, without what they share with the program's file.
async fn grown(place: &Path) -> usize {
    let keeper = keeper(place).await.info().await.unwrap().pid;
    let processes = Pid::from_raw(keeper.cast_signed()).into_iter().chain(child_of(keeper));
    let anonymous = |process: Pid| {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.as_raw_nonzero()));
        let text = text.unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:"));
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()).unwrap_or(0)
    };
    processes.map(anonymous).sum()
}

/// How many descriptors a process holds.
fn held(process: Pid) -> usize {
    fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())).map_or(0, Iterator::count)
}

/// Connections through a published port that come and go take nothing with them, those that nobody answers included.
#[tokio::test]
async fn many_connections_leave_nothing() {
    let (place, count) = (TempDir::new().unwrap(), number("SHAKEDOWN_SOAK_CONNECTIONS", 2000));
    let mut target = Target::launch(place.path(), &["once"]);
    target.until_ready().await;
    let keeper = keeper(place.path()).await;
    let pid = Pid::from_raw(keeper.info().await.unwrap().pid.cast_signed()).unwrap();
    let port = keeper.containers().await.unwrap()[0].endpoints.published[0].host;
    let knock = move || drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
    (0..WARM).for_each(|_| knock());
    let before = held(pid);
    let knocking = tokio::task::spawn_blocking(move || (0..count).for_each(|_| knock()));
    timeout(HANGS, knocking).await.expect("connections hang").unwrap();
    let closed = poll(Duration::from_secs(10), || {
        let now = held(pid);
        let few = now <= before + SLACK;
        std::future::ready(if few { Poll::Ready(()) } else { Poll::NotYet(format!("{now} descriptors")) })
    });
    closed.await.unwrap_or_else(|left| panic!("{before} before {count} connections; {left}"));
    target.kill().await;
    target.is_gone().await;
}
