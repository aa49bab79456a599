//! Options of a container, each seen from inside.

use crate::check::{can, idle, missing, refused, said, say, sh};
use shakedown::prelude::*;
use shakedown::{MountSource, NamespaceMode, Propagation, Ulimit};
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

#[test]
fn environment_from_files_and_the_host() -> shakedown::Result {
    let place = tempfile::tempdir()?;
    let file = place.path().join("shop.env");
    fs::write(&file, "# the till\nSHOP=open at nine\nTILL=from the file\n")?;
    let seen = said("echo \"$SHOP|$TILL|$PATH\"", |c| {
        c.env_file(file.display().to_string()).env("TILL", "declared").env_from_host("PATH")
    });
    assert_eq!(seen, format!("open at nine|declared|{}\n", std::env::var("PATH").unwrap_or_default()));
    Ok(())
}

#[test]
fn domainname() {
    assert_eq!(said("cat /proc/sys/kernel/domainname", |c| c.domainname("shop.example")), "shop.example\n");
}

#[test]
fn further_groups() {
    let declared = |c: GenericContainer| c.user("1000:1000").group_add("4242").group_add("root");
    if can("several users", || declared(idle())) {
        let seen = said("id -G", declared);
        let mut groups: Vec<_> = seen.split_whitespace().collect();
        groups.sort_unstable();
        assert_eq!(groups, ["0", "1000", "4242"]);
    }
}

/// The filter of system calls can be another one, given as a file or as its text, or none.
#[test]
fn seccomp_profiles() -> shakedown::Result {
    let mode = |option: &str| said("grep ^Seccomp: /proc/self/status", |c| c.security_opt(option));
    let (default, none) = (mode("no-new-privileges"), mode("seccomp=unconfined"));
    assert_eq!((default.split_whitespace().nth(1), none.split_whitespace().nth(1)), (Some("2"), Some("0")));
    let place = tempfile::tempdir()?;
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":[]}],
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    let file = place.path().join("no-directories.json");
    fs::write(&file, profile)?;
    for option in [format!("seccomp={}", file.display()), format!("seccomp={profile}")] {
        let seen =
            said("mkdir /tmp/x 2>/dev/null && echo made || echo refused; touch /tmp/y && echo file", |c| {
                c.security_opt(option)
            });
        assert_eq!(seen, "refused\nfile\n");
    }
    Ok(())
}

/// A misspelt security option is told, and no container is without what it was to have.
#[test]
fn misspelt_security_options_are_told() {
    let failure = refused(idle().security_opt("secomp=unconfined"));
    assert!(failure.to_string().contains("`secomp=unconfined` is no security option"), "{failure}");
}

#[test]
fn masked_and_read_only_paths() {
    let seen = said("wc -c < /etc/passwd; touch /tmp/x 2>/dev/null || echo kept", |c| {
        c.with(|c| {
            c.masked_paths = Some(vec!["/etc/passwd".into()]);
            c.readonly_paths = Some(vec!["/tmp".into()]);
        })
    });
    assert_eq!(seen, "0\nkept\n");
    let covered = "grep -c ' /proc/sys ' /proc/mounts; true";
    assert_eq!(said(covered, |c| c.security_opt("systempaths=unconfined")), "0\n");
    assert_eq!(said(covered, |c| c), "1\n");
}

#[test]
fn devices() {
    let seen = said("head -c 4 /dev/nothing | wc -c", |c| c.device("/dev/zero:/dev/nothing"));
    assert_eq!(seen, "4\n");
    let failure = refused(idle().device("/dev/no-such-device"));
    assert!(failure.to_string().contains("/dev/no-such-device"), "{failure}");
}

/// A device that may be read may not be written to.
#[test]
fn permissions_of_devices() {
    let Some(device) = ["/dev/fuse", "/dev/loop-control"].into_iter().find(|path| fs::metadata(path).is_ok())
    else {
        return say("cannot run here: there is no device to try");
    };
    let script =
        "(: < /dev/tried) 2>/dev/null && echo read; (: > /dev/tried) 2>/dev/null && echo write; echo end";
    let with = |permissions: &str| {
        let device = format!("{device}:/dev/tried:{permissions}");
        move |c: GenericContainer| c.device(device)
    };
    if can("device permissions", || with("r")(idle())) {
        assert_eq!(said(script, with("rw")), "read\nwrite\nend\n");
        assert_eq!(said(script, with("r")), "read\nend\n");
    }
}

/// What one container writes to a volume the next one reads; it begins with what the image has there.
#[test]
fn volumes() -> shakedown::Result {
    let volume = Volume::new();
    assert_eq!(said("ls /etc/passwd; echo kept > /etc/kept", |c| c.volume(&volume, "/etc")), "/etc/passwd\n");
    let declared = |c: GenericContainer| c.mount(Mount::volume(&volume, "/data").read_only());
    let seen = said("ls /data/passwd; cat /data/kept; touch /data/x 2>/dev/null || echo refused", declared);
    assert_eq!(seen, "/data/passwd\nkept\nrefused\n");
    let other = Volume::new();
    let seen =
        said("ls /new; cat /new/greeting", |c| c.volume(&other, "/new").file("/new/greeting", "hello\n"));
    assert_eq!(seen, "greeting\nhello\n");
    Ok(())
}

