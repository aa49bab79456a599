//! Integration tests of the runtime, in one binary.

mod docker;
mod wait;
