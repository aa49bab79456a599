//! Containers that reach each other, and those that do not.

use crate::check::{can, idle, refused, said, sh};
use shakedown::modules::{Postgres, Redis};
use shakedown::prelude::*;
use shakedown::{Attachment, FailureKind, NetworkMode};
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;

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

/// A web server on port 8080 that has nothing to give, and answers so.
fn web() -> GenericContainer {
    sh("exec httpd -f -p 8080").name("web").wait(Wait::port(8080))
}

/// Every name works: the declared aliases, and the service's own.
#[test]
fn all_names_resolve() -> shakedown::Result {
    let net = Network::new();
    let web = web().network(&net).alias("shop").alias("till").start().blocking()?;
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
    let web = web().network(&Network::new()).start().blocking()?;
    let stranger = idle().network(&Network::new()).start().blocking()?;
    let answer = stranger.exec(["timeout", "5", "wget", "-q", "-O", "-", "http://web:8080/"]).blocking()?;
    assert_ne!(answer.code(), 0, "{answer:?}");
    assert!(!answer.stderr().contains("404"), "{answer:?}");
    drop(web);
    Ok(())
}

/// A container on two networks is reached from both.
#[test]
fn a_container_joins_several_networks() -> shakedown::Result {
    let (front, back) = (Network::new(), Network::new());
    let web = web().network(&front).alias("in-front").network(&back).alias("behind");
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

/// Subnets that no other session has taken, by chance.
fn subnets<const COUNT: usize>() -> [String; COUNT] {
    let first = RandomState::new().hash_one(()) as usize % (4096 - COUNT);
    std::array::from_fn(|number| {
        format!("10.{}.{}.0/24", 64 + (first + number) / 256, (first + number) % 256)
    })
}

/// A host's address in a subnet.
fn address(subnet: &str, host: u8) -> Ipv4Addr {
    subnet.replace("0/24", &host.to_string()).parse().unwrap()
}

/// A container with the resolver of glibc.
fn debian() -> GenericContainer {
    GenericContainer::new("debian:bookworm-slim").name("client").entrypoint(["sleep", "3600"])
}

fn addresses(client: &Running<GenericContainer>, name: &str) -> shakedown::Result<Vec<String>> {
    let answer = client.exec(["getent", "ahostsv4", name]).blocking()?;
    let lines = answer.stdout();
    let streams = lines.lines().filter(|line| line.contains("STREAM"));
    Ok(streams.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect())
}

/// A name finds all containers that have it, is gone with them at once, and does not depend on its spelling.
#[test]
fn a_name_is_all_that_have_it() -> shakedown::Result {
    let net = Network::new();
    let client = debian().network(&net).start().blocking()?;
    assert_eq!(addresses(&client, "shop")?, [""; 0]);
    let shop = |name: &str| idle().name(name).network(&net).alias("shop").start();
    let (one, two) = shop("one").and(shop("two")).blocking()?;
    let both = addresses(&client, "shop")?;
    assert_eq!(both.len(), 2, "{both:?}");
    let first = addresses(&client, "ONE")?;
    assert!(first.len() == 1 && both.contains(&first[0]), "{first:?} {both:?}");
    drop(one);
    assert_eq!(addresses(&client, "shop")?, addresses(&client, "two")?);
    assert_eq!(addresses(&client, "one")?, [""; 0]);
    // Addresses have names as well.
    let address = addresses(&client, "two")?.remove(0);
    let name = client.exec(["getent", "hosts", &address]).blocking()?.success()?;
    assert!(name.stdout().contains("two") || name.stdout().contains("shop"), "{name:?}");
    drop(two);
    assert_eq!(addresses(&client, "shop")?, [""; 0]);
    Ok(())
}

/// The resolvers of busybox and musl ask for both families: a name without IPv6 is there all the same.
#[test]
fn a_name_without_ipv6_is_found_by_small_resolvers() -> shakedown::Result {
    let net = Network::new();
    let web = idle().name("web").network(&net).start().blocking()?;
    let asked = said(
        "nslookup web 2>&1; echo code $?; nslookup nobody-is-called-this.invalid. 2>&1; echo code $?",
        |c| c.network(&net).dns("127.0.0.1"),
    );
    let codes: Vec<&str> = asked.lines().filter(|line| line.starts_with("code")).collect();
    assert!(codes[0] == "code 0" && codes[1] != "code 0", "{asked}");
    drop(web);
    Ok(())
}

/// Names are found over a connection, too, which is how long answers come.
#[test]
fn names_are_found_over_a_connection() -> shakedown::Result {
    let net = Network::new();
    let web = idle().name("web").network(&net).start().blocking()?;
    let client = debian().network(&net).start().blocking()?;
    let query = r"\x00\x15\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01";
    // The answer's length comes first, its only address last.
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.11/53; printf '{query}' >&3; length=$(timeout 10 head -c 2 <&3 | od -An -tu1 | awk '{{print $1*256+$2}}'); \
         timeout 10 head -c $length <&3 | tail -c 4 | od -An -tu1 | xargs | tr ' ' ."
    );
    let answer = client.exec(["bash", "-c", &script]).blocking()?.success()?;
    assert_eq!(addresses(&client, "web")?, [answer.stdout().trim()], "{answer:?}");
    drop(web);
    Ok(())
}

