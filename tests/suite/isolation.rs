//! What a container must not reach, and what it must find all the same.

use crate::check::{can, idle, refused, said, sh};
use shakedown::FailureKind;
use shakedown::prelude::*;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A device node that a container makes leads to no device of the machine, though it may make one.
#[test]
fn device_nodes_are_dead() {
    // 7:0 is the first loop device; whether the machine has it does not matter.
    let script = "for n in /node /dev/node; do mknod $n b 7 0 2>/dev/null; head -c 1 $n >/dev/null 2>&1 && echo open $n; \
        done; echo end";
    assert_eq!(said(script, |c| c), "end\n");
}

/// The devices that every program expects are there and work.
#[test]
fn the_usual_devices_work() {
    let script = "head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo x > /dev/null; cat /dev/null; \
        echo y > /dev/full 2>/dev/null || echo full; ls -l /dev/fd /dev/stdin | grep -c /proc/self/fd";
    assert_eq!(said(script, |c| c), "4\n4\nfull\n2\n");
}

/// A container can name the program its process executed before its own, `/proc/self/exe`: the test binary, which must
/// not be changed that way (CVE-2019-5736). What makes containers therefore runs from a mount that cannot be written to.
#[test]
fn the_test_binary_is_out_of_reach() -> shakedown::Result {
    let container = idle().start().blocking()?;
    let own = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw())
    };
    let named = |path: &Path, name: &str| {
        std::fs::read(path.join("cmdline")).is_ok_and(|line| line.starts_with(name.as_bytes()))
    };
    let parent = |path: &Path| {
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        Path::new("/proc").join(line.unwrap_or("0").trim())
    };
    // A child of the launcher has its name as well, until it executes the container's program.
    let launcher =
        |path: &Path| named(path, "shakedown: launcher") && named(&parent(path), "shakedown: keeper");
    let processes = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let launchers: Vec<_> = processes.filter(|path| own(path) && launcher(path)).collect();
    let session = shakedown::session().blocking()?;
    assert_eq!(launchers.is_empty(), session.driver() != "native", "the native runtime has launchers");
    for launcher in launchers {
        let program = launcher.join("exe");
        // As it is already; a launcher of another test may have ended meanwhile.
        let Ok(found) = std::fs::metadata(&program) else { continue };
        let changed = std::fs::set_permissions(&program, found.permissions());
        let kind = changed.expect_err("the mode of the program could be changed").kind();
        assert!(matches!(kind, ErrorKind::ReadOnlyFilesystem | ErrorKind::NotFound), "{kind}");
    }
    drop(container);
    Ok(())
}

/// A process has no descriptors but its three streams (CVE-2024-21626), at its start and in a further command.
#[test]
fn no_descriptor_leaks_in() -> shakedown::Result {
    // The shell's own directory handle is closed again when `ls` lists; its number is 3.
    let script = "for f in /proc/self/fd/*; do echo ${f##*/}; done | sort -n | head -c 6";
    assert_eq!(said(script, |c| c), "0\n1\n2\n");
    let container = idle().start().blocking()?;
    assert_eq!(container.exec(["sh", "-c", script]).blocking()?.success()?.stdout(), "0\n1\n2\n");
    Ok(())
}

/// A working directory outside the root is refused (CVE-2024-21626).
#[test]
fn a_directory_of_the_host_is_no_working_directory() {
    for number in [3, 4, 7, 9] {
        let failure = refused(sh("ls").workdir(format!("/proc/self/fd/{number}")).wait(Wait::exit()));
        assert!(
            matches!(failure.kind, FailureKind::LaunchFailed | FailureKind::Other | FailureKind::ExitedEarly),
            "{failure}"
        );
    }
}

/// Kernel parameters of the whole machine are not a container's to set.
#[test]
fn the_machines_parameters_are_refused() {
    let failure = refused(idle().with(|c| {
        c.sysctls.insert("vm.max_map_count".to_owned(), "262144".to_owned());
    }));
    assert!(failure.to_string().contains("vm.max_map_count"), "{failure}");
}

/// Programs that are not root log to /dev/stdout, files they make have the usual modes, and a missing working
/// directory is made.
#[test]
fn ordinary_programs_feel_at_home() {
    let as_user = |c: GenericContainer| c.user("1000:1000");
    assert_eq!(said("echo to the log > /dev/stdout; umask", as_user), "to the log\n0022\n");
    assert_eq!(said("pwd; stat -c %a .", |c| c.workdir("/srv/not/there")), "/srv/not/there\n755\n");
}

/// The kernel's tables of the machine are hidden or read-only.
#[test]
fn the_machine_is_hidden() {
    let script = "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c; ls /sys/firmware | wc -l; \
        echo 1 2>/dev/null > /proc/sys/kernel/panic || echo kept; mount -t tmpfs none /mnt 2>/dev/null || echo refused";
    assert_eq!(said(script, |c| c), "0\n0\nkept\nrefused\n");
}

/// A user's own `/etc/hosts` is left as it is.
#[test]
fn a_declared_hosts_file_is_kept() {
    let declared = |c: GenericContainer| c.file("/etc/hosts", "192.0.2.7 warehouse\n");
    if can("own hosts file", || declared(idle())) {
        assert_eq!(said("cat /etc/hosts", declared), "192.0.2.7 warehouse\n");
    }
}

/// Whatever was made ahead for the next container, it finds what the one before it found: mounts, privileges, devices,
/// limits.
#[test]
fn every_container_finds_the_same_world() {
    let script = "awk '{for (i = 7; $i != \"-\"; i++); print $5, $6, $(i + 1)}' /proc/self/mountinfo | sort; \
        grep -E '^(Umask|Uid|Gid|Groups|SigBlk|SigIgn|SigCgt|Cap|NoNewPrivs|Seccomp)' /proc/self/status; \
        cat /proc/self/limits /proc/1/oom_score_adj; sed 's/[0-9a-f]\\{64\\}//' /proc/self/cgroup; readlink /proc/self/fd/0; \
        ls -l /dev | awk '{print $1, $3, $4, $5, $NF}'; stat -c '%n %A %u %g' / /proc /sys /dev/shm /dev/mqueue; pwd; id; \
        hostname; env | sort";
    let once = || said(script, |c| c.hostname("same").env("HOSTNAME", "same"));
    let first = once();
    for again in 1..8 {
        assert_eq!(once(), first, "of start {again}");
    }
}

/// What is declared otherwise than for the container before is not what was made ahead for that one.
#[test]
fn what_differs_is_not_what_was_made_ahead() {
    let script = "df -P /dev/shm | awk 'NR == 2 {print $2}'; ls /sys/firmware | wc -l; head -c 1 /proc/timer_list | wc -c; \
        grep -c ' /srv/own ' /proc/self/mountinfo || true";
    for _ in 0..3 {
        let usual = said(script, |c| c);
        assert!(usual.starts_with("65536\n0\n0\n"), "{usual}");
        let larger = said(script, |c| c.with(|c| c.resources.shm_size = Some(8 << 20)));
        assert!(larger.starts_with("8192\n0\n0\n"), "{larger}");
        let mounted = said(script, |c| c.mount(Mount::tmpfs("/srv/own")));
        assert_eq!(mounted, "65536\n0\n0\n1\n");
    }
}
