//! Any image, without a module: what it needs is declared.
//!
//! `cargo run --example custom_image`

use shakedown::prelude::*;
use std::io::{Read, Write};
use std::net::TcpStream;

fn main() -> shakedown::Result {
    let shop = GenericContainer::new("busybox")
        .name("shop")
        .command(["httpd", "-f", "-p", "8080", "-h", "/www"])
        .file("/www/index.html", "open from nine to five\n")
        .port(8080)
        .wait(Wait::http(8080, "/index.html"))
        .start()
        .blocking()?;

    let mut stream = TcpStream::connect((shop.host(), shop.port(8080)?))?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;

    assert!(answer.ends_with("open from nine to five\n"), "{answer}");
    Ok(())
}

/// The example runs as a test, too.
#[test]
fn any_image_runs() -> shakedown::Result {
    main()
}
