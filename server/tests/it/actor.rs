//! A test process of its own: this binary once more, running only [`act`].

use crate::lab::{Lab, shell};
use shakedown_server::client::Client;
use shakedown_spec::{Configure, Container, Wait};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

/// Names what to do.
const PLAY: &str = "SHAKEDOWN_TEST_PLAY";
/// Before everything the actor says: the test harness writes to the same output.
const SAYS: &str = "says ";

pub(crate) struct Actor {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Actor {
    /// Starts a process of the run `lab.name`.
    pub(crate) fn start(lab: &Lab, play: &str, more: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "actor::act", "--ignored", "--nocapture", "--test-threads=1"])
            .env(PLAY, play)
            .env("SHAKEDOWN_RUN_DIR", lab.run())
            .env("NEXTEST_RUN_ID", &lab.name)
            .env("SHAKEDOWN_DRIVER", "docker")
            .env_remove("SHAKEDOWN_SOCKET")
            .envs(more.iter().copied())
            .current_dir(lab.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// The next thing it says.
    pub(crate) fn says(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the actor has ended");
            if let Some((_, said)) = line.split_once(SAYS) {
                return said.trim_end().replace("\\n", "\n");
            }
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it end by itself.
    pub(crate) fn dismiss(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{SAYS}{}", text.replace('\n', "\\n")).unwrap();
    out.flush().unwrap();
}

fn until_dismissed() {
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[tokio::test]
#[ignore = "other tests run it as a process of its own"]
async fn act() {
    let here = std::env::current_dir().unwrap();
    let client = match Client::connect(&here).await {
        Ok(client) => client,
        Err(failure) => return say(&failure.to_string()),
    };
    let lease = match client.lease("actor", &here).await {
        Ok(lease) => lease,
        Err(failure) => return say(&failure.to_string()),
    };
    match std::env::var(PLAY).unwrap().as_str() {
        "lease" => say(&client.info().await.unwrap().pid.to_string()),
        "image" => {
            let image = std::env::var("SHAKEDOWN_TEST_IMAGE").unwrap();
            let container = Container::of(image).command(["/bin/busybox", "true"]).wait(Wait::exit_code(0));
            say(&client.start_container(lease.id(), &container).await.unwrap().id);
        }
        "container" => say(&client.start_container(lease.id(), &shell()).await.unwrap().id),
        play => panic!("no such play: {play}"),
    }
    until_dismissed();
}
