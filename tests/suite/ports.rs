//! Published ports.

use crate::check::{idle, refused, sh};
use shakedown::FailureKind;
use shakedown::prelude::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

fn web() -> GenericContainer {
    sh("mkdir /www; echo open > /www/index.html; exec httpd -f -p 8080 -h /www")
        .port(8080)
        .wait(Wait::port(8080))
}

fn get(host: &str, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((host, port))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map(|_| answer)
}

/// A published port leads to the service; two containers never get the same.
#[test]
fn a_published_port_leads_to_the_service() -> shakedown::Result {
    let (one, two) = web().start().and(web().start()).blocking()?;
    assert_ne!(one.port(8080)?, two.port(8080)?);
    for running in [&one, &two] {
        assert!(get(running.host(), running.port(8080)?)?.ends_with("open\n"));
    }
    Ok(())
}

/// A port of one's own choice is that port.
#[test]
fn a_chosen_port_is_kept() -> shakedown::Result {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let web = web().with(|c| c.ports = vec![Port::tcp(8080).on_host(port)]).start().blocking()?;
    assert_eq!(web.port(8080)?, port);
    assert!(get("127.0.0.1", port)?.ends_with("open\n"));
    Ok(())
}

/// A port of one's own choice that is taken fails the start and names the port.
#[test]
fn a_taken_port_is_told() -> shakedown::Result {
    let taken = TcpListener::bind("0.0.0.0:0")?;
    let port = taken.local_addr()?.port();
    let failure = refused(web().with(|c| c.ports = vec![Port::tcp(8080).on_host(port)]));
    assert!(failure.to_string().contains(&port.to_string()), "{failure}");
    Ok(())
}

/// The port is free again when the container is gone.
#[test]
fn a_port_is_given_back() -> shakedown::Result {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    for _ in 0..3 {
        drop(web().with(|c| c.ports = vec![Port::tcp(8080).on_host(port)]).start().blocking()?);
    }
    Ok(())
}

/// Asking for a port that was not declared names those that were.
#[test]
fn an_undeclared_port_is_a_failure() -> shakedown::Result {
    let container = idle().port(8080).port(9090).wait(Wait::running()).start().blocking()?;
    let failure = container.port(5432).unwrap_err();
    assert_eq!(failure.kind, FailureKind::PortNotDeclared);
    crate::check::assert_message!(failure, @r"
    box does not publish port 5432/tcp
      at tests/suite/ports.rs:LINE
      declared: 8080/tcp, 9090/tcp
    hint: add `.port(5432)` to its declaration
    ");
    Ok(())
}
