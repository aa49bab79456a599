//! Options of a container, each seen from inside.

use crate::check::{can, idle, said, sh};
use shakedown::prelude::*;
use shakedown::{MountSource, Ulimit};
use std::fs;

#[test]
fn environment() {
    let seen = said("echo \"$SHOP|$EMPTY|$PATH\"", |c| c.env("SHOP", "open at nine").env("EMPTY", ""));
    assert!(seen.starts_with("open at nine||/"), "{seen}");
}

#[test]
fn workdir() {
    assert_eq!(said("pwd", |c| c.workdir("/tmp")), "/tmp\n");
}

#[test]
fn user() {
    assert_eq!(said("id -u; id -g", |c| c.user("1000:1001")), "1000\n1001\n");
    assert_eq!(said("id -un", |c| c.user("root")), "root\n");
}

#[test]
fn hostname() {
    assert_eq!(said("hostname", |c| c.hostname("till-7")), "till-7\n");
}

#[test]
fn extra_hosts() {
    let seen = said("cat /etc/hosts", |c| c.extra_host("warehouse", "192.0.2.7"));
    assert!(seen.lines().any(|line| line.split_whitespace().eq(["192.0.2.7", "warehouse"])), "{seen}");
}

#[test]
fn entrypoint_and_command() {
    let seen = said("", |c| c.entrypoint(["echo", "entry"]).command(["and", "a b"]));
    assert_eq!(seen, "entry and a b\n");
}

#[test]
fn read_only() {
    assert_eq!(said("touch /x 2>/dev/null && echo written || echo refused", |c| c.read_only()), "refused\n");
}

/// A root that can only be read from inside still gets its declared files.
#[test]
fn files_on_a_read_only_root() {
    let declared = |c: GenericContainer| c.read_only().file("/etc/shop", "open\n");
    if can("files on a read-only root", || declared(idle())) {
        assert_eq!(said("cat /etc/shop", declared), "open\n");
    }
}

#[test]
fn tmpfs() {
    let sized = Mount {
        target: "/scratch".into(),
        source: MountSource::Tmpfs { size: Some(1 << 20), mode: Some(0o1700) },
        read_only: false,
    };
    let seen = said("touch /scratch/x; df -k /scratch | tail -1; stat -c %a /scratch", |c| c.mount(sized));
    assert!(seen.contains("1024") && seen.ends_with("1700\n"), "{seen}");
}

#[test]
fn bind_mounts() -> shakedown::Result {
    let place = tempfile::tempdir()?;
    fs::write(place.path().join("in"), "from the host\n")?;
    let host = place.path().display().to_string();
    let seen = said("cat /host/in; echo back > /host/out", |c| c.mount(Mount::bind(&host, "/host")));
    assert_eq!(
        (seen.as_str(), fs::read_to_string(place.path().join("out"))?.as_str()),
        ("from the host\n", "back\n")
    );
    let seen = said("touch /host/x 2>/dev/null && echo written || echo refused", |c| {
        c.mount(Mount::bind(&host, "/host").read_only())
    });
    assert_eq!(seen, "refused\n");
    Ok(())
}

#[test]
fn capabilities() {
    let effective = |declare: fn(GenericContainer) -> GenericContainer| {
        let seen = said("grep CapEff /proc/self/status", declare);
        u64::from_str_radix(seen.split_whitespace().nth(1).unwrap_or_default(), 16).unwrap()
    };
    let (net_admin, net_raw) = (1 << 12, 1 << 13);
    let plain = effective(|c| c);
    assert_eq!(plain & (net_admin | net_raw), net_raw, "Docker's default set");
    assert_eq!(effective(|c| c.cap_add("NET_ADMIN").cap_drop("NET_RAW")) & (net_admin | net_raw), net_admin);
    assert_eq!(effective(|c| c.cap_drop("ALL")), 0);
}

#[test]
fn no_new_privileges() {
    let seen = said("grep NoNewPrivs /proc/self/status", |c| c.with(|c| c.no_new_privileges = true));
    assert_eq!(seen.split_whitespace().nth(1), Some("1"));
}

#[test]
fn ulimits() {
    let limit = Ulimit { name: "nofile".into(), soft: 123, hard: 456 };
    assert_eq!(said("ulimit -Sn; ulimit -Hn", |c| c.with(|c| c.resources.ulimits.push(limit))), "123\n456\n");
}

#[test]
fn shared_memory() {
    let seen = said("df -k /dev/shm | tail -1", |c| c.with(|c| c.resources.shm_size = Some(8 << 20)));
    assert!(seen.contains("8192"), "{seen}");
}

#[test]
fn sysctls() {
    let seen = said("cat /proc/sys/net/ipv4/ip_unprivileged_port_start", |c| {
        c.with(|c| {
            c.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "81".into());
        })
    });
    assert_eq!(seen, "81\n");
}

/// The world of a container is its own: its processes, its name, its network.
#[test]
fn containers_are_apart() -> shakedown::Result {
    let one = idle().start().blocking()?;
    let seen = one.exec(["ps"]).blocking()?.success()?;
    assert!(seen.stdout().lines().count() < 6, "{}", seen.stdout());
    let (name, other) = (one.exec(["hostname"]), idle().name("other").start());
    let (name, other) = name.and(other).blocking()?;
    assert_ne!(name.stdout(), other.exec(["hostname"]).blocking()?.stdout());
    Ok(())
}

/// What one container writes is not in the next of the same image.
#[test]
fn images_stay_as_they_are() -> shakedown::Result {
    drop(sh("echo dirt > /etc/dirt; rm /bin/wget").wait(Wait::exit()).start().blocking()?);
    assert_eq!(said("ls /etc/dirt 2>/dev/null; ls /bin/wget", |c| c), "/bin/wget\n");
    Ok(())
}
