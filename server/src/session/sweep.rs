//! Taking away what dead sessions left: the reap stage of keepers that could not do it themselves.

use super::{Meta, Place, SessionLock, try_lock};
use std::io;

/// Sweeps every other session of the run directory whose keeper is dead.
///
/// Both locks of a dead session are held meanwhile, so that two keepers do not sweep the same one, and a run with the
/// same name waits until the old state is gone. What cannot be swept now is kept for the next keeper.
pub(crate) async fn sweep(own: &Place) {
    for place in own.neighbours() {
        match sweep_one(&place).await {
            Ok(true) => crate::keeper::note(&format!("swept the dead session {}", place.name)),
            Ok(false) => {}
            Err(reason) => crate::keeper::note(&format!(
                "session {} is dead and could not be swept: {reason}",
                place.name
            )),
        }
    }
}

/// Whether the session was dead.
async fn sweep_one(place: &Place) -> Result<bool, String> {
    let text = |error: io::Error| error.to_string();
    // In this order everywhere: who has `start` may try `lock`, never the other way round.
    let Some(_start) = try_lock(place, SessionLock::Start).map_err(text)? else { return Ok(false) };
    let Some(_life) = try_lock(place, SessionLock::Life).map_err(text)? else { return Ok(false) };
    if let Some(meta) = Meta::read(place).map_err(text)? {
        crate::keeper::sweep(&meta, &place.name).await.map_err(|failure| failure.to_string())?;
    }
    remove_directory(place).map_err(text)?;
    Ok(true)
}

/// Removes a session's directory. The caller holds both locks.
///
/// Only plain files are removed: if something is mounted or nested here after all, the directory stays.
pub(crate) fn remove_directory(place: &Place) -> io::Result<()> {
    let locks = [SessionLock::Life.file_name(), SessionLock::Start.file_name()];
    for entry in std::fs::read_dir(&place.directory)? {
        let entry = entry?;
        if !locks.iter().any(|lock| entry.file_name() == *lock) {
            std::fs::remove_file(entry.path())?;
        }
    }
    // The locks go last, `start` at the very end: a process that takes it afterwards finds that it is gone.
    for lock in locks {
        match std::fs::remove_file(place.directory.join(lock)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match std::fs::remove_dir(&place.directory) {
        // A process of the next run has made its `start` file already: the directory is its own now.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other,
    }
}
