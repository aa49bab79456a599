//! Runs containers: the stages *resolve*, *prepare*, *launch* and *wait*.
//!
//! Two drivers stand behind one trait: [`native`], the bundled runtime, and [`docker`], any Docker-compatible socket.
//! Nothing above [`driver`] mentions Docker, mounts or namespaces; nothing below it mentions tests.

pub mod build;
pub mod detect;
pub mod docker;
pub mod doctor;
pub mod driver;
pub mod logbook;
pub mod native;
pub mod wait;
mod changes;
mod credentials;
mod debian;
mod image_files;
mod merge;
mod pack;
mod pipe;
mod relay;
mod transfer;
mod sockets;
mod wanted;

pub use detect::{DriverChoice, Refusal};
pub use driver::{
    Abort, Attached, Capability, Create, Driver, Exec, ExecOutput, ExecRequest, Exit, Health, HealthProbe,
    HealthStatus, Image, ImageConfig, Progress, Resize, Result, SharedInput, Socket, TerminalSize, Usage,
};
pub use image_files::ArchiveForm;
pub use logbook::{LogBook, LogLine};
pub use native::image::{Bundled, RegistriesConfig, RegistryConfig, StoreLimits};
pub use transfer::{ByteStream, ListedImage, LoadedImage, NewImage, SavedImage, tagged};
pub use wanted::{Runs, Wanted};
