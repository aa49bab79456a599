//! What the kernel takes for the namespaces of a container and a program in them, without anything set up.
//!
//! A worker without a runtime: a process with threads may not clone as a launcher does.

use std::io::BufRead as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::bundle::TRUE;
use crate::worker::{answer, millis};

/// Answers until its input ends. The program is the same that the others run.
pub(crate) fn serve(bundle: &Path) -> Result<()> {
    let program = bundle.join("rootfs").join(TRUE.trim_start_matches('/'));
    let program = program.to_str().context("the bundle has a strange name")?;
    for line in std::io::stdin().lock().lines() {
        line.context("cannot read what to do")?;
        let started = Instant::now();
        match shakedown_runtime::native::bare_clone(program) {
            Ok(()) => answer(&millis(started.elapsed())),
            Err(error) => answer(&format!("{program}: {error}")),
        }
    }
    Ok(())
}
