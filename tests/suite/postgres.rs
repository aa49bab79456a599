//! PostgreSQL as tests use it.

use crate::check::refused;
use shakedown::modules::Postgres;
use shakedown::prelude::*;
use shakedown::{FailureKind, Network};
use tokio_postgres::{Client, NoTls};

async fn connect(url: &str) -> shakedown::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// `start()` returns when the init files have run and the real server answers over TCP: the first query works.
#[tokio::test]
async fn it_is_initialised_when_it_is_ready() -> shakedown::Result {
    let db = Postgres::new()
        .user("shop@home")
        .password("p/w:1?")
        .database("orders 1")
        .init_sql("CREATE TABLE orders (total int)")
        .init_script("psql -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" -c 'INSERT INTO orders VALUES (19)'")
        .init_sql("INSERT INTO orders VALUES (23)")
        .start()
        .await?;
    let client = connect(&db.url()).await?;
    let row = client.query_one("SELECT sum(total), current_database()::text FROM orders", &[]).await?;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, String>(1)), (42, "orders 1".to_owned()));
    Ok(())
}

/// Server parameters reach the server; what is off by default is off, and can be turned on.
#[tokio::test]
async fn parameters_are_set() -> shakedown::Result {
    let db = Postgres::new().config("max_connections", "17").config("full_page_writes", "on").start().await?;
    let client = connect(&db.url()).await?;
    for (name, expected) in [("max_connections", "17"), ("fsync", "off"), ("full_page_writes", "on")] {
        let seen: String = client.query_one(&format!("SHOW {name}"), &[]).await?.get(0);
        assert_eq!(seen, expected, "{name}");
    }
    Ok(())
}

/// A wrong password is refused: the module does not switch authentication off.
#[tokio::test]
async fn a_wrong_password_is_refused() -> shakedown::Result {
    let db = Postgres::new().password("right").start().await?;
    let wrong = db.url().replace("right", "wrong");
    assert!(connect(&wrong).await.is_err());
    Ok(())
}

/// Another container reaches the server by its name, with the URL made for it.
#[tokio::test]
async fn peers_connect_by_name() -> shakedown::Result {
    let net = Network::new();
    let db = Postgres::new().network(&net).alias("orders-db").start().await?;
    assert_eq!(db.peer_host()?, "orders-db");
    let client = Postgres::new().name("client").network(&net).start().await?;
    let answer = client.exec(["psql", "-tAc", "SELECT 6 * 7", &db.peer_url()?]).await?.success()?;
    assert_eq!(answer.stdout().trim(), "42");
    Ok(())
}

/// A mistake in an init file fails the start, with the server's own words.
#[test]
fn a_broken_init_file_is_reported() {
    let failure = refused(Postgres::new().init_sql("CREATE TABEL orders (id int)"));
    assert_eq!(failure.kind, FailureKind::ExitedEarly, "{failure}");
    let log = failure.logs[0].lines.join("\n");
    assert!(log.contains("syntax error at or near \"TABEL\""), "{failure}");
}
