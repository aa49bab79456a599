//! Real services, one file each, pure data: image, ports, environment, readiness, typed connection info.
//!
//! Part of the first stage, *declare*: nothing here does input or output. A module wraps a
//! [`Container`](shakedown_spec::Container), so the methods of [`Configure`](shakedown_spec::Configure) mix with its
//! own in any order; what the user sets last wins over what the module says.
//!
//! [`your_own`] shows how to write one.

mod postgres;
mod redis;
mod url;
pub mod your_own;

pub use postgres::{Postgres, PostgresConnection};
pub use redis::{Redis, RedisConnection};
pub use url::percent_encoded;
