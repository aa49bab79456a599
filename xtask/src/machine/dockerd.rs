//! A Docker daemon of the task's own: it shares nothing with one that the machine has, and is gone with its guard.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::{find_program, run};

/// How long the daemon may take to listen: it loads kernel modules and sets up its firewall first.
const START_LIMIT: Duration = Duration::from_secs(90);
/// How long it may take to stop: it gives each container 10 s, and waits for 15 s in all (its own limit).
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// What the daemon logs once its socket answers.
const LISTENING: &str = "API listen on";
/// Not `docker0`, which belongs to the machine's daemon if there is one; and not `shk…`, which would be a leak.
const BRIDGE: &str = "sdci0";
/// Addresses of containers on the bridge and on networks: others than those of Docker, for the same reason.
const BRIDGE_ADDRESS: &str = "10.213.0.1/24";
const NETWORKS: &str = "base=10.214.0.0/16,size=24";

/// A running daemon. Dropping it stops the daemon and removes its files.
#[derive(Debug)]
pub(crate) struct Dockerd {
    child: Option<Child>,
    directory: PathBuf,
    /// The bridge has a fixed name and address: one daemon of this kind at a time.
    _lock: File,
}

impl Dockerd {
    /// Starts a daemon, and returns when its socket answers.
    pub(crate) fn start() -> Result<Self> {
        let lock = lock()?;
        // Not below a directory named after the project: mounts below it would look like leaks.
        let directory = tempfile::Builder::new().prefix("sdci-docker-").tempdir_in("/var/tmp")?.keep();
        let mut daemon = Self { child: None, directory, _lock: lock };
        make_bridge()?;
        let child = Self::command(&daemon.directory)?.spawn().context("cannot start dockerd")?;
        daemon.wait_until_it_listens(child)?;
        Ok(daemon)
    }

    /// For `DOCKER_HOST`.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("docker.sock")
    }

    fn command(directory: &Path) -> Result<Command> {
        let path = |name: &str| directory.join(name).display().to_string();
        let program = find_program("dockerd").context("there is no dockerd")?;
        // The daemon ends with this task's thread, even if the task is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(program);
        command.args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")]);
        command.args(["--host", &format!("unix://{}", path("docker.sock")), "--bridge", BRIDGE]);
        command.args(["--default-address-pool", NETWORKS, "--config-file", &path("daemon.json")]);
        fs::write(directory.join("daemon.json"), "{}").context("cannot write the daemon's configuration")?;
        // `dockerd` looks for iptables and its containerd there.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env_remove("DOCKER_HOST");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(command)
    }

    /// Reads the daemon's log, to a file as well, until it says that it listens.
    fn wait_until_it_listens(&mut self, child: Child) -> Result<()> {
        let child = self.child.insert(child);
        let log = self.directory.join("log");
        let mut file = File::create(&log).context("cannot create the log of dockerd")?;
        let lines = BufReader::new(child.stderr.take().context("dockerd has no log")?).lines();
        let (listens, listening) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(|line| line.ok()) {
                // A full disk must not stop the daemon at a full pipe.
                drop(writeln!(file, "{line}"));
                if line.contains(LISTENING) {
                    // Nobody waits any more if the limit has passed; the log is read on.
                    listens.send(()).ok();
                }
            }
        });
        // The sender goes when the log ends, which is when the daemon has ended.
        if listening.recv_timeout(START_LIMIT).is_ok() {
            return Ok(());
        }
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        bail!(
            "dockerd does not listen; its log ends:\n{}",
            lines[lines.len().saturating_sub(15)..].join("\n")
        )
    }

    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
        let ended = || -> Option<bool> {
            let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            kill_process(pid, Signal::TERM).ok()?;
            let mut polled = [rustix::event::PollFd::new(&descriptor, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec::try_from(STOP_LIMIT).ok()?;
            Some(rustix::event::poll(&mut polled, Some(&limit)).ok()? > 0)
        };
        if ended() != Some(true) {
            eprintln!("dockerd did not stop in time and is killed");
            drop(child.kill());
        }
        drop(child.wait());
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.stop();
        // The daemon mounts its directory on itself, and mounts of containers may be left if it was killed.
        for point in mounts_below(&self.directory) {
            drop(Command::new("umount").args(["--lazy", "--quiet"]).arg(point).status());
        }
        remove_tree(&self.directory);
        drop(ip(&["link", "delete", BRIDGE]));
    }
}

/// Waits until no other task has such a daemon. The lock goes with the process, however it ends.
fn lock() -> Result<File> {
    let path = "/var/tmp/sdci-docker.lock";
    let file = File::create(path).with_context(|| format!("cannot create {path}"))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another task, which has a Docker daemon of its own and holds {path}");
    }
    // Already held if the attempt succeeded; then this returns at once.
    file.lock().with_context(|| format!("cannot lock {path}"))?;
    Ok(file)
}

/// The mount points in a directory, the innermost first.
fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> =
        text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect();
    points.retain(|point| point.starts_with(directory));
    points.reverse();
    points
}

fn remove_tree(directory: &Path) {
    let removed = Command::new("rm").args(["-rf", "--one-file-system"]).arg(directory).status();
    if !removed.is_ok_and(|status| status.success()) {
        eprintln!("{} could not be removed", directory.display());
    }
}

fn make_bridge() -> Result<()> {
    if Path::new("/sys/class/net").join(BRIDGE).exists() {
        // Of a task that was killed; its daemon has ended with it.
        ip(&["link", "delete", BRIDGE])?;
    }
    ip(&["link", "add", "name", BRIDGE, "type", "bridge"])?;
    ip(&["address", "add", BRIDGE_ADDRESS, "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])
}

fn ip(args: &[&str]) -> Result<()> {
    run(Command::new("ip").args(args))
}
