//! crun and runc: `run` on a bundle.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::future::try_join_all;
use tokio::process::Command;

use super::{AT_ONCE, Engine};
use crate::worker::Orders;

/// A runtime with runc's command line.
pub(crate) struct Oci {
    program: String,
    bundle: PathBuf,
    runs: u32,
}

impl Oci {
    pub(super) fn new(program: &str, orders: &Orders) -> Self {
        Self { program: program.to_owned(), bundle: orders.bundle.clone(), runs: 0 }
    }
}

impl Engine for Oci {
    async fn measure(&mut self, work: &str) -> Result<Duration> {
        match work {
            "true" => {
                self.runs += 1;
                self.run_true(self.runs).await
            }
            "at-once" => {
                let first = self.runs + 1;
                self.runs += AT_ONCE;
                let started = Instant::now();
                try_join_all((first..=self.runs).map(|number| self.run_true(number))).await?;
                Ok(started.elapsed() / AT_ONCE)
            }
            other => bail!("`{other}` is not measured with {}", self.program),
        }
    }

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Oci {
    async fn run_true(&self, number: u32) -> Result<Duration> {
        let id = format!("sdbench-{}-{number}", std::process::id());
        let mut command = Command::new(&self.program);
        command.args(["run", "--bundle"]).arg(&self.bundle).arg(id);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let started = Instant::now();
        let output = command.output().await.with_context(|| format!("cannot start {}", self.program))?;
        let took = started.elapsed();
        // A runtime that refuses to run looks fast.
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("{} run failed ({}): {}", self.program, output.status, message.trim());
        }
        Ok(took)
    }
}
