//! An async test: here with tokio, and the same with any other runtime.
//!
//! `cargo test --example async_test`

use shakedown::modules::Postgres;
use shakedown::prelude::*;

#[cfg_attr(test, tokio::test)]
async fn orders_are_stored() -> shakedown::Result {
    let db = Postgres::new().init_sql(include_str!("schema.sql")).start().await?;

    let (client, connection) = tokio_postgres::connect(&db.url(), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    client.execute("INSERT INTO orders (total) VALUES ($1)", &[&42]).await?;
    let total: i32 = client.query_one("SELECT total FROM orders", &[]).await?.get(0);

    assert_eq!(total, 42);
    Ok(())
}

#[cfg(not(test))]
#[tokio::main(flavor = "current_thread")]
async fn main() -> shakedown::Result {
    orders_are_stored().await
}
