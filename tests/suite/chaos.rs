//! Processes that are killed at any moment. The programs are killed, never asked.

use crate::check::say;
use crate::traces::{all_gone, marker};
use rustix::process::{Pid, Signal, kill_process};
use shakedown::FailureKind;
use shakedown_runtime::wait::{Poll, poll};
use shakedown_server::client::Client;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, timeout_at};

/// How many times a process is killed.
const ROUNDS: u32 = 50;

/// A program that starts containers, in sessions of its own.
pub(crate) struct Target {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    marker: String,
    pub(crate) ids: Vec<String>,
}

impl Target {
    pub(crate) fn launch(place: &Path, mode: &[&str]) -> Self {
        Self::configure(place, mode, |_| {})
    }

    fn configure(place: &Path, mode: &[&str], configure: impl FnOnce(&mut Command)) -> Self {
        let marker = marker();
        let mut command = Command::new(start_in_a_loop());
        // A test run of its own for each test: the name of a session says nothing of the directory it stands in.
        let run = place.file_name().unwrap();
        command.arg(&marker).args(mode).env("SHAKEDOWN_RUN_DIR", place).env("NEXTEST_RUN_ID", run);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        configure(&mut command);
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines, marker, ids: Vec::new() }
    }

    /// Notes what it says until `moment`, or until it says nothing more.
    pub(crate) async fn watch_until(&mut self, moment: Instant) {
        while let Ok(Ok(Some(line))) = timeout_at(moment, self.lines.next_line()).await {
            self.ids.extend(line.strip_prefix("ready ").map(str::to_owned));
        }
    }

    pub(crate) async fn until_ready(&mut self) {
        let line = self.lines.next_line().await.unwrap();
        match line.as_deref().and_then(|line| line.strip_prefix("ready ")) {
            Some(id) => self.ids.push(id.to_owned()),
            None => panic!("the program ended: {}", self.last_words().await),
        }
    }

    pub(crate) async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    /// Ends its input, and reads what it says to the end.
    async fn last_words(&mut self) -> String {
        drop(self.process.stdin.take());
        let mut words = String::new();
        let mut stderr = self.process.stderr.take().unwrap();
        tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut words).await.unwrap();
        words
    }

    /// Waits until nothing of its containers is on the machine any more, and tells how long that took.
    pub(crate) async fn is_gone(&self) -> Duration {
        let (marker, ids) = (self.marker.clone(), self.ids.clone());
        tokio::task::spawn_blocking(move || all_gone(&marker, &ids)).await.unwrap()
    }
}

/// The keeper of the one session beneath `place`, if there is one.
pub(crate) async fn find_keeper(place: &Path) -> Option<Client> {
    let sessions = std::fs::read_dir(place.join("sessions")).ok()?.flatten();
    let mut sockets = sessions.map(|entry| entry.path().join("keeper.sock")).filter(|path| path.exists());
    Client::at(sockets.next()?).await.ok()
}

pub(crate) async fn keeper(place: &Path) -> Client {
    find_keeper(place).await.expect("a keeper")
}

