//! Two services that talk to each other: one network, and the second told where the first is.
//!
//! `cargo run --example two_services`

use shakedown::modules::Redis;
use shakedown::prelude::*;

fn main() -> shakedown::Result {
    let net = Network::new();
    let cache = Redis::new().network(&net).alias("cache").password("s3cret").start().blocking()?;

    // `peer_url` is what other containers use; `url` is what the test uses.
    let worker = GenericContainer::new("redis:7")
        .name("worker")
        .network(&net)
        .env("CACHE_URL", cache.peer_url()?)
        .command(["sh", "-c", "redis-cli -u \"$CACHE_URL\" set orders:42 paid"])
        .wait(Wait::exit())
        .start()
        .blocking()?;
    assert_eq!(worker.logs().blocking()?.stdout().trim(), "OK");

    let mut client = redis::Client::open(cache.url())?.get_connection()?;
    let state: String = redis::cmd("GET").arg("orders:42").query(&mut client)?;
    assert_eq!(state, "paid");
    Ok(())
}

/// The example runs as a test, too.
#[test]
fn two_services_talk() -> shakedown::Result {
    main()
}
