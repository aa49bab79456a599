//! Networks of the native driver: bridges in the session's own network namespace, where nothing of the host is.

pub(crate) mod addresses;
pub(crate) mod carrier;
mod carry;
pub(crate) mod netlink;
mod divert;
pub(crate) mod namespace;
pub(crate) mod names;
pub(crate) mod ports;
pub(crate) mod publish;
pub(crate) mod gateway;
pub(crate) mod resolver;
