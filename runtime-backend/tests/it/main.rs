//! Integration tests of the runtime, in one binary.

mod build;
mod docker;

mod trees;
mod wait;
