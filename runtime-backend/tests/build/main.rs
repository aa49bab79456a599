//! Dockerfiles and build contexts, from text to steps: the part of a build that needs no driver.

mod evaluate;
mod invalid;
mod parse;
