//! Redis as tests use it.

use redis::{Client, Commands};
use shakedown::modules::Redis;
use shakedown::prelude::*;

/// What is written can be read, and nothing is saved to disk.
#[test]
fn it_stores_and_forgets() -> shakedown::Result {
    let cache = Redis::new().databases(3).start().blocking()?;
    let mut client = Client::open(cache.database_url(2))?.get_connection()?;
    let _: () = client.set("orders:42", "paid")?;
    assert_eq!(client.get::<_, String>("orders:42")?, "paid");
    let saved: Vec<String> = redis::cmd("CONFIG").arg("GET").arg("save").query(&mut client)?;
    assert_eq!(saved, ["save", ""]);
    assert!(Client::open(cache.database_url(3))?.get_connection().is_err(), "there are three databases");
    Ok(())
}

/// With a password, clients without it are refused; the URL carries it.
#[test]
fn a_password_is_asked_for() -> shakedown::Result {
    let cache = Redis::new().password("p@ss word").start().blocking()?;
    let mut client = Client::open(cache.url())?.get_connection()?;
    assert_eq!(redis::cmd("PING").query::<String>(&mut client)?, "PONG");
    let open = format!("redis://{}:{}", cache.host(), cache.port());
    let refused = Client::open(open)?.get_connection().and_then(|mut client| client.set::<_, _, ()>("a", 1));
    assert!(refused.is_err());
    Ok(())
}

/// Directives of several words reach the server.
#[test]
fn directives_are_set() -> shakedown::Result {
    let cache = Redis::new().config("save", "60 1").config("maxmemory", "8mb").start().blocking()?;
    let mut client = Client::open(cache.url())?.get_connection()?;
    let saved: Vec<String> = redis::cmd("CONFIG").arg("GET").arg("save").query(&mut client)?;
    assert_eq!(saved, ["save", "60 1"]);
    let limit: Vec<String> = redis::cmd("CONFIG").arg("GET").arg("maxmemory").query(&mut client)?;
    assert_eq!(limit, ["maxmemory", "8388608"]);
    Ok(())
}
