//! Real services for tests: databases, brokers, caches, anything in a container image; nothing left behind.
//!
//! This is the last stage of the way of the data, *use*: what a test imports. It is a thin client of the session
//! keeper, which it starts on first use and which takes everything away when the test is gone, whatever happened to it.
//!
//! ```no_run
//! use shakedown::{modules::{Postgres, Redis}, prelude::*};
//!
//! # async fn checkout(_: &str, _: &str) -> shakedown::Result<u32> { Ok(42) }
//! // #[tokio::test]
//! async fn order_totals_are_cached() -> shakedown::Result {
//!     let net = Network::new();
//!     let db = Postgres::new().network(&net).init_sql("CREATE TABLE orders (total int)").start().await?;
//!     let cache = Redis::new().network(&net).wait(Wait::command(["redis-cli", "ping"])).start().await?;
//!
//!     let total = checkout(&db.url(), &cache.url()).await?;
//!     assert_eq!(total, 42);
//!     Ok(())
//! }
//! # let _ = order_totals_are_cached();
//! ```
//!
//! * **Declare** with a module of [`modules`], with [`GenericContainer`] for any image, or with
//!   [one of your own](modules::your_own); the options of [`Configure`] mix freely with a module's own.
//! * **Start** with [`Start::start`]. What takes time is a [`Pending`]: `.await` it in any async runtime, or call
//!   [`.blocking()`](Pending::blocking).
//! * **Use** the [`Running`] container; it dereferences to the module's connection info.
//! * **Return** [`shakedown::Result`](Result): a failing test shows the line and the logs of its containers.

mod background;
mod check;
mod error;
mod evidence;
mod exec;
mod files;
mod guard;
pub mod images;
mod logs;
mod pending;
mod process;
mod running;
mod session;
mod start;
mod substitute;

pub use check::{Answer, Checked};
pub use error::{Error, Result};
pub use exec::{Exec, ExecOutput};
pub use logs::{LogLine, LogLines, LogOptions, Logs};
pub use pending::Pending;
pub use process::Process;
pub use running::{Running, State, Timings};
pub use session::{Session, session};
pub use start::Start;

pub use shakedown_modules as modules;
pub use shakedown_runtime::{
    Capability, Exit, Health, HealthProbe, HealthStatus, ListedImage, LoadedImage, NewImage, Usage,
};
pub use shakedown_spec::{
    Attachment, BindOptions, Build, BuildContext, BuildSecret, Configure, Connection, Container, ContextFile,
    Device, Dockerfile, Endpoints, Failure, FailureKind, File, FileContent, GenericContainer, Healthcheck,
    HttpCheck, Licence, LogTail, Module, Mount, MountSource, NamespaceMode, Network, NetworkMode, Pattern,
    Port, ProbeProtocol, Propagation, Protocol, Published, PullPolicy, Relabel, Resources, RestartPolicy,
    Seccomp, SecurityOptions, Stream, Ulimit, Volume, VolumesFrom, Wait, WaitKind,
};

/// What most tests import: `use shakedown::prelude::*`.
pub mod prelude {
    pub use crate::{
        Build, Configure, File, GenericContainer, LogOptions, Module, Mount, Network, Port, Running, Start,
        Volume, Wait,
    };
}
