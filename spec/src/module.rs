//! A ready-made service: a declaration plus typed connection info.

use crate::{Container, Endpoints, GenericContainer};

/// A service that is used without knowing its image: `Postgres`, `Redis`, or one of your own.
///
/// A module is data. It says which container to run, and what a test gets once it runs. A service whose licence has to be
/// accepted says so in its declaration ([`Licence`](crate::Licence)), and its user accepts it with
/// [`accept_licence()`](crate::Configure::accept_licence).
pub trait Module: Clone + Send + Sync + 'static {
    /// What a test holds: `url()`, `host()`, … It is what `Running<Self>` dereferences to.
    type Connection: Send + Sync + 'static;

    /// The whole declaration, the user's changes on top of the module's own.
    fn declare(&self) -> Container;

    /// The connection info of a running container.
    fn connect(&self, endpoints: &Endpoints) -> Self::Connection;
}

/// Connection info of a container without a module: the endpoints as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    endpoints: Endpoints,
}

impl Connection {
    /// The host to connect to from the test.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.endpoints.host
    }
}

impl Module for GenericContainer {
    type Connection = Connection;

    fn declare(&self) -> Container {
        self.0.clone()
    }

    fn connect(&self, endpoints: &Endpoints) -> Connection {
        Connection { endpoints: endpoints.clone() }
    }
}
