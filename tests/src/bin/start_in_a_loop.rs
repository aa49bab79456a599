//! Starts containers until it is killed: what the chaos tests shoot at.
//!
//! The first argument is what its containers sleep for, by which the suite recognises their processes. It prints a line
//! for each container that is ready, so that the suite knows how far it is. With a second argument `once` it starts one,
//! waits for the end of its standard input, and then uses the container once more.

use shakedown::prelude::*;
use std::io::{Read, Write};

fn container(sleep: &str) -> GenericContainer {
    let container = GenericContainer::new("busybox").name("target").command(["sleep", sleep]);
    let network = Network::named(format!("{sleep}-{}", Network::new().key));
    container.network(&network).port(80).wait(Wait::running())
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
    loop {
        let (one, two) = container(sleep).start().and(container(sleep).start()).blocking()?;
        ready(&one)?;
        ready(&two)?;
    }
}
