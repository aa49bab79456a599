//! The resolve stage against real archives, real registries, killed processes and full disks.

mod attacks;
mod crash;
mod images;
mod layers;
mod registry;
mod sources;
mod tape;
