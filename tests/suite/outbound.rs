//! What lies outside of a container's networks: reached by those that may, and by nobody else.
//!
//! The outside is this machine, at the address it has on its own network: nothing leaves it.

use crate::check::{can, idle, missing, refused, said, say, sh};
use shakedown::prelude::*;
use shakedown::{Build, FailureKind, NetworkMode};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

/// This machine's address on its network, where it has one.
fn own_address() -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing; 192.0.2.1 is an address for documentation.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    let found = socket.connect(("192.0.2.1", 9)).and_then(|()| socket.local_addr()).map(|own| own.ip());
    let found = found.ok().filter(|address| !address.is_loopback() && !address.is_unspecified());
    if found.is_none() {
        say("cannot run here: this machine is on no network");
    }
    found
}

/// A server at `address` that answers every request with a page.
fn shop(address: IpAddr) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nopen\n");
        }
    });
    at
}

fn get(from: &SocketAddr) -> String {
    format!("timeout 10 wget -q -O - http://{from}/ 2>&1; :")
}

/// Whether this machine can show the outside to containers; the address to listen at, if it has one.
fn outside() -> Option<IpAddr> {
    can("outbound", || idle().outbound(true)).then(own_address).flatten()
}

/// Whether an internal network keeps this machine out as well, which is the outside here.
fn keeps_the_host_out() -> bool {
    let missing = missing("internal without the host");
    missing.iter().for_each(|reason| say(&format!("not looked at: internal networks: {reason}")));
    missing.is_none()
}

/// Containers reach the outside as they do with Docker, whether they are on a network or not.
#[test]
fn containers_reach_the_outside() {
    let Some(shop) = outside().map(shop) else { return };
    assert_eq!(said(&get(&shop), |c| c), "open\n");
    let net = Network::new();
    assert_eq!(said(&get(&shop), |c| c.network(&net)), "open\n");
    let internal = Network::new().internal();
    assert_eq!(said(&get(&shop), |c| c.network(&internal).network(&net)), "open\n");
}

/// This machine's address on its network for IPv6, where it has one; said if not.
fn outside_v6() -> Option<IpAddr> {
    if let Some(reason) = missing("ipv6 networks").or_else(|| missing("ipv6 outbound")) {
        say(&format!("cannot run here: no ipv6 outbound: {reason}"));
        return None;
    }
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok()?;
    let own = socket.connect(("2001:db8::1", 9)).and_then(|()| socket.local_addr());
    let own = own.ok().map(|own| own.ip()).filter(|address| !address.is_loopback());
    if own.is_none() {
        say("cannot run here: this machine is on no network with IPv6");
    }
    own
}

/// Over IPv6 as well, from networks that have it: connections, datagrams, and what is refused.
#[test]
fn networks_with_ipv6_reach_the_outside() {
    let Some(address) = outside_v6() else { return };
    let (shop, net) = (shop(address), Network::new().ipv6());
    assert_eq!(said(&get(&shop), |c| c.network(&net)), "open\n");
    let plain = Network::new();
    assert_eq!(said(&get(&shop), |c| c.network(&plain).network(&net)), "open\n");
    let closed = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap();
    let script = format!("nc {} {} </dev/null 2>&1 || echo code $?", closed.ip(), closed.port());
    let answer = said(&script, |c| c.network(&net));
    assert!(answer.contains("refused") && answer.contains("code 1"), "{answer}");
    let internal = Network::new().ipv6().internal();
    if keeps_the_host_out() {
        let answer = said(&get(&shop), |c| c.network(&internal));
        assert!(answer.contains("unreachable"), "{answer}");
    }
    datagrams(address, &[Some(net)]);
}

/// A container that makes interfaces and rules of its own, such as one that runs Docker, reaches the outside as well.
#[test]
fn containers_with_rights_over_their_network_reach_the_outside() {
    let Some(shop) = outside().map(shop) else { return };
    let script = format!("ip route add 198.51.100.0/24 dev lo && {}", get(&shop));
    assert_eq!(said(&script, |c| c.cap_add("NET_ADMIN")), "open\n");
}

/// Large answers and many connections at once arrive whole.
#[test]
fn much_is_carried() {
    let Some(address) = outside() else { return };
    let listener = TcpListener::bind((address, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.write_all(&vec![b'x'; 8 << 20]);
            });
        }
    });
    let script =
        format!("for i in 1 2 3 4 5 6 7 8; do nc {} {} </dev/null | wc -c & done; wait", at.ip(), at.port());
    assert_eq!(said(&script, |c| c), "8388608\n".repeat(8));
}