/// A name server that answers every question with 192.0.2.7.
const NAME_SERVER: &str = r#"use Socket; socket(S, PF_INET, SOCK_DGRAM, 0); bind(S, sockaddr_in(53, INADDR_ANY)) or die;
$| = 1; print "here\n"; while (defined($from = recv(S, $q, 4096, 0))) {
    my $end = index($q, "\0", 12) + 5; my $a = unpack("n", substr($q, $end - 4, 2)) == 1;
    my $head = substr($q, 0, 2) . pack("n5", 0x8180, 1, $a ? 1 : 0, 0, 0);
    my $data = $a ? pack("n3Nn", 0xc00c, 1, 1, 0, 4) . "\xc0\x00\x02\x07" : "";
    send(S, $head . substr($q, 12, $end - 12) . $data, 0, $from);
}"#;

/// A name server of one's own, on the network, is asked for what is not on it; and it can be a container on a network.
#[test]
fn other_names_are_asked_elsewhere() -> shakedown::Result {
    let [subnet] = subnets();
    let (net, address) = (Network::new().subnet(&subnet), |host| address(&subnet, host));
    let server = GenericContainer::new("debian:bookworm-slim")
        .name("names")
        .entrypoint(["perl", "-e"])
        .command([NAME_SERVER])
        .port(Port::udp(53))
        .network(&net)
        .ip(address(53))
        .wait(Wait::log("here"))
        .start()
        .blocking()?;
    let client = debian().network(&net).dns(address(53).to_string()).start().blocking()?;
    assert_eq!(addresses(&client, "shop.example")?, ["192.0.2.7"]);
    assert_eq!(addresses(&client, "names")?, [address(53).to_string()]);
    let own = server.exec(["getent", "ahostsv4", "client"]).blocking()?.success()?;
    let seen = client.exec(["hostname", "-i"]).blocking()?.success()?;
    assert!(own.stdout().starts_with(seen.stdout().trim()), "{own:?} {seen:?}");
    Ok(())
}

