//! The resolve stage against real archives, real registries, killed processes and full disks.

mod arena;
mod attacks;
mod auth;
mod corpus;
mod crash;
mod damage;
mod faults;
mod hostile;
mod images;
mod ingest;
mod judge;
mod keys;
mod layers;
mod mirrors;
mod platforms;
mod proxy;
mod push;
mod registry;
mod server;
mod sources;
mod tape;
mod transfer;
mod upkeep;