/// A port on which nothing listens refuses at once: a script that waits for a service outside must not take it for ready.
#[test]
fn a_closed_port_refuses() {
    let Some(address) = outside() else { return };
    let closed = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap();
    let script = format!("nc {} {} </dev/null 2>&1 || echo code $?", closed.ip(), closed.port());
    for net in [None, Some(Network::new())] {
        let answer = said(&script, |c| match &net {
            Some(net) => c.network(net),
            None => c,
        });
        assert!(answer.contains("refused") && answer.contains("code 1"), "{answer}");
    }
}

/// Datagrams and their answers arrive, those larger than a packet as well.
#[test]
fn datagrams_are_carried() {
    if let Some(address) = outside() {
        datagrams(address, &[None, Some(Network::new())]);
    }
}

fn datagrams(address: IpAddr, networks: &[Option<Network>]) {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let answer = [&buffer[..length], &[b'.'; 8000]].concat();
            let _ = socket.send_to(&answer, from);
        }
    });
    // Asked again if nothing comes: a datagram may be lost anywhere.
    let script = format!(
        "exec 3<>/dev/udp/{}/{}
        for name in one two; do
            for turn in 1 2 3 4 5 6; do
                echo -n $name >&3
                size=$(timeout 5 dd bs=65536 count=1 <&3 2>/dev/null | wc -c)
                [ $size = 0 ] || break
            done
            echo $size
        done",
        at.ip(),
        at.port()
    );
    for net in networks {
        let debian =
            GenericContainer::new("postgres:17").entrypoint(["bash", "-c"]).command([script.as_str()]);
        let debian = match net {
            Some(net) => debian.network(net),
            None => debian,
        };
        let done = debian.wait(Wait::exit()).start().blocking().unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(done.logs().blocking().unwrap().stdout(), "8003\n8003\n", "{net:?}");
    }
}

/// An internal network, the mode `none` and a declaration that says so keep a container from the outside.
#[test]
fn the_outside_can_be_shut_out() {
    let Some(shop) = outside().map(shop) else { return };
    let shut = |declare: &dyn Fn(GenericContainer) -> GenericContainer| {
        let answer = said(&get(&shop), declare);
        assert!(answer.contains("unreachable"), "{answer}");
    };
    shut(&|c| c.network_mode(NetworkMode::None));
    if keeps_the_host_out() {
        shut(&|c| c.network(&Network::new().internal()));
    }
    if can("no outbound", || idle().outbound(false)) {
        shut(&|c| c.outbound(false));
        shut(&|c| c.outbound(false).network(&Network::new()));
    }
}

/// A container on an internal network does not get out by making itself a route.
#[test]
fn an_internal_network_has_no_back_door() {
    let Some(shop) = outside().map(shop).filter(|_| keeps_the_host_out()) else { return };
    let (internal, other) = (Network::new().internal(), Network::new());
    // The networks' way out is open: somebody uses it.
    let neighbour = idle().network(&other).start().blocking().unwrap_or_else(|failure| panic!("{failure}"));
    let script = format!(
        "own=$(ip -4 -o addr show eth0 | sed 's/.*inet //; s/[.][0-9]*[/].*//'); ip route add default via $own.1; {}; echo end",
        get(&shop)
    );
    let answer = said(&script, |c| c.network(&internal).cap_add("NET_ADMIN"));
    assert!(answer.ends_with("end\n") && !answer.contains("open"), "{answer}");
    drop(neighbour);
}

/// A service on this machine is reached by a container that was given the host.
#[test]
fn the_host_is_reached_by_those_who_asked() {
    if !can("outbound", || idle().extra_host("till", "host-gateway")) {
        return;
    }
    let shop = shop(Ipv4Addr::UNSPECIFIED.into());
    let script = format!("timeout 10 wget -q -O - http://till:{}/ 2>&1", shop.port());
    let asked = |c: GenericContainer| c.extra_host("till", "host-gateway");
    assert_eq!(said(&script, asked), "open\n");
    assert_eq!(said(&script, |c| asked(c).network(&Network::new())), "open\n");
}

/// A service on this machine that listens on loopback only is reached by a container that was given its port, by the
/// names that other tools have for the host, and others are not.
#[test]
fn chosen_ports_of_the_host_are_reached() {
    let (shop, other) = (shop(Ipv4Addr::LOCALHOST.into()), shop(Ipv4Addr::LOCALHOST.into()));
    if !can("outbound", || idle().host_port(shop.port()))
        || !can("host ports", || idle().host_port(shop.port()))
    {
        return;
    }
    for name in ["host.docker.internal", "host.testcontainers.internal"] {
        let script = format!("timeout 10 wget -q -O - http://{name}:{}/ 2>&1; :", shop.port());
        assert_eq!(said(&script, |c| c.host_port(shop.port())), "open\n");
        assert_eq!(said(&script, |c| c.host_port(shop.port()).network(&Network::new())), "open\n");
    }
    let script = format!("timeout 10 wget -q -O - http://host.docker.internal:{}/ 2>&1; :", other.port());
    let answer = said(&script, |c| c.host_port(shop.port()));
    assert!(!answer.contains("open"), "{answer}");
}

