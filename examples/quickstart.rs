//! The first example to read: PostgreSQL and Redis on one network, a query, a command, and how long it took.
//!
//! `cargo run --example quickstart`

use shakedown::modules::{Postgres, Redis};
use shakedown::prelude::*;

#[tokio::main(flavor = "current_thread")]
async fn main() -> shakedown::Result {
    let net = Network::new();
    let schema = "CREATE TABLE orders (id serial, total int); INSERT INTO orders (total) VALUES (19), (23);";
    let db = Postgres::new().network(&net).init_sql(schema).start();
    let cache = Redis::new().network(&net).wait(Wait::command(["redis-cli", "ping"])).start();
    // Both have begun; this waits for the slower one.
    let (db, cache) = db.and(cache).await?;

    let (client, connection) = tokio_postgres::connect(&db.url(), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let total: i64 = client.query_one("SELECT sum(total) FROM orders", &[]).await?.get(0);
    assert_eq!(total, 42);

    // Containers on one network reach each other by name.
    let ping = db.exec(["getent", "hosts", cache.peer_host()?]).await?.success()?;

    report(&format!("total of all orders: {total}"));
    report(&format!("redis, as postgres sees it: {}", ping.stdout().trim()));
    report(&format!("postgres: {:?}", db.timings()));
    report(&format!("redis:    {:?}", cache.timings()));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "an example shows what it finds")]
fn report(line: &str) {
    println!("{line}");
}

/// The example runs as a test, too.
#[test]
fn the_quickstart_runs() -> shakedown::Result {
    main()
}
