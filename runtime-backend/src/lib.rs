//! Runs containers: the stages *resolve*, *prepare*, *launch* and *wait*.
//!
//! Two drivers stand behind one trait: [`native`], the bundled runtime, and [`docker`], any Docker-compatible socket.
//! Nothing above [`driver`] mentions Docker, mounts or namespaces; nothing below it mentions tests.

pub mod detect;
pub mod docker;
pub mod driver;
pub mod logbook;
pub mod native;
pub mod wait;
mod pack;
mod sockets;

pub use detect::{DriverChoice, Refusal};
pub use driver::{
    Capability, Create, Driver, Exec, ExecOutput, ExecRequest, Exit, Image, ImageConfig, Progress, Result,
    Socket,
};
pub use logbook::{LogBook, LogLine};
