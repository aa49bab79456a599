//! crun and runc: `run` on a bundle.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use super::Engine;
use crate::worker::Orders;

/// A runtime with runc's command line.
pub(crate) struct Oci {
    program: String,
    bundle: PathBuf,
    runs: usize,
}

impl Oci {
    pub(super) fn new(program: &str, orders: &Orders) -> Self {
        Self { program: program.to_owned(), bundle: orders.bundle.clone(), runs: 0 }
    }
}

impl Engine for Oci {
    async fn measure(&mut self, work: &str) -> Result<Duration> {
        if work != "true" {
            bail!("{} is measured with `true` only", self.program);
        }
        self.runs += 1;
        let id = format!("sdbench-{}-{}", std::process::id(), self.runs);
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

    async fn close(self) -> Result<()> {
        Ok(())
    }
}
