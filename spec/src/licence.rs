//! Licences that only a user can accept.

use serde::{Deserialize, Serialize};

/// A licence without whose acceptance a service may not be run, such as that of a commercial database.
///
/// A module puts it into its declaration; nothing of the container is made before the user has written
/// [`accept_licence()`](crate::Configure::accept_licence). No module and no configuration file does it for him.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    /// What it is called.
    pub name: String,
    /// Where it can be read.
    pub url: String,
    /// Whether the user has accepted it.
    #[serde(default)]
    pub accepted: bool,
}

impl Licence {
    /// A licence that is not accepted yet.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self { name: name.into(), url: url.into(), accepted: false }
    }
}
