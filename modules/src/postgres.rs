//! PostgreSQL, from the official image or one of its kin (postgis, timescale, pgvector).

use crate::url::{peer_host, percent_encoded};
use serde::{Deserialize, Serialize};
use shakedown_spec::{Configure, Container, Endpoints, Failure, File, Module, ProbeProtocol, Wait};
use std::collections::BTreeMap;

const PORT: u16 = 5432;
/// Where the official image's entry point looks for what to run on the new database, in the order of the names.
const INIT: &str = "/docker-entrypoint-initdb.d/";

/// A PostgreSQL server with a user, a password and a database, `postgres` each.
///
/// ```
/// use shakedown_modules::Postgres;
/// use shakedown_spec::{Configure, Module};
///
/// let orders = Postgres::new()
///     .database("shop")
///     .init_sql("CREATE TABLE orders (id serial PRIMARY KEY, total int NOT NULL)")
///     .config("max_connections", "20")
///     .env("TZ", "Europe/Vienna");
/// assert_eq!(orders.declare().env["POSTGRES_DB"], "shop");
/// ```
///
/// It is ready when the server answers a start-up message over TCP. The temporary server that the image runs during
/// initialisation listens on its unix socket only, so it is not taken for the real one.
///
/// # Durability is off
///
/// The data lives as long as the test, so nothing is forced to disk: `fsync`, `synchronous_commit` and
/// `full_page_writes` are off, and `initdb` runs with `--no-sync`. A test of crash recovery turns them on again with
/// `.config("fsync", "on")` and so on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    container: Container,
    config: BTreeMap<String, String>,
}

impl Postgres {
    /// PostgreSQL 17.
    #[must_use]
    pub fn new() -> Self {
        let mut container = Container::of("postgres:17")
            .made_for(["postgres", "pgvector/pgvector", "postgis/postgis", "timescale/timescaledb"])
            .env("POSTGRES_INITDB_ARGS", "--no-sync")
            .port(PORT)
            .wait(Wait::probe(ProbeProtocol::Postgres, PORT))
            // Fast shutdown: SIGTERM would wait for every client to disconnect (PostgreSQL manual, 18.5).
            .stop_signal("SIGINT");
        container.name = Some("postgres".to_owned());
        container.service_user = Some("postgres".to_owned());
        let config =
            ["fsync", "synchronous_commit", "full_page_writes"].map(|key| (key.to_owned(), "off".to_owned()));
        Self { container, config: config.into() }.user("postgres").password("postgres").database("postgres")
    }

    /// The superuser that the image makes.
    #[must_use]
    pub fn user(self, user: impl Into<String>) -> Self {
        self.env("POSTGRES_USER", user)
    }

    /// The superuser's password.
    #[must_use]
    pub fn password(self, password: impl Into<String>) -> Self {
        self.env("POSTGRES_PASSWORD", password)
    }

    /// The database that the image makes, and that [`url`](PostgresConnection::url) leads to.
    #[must_use]
    pub fn database(self, database: impl Into<String>) -> Self {
        self.env("POSTGRES_DB", database)
    }

    /// How clients that come over the network show who they are: `scram-sha-256` (the image's default), `md5`,
    /// `trust`, …
    #[must_use]
    pub fn host_auth(self, method: impl Into<String>) -> Self {
        self.env("POSTGRES_HOST_AUTH_METHOD", method)
    }

    /// Runs `sql` on the new database before the server counts as ready. Several are run in the order they are given.
    ///
    /// A statement that fails ends the container, and the start reports it with the server's log.
    #[must_use]
    pub fn init_sql(self, sql: impl Into<String>) -> Self {
        let path = self.next_init("sql");
        self.file(path, sql.into())
    }

    /// Runs a shell script before the server counts as ready, in order with [`init_sql`](Postgres::init_sql).
    ///
    /// `psql` connects to the new server without options; `$POSTGRES_USER` and `$POSTGRES_DB` are set.
    #[must_use]
    pub fn init_script(self, script: impl Into<String>) -> Self {
        let path = self.next_init("sh");
        // Executable, so that the entry point runs it: a script without the bit is read into the entry point's own shell.
        self.copy(File::bytes(path, script.into()).mode(0o755))
    }

