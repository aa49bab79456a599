//! `shakedown serve`: a keeper in the foreground.

use super::{Done, chosen, say};
use shakedown_runtime::DriverChoice;
use shakedown_server::config::Overrides;
use shakedown_server::keeper::serve_foreground;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(super) fn serve(socket: Option<PathBuf>, driver: Option<DriverChoice>, images: Overrides) -> Done {
    serve_foreground(socket, chosen(driver)?, images, |socket: &Path, driver: &str| {
        // Printed once the socket is there: a script may wait for the line, and `export` it.
        let _ = say(format!("SHAKEDOWN_SOCKET={}\n# {driver}\n", socket.display()).as_bytes());
    })?;
    Ok(ExitCode::SUCCESS)
}
