//! Containers whose users are others than the host's, though the driver may run as root.

use crate::check::{can, idle, missing, said, sh};
use rustix::process::geteuid;
use shakedown::prelude::*;
use shakedown::{Exec, FailureKind, NamespaceMode, NewImage};
use std::fs;
use std::os::unix::fs::MetadataExt;

fn own(container: GenericContainer) -> GenericContainer {
    container.userns(NamespaceMode::Private)
}

/// Whether containers can have users of their own here; if not, asking for it is a clear failure.
#[track_caller]
fn possible() -> bool {
    can("own users", || own(idle()))
}

/// Root of the container is not root of the host: what it makes on the host is not root's, and what is root's there it
/// cannot read.
#[test]
fn root_is_not_the_hosts() -> shakedown::Result {
    if !possible() {
        return Ok(());
    }
    let place = tempfile::tempdir()?;
    fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let secret = place.path().join("secret");
    fs::write(&secret, "of the host")?;
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let bind = Mount::bind(place.path().display().to_string(), "/host");
    let script = "id -u; touch /host/made; cat /host/secret 2>/dev/null; chown 0 /host/secret 2>/dev/null; \
        awk '$1 == 0 {print $2 != 0}' /proc/self/uid_map; cat /proc/self/setgroups";
    let seen = said(script, |c| own(c).mount(bind));
    let made = fs::metadata(place.path().join("made"))?;
    if geteuid().is_root() {
        assert_eq!(seen, "0\n1\nallow\n");
        assert!(made.uid() >= 65_536 && made.gid() >= 65_536, "{}:{}", made.uid(), made.gid());
        assert_eq!(fs::metadata(&secret)?.uid(), 0);
    } else {
        // An ordinary user's container is in a user namespace anyway, and its root is this user.
        assert!(seen.starts_with("0\n"), "{seen}");
        assert_eq!(made.uid(), geteuid().as_raw());
    }
    Ok(())
}

/// The image's files have their owners, and so has what is written; users are changed and files given away as ever.
#[test]
fn files_have_their_owners() -> shakedown::Result {
    if !possible() || missing("several users").is_some() {
        return Ok(());
    }
    let script = "stat -c %u:%g / /bin/busybox /etc /etc/hosts /srv/put /srv/put/orders; echo x > /etc/new; chown 42:43 /etc/new; \
        stat -c %u:%g /etc/new; echo shop >> /etc/passwd && stat -c %u:%g /etc/passwd";
    let put = File::bytes("/srv/put/orders", "42").owner(1000, 1001);
    let seen = said(script, |c| own(c).copy(put).mount(Mount::tmpfs("/scratch")));
    assert_eq!(seen, "0:0\n0:0\n0:0\n0:0\n0:0\n1000:1001\n42:43\n0:0\n");
    let log = said("echo to the log > /dev/stdout; id -u; touch /tmp/mine; stat -c %u /tmp/mine", |c| {
        own(c).user("1000:1000")
    });
    assert_eq!(log, "to the log\n1000\n1000\n");
    Ok(())
}

/// What a container can do otherwise it can do with users of its own: commands, copies, limits, an init, a terminal,
/// a volume, a port.
#[test]
fn everything_else_works() -> shakedown::Result {
    if !possible() {
        return Ok(());
    }
    let volume = Volume::new();
    let script =
        "mkdir -p /www; echo orders > /www/index.html; echo kept > /data/kept; exec httpd -f -p 80 -h /www";
    let container = own(sh(script)).volume(&volume, "/data").init(true).port(80).workdir("/srv/deep/down");
    let container = container.wait(Wait::http(80, "/index.html")).start().blocking()?;
    let ran = container
        .exec(["sh", "-c", "id -u; cat /data/kept; pwd; echo x > /dev/stderr"])
        .blocking()?
        .success()?;
    assert_eq!((&*ran.stdout(), &*ran.stderr()), ("0\nkept\n/srv/deep/down\n", "x\n"));
    let terminal = container.exec(Exec::new(["tty"]).tty(true)).blocking()?.success()?;
    assert!(terminal.stdout().starts_with("/dev/pts/"), "{}", terminal.stdout());
    container.copy_in(File::bytes("/srv/late", "42")).blocking()?;
    assert_eq!(container.read_file("/srv/late").blocking()?, b"42");
    let seen = container.exec(["stat", "-c", "%u:%g %a", "/srv/late"]).blocking()?.success()?;
    assert_eq!(seen.stdout(), "0:0 644\n");
    let other = said("cat /data/kept", |c| own(c).volume(&volume, "/data"));
    assert_eq!(other, "kept\n");
    Ok(())
}