/// A container that can reach name servers knows them, and those it declares are used.
#[test]
fn name_servers_are_known() {
    if missing("outbound").is_none() {
        let file = said("cat /etc/resolv.conf", |c| c);
        assert!(file.contains("\nnameserver ") || file.starts_with("nameserver "), "{file}");
    }
    let declared = |c: GenericContainer| c.dns("192.0.2.53").dns_search("shop.example");
    let file = said("cat /etc/resolv.conf", declared);
    assert!(file.contains("nameserver 192.0.2.53\n") && file.contains("search shop.example\n"), "{file}");
}

/// A container in the host's network is the host: it reaches what listens on loopback, and its port is the host's.
#[test]
fn a_container_can_have_the_hosts_network() -> shakedown::Result {
    let declared = || idle().network_mode(NetworkMode::Host);
    if !can("host network", declared) {
        return Ok(());
    }
    let shop = shop(Ipv4Addr::LOCALHOST.into());
    assert_eq!(said(&get(&shop), |c| c.network_mode(NetworkMode::Host)), "open\n");
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let serve = format!("mkdir /www; echo open > /www/index.html; exec httpd -f -p {port} -h /www");
    let web =
        sh(&serve).network_mode(NetworkMode::Host).port(port).wait(Wait::port(port)).start().blocking()?;
    assert_eq!(web.port(port)?, port);
    let further = web.exec(["wget", "-q", "-O", "-", &format!("http://127.0.0.1:{port}/")]).blocking()?;
    assert_eq!(further.success()?.stdout(), "open\n");
    Ok(())
}

/// A container in another one's network finds its services on loopback.
#[test]
fn a_container_can_have_anothers_network() -> shakedown::Result {
    let web = sh("mkdir /www; echo open > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www")
        .wait(Wait::command(["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"]))
        .start()
        .blocking()?;
    let mode = NetworkMode::Container(web.id().to_owned());
    assert_eq!(said("wget -q -O - http://127.0.0.1:8080/", |c| c.network_mode(mode)), "open\n");
    Ok(())
}

/// A container without a network has its loopback interface and nothing else.
#[test]
fn a_container_can_have_no_network() {
    let script =
        "httpd -p 127.0.0.1:80; wget -O - http://127.0.0.1/nothing 2>&1 | grep -c 404; ip route | wc -l";
    assert_eq!(said(script, |c| c.network_mode(NetworkMode::None)), "1\n0\n");
}

/// Networks and a mode exclude each other, and the message says so.
#[test]
fn modes_that_contradict_are_told() {
    let failure = refused(idle().network(&Network::new()).network_mode(NetworkMode::Host).dns("nowhere"));
    assert_eq!(failure.kind, FailureKind::Invalid);
    crate::check::assert_message!(failure, @r"
    box is declared in a way that cannot work
      at tests/suite/outbound.rs:LINE
      network_mode: a container in mode `host` joins no networks
      dns:          `nowhere` is not an address
    hint: leave out either the mode or the networks
    hint: give IP addresses
    ");
}

/// A container that must reach the outside and is kept from it by its networks is told so before it starts.
#[test]
fn an_impossible_way_out_is_told() {
    let failure = refused(idle().network(&Network::new().internal()).outbound(true));
    assert_eq!(failure.kind, FailureKind::Invalid);
    crate::check::assert_message!(failure, @r"
    box is declared in a way that cannot work
      at tests/suite/outbound.rs:LINE
      outbound: a container on internal networks alone reaches nothing outside
    hint: join a network that is not internal as well
    ");
}

/// `RUN` reaches the outside as a container does, unless the build says that it must not; extra hosts are known.
#[test]
fn builds_reach_the_outside() {
    let Some(shop) = outside().map(shop) else { return };
    let run = format!("RUN timeout 10 wget -q -O /got http://till:{}/ || echo shut > /got", shop.port());
    let dockerfile = format!("FROM busybox\n{run}\n");
    let got = |build: Build| {
        let build = build.extra_host("till", shop.ip().to_string());
        let built = GenericContainer::build(build).name("built").command(["cat", "/got"]);
        let done = built.wait(Wait::exit()).start().blocking();
        done.and_then(|done| done.logs().blocking()).unwrap_or_else(|failure| panic!("{failure}")).stdout()
    };
    assert_eq!(got(Build::inline(&dockerfile)), "open\n");
    assert_eq!(got(Build::inline(&dockerfile).network("none")), "shut\n");
}
