//! The session keeper: the fixture server that owns what a test run started, and takes it away again.
//!
//! A test binary re-executes itself as the keeper ([`hook`]); `shakedown serve` is the same code in the foreground.
//! A test process finds its keeper, or starts it, with [`session`] and talks to it with [`client`]. Inside the keeper a
//! request goes `rest` → `check` (is the declaration possible?) → `fixtures` (who owns what) → a driver.

pub mod api;
pub mod amount;
mod check;
mod environment;
pub mod client;
pub mod config;
mod fixtures;
pub mod frames;
pub mod hook;
pub mod keeper;
pub mod lockfile;
pub mod progress;
mod rest;
pub mod session;