async fn kill_keeper(place: &Path) {
    let pid = keeper(place).await.info().await.unwrap().pid;
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

/// A generator good enough to choose moments, repeatable from its seed (Marsaglia's xorshift64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn throw(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

pub(crate) fn seed() -> u64 {
    let chosen = std::env::var("SHAKEDOWN_CHAOS_SEED").ok().and_then(|text| text.parse().ok());
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let seed = chosen.unwrap_or_else(|| u64::from(clock()));
    say(&format!("SHAKEDOWN_CHAOS_SEED={seed} repeats this"));
    seed | 1
}

/// A test process that is killed at any moment, 50 times: soon after nothing of its containers is there.
#[tokio::test]
async fn killed_test_processes_leave_nothing() {
    let (place, mut dice) = (TempDir::new().unwrap(), Dice(seed()));
    let mut killed_with_containers = 0;
    let longest =
        time_of_a_start(place.path()).await.clamp(Duration::from_millis(500), Duration::from_secs(1)) * 3;
    for round in 0..ROUNDS {
        let mut target = Target::launch(place.path(), &[]);
        let moment = Duration::from_millis(dice.throw(longest.as_millis().try_into().unwrap()));
        target.watch_until(Instant::now() + moment).await;
        target.kill().await;
        killed_with_containers += usize::from(!target.ids.is_empty());
        let gone = target.is_gone().await;
        let count = target.ids.len();
        say(&format!(
            "round {round}: killed after {moment:?} and {count} containers, all gone {gone:.1?} later"
        ));
        no_container_is_known(place.path()).await;
    }
    assert!(killed_with_containers > 0, "no round got as far as a container");
}

/// How long a test process takes here and now until its first container is ready.
async fn time_of_a_start(place: &Path) -> Duration {
    let begin = Instant::now();
    let mut target = Target::launch(place, &[]);
    target.until_ready().await;
    let taken = begin.elapsed();
    target.kill().await;
    target.is_gone().await;
    taken
}

/// The keeper forgets the containers of a process that was killed, too.
async fn no_container_is_known(place: &Path) {
    let Some(keeper) = find_keeper(place).await else { return };
    let empty = poll(Duration::from_secs(10), || async {
        match keeper.containers().await {
            Ok(known) if known.is_empty() => Poll::Ready(()),
            Ok(known) => Poll::NotYet(format!("{known:?}")),
            // A keeper that has lost its last client may end.
            Err(failure) if failure.kind == FailureKind::SessionLost => Poll::Ready(()),
            Err(failure) => Poll::Never(failure.to_string()),
        }
    });
    empty.await.unwrap_or_else(|left| panic!("{left}"));
}

/// The keeper is killed: its containers are gone when the next session has started, and nobody has to clean up.
#[tokio::test]
async fn a_killed_keeper_leaves_nothing_to_the_next() {
    let place = TempDir::new().unwrap();
    let mut first = Target::launch(place.path(), &["once"]);
    first.until_ready().await;
    kill_keeper(place.path()).await;
    let mut next = Target::launch(place.path(), &["once"]);
    next.until_ready().await;
    first.is_gone().await;
    next.kill().await;
    next.is_gone().await;
}

/// A test whose keeper has died is told so, and where its last words stand.
#[tokio::test]
async fn a_lost_session_is_told() {
    let place = TempDir::new().unwrap();
    let mut target = Target::launch(place.path(), &["once"]);
    target.until_ready().await;
    kill_keeper(place.path()).await;
    let words = target.last_words().await;
    for part in ["Error: the session keeper is gone\n  at tests/src/bin/start_in_a_loop.rs:", "keeper.sock"] {
        assert!(words.contains(part), "`{part}` is missing in:\n{words}");
    }
    // What a killed keeper leaves with an engine is taken away by the next session of the same run directory.
    let mut next = Target::launch(place.path(), &["once"]);
    next.until_ready().await;
    target.is_gone().await;
    assert_eq!(next.last_words().await, "");
}

/// The process that makes containers is killed: the session ends with it, and the next one of the same run works.
#[tokio::test]
async fn a_killed_launcher_ends_its_session() {
    let place = TempDir::new().unwrap();
    let mut first = Target::launch(place.path(), &["once"]);
    first.until_ready().await;
    let keeper = keeper(place.path()).await.info().await.unwrap().pid;
    let Some(launcher) = child_of(keeper) else { return say("this driver has no launcher") };
    kill_process(launcher, Signal::KILL).unwrap();
    first.is_gone().await;
    first.kill().await;
    let mut next = Target::launch(place.path(), &["once"]);
    next.until_ready().await;
    assert_eq!(next.last_words().await, "");
}

pub(crate) fn child_of(parent: u32) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    Pid::from_raw(children.split_ascii_whitespace().next()?.parse().ok()?)
}

/// A machine on which no driver works says what is wrong with each, and what to do.
#[tokio::test]
async fn no_driver_is_told() {
    let place = TempDir::new().unwrap();
    let mut target = Target::configure(place.path(), &["once"], |command| {
        command.env("SHAKEDOWN_DRIVER", "docker").env("DOCKER_HOST", "unix:///no/such.sock");
    });
    let words = target.last_words().await;
    for part in ["Error: ", "  at tests/src/bin/start_in_a_loop.rs:", "/no/such.sock", "\nhint: "] {
        assert!(words.contains(part), "`{part}` is missing in:\n{words}");
    }
}

/// The parts of a test run share one keeper; a process that ends takes only its own containers away.
#[tokio::test]
async fn processes_of_a_run_share_a_keeper() {
    let place = TempDir::new().unwrap();
    let (mut one, mut two) =
        (Target::launch(place.path(), &["once"]), Target::launch(place.path(), &["once"]));
    one.until_ready().await;
    two.until_ready().await;
    let known = keeper(place.path()).await.containers().await.unwrap();
    assert_eq!(known.len(), 2, "{known:?}");
    one.kill().await;
    one.is_gone().await;
    assert_eq!(two.last_words().await, "", "the other one still works");
}

/// The program that starts containers in a loop. Where the tests were copied to, the runner says where it is.
fn start_in_a_loop() -> std::ffi::OsString {
    let told = ["NEXTEST_BIN_EXE_start-in-a-loop", "CARGO_BIN_EXE_start-in-a-loop"].map(std::env::var_os);
    told.into_iter().flatten().next().unwrap_or_else(|| env!("CARGO_BIN_EXE_start-in-a-loop").into())
}