/// A container joins a network while it runs, is found there and finds others, and leaves it again.
#[test]
fn a_running_container_joins_and_leaves() -> shakedown::Result {
    let (front, back) = (Network::new(), Network::new());
    let serve = || sh("mkdir /www; echo open > /www/index.html; exec httpd -f -p 8080 -h /www").port(8080);
    let db = serve().name("db").network(&back).wait(Wait::port(8080)).start().blocking()?;
    for shop in [serve().name("shop").network(&front), serve().name("shop")] {
        let shop = shop.wait(Wait::port(8080)).start().blocking()?;
        let asks = |one: &Running<GenericContainer>, name: &str| {
            one.exec(["timeout", "10", "wget", "-q", "-O", "-", &format!("http://{name}:8080/")]).blocking()
        };
        let reaches = |one: &Running<GenericContainer>, name: &str| {
            asks(one, name).map(|answer| answer.stdout() == "open\n")
        };
        assert!(!reaches(&shop, "db")?);
        shop.join_network(Attachment::to(&back).alias("till")).blocking()?;
        assert!(reaches(&shop, "db")?, "{:?}", asks(&shop, "db")?);
        assert!(reaches(&db, "till")? && reaches(&db, "shop")?, "{:?}", asks(&db, "till")?);
        let twice = shop.join_network(&back).blocking().unwrap_err();
        assert_eq!(twice.kind, FailureKind::Invalid, "{twice}");
        shop.leave_network(&back).blocking()?;
        assert!(!reaches(&db, "till")?);
        assert!(!reaches(&shop, "db")?);
        let port = std::net::TcpStream::connect((shop.host(), shop.port(8080)?));
        assert!(port.is_ok(), "its port is published all the same: {port:?}");
        let gone = shop.leave_network(&back).blocking().unwrap_err();
        assert_eq!(gone.kind, FailureKind::Invalid, "{gone}");
    }
    Ok(())
}

/// A container in another one's network joins no networks, now or later, and the message says so.
#[test]
fn a_borrowed_network_joins_no_networks() -> shakedown::Result {
    let owner = idle().network(&Network::new()).start().blocking()?;
    let mode = NetworkMode::Container(owner.id().to_owned());
    let failure = refused(idle().network_mode(mode.clone()).network(&Network::new()).alias("shop"));
    assert!(
        failure.kind == FailureKind::Invalid && failure.to_string().contains("joins no networks"),
        "{failure}"
    );
    let guest = idle().network_mode(mode).start().blocking()?;
    let failure = guest.join_network(&Network::new()).blocking().unwrap_err();
    assert!(
        failure.kind == FailureKind::Invalid && failure.to_string().contains("joins no networks"),
        "{failure}"
    );
    Ok(())
}

/// Names and addresses of its neighbours are those of the container whose network it has.
#[test]
fn a_borrowed_network_has_its_names() -> shakedown::Result {
    let net = Network::new();
    let web = web().network(&net).start().blocking()?;
    let owner = idle().network(&net).start().blocking()?;
    let mode = NetworkMode::Container(owner.id().to_owned());
    let answer = said("timeout 10 wget -q -O - http://web:8080/nothing 2>&1; :", |c| c.network_mode(mode));
    assert!(answer.contains("404"), "{answer}");
    drop(web);
    Ok(())
}

/// Who has the network of a container that is gone is on no network that is made afterwards, whatever its addresses.
#[test]
fn a_borrowed_network_is_not_the_next_one() -> shakedown::Result {
    let [subnet] = subnets();
    let net = || Network::new().subnet(&subnet);
    let owner = idle().network(&net()).ip(address(&subnet, 7)).start().blocking()?;
    let guest = idle().network_mode(NetworkMode::Container(owner.id().to_owned())).start().blocking()?;
    drop(owner);
    let next = net();
    let web = web().network(&next).ip(address(&subnet, 9)).start().blocking()?;
    let url = format!("http://{}:8080/nothing", address(&subnet, 9));
    let fetch = format!("timeout 5 wget -q -O - {url} 2>&1; :");
    let answer = guest.exec(["sh", "-c", &fetch]).blocking()?;
    assert!(!answer.stdout().contains("404"), "{answer:?}");
    let answer = said(&fetch, |c| c.network(&next).ip(address(&subnet, 11)));
    assert!(answer.contains("404"), "{answer}");
    drop(web);
    Ok(())
}