    /// Installs an extension that the image has, such as `pgcrypto`, into the database.
    #[must_use]
    pub fn extension(self, name: impl AsRef<str>) -> Self {
        let quoted = name.as_ref().replace('"', "\"\"");
        self.init_sql(format!("CREATE EXTENSION IF NOT EXISTS \"{quoted}\" CASCADE;\n"))
    }

    /// Sets a server parameter, as `postgres -c key=value`.
    #[must_use]
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Adds an argument for `initdb`, such as `--locale=de_AT.UTF-8`.
    #[must_use]
    pub fn initdb_arg(mut self, argument: impl AsRef<str>) -> Self {
        let arguments = self.container.env.entry("POSTGRES_INITDB_ARGS".to_owned()).or_default();
        *arguments = format!("{arguments} {}", argument.as_ref()).trim_start().to_owned();
        self
    }

    /// The next name in the image's init directory; numbers keep the order of the calls.
    fn next_init(&self, extension: &str) -> String {
        let taken = self.container.files.iter().filter(|file| file.path.starts_with(INIT)).count();
        format!("{INIT}{taken:03}.{extension}")
    }

    fn setting(&self, name: &str) -> Option<String> {
        self.container.env.get(name).filter(|value| !value.is_empty()).cloned()
    }
}

impl Default for Postgres {
    fn default() -> Self {
        Self::new()
    }
}

impl AsMut<Container> for Postgres {
    fn as_mut(&mut self) -> &mut Container {
        &mut self.container
    }
}

impl Module for Postgres {
    type Connection = PostgresConnection;

    fn declare(&self) -> Container {
        let mut container = self.container.clone();
        container.command.get_or_insert_with(|| {
            let options =
                self.config.iter().flat_map(|(key, value)| ["-c".to_owned(), format!("{key}={value}")]);
            std::iter::once("postgres".to_owned()).chain(options).collect()
        });
        container
    }

    fn connect(&self, endpoints: &Endpoints) -> PostgresConnection {
        // Read from the environment, so that `.env("POSTGRES_USER", ..)` counts as much as `.user(..)`; what is unset
        // there is what the image takes.
        let user = self.setting("POSTGRES_USER").unwrap_or_else(|| "postgres".to_owned());
        PostgresConnection {
            password: self.setting("POSTGRES_PASSWORD").unwrap_or_default(),
            database: self.setting("POSTGRES_DB").unwrap_or_else(|| user.clone()),
            user,
            endpoints: endpoints.clone(),
        }
    }
}

/// How to connect to a running [`Postgres`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresConnection {
    endpoints: Endpoints,
    user: String,
    password: String,
    database: String,
}

