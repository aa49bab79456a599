//! How to write a module of your own.
//!
//! A module is a type that holds a [`Container`](shakedown_spec::Container) and says three things:
//!
//! * what to run, and when it is ready: [`Module::declare`](shakedown_spec::Module::declare);
//! * what a test holds once it runs: [`Module::Connection`](shakedown_spec::Module::Connection), made by
//!   [`Module::connect`](shakedown_spec::Module::connect);
//! * that its declaration may be changed: `AsMut<Container>`, which brings every method of
//!   [`Configure`](shakedown_spec::Configure) (`env`, `file`, `network`, `wait`, `timeout`, …).
//!
//! ```
//! use shakedown_spec::{Configure, Container, Endpoints, Module, Wait};
//!
//! /// The shop's own search service.
//! #[derive(Clone)]
//! pub struct Search {
//!     container: Container,
//!     index: String,
//! }
//!
//! impl Search {
//!     pub fn new() -> Self {
//!         // The module's own settings come first; whatever the user calls later lies on top of them.
//!         let container = Container::of("ghcr.io/shop/search:3").port(8080).wait(Wait::http(8080, "/health"));
//!         Self { container, index: "orders".to_owned() }
//!     }
//!
//!     pub fn index(mut self, index: impl Into<String>) -> Self {
//!         self.index = index.into();
//!         self
//!     }
//! }
//!
//! impl AsMut<Container> for Search {
//!     fn as_mut(&mut self) -> &mut Container {
//!         &mut self.container
//!     }
//! }
//!
//! impl Module for Search {
//!     type Connection = SearchConnection;
//!
//!     fn declare(&self) -> Container {
//!         // What depends on several settings is put together here; `get_or_insert_with` and `entry` keep the user's.
//!         let mut container = self.container.clone();
//!         container.env.entry("SEARCH_INDEX".to_owned()).or_insert_with(|| self.index.clone());
//!         container
//!     }
//!
//!     fn connect(&self, endpoints: &Endpoints) -> SearchConnection {
//!         let port = endpoints.tcp(8080).unwrap_or_default();
//!         SearchConnection { url: format!("http://{}:{port}/{}", endpoints.url_host(), self.index) }
//!     }
//! }
//!
//! /// What a test holds: `search.url`, once `Search::new().start()` is through.
//! pub struct SearchConnection {
//!     pub url: String,
//! }
//!
//! let search = Search::new().env("LOG_LEVEL", "debug").index("refunds");
//! assert_eq!(search.declare().env["SEARCH_INDEX"], "refunds");
//! ```
//!
//! What makes a module good:
//!
//! * **Pin the image** to a version whose behaviour the module knows, and name the images it knows with
//!   [`made_for`](shakedown_spec::Configure::made_for): one of another name is then refused unless its user says that
//!   it is compatible.
//! * **Ready means ready.** Ask the service, by its own protocol or over HTTP, rather than its log: log lines change
//!   between versions, and many images log "ready" for the temporary server of their initialisation.
//! * **Name the user** the image's entry point changes to (`service_user`), so that the service also runs where only one
//!   user id can be mapped.
//! * **Say what is switched off** for speed, and how to switch it on.
//! * **Do no input or output.** A module is data: it can be printed, compared and snapshot-tested.
//!
//! # A service with a licence
//!
//! Where a licence has to be accepted, the module declares it and leaves the acceptance to its user. Without it the
//! start is refused, with the address of the licence:
//!
//! ```
//! use shakedown_spec::{Configure, Container, Licence};
//!
//! #[derive(Clone)]
//! pub struct Ledger(Container);
//!
//! impl Ledger {
//!     pub fn new() -> Self {
//!         let mut container = Container::of("registry.example.com/ledger:9").made_for(["registry.example.com/ledger"]);
//!         container.licence = Some(Licence::new("Ledger end-user licence", "https://ledger.example.com/eula"));
//!         // What the image itself asks for. Nothing runs before the user has accepted, so it may stand here.
//!         Self(container.env("ACCEPT_EULA", "Y"))
//!     }
//! }
//!
//! impl AsMut<Container> for Ledger {
//!     fn as_mut(&mut self) -> &mut Container {
//!         &mut self.0
//!     }
//! }
//!
//! // A test writes the acceptance out, where a reviewer sees it:
//! let ledger = Ledger::new().accept_licence();
//! assert!(ledger.0.licence.unwrap().accepted);
//! ```

#[cfg(test)]
pub(crate) mod examples {
    use shakedown_spec::{Endpoints, Protocol, Published};

    /// Endpoints as a driver gives them: `port` published on 40000, the name `db` on a network.
    pub(crate) fn endpoints(port: u16) -> Endpoints {
        let published = vec![Published { container: port, protocol: Protocol::Tcp, host: 40000 }];
        Endpoints { host: "127.0.0.1".into(), published, peer_host: Some("db".into()) }
    }
}