#[test]
fn images_as_volumes() {
    let declared = |c: GenericContainer| c.mount(Mount::image("busybox", "/box"));
    if can("image mounts", || declared(idle())) {
        let script = "ls /box/bin/busybox; touch /box/x 2>/dev/null || echo refused";
        assert_eq!(said(script, declared), "/box/bin/busybox\nrefused\n");
    }
}

#[test]
fn volumes_from_another_container() -> shakedown::Result {
    let place = tempfile::tempdir()?;
    fs::write(place.path().join("in"), "from the host\n")?;
    let volume = Volume::new();
    let one = idle()
        .volume(&volume, "/shared")
        .mount(Mount::bind(place.path().display().to_string(), "/host"))
        .start()
        .blocking()?;
    one.exec(["sh", "-c", "echo written > /shared/x"]).blocking()?.success()?;
    assert_eq!(said("cat /shared/x /host/in", |c| c.volumes_from(one.id())), "written\nfrom the host\n");
    Ok(())
}

#[test]
fn shared_ipc() -> shakedown::Result {
    let one = idle().ipc(NamespaceMode::Shareable).start().blocking()?;
    one.exec(["sh", "-c", "echo shared > /dev/shm/x"]).blocking()?.success()?;
    let joined = NamespaceMode::Container(one.id().to_owned());
    let own = one.exec(["readlink", "/proc/self/ns/ipc"]).blocking()?.success()?.stdout().into_owned();
    let seen = said("cat /dev/shm/x; readlink /proc/self/ns/ipc", |c| c.ipc(joined));
    assert_eq!(seen, format!("shared\n{own}"));
    if can("host ipc", || idle().ipc(NamespaceMode::Host)) {
        let host = fs::read_link("/proc/self/ns/ipc")?.display().to_string();
        let seen = said("readlink /proc/self/ns/ipc", |c| c.ipc(NamespaceMode::Host));
        assert_eq!(seen.trim(), host);
    }
    Ok(())
}

/// A container among another one's processes sees them, and leaves none behind there.
#[test]
fn shared_processes() -> shakedown::Result {
    let one = idle().start().blocking()?;
    let joined = NamespaceMode::Container(one.id().to_owned());
    let other = sh("sleep 4321 & exec sleep 5432").pid(joined).start().blocking()?;
    let seen = other.exec(["ps", "-o", "args"]).blocking()?.success()?.stdout().into_owned();
    assert!(seen.contains("sleep 3600") && seen.contains("sleep 5432"), "{seen}");
    // Dropping it does not wait for its removal.
    other.stop().blocking()?;
    let seen = one.exec(["ps", "-o", "args"]).blocking()?.success()?.stdout().into_owned();
    assert!(!seen.contains("sleep 4321") && !seen.contains("sleep 5432"), "{seen}");
    Ok(())
}

#[test]
fn the_hosts_processes() {
    let declared = |c: GenericContainer| c.pid(NamespaceMode::Host);
    if can("host processes", || declared(idle())) {
        let own = fs::read_link("/proc/self/ns/pid").unwrap_or_default().display().to_string();
        assert_eq!(said("readlink /proc/self/ns/pid", declared).trim(), own);
    }
}

/// Where something takes the place of the kernel's overlayfs, it is what is told.
#[test]
fn what_stacks_the_files_is_told() {
    let told = missing("overlayfs").unwrap_or_default();
    let kind = said("awk '$2 == \"/\" {print $3}' /proc/mounts", |c| c);
    if told.contains("fuse-overlayfs is used") {
        assert!(kind.starts_with("fuse"), "{kind}");
    } else if !told.is_empty() {
        assert_eq!(kind, "tmpfs\n", "{told}");
    }
    let demanded = std::env::var("SHAKEDOWN_OVERLAY").unwrap_or_default();
    if ["fuse", "copy"].contains(&&*demanded) && missing("own hosts file").is_none() {
        assert!(told.contains("SHAKEDOWN_OVERLAY demands it"), "{told}");
    }
}

/// What has no option can be said to the driver itself.
#[test]
fn raw_requests() {
    let seen = said("cat /proc/self/oom_score_adj", |c| {
        c.raw("docker", serde_json::json!({"HostConfig": {"OomScoreAdj": 555}}))
            .raw("native", serde_json::json!({"process": {"oomScoreAdj": 555}}))
    });
    assert_eq!(seen, "555\n");
}

/// A limit that the machine does not grant is told, not left out.
#[test]
fn limits_beyond_the_machine_are_told() {
    let failure = refused(idle().ulimit("nofile", 1 << 40, 1 << 40));
    assert!(failure.to_string().contains("limit"), "{failure}");
}

/// A profile, label or propagation that this machine or driver does not have is refused, not left out.
#[test]
fn what_the_machine_lacks_is_refused() {
    can("apparmor", || idle().security_opt("apparmor=shop"));
    can("selinux", || idle().security_opt("label=type:shop_t"));
    let place = std::env::temp_dir().display().to_string();
    can("mount propagation", || idle().mount(Mount::bind(place, "/host").propagation(Propagation::Rslave)));
}
