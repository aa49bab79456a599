//! Keepers as processes of their own, the Docker driver, a real daemon at `SHAKEDOWN_DOCKER_HOST` or `DOCKER_HOST`.
//!
//! The images are those of `target/images` (`SHAKEDOWN_TEST_IMAGES` names another directory). A missing daemon or
//! image is a failure, never a silent success.

mod actor;
mod command;
mod images;
mod killed;
mod lab;
mod policy;
mod reap;
mod registry;
mod rest;
mod service;
mod start;
