//! Published ports.

use crate::check::{can, idle, refused, sh};
use shakedown::FailureKind;
use shakedown::prelude::*;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

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

/// A service that answers each datagram with the same, from one process.
fn echo() -> GenericContainer {
    let script = "use Socket; socket(S, PF_INET, SOCK_DGRAM, 0); bind(S, sockaddr_in(7777, INADDR_ANY)); \
                  $| = 1; print \"here\\n\"; while (defined($from = recv(S, $data, 65536, 0))) { send(S, $data, 0, $from) }";
    GenericContainer::new("debian:bookworm-slim")
        .name("echo")
        .entrypoint(["perl", "-e"])
        .command([script])
        .port(Port::udp(7777))
        .wait(Wait::log("here"))
}

fn client(to: (&str, u16)) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // Connected: an answer that comes from another address is not taken.
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(socket)
}

fn echoed(client: &UdpSocket, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    client.send(bytes)?;
    let mut answer = vec![0; 65536];
    let length = client.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// Datagrams reach a published port, those of several clients and large ones as well, and each gets its own answers.
#[test]
fn a_published_udp_port_leads_to_the_service() -> shakedown::Result {
    if !can("udp ports", echo) {
        return Ok(());
    }
    for net in [None, Some(Network::new())] {
        let echo = match &net {
            Some(net) => echo().network(net),
            None => echo(),
        };
        let echo = echo.start().blocking()?;
        let port = echo.port(Port::udp(7777))?;
        assert_eq!(echo.endpoints().udp(7777), Some(port));
        let clients: Vec<UdpSocket> =
            (0..8).map(|_| client((echo.host(), port))).collect::<std::io::Result<_>>()?;
        for round in 0..3 {
            for (number, client) in clients.iter().enumerate() {
                let bytes = format!("{round} of {number}");
                assert_eq!(echoed(client, bytes.as_bytes())?, bytes.as_bytes());
            }
        }
        assert_eq!(echoed(&clients[0], &[7; 20_000])?, [7; 20_000]);
        let failure = echo.port(7777).unwrap_err();
        assert!(failure.to_string().contains("declared: 7777/udp"), "{failure}");
    }
    Ok(())
}

/// What is sent before the service listens does not close the port, and a chosen number is that number.
#[test]
fn a_udp_port_outlives_refusals() -> shakedown::Result {
    if !can("udp ports", echo) {
        return Ok(());
    }
    let wanted = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    let script = echo().0.command.unwrap_or_default();
    let late = echo()
        .entrypoint(["sh", "-c", "until [ -e /begin ]; do sleep 0.01; done; exec perl -e \"$0\""])
        .command(script)
        .with(|c| {
            c.ports = vec![Port::udp(7777).on_host(wanted)];
            c.waits = vec![Wait::running()];
        })
        .start()
        .blocking()?;
    let client = client((late.host(), wanted))?;
    // A refusal may come back, as it would from any machine.
    for _ in 0..3 {
        let _ = client.send(b"early");
    }
    late.exec(["touch", "/begin"]).blocking()?.success()?;
    // 7777, as the kernel writes it.
    let here = "until grep -q :1E61 /proc/net/udp; do sleep 0.01; done";
    late.exec(["timeout", "10", "sh", "-c", here]).blocking()?.success()?;
    // What was sent before may have waited, or come back as a refusal.
    let answer = (0..5).find_map(|_| echoed(&client, b"on time").ok());
    assert!([Some(b"on time".to_vec()), Some(b"early".to_vec())].contains(&answer), "{answer:?}");
    Ok(())
}

/// A port is published at another address than loopback if that is what the declaration says.
#[test]
fn a_port_can_be_published_everywhere() -> shakedown::Result {
    let web = web().with(|c| c.ports = vec![Port::tcp(8080).at(Ipv4Addr::UNSPECIFIED)]).start().blocking()?;
    for address in ["127.0.0.1", "127.0.0.9"] {
        assert!(get(address, web.port(8080)?)?.ends_with("open\n"), "{address}");
    }
    Ok(())
}

/// Other machines do not reach what is published at loopback.
#[test]
fn ports_are_published_at_loopback() -> shakedown::Result {
    let web = web().start().blocking()?;
    let outside = UdpSocket::bind("0.0.0.0:0")?;
    // Connecting a datagram socket sends nothing; 192.0.2.1 is an address for documentation.
    if outside.connect("192.0.2.1:9").is_err() {
        crate::check::say("cannot run here: this machine is on no network");
        return Ok(());
    }
    let own = outside.local_addr()?.ip();
    assert!(own.is_loopback() || TcpStream::connect((own, web.port(8080)?)).is_err(), "{own}");
    Ok(())
}

/// A transport that a driver cannot carry is refused, not left out.
#[test]
fn sctp_is_carried_or_refused() {
    let declared = || idle().port(Port::sctp(2905)).wait(Wait::running());
    if can("sctp ports", declared) {
        crate::check::say("not looked at further: few kernels have SCTP");
    }
}
