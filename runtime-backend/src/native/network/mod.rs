//! Networks of the native driver: bridges in the session's own network namespace, where nothing of the host is.

pub(crate) mod addresses;
pub(crate) mod netlink;
pub(crate) mod namespace;
pub(crate) mod publish;
