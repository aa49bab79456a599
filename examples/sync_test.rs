//! A test without async code: `.blocking()` instead of `.await`, and any client library.
//!
//! `cargo test --example sync_test`

use postgres::{Client, NoTls};
use shakedown::modules::Postgres;
use shakedown::prelude::*;

#[cfg_attr(test, test)]
fn refunds_are_counted() -> shakedown::Result {
    let db = Postgres::new().init_sql("CREATE TABLE refunds (order_id int)").start().blocking()?;

    let mut client = Client::connect(&db.url(), NoTls)?;
    client.execute("INSERT INTO refunds VALUES (7), (8)", &[])?;
    let count: i64 = client.query_one("SELECT count(*) FROM refunds", &[])?.get(0);

    assert_eq!(count, 2);
    Ok(())
}

fn main() -> shakedown::Result {
    refunds_are_counted()
}