/// Root rules over its own network and kernel parameters, and over nothing of the machine's.
#[test]
fn root_rules_at_home() {
    if !possible() {
        return;
    }
    let script = "cat /proc/sys/net/ipv4/ip_default_ttl; ip link add type dummy 2>/dev/null; ip addr add 192.0.2.7/32 dev lo && \
        ip addr show lo | grep -c 192.0.2.7; mknod /node b 7 0 2>/dev/null && echo made; date -s 2000-01-01 2>/dev/null; \
        mount -t tmpfs none /mnt 2>/dev/null || echo refused";
    let seen = said(script, |c| {
        own(c).sysctl("net.ipv4.ip_default_ttl", "42").cap_add("NET_ADMIN").cap_add("SYS_TIME")
    });
    assert!(seen.starts_with("42\n1\n") && seen.ends_with("refused\n") && !seen.contains("made"), "{seen}");
}

/// An image that is made of such a container has the owners that it saw.
#[test]
fn an_image_of_it_is_as_any_other() -> shakedown::Result {
    if !possible() || missing("several users").is_some() {
        return Ok(());
    }
    let name = crate::images::Name::new("own-users");
    let container = own(idle()).start().blocking()?;
    let script =
        "echo 42 > /orders; mkdir /shop; chown 42:43 /shop; chmod 700 /shop; touch /shop/inner; rm /bin/true";
    container.exec(["sh", "-c", script]).blocking()?.success()?;
    container.commit(NewImage::named(&name.0)).blocking()?;
    drop(container);
    let script = "stat -c %u:%g /orders /shop /shop/inner / /etc; ls /bin/true 2>/dev/null; cat /orders";
    for declare in [own, |c: GenericContainer| c] {
        let declared = declare(GenericContainer::new(&name.0).name("box").command(["sh", "-c", script]));
        let done = declared.wait(Wait::exit()).start().blocking()?;
        assert_eq!(done.logs().blocking()?.stdout(), "0:0\n42:43\n0:0\n0:0\n0:0\n42\n");
    }
    Ok(())
}

/// What would join users of two kinds is refused, not done by halves.
#[test]
fn users_are_not_mixed() -> shakedown::Result {
    if !possible() || !geteuid().is_root() {
        return Ok(());
    }
    let one = own(idle()).start().blocking()?;
    let shared = NamespaceMode::Container(one.id().to_owned());
    let mixed = [
        idle().pid(shared.clone()),
        own(idle()).pid(NamespaceMode::Host),
        own(idle()).privileged(),
        own(idle()).network_mode(shakedown::NetworkMode::Host),
    ];
    for declared in mixed {
        let failure = crate::check::refused(declared);
        assert_eq!(failure.kind, FailureKind::Unsupported, "{failure}");
    }
    let seen = said("ps -o args", |c| own(c).pid(shared));
    assert!(seen.contains("sleep 3600"), "{seen}");
    Ok(())
}

/// The host's users can be asked for by name; an ordinary user's container has others.
#[test]
fn the_hosts_users() {
    let declared = |c: GenericContainer| c.userns(NamespaceMode::Host);
    if can("host users", || declared(idle())) {
        let host = fs::read_link("/proc/self/ns/user").unwrap_or_default().display().to_string();
        assert_eq!(said("readlink /proc/self/ns/user", declared).trim(), host);
    }
}
