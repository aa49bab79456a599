//! What a failure looks like: a schema with a mistake in it.
//!
//! `cargo run --example failing_test` prints it, and ends with exit code 1.

use shakedown::modules::Postgres;
use shakedown::prelude::*;

fn main() -> shakedown::Result {
    let db = Postgres::new().init_sql("CREATE TABEL orders (id int);").start().blocking()?;
    drop(db);
    Ok(())
}

/// The message names the service, the line above, and what the server said.
#[test]
fn the_message_says_what_is_wrong() {
    let message = main().unwrap_err().to_string();
    for part in ["postgres exited", "failing_test.rs:9:", "syntax error at or near \"TABEL\""] {
        assert!(message.contains(part), "`{part}` is missing in:\n{message}");
    }
}
