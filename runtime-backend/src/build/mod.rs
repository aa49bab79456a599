//! Builds images from Dockerfiles: what both drivers share of it.
//!
//! ```text
//! text ──► dockerfile::ast ──► plan (stages, FROM) ──► config::State::apply, instruction by instruction ──► step::Step
//! ```
//! The Docker driver sends the build to its daemon after these have read it, so that a wrong Dockerfile fails with the
//! same words everywhere; the native driver carries out the steps.

pub mod request;
pub mod dockerfile;
pub mod context;
pub mod plan;
pub mod config;
pub mod step;
pub mod document;
pub mod progress;
mod expand;
pub(crate) mod ignore;
pub(crate) mod path;

pub use progress::{BuildEvent, BuildProgress};
pub use request::{BuildRequest, Resolve, as_written};