/// Containers have addresses on IPv6 if the network is declared so, and are found by them.
#[test]
fn a_network_has_ipv6_if_it_is_declared() -> shakedown::Result {
    let net = Network::new().ipv6();
    if !can("ipv6 networks", || idle().network(&net)) {
        return Ok(());
    }
    let serve = "mkdir /www; echo open > /www/index.html; exec httpd -f -p [::]:8080 -h /www";
    let web = sh(serve).name("web").network(&net).wait(Wait::port(8080)).start().blocking()?;
    let client = debian().network(&net).start().blocking()?;
    let found = client.exec(["getent", "ahostsv6", "web"]).blocking()?.success()?;
    let address = found.stdout().split_whitespace().next().unwrap_or_default().to_owned();
    assert!(address.starts_with("fd"), "{found:?}");
    let fetch = format!("timeout 10 wget -q -O - http://[{address}]:8080/");
    let answer = said(&fetch, |c| c.network(&net));
    assert_eq!(answer, "open\n");
    drop(web);
    Ok(())
}

/// Subnets and addresses are those that were chosen.
#[test]
fn addresses_can_be_chosen() -> shakedown::Result {
    let [subnet] = subnets();
    let address = |host| address(&subnet, host);
    let net = Network::new().subnet(&subnet).gateway(address(254));
    let script =
        "ip -4 -o addr show eth0 | sed 's/.*inet //; s/ .*//'; ip route | grep default | cut -d' ' -f3";
    let answer = said(script, |c| c.network(&net).ip(address(7)));
    let mut lines = answer.lines();
    assert_eq!(lines.next(), Some(&*format!("{}/24", address(7))), "{answer}");
    if crate::check::missing("outbound").is_none() {
        assert_eq!(lines.next(), Some(&*address(254).to_string()), "{answer}");
    }
    let _one = idle().network(&net).ip(address(9)).start().blocking()?;
    let failure = refused(idle().network(&net).ip(address(9)));
    assert_eq!(failure.kind, FailureKind::LaunchFailed, "{failure}");
    Ok(())
}

/// Addresses that cannot be are told before anything is made.
#[test]
fn impossible_addresses_are_told() {
    let odd = Network::named("odd").subnet("10.5.0.7/24");
    let outside = Network::named("outside").subnet("10.5.0.0/24").gateway([10, 6, 0, 1]);
    let failure = refused(
        idle()
            .network(&odd)
            .network(&outside)
            .ip([10, 5, 0, 255])
            .network(&Network::named("any"))
            .ip([10, 5, 0, 2]),
    );
    assert_eq!(failure.kind, FailureKind::Invalid);
    crate::check::assert_message!(failure, @r#"
    box is declared in a way that cannot work
      at tests/suite/networks.rs:LINE
      subnet:  `10.5.0.7/24` is an address in the subnet `10.5.0.0/24`
      gateway: 10.6.0.1 is no address of a host in 10.5.0.0/24
      ip:      10.5.0.255 is no address of a host in 10.5.0.0/24
      ip:      10.5.0.2 is in no subnet: none is declared
    hint: choose a subnet with `Network::subnet("10.5.0.0/24")`, and addresses in it
    "#);
}

/// Many networks at once get in nobody's way.
#[test]
fn many_networks_get_along() -> shakedown::Result {
    let nets = subnets::<50>().map(|subnet| Network::new().subnet(subnet));
    let all =
        |container: GenericContainer| nets.iter().fold(container, |container, net| container.network(net));
    let web = all(web()).start().blocking()?;
    for net in [&nets[0], &nets[49]] {
        let answer = said("timeout 10 wget -q -O - http://web:8080/nothing 2>&1; :", |c| c.network(net));
        assert!(answer.contains("404"), "{answer}");
    }
    drop(web);
    Ok(())
}
