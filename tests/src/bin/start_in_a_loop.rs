//! Starts containers until it is killed: what the chaos tests shoot at.
//!
//! The first argument is what its containers sleep for, by which the suite recognises their processes. It prints a line
//! for each container that is ready, so that the suite knows how far it is. With a second argument `once` it starts one,
//! waits for the end of its standard input, and then uses the container once more. With `many N` it starts so many, one after
//! the other, with `hold N` all at the same time, and waits to be killed; with `hold N each` on a network for each of them,
//! with `hold N one` on one for all.

use shakedown::prelude::*;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::Ipv4Addr;

fn container(sleep: &str) -> GenericContainer {
    alone(sleep).network(&Network::named(format!("{sleep}-{}", Network::new().key)))
}

fn alone(sleep: &str) -> GenericContainer {
    GenericContainer::new("busybox").name("target").command(["sleep", sleep]).port(80).wait(Wait::running())
}

/// Networks of `size` addresses, one after the other, which engines do not run out of as they do of those that they choose
/// themselves. No other session has taken them, but by chance.
fn networks(sleep: &str, size: u32) -> impl Iterator<Item = Network> {
    let chance = RandomState::new().hash_one(()) as u32;
    let first = u32::from(Ipv4Addr::new(10, 96, 0, 0)) + chance % (1 << 20) / size * size;
    let declare = move |number| Network::named(format!("{sleep}-{}", Network::new().key)).subnet(number);
    let prefix = 32 - size.trailing_zeros();
    (0..).map(move |number| format!("{}/{prefix}", Ipv4Addr::from(first + number * size))).map(declare)
}

fn ready(container: &Running<GenericContainer>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready {}", container.id())?;
    out.flush()
}

fn main() -> shakedown::Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let sleep = arguments.first().map_or("3600", String::as_str);
    if arguments.get(1).is_some_and(|mode| mode == "once") {
        let running = container(sleep).start().blocking()?;
        ready(&running)?;
        std::io::stdin().read_to_end(&mut Vec::new())?;
        running.exec(["true"]).blocking()?;
        return Ok(());
    }
    if let Some(count) = arguments.get(2).and_then(|count| count.parse::<u32>().ok()) {
        let mut held = Vec::new();
        if arguments[1] == "hold" {
            let mut declared: Vec<_> = (0..count).map(|_| alone(sleep)).collect();
            let networks: Vec<Network> = match arguments.get(3).map(String::as_str) {
                Some("each") => networks(sleep, 256).take(declared.len()).collect(),
                Some("one") => networks(sleep, 1024).take(1).collect(),
                _ => Vec::new(),
            };
            if !networks.is_empty() {
                let joined = declared.into_iter().zip(networks.iter().cycle());
                declared = joined.map(|(container, network)| container.network(network)).collect();
            }
            // Each has begun when it is made.
            let starting: Vec<_> = declared.into_iter().map(|container| container.start()).collect();
            for starting in starting {
                held.push(starting.blocking()?);
            }
            held.iter().try_for_each(ready)?;
        } else {
            for _ in 0..count {
                ready(&container(sleep).start().blocking()?)?;
            }
        }
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    loop {
        let (one, two) = container(sleep).start().and(container(sleep).start()).blocking()?;
        ready(&one)?;
        ready(&two)?;
    }
}
