//! The whole-system suite: what a user can count on, on whatever driver `SHAKEDOWN_DRIVER` names.
//!
//! No test asks which driver it is. What a driver cannot do here it declares as a missing capability; the test then
//! prints the reason and checks that asking for it is a clear failure.

mod attacks;
mod build;
mod build_steps;
mod chaos;
mod check;
mod ends;
mod exec;
mod failures;
mod files;
mod images;
mod isolation;
mod limits;
mod logs;
mod networks;
mod official_images;
mod options;
mod outbound;
mod ports;
mod postgres;
mod processes;
mod races;
mod reaping;
mod redis;
mod runtimes;
mod soak;
mod traces;
mod users;
mod waits;
