//! What a later session has to know about a dead one to take its remains away.

use super::{Place, ProcessIdentity};
use serde::{Deserialize, Serialize};
use std::io;

/// The content of `meta.json`. Ids in it are for people; whether the keeper lives is what the lock says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// Version of this package.
    pub(crate) version: String,
    /// The keeper.
    pub(crate) keeper: ProcessIdentity,
    /// The process that ran the tests.
    pub(crate) runner: Option<ProcessIdentity>,
    /// The driver, empty if none worked.
    pub(crate) driver: String,
    /// Where the driver's engine listened, for a driver that has one.
    pub(crate) endpoint: Option<String>,
}

impl Meta {
    /// Reads a session's file; `None` if its keeper died before it made anything.
    pub(crate) fn read(place: &Place) -> io::Result<Option<Self>> {
        match std::fs::read(place.meta()) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the file under another name first: a keeper killed here leaves no half of it.
    pub(crate) fn write(&self, place: &Place) -> io::Result<()> {
        let unfinished = place.directory.join("meta.json.new");
        std::fs::write(&unfinished, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        std::fs::rename(unfinished, place.meta())
    }
}
