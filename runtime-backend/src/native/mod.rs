//! The native driver: images first.

pub mod image;
