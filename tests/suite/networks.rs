//! Containers that reach each other, and those that do not.

use crate::check::{idle, sh};
use shakedown::modules::{Postgres, Redis};
use shakedown::prelude::*;

/// Two services on one network talk by name, on ports that are not published.
#[tokio::test]
async fn services_reach_each_other_by_name() -> shakedown::Result {
    let net = Network::new();
    let db = Postgres::new().network(&net).start();
    let cache = Redis::new().network(&net).alias("cache").start();
    let (db, cache) = db.and(cache).await?;
    let pong = cache.exec(["redis-cli", "-h", "cache", "ping"]).await?.success()?;
    assert_eq!(pong.stdout().trim(), "PONG");
    let seen = db.exec(["getent", "hosts", cache.peer_host()?]).await?.success()?;
    assert!(seen.stdout().contains("cache"), "{seen:?}");
    Ok(())
}

/// Every name works: the declared aliases, and the service's own.
#[test]
fn all_names_resolve() -> shakedown::Result {
    let net = Network::new();
    let web = sh("exec httpd -f -p 8080")
        .name("web")
        .network(&net)
        .alias("shop")
        .alias("till")
        .start()
        .blocking()?;
    let client = idle().network(&net).start().blocking()?;
    for name in ["shop", "till", "web"] {
        let url = format!("http://{name}:8080/nothing");
        let answer = client.exec(["wget", "-q", "-O", "-", url.as_str()]).blocking()?;
        assert!(answer.stderr().contains("404"), "{name}: {answer:?}");
    }
    drop(web);
    Ok(())
}

/// A container on another network is not found by name.
#[test]
fn networks_are_apart() -> shakedown::Result {
    let web = sh("exec httpd -f -p 8080").name("web").network(&Network::new()).start().blocking()?;
    let stranger = idle().network(&Network::new()).start().blocking()?;
    let answer = stranger.exec(["wget", "-q", "-T", "2", "-O", "-", "http://web:8080/"]).blocking()?;
    assert_ne!(answer.code(), 0, "{answer:?}");
    assert!(!answer.stderr().contains("404"), "{answer:?}");
    drop(web);
    Ok(())
}

/// A container on two networks is reached from both.
#[test]
fn a_container_joins_several_networks() -> shakedown::Result {
    let (front, back) = (Network::new(), Network::new());
    let web = sh("exec httpd -f -p 8080").network(&front).alias("in-front").network(&back).alias("behind");
    let web = web.start().blocking()?;
    for (net, name) in [(&front, "in-front"), (&back, "behind")] {
        let client = idle().name("client").network(net).start().blocking()?;
        let url = format!("http://{name}:8080/nothing");
        let answer = client.exec(["wget", "-q", "-O", "-", url.as_str()]).blocking()?;
        assert!(answer.stderr().contains("404"), "{name}: {answer:?}");
    }
    drop(web);
    Ok(())
}

/// A service that is started again under its name is reached at once, although its predecessor's address was remembered.
#[test]
fn a_successor_is_reached_at_once() -> shakedown::Result {
    let net = Network::new();
    let shop = Redis::new().network(&net).start().blocking()?;
    for _ in 0..3 {
        let till = Redis::new().name("till").network(&net).start().blocking()?;
        let asked = shop.exec(["timeout", "5", "redis-cli", "-h", "till", "ping"]).blocking()?.success()?;
        assert_eq!(asked.stdout(), "PONG\n");
        drop(till);
    }
    Ok(())
}
