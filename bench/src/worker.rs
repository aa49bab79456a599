//! A process that measures one engine: one line of work in, one line of milliseconds out.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::engines::{self, Engine as _};
use crate::plan::Options;

/// Where a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// As this process.
    Here,
    /// As the ordinary user.
    User,
    /// In a mount namespace in which the cgroup v2 tree beside the v1 ones is not mounted: with it, crun says "cgroups
    /// in hybrid mode not supported" and exits at once, which would look fast.
    WithoutUnifiedCgroups,
}

/// Takes the v2 tree away where there is one beside v1, and becomes the worker.
const WITHOUT_UNIFIED: &str =
    "if [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi; exec \"$@\"";

/// What a worker is told on its command line.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    /// The directory of the image layouts.
    pub(crate) images: PathBuf,
    /// The bundle for runc and crun.
    pub(crate) bundle: PathBuf,
    /// The address of a Docker daemon.
    pub(crate) docker: String,
    /// The program `shakedown`.
    pub(crate) program: PathBuf,
    /// The image that is pulled, in a registry on loopback; empty if none is.
    pub(crate) pulled: String,
}

/// A running worker. Dropping it closes its input, which ends it, and waits for that.
pub(crate) struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts the worker for an engine.
    pub(crate) fn start(
        engine: &str,
        place: Place,
        options: &Options,
        bundle: &Path,
        pulled: &str,
    ) -> Result<Self> {
        let this = std::env::current_exe().context("this program's file is unknown")?;
        let mut command = match place {
            Place::Here => Command::new(this),
            Place::User => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &options.user, "--regid", &options.user, "--init-groups"]);
                command.args(["--inh-caps=-all", "--reset-env", "--", "env"]);
                command.arg("SHAKEDOWN_DRIVER=native").arg(this);
                command
            }
            Place::WithoutUnifiedCgroups => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation=private", "--", "sh", "-euc", WITHOUT_UNIFIED, "sh"]);
                command.arg(this);
                command
            }
        };
        command.args(["worker", engine]).arg(&options.images).arg(bundle).arg(&options.docker);
        command.arg(&options.program).arg(pulled);
        // For the user, `env` above says it: `--reset-env` takes this away.
        command.env("SHAKEDOWN_DRIVER", if engine == "docker" { "docker" } else { "native" });
        command.env("DOCKER_HOST", &options.docker).current_dir("/");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("cannot start the worker for {engine}"))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("the worker has no output")?);
        Ok(Self { child, input, output })
    }

    /// Has one piece of work done; how many milliseconds it took.
    pub(crate) fn ask(&mut self, work: &str) -> Result<f64> {
        let input = self.input.as_mut().context("the worker has ended")?;
        writeln!(input, "{work}").context("the worker has ended")?;
        let mut line = String::new();
        self.output.read_line(&mut line).context("the worker does not answer")?;
        let line = line.trim();
        if line.is_empty() {
            bail!("the worker has ended");
        }
        line.parse().map_err(|_| anyhow::anyhow!("{line}"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.input.take();
        self.child.wait().ok();
    }
}

/// The worker's side: answers until its input ends.
pub(crate) fn serve(args: &[String]) -> Result<()> {
    let [engine, images, bundle, docker, program, pulled] = args else {
        bail!("a worker takes six arguments")
    };
    let orders = Orders {
        images: images.into(),
        bundle: bundle.into(),
        docker: docker.clone(),
        program: program.into(),
        pulled: pulled.clone(),
    };
    if engine == "bare" {
        return engines::bare(Path::new(bundle));
    }
    let runtime = runtime()?;
    let mut engine = runtime.block_on(engines::open(engine, &orders))?;
    for line in std::io::stdin().lines() {
        let work = line.context("cannot read what to do")?;
        match runtime.block_on(engine.measure(&work)) {
            Ok(took) => answer(&millis(took)),
            // One line, whatever the message is.
            Err(error) => answer(&format!("{error:#}").replace('\n', " | ")),
        }
    }
    runtime.block_on(engine.close())
}

/// Starts one container in this process, which is new.
pub(crate) fn once(args: &[String]) -> Result<()> {
    let [image] = args else { bail!("`once` takes an image") };
    runtime()?.block_on(engines::once(image))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

pub(crate) fn millis(took: Duration) -> String {
    format!("{:.4}", took.as_secs_f64() * 1000.0)
}

#[expect(clippy::print_stdout, reason = "the answer of a worker is a line on its standard output")]
pub(crate) fn answer(line: &str) {
    println!("{line}");
}