impl PostgresConnection {
    /// The host to connect to from the test.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.endpoints.host
    }

    /// The port to connect to from the test; 0 if the declaration was changed not to publish 5432.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.endpoints.tcp(PORT).unwrap_or_default()
    }

    /// The superuser.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The superuser's password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The URL for the test: `postgres://user:password@host:port/database`, each part percent-encoded.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(&self.endpoints.url_host(), self.port())
    }

    /// The name by which other containers on its network reach the server.
    ///
    /// # Errors
    ///
    /// The container is on no network.
    pub fn peer_host(&self) -> Result<&str, Failure> {
        peer_host("postgres", &self.endpoints)
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
        let [user, password, database] =
            [&self.user, &self.password, &self.database].map(|part| percent_encoded(part));
        format!("postgres://{user}:{password}@{host}:{port}/{database}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::your_own::examples::endpoints;
    use shakedown_spec::Network;

    /// What runs when a user writes `Postgres::new()` and nothing else.
    #[test]
    fn the_default_is_an_undurable_postgres_17() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&Postgres::new().declare()).unwrap(), @r#"
        {
          "image": "postgres:17",
          "name": "postgres",
          "command": [
            "postgres",
            "-c",
            "fsync=off",
            "-c",
            "full_page_writes=off",
            "-c",
            "synchronous_commit=off"
          ],
          "env": {
            "POSTGRES_DB": "postgres",
            "POSTGRES_INITDB_ARGS": "--no-sync",
            "POSTGRES_PASSWORD": "postgres",
            "POSTGRES_USER": "postgres"
          },
          "service_user": "postgres",
          "ports": [
            {
              "container": 5432,
              "protocol": "tcp"
            }
          ],
          "waits": [
            {
              "condition": {
                "probe": {
                  "protocol": "postgres",
                  "port": 5432
                }
              }
            }
          ],
          "resources": {},
          "privileged": false,
          "no_new_privileges": false,
          "read_only": false,
          "stop_signal": "SIGINT",
          "compatible": [
            "postgres",
            "pgvector/pgvector",
            "postgis/postgis",
            "timescale/timescaledb"
          ]
        }
        "#);
    }

    /// Init files run in the order they are written, whatever their kind.
    #[test]
    fn init_files_keep_their_order() {
        let declared = Postgres::new()
            .extension("uuid\"ossp")
            .init_script("psql -c 'SELECT 1'")
            .init_sql("SELECT 2")
            .declare();
        let seen: Vec<_> =
            declared.files.iter().map(|file| (file.path.trim_start_matches(INIT), file.mode)).collect();
        assert_eq!(seen, [("000.sql", None), ("001.sh", Some(0o755)), ("002.sql", None)]);
        let shakedown_spec::FileContent::Bytes(sql) = &declared.files[0].content else { panic!("bytes") };
        assert_eq!(sql, b"CREATE EXTENSION IF NOT EXISTS \"uuid\"\"ossp\" CASCADE;\n");
    }

    /// What a user sets lies on top of the module's own, in any order.
    #[test]
    fn the_user_has_the_last_word() {
        let declared = Postgres::new()
            .config("fsync", "on")
            .image("postgis/postgis:17-3.5")
            .initdb_arg("--locale=C")
            .wait(Wait::log("ready"))
            .declare();
        assert_eq!(declared.image, "postgis/postgis:17-3.5");
        assert_eq!(declared.command.unwrap()[1..3], ["-c", "fsync=on"]);
        assert_eq!(declared.env["POSTGRES_INITDB_ARGS"], "--no-sync --locale=C");
        assert_eq!(declared.waits, [Wait::probe(ProbeProtocol::Postgres, 5432), Wait::log("ready")]);
        assert_eq!(
            Postgres::new().command(["postgres"]).config("a", "b").declare().command.unwrap(),
            ["postgres"]
        );
    }

    /// A URL works with any name and password, and follows what was set by environment variable.
    #[test]
    fn urls_carry_what_was_declared() {
        let odd = Postgres::new().user("shop@home").password("p/w:1?").env("POSTGRES_DB", "orders 1");
        let connection = odd.connect(&endpoints(PORT));
        assert_eq!(connection.url(), "postgres://shop%40home:p%2Fw%3A1%3F@127.0.0.1:40000/orders%201");
        assert_eq!(connection.peer_url().unwrap(), "postgres://shop%40home:p%2Fw%3A1%3F@db:5432/orders%201");
        assert_eq!(
            (connection.host(), connection.port(), connection.database()),
            ("127.0.0.1", 40000, "orders 1")
        );
    }

    /// A test that forgot the network is told which call is missing.
    #[test]
    fn a_peer_url_needs_a_network() {
        let lonely = Endpoints { peer_host: None, ..endpoints(PORT) };
        insta::assert_snapshot!(Postgres::new().connect(&lonely).peer_url().unwrap_err(), @r"
        postgres cannot be reached by other containers: it is on no network
        hint: let net = Network::new(); then `.network(&net)` on postgres and on the other container
        ");
    }

    /// A declaration is stored and sent as JSON.
    #[test]
    fn a_module_survives_json() {
        let module =
            Postgres::new().network(&Network::named("shop")).init_sql("SELECT 1").config("jit", "off");
        let json = serde_json::to_string(&module).unwrap();
        assert_eq!(serde_json::from_str::<Postgres>(&json).unwrap(), module);
    }
}
