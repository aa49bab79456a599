//! Programs that pull an image into an empty store: the time from the command to its end, files unpacked.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use tokio::process::Command;

use super::Engine;
use crate::worker::Orders;

/// Which program pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// `shakedown images pull`.
    Shakedown,
    /// `docker pull`: the daemon does it.
    Docker,
    /// `podman pull`.
    Podman,
    /// `skopeo copy`, then `umoci unpack`: two programs, one after the other.
    Skopeo,
}

/// A program, and what it works on.
pub(crate) struct Puller {
    program: Program,
    orders: Orders,
}

impl Puller {
    pub(super) fn new(program: Program, orders: &Orders) -> Self {
        Self { program, orders: orders.clone() }
    }

    async fn pull(&self, place: &Path) -> Result<Duration> {
        let image = self.orders.pulled.as_str();
        let started = Instant::now();
        match self.program {
            Program::Shakedown => {
                let mut command = Command::new(&self.orders.program);
                done(command.args(["images", "pull", "--quiet", image]).env("SHAKEDOWN_STORE", place))
                    .await?;
            }
            Program::Docker => done(&mut self.docker(&["pull", "--quiet", image])).await?,
            Program::Podman => {
                done(&mut podman(place, &["pull", "--quiet", "--tls-verify=false", image])).await?;
            }
            Program::Skopeo => {
                let layout = format!("{}:1", place.join("layout").display());
                let mut copy = Command::new("skopeo");
                copy.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
                done(copy.arg(format!("docker://{image}")).arg(format!("oci:{layout}"))).await?;
                let mut unpack = Command::new("umoci");
                done(unpack.args(["unpack", "--image", &layout]).arg(place.join("bundle"))).await?;
            }
        }
        Ok(started.elapsed())
    }

    /// From nothing to a program of the image that has run.
    async fn run_cold(&self, place: &Path) -> Result<Duration> {
        let image = self.orders.pulled.as_str();
        let started = Instant::now();
        match self.program {
            // A process of its own: the store of a session is chosen when it starts.
            Program::Shakedown => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["once", image]).env("SHAKEDOWN_STORE", place).env("SHAKEDOWN_DRIVER", "native");
                done(&mut command).await?;
            }
            Program::Docker => done(&mut self.docker(&["run", "--rm", "--quiet", image])).await?,
            Program::Podman => {
                // What it would set by itself is higher than root without CAP_SYS_RESOURCE may.
                let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
                let words = ["run", "--rm", "--quiet", "--tls-verify=false", "--cgroups=disabled"];
                let words: Vec<&str> = words.into_iter().chain(limits).chain([image]).collect();
                done(&mut podman(place, &words)).await?;
            }
            Program::Skopeo => bail!("umoci runs nothing"),
        }
        Ok(started.elapsed())
    }

    fn docker(&self, words: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(words).env("DOCKER_HOST", &self.orders.docker);
        command
    }

    /// Takes away what was pulled.
    async fn forget(&self, place: TempDir) -> Result<()> {
        match self.program {
            Program::Docker => {
                // There is none before the first pull.
                let _ = done(&mut self.docker(&["image", "rm", "--force", &self.orders.pulled])).await;
            }
            Program::Podman => done(&mut podman(place.path(), &["system", "reset", "--force"])).await?,
            Program::Shakedown | Program::Skopeo => {}
        }
        // Trees have directories without rights, and podman leaves a mount.
        let path: PathBuf = place.keep();
        let _ =
            done(Command::new("umount").args(["--recursive", "--lazy"]).arg(path.join("root/overlay"))).await;
        done(Command::new("rm").args(["-rf", "--one-file-system"]).arg(&path)).await
    }
}

/// Podman on a store of its own.
fn podman(place: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("podman");
    for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
        command.arg(option).arg(place.join(name));
    }
    command.args(["--storage-driver=overlay", "--cgroup-manager=cgroupfs", "--log-level=error"]).args(words);
    command
}

async fn done(command: &mut Command) -> Result<()> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().await.with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

impl Engine for Puller {
    async fn measure(&mut self, work: &str) -> Result<Duration> {
        let place = tempfile::Builder::new().prefix("sdbench-").tempdir_in("/var/tmp")?;
        let took = match work {
            "pull" => self.pull(place.path()).await,
            "cold" => self.run_cold(place.path()).await,
            other => bail!("`{other}` is no pull"),
        };
        self.forget(place).await?;
        took
    }

    async fn close(self) -> Result<()> {
        Ok(())
    }
}
