//! Redis, from the official image or one of its kin (Valkey).

use crate::url::{peer_host, percent_encoded};
use serde::{Deserialize, Serialize};
use shakedown_spec::{Configure, Container, Endpoints, Failure, Module, ProbeProtocol, Wait};
use std::collections::BTreeMap;

const PORT: u16 = 6379;

/// A Redis server.
///
/// ```
/// use shakedown_modules::Redis;
/// use shakedown_spec::{Configure, Module};
///
/// let cache = Redis::new().password("s3cret").config("maxmemory-policy", "allkeys-lru").memory(64 << 20);
/// assert_eq!(cache.declare().image, "redis:7");
/// ```
///
/// It is ready when the server answers `PING`, and not by saying that it is loading its data.
///
/// # Persistence is off
///
/// The data lives as long as the test, so no snapshots are written (`--save ""`) and the append-only file is off, which
/// is Redis's own default. `.config("save", "60 1")` and `.config("appendonly", "yes")` turn them on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    container: Container,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    config: BTreeMap<String, String>,
}

impl Redis {
    /// Redis 7.
    #[must_use]
    pub fn new() -> Self {
        let mut container = Container::of("redis:7")
            .made_for(["redis", "valkey/valkey"])
            .port(PORT)
            .wait(Wait::probe(ProbeProtocol::Redis, PORT));
        container.name = Some("redis".to_owned());
        container.service_user = Some("redis".to_owned());
        Self { container, password: None, config: BTreeMap::new() }.config("save", "")
    }

    /// Asks clients for this password (`requirepass`).
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// The number of numbered databases; Redis's default is 16.
    #[must_use]
    pub fn databases(self, count: u32) -> Self {
        self.config("databases", count.to_string())
    }

    /// Sets a configuration directive: `value` is what stands after `key` in `redis.conf`, words parted by blanks.
    #[must_use]
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// `redis-server --key word word …`: the arguments are read as lines of `redis.conf`, each begun by `--`.
    fn argv(&self) -> Vec<String> {
        let mut argv = vec!["redis-server".to_owned()];
        for (key, value) in &self.config {
            argv.push(format!("--{key}"));
            match value.split_whitespace().next() {
                None => argv.push(String::new()),
                Some(_) => argv.extend(value.split_whitespace().map(str::to_owned)),
            }
        }
        if let Some(password) = &self.password {
            argv.extend(["--requirepass".to_owned(), password.clone()]);
        }
        argv
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self::new()
    }
}

impl AsMut<Container> for Redis {
    fn as_mut(&mut self) -> &mut Container {
        &mut self.container
    }
}

impl Module for Redis {
    type Connection = RedisConnection;

    fn declare(&self) -> Container {
        let mut container = self.container.clone();
        container.command.get_or_insert_with(|| self.argv());
        container
    }

    fn connect(&self, endpoints: &Endpoints) -> RedisConnection {
        RedisConnection { endpoints: endpoints.clone(), password: self.password.clone() }
    }
}

/// How to connect to a running [`Redis`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisConnection {
    endpoints: Endpoints,
    password: Option<String>,
}

impl RedisConnection {
    /// The host to connect to from the test.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.endpoints.host
    }

    /// The port to connect to from the test; 0 if the declaration was changed not to publish 6379.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.endpoints.tcp(PORT).unwrap_or_default()
    }

    /// The password, if one is asked for.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// The URL for the test: `redis://host:port`, with `default:password@` in front of the host if there is one.
    ///
    /// The user is named because `redis-cli` takes an empty name for a user of that name.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(&self.endpoints.url_host(), self.port())
    }

    /// The URL of the numbered database `index` for the test.
    #[must_use]
    pub fn database_url(&self, index: u32) -> String {
        format!("{}/{index}", self.url())
    }

    /// The name by which other containers on its network reach the server.
    ///
    /// # Errors
    ///
    /// The container is on no network.
    pub fn peer_host(&self) -> Result<&str, Failure> {
        peer_host("redis", &self.endpoints)
    }

    /// The URL for other containers on its network.
    ///
    /// # Errors
    ///
    /// The container is on no network.
    pub fn peer_url(&self) -> Result<String, Failure> {
        Ok(self.url_at(self.peer_host()?, PORT))
    }

    fn url_at(&self, host: &str, port: u16) -> String {
        let password =
            self.password.as_ref().map(|password| format!("default:{}@", percent_encoded(password)));
        format!("redis://{}{host}:{port}", password.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::your_own::examples::endpoints;

    /// What runs when a user writes `Redis::new()` and nothing else.
    #[test]
    fn the_default_is_a_forgetful_redis_7() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&Redis::new().declare()).unwrap(), @r#"
        {
          "image": "redis:7",
          "name": "redis",
          "command": [
            "redis-server",
            "--save",
            ""
          ],
          "service_user": "redis",
          "ports": [
            {
              "container": 6379,
              "protocol": "tcp"
            }
          ],
          "waits": [
            {
              "condition": {
                "probe": {
                  "protocol": "redis",
                  "port": 6379
                }
              }
            }
          ],
          "resources": {},
          "privileged": false,
          "no_new_privileges": false,
          "read_only": false,
          "compatible": [
            "redis",
            "valkey/valkey"
          ]
        }
        "#);
    }

    /// Directives reach the server as `redis.conf` would say them; a password keeps its blanks.
    #[test]
    fn directives_become_arguments() {
        let redis = Redis::new().databases(4).config("save", "60 1").password("two words");
        let expected =
            ["redis-server", "--databases", "4", "--save", "60", "1", "--requirepass", "two words"];
        assert_eq!(redis.declare().command.unwrap(), expected);
        assert_eq!(redis.command(["redis-server"]).declare().command.unwrap(), ["redis-server"]);
    }

    /// Clients of the test and other containers get the password with the address.
    #[test]
    fn urls_carry_the_password() {
        let plain = Redis::new().connect(&endpoints(PORT));
        assert_eq!(plain.url(), "redis://127.0.0.1:40000");
        assert_eq!(plain.database_url(3), "redis://127.0.0.1:40000/3");
        let secret = Redis::new().password("p@ss").connect(&endpoints(PORT));
        assert_eq!(secret.url(), "redis://default:p%40ss@127.0.0.1:40000");
        assert_eq!(secret.peer_url().unwrap(), "redis://default:p%40ss@db:6379");
    }
}
