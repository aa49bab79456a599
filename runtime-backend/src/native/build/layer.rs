//! What was written to a container, as a layer that is read while it is captured.

use super::{CaptureOptions, Captured};
use crate::driver::Result;
use crate::native::NativeDriver;
use crate::native::launcher::Job;
use crate::native::streams::Checked;
use shakedown_spec::{Failure, FailureKind};
use std::path::PathBuf;
use std::pin::Pin;
use tokio::io::AsyncRead;

/// Files that the driver itself writes into a container.
const WRITTEN: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

impl NativeDriver {
    /// What was written to the root of the container so far, running or not: an uncompressed image layer. Files that the
    /// driver wrote, and what is mounted, are no part of it.
    ///
    /// # Errors
    ///
    /// There is no such container; reading tells what went wrong later.
    pub fn capture(&self, id: &str) -> Result<Pin<Box<dyn AsyncRead + Send>>> {
        let instance = self.instance(id)?;
        let container = &instance.create.container;
        let left_out = WRITTEN.into_iter().chain(container.mounts.iter().map(|mount| &*mount.target));
        let options = CaptureOptions {
            lower: instance.image.layers.clone(),
            userxattr: self.launcher.identity().user_namespace(),
            left_out: left_out.map(PathBuf::from).collect(),
            latest: None,
            shift: self.shift(container),
        };
        let job = Job::Capture { id: id.to_owned(), options: Box::new(options) };
        let captured = Checked::of::<Captured>(&self.launcher, job).map_err(|error| {
            let title = format!("the changes in {} could not be captured", container.display_name());
            Failure::new(FailureKind::CopyFailed, title).fact("call", error.to_string())
        })?;
        Ok(Box::pin(captured))
    }
}
