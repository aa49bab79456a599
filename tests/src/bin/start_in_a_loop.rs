//! Starts containers until it is killed: what the chaos tests shoot at.
//!
//! The first argument is what its containers sleep for, by which the suite recognises their processes. It prints a line
//! for each container that is ready, so that the suite knows how far it is. With a second argument `once` it starts one,
//! waits for the end of its standard input, and then uses the container once more. With `many N` it starts so many, one after
//! the other, with `hold N` all at the same time, and waits to be killed.

use shakedown::prelude::*;
use std::io::{Read, Write};

fn container(sleep: &str) -> GenericContainer {
    alone(sleep).network(&Network::named(format!("{sleep}-{}", Network::new().key)))
}

fn alone(sleep: &str) -> GenericContainer {
    GenericContainer::new("busybox").name("target").command(["sleep", sleep]).port(80).wait(Wait::running())
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
            // Each has begun when it is made.
            let starting: Vec<_> = (0..count).map(|_| alone(sleep).start()).collect();
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
