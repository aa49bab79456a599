//! Ways out of a container that have worked with other runtimes: each is tried, and fails.
//!
//! What needs a race to be won is tried in `races.rs`, what needs the first instructions of a runtime in `isolation.rs` and
//! in the tests of the runtime itself.

use crate::check::{can, idle, is_the_engines_affair, refused, said, sh};
use crate::images::{Name, import};
use shakedown::prelude::*;
use shakedown::{Exec, FailureKind, NetworkMode, NewImage};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

/// A program that makes one system call with small arguments, and exits with its error number.
#[cfg(target_arch = "x86_64")]
mod program {
    use super::{File, GenericContainer, said};
    use shakedown::Configure;

    fn mov(code: u8, value: u32) -> Vec<u8> {
        std::iter::once(code).chain(value.to_le_bytes()).collect()
    }

    /// Of 64 bits.
    fn wide(number: u32, arguments: [u32; 3]) -> Vec<u8> {
        let [a, b, c] = arguments;
        let moves = [mov(0xb8, number), mov(0xbf, a), mov(0xbe, b), mov(0xba, c)].concat();
        // xor r10, r10; syscall; neg eax; mov edi, eax; mov eax, 60; syscall
        let rest = [0x4d, 0x31, 0xd2, 0x0f, 0x05, 0xf7, 0xd8, 0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
        let code = [&moves[..], &rest[..]].concat();
        let size = 120 + code.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for word in [0x40_0078_u64, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        for word in [0, 0x40_0000, 0x40_0000, size, size, 0x1000] {
            file.extend(word.to_le_bytes());
        }
        file.extend(code);
        file
    }

    /// Of 32 bits.
    fn narrow(number: u32, arguments: [u32; 3]) -> Vec<u8> {
        let [a, b, c] = arguments;
        let moves = [mov(0xb8, number), mov(0xbb, a), mov(0xb9, b), mov(0xba, c)].concat();
        // xor esi, esi; int 0x80; neg eax; mov ebx, eax; mov eax, 1; int 0x80
        let rest = [0x31, 0xf6, 0xcd, 0x80, 0xf7, 0xd8, 0x89, 0xc3, 0xb8, 1, 0, 0, 0, 0xcd, 0x80];
        let code = [&moves[..], &rest[..]].concat();
        let size = 84 + code.len() as u32;
        let mut file = b"\x7fELF\x01\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2, 0, 3, 0, 1, 0, 0, 0]);
        for word in [0x0804_8054_u32, 52, 0, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend([52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        for word in [1, 0, 0x0804_8000, 0x0804_8000, size, size, 5, 0x1000] {
            file.extend(word.to_le_bytes());
        }
        file.extend(code);
        file
    }

    /// The error numbers that these calls get, in one container.
    #[track_caller]
    fn errors(programs: Vec<Vec<u8>>) -> Vec<i32> {
        let declare = |mut container: GenericContainer| {
            for (number, program) in programs.into_iter().enumerate() {
                container = container.copy(File::bytes(format!("/try/{number:03}"), program).mode(0o755));
            }
            container
        };
        let seen = said("for each in /try/*; do $each; echo $?; done", declare);
        seen.lines().map(|line| line.parse().unwrap_or(-1)).collect()
    }

    /// Calls that reach past the container, or have let programs out of one, are refused.
    #[test]
    fn dangerous_calls_are_refused() {
        let new_user = 0x1000_0000;
        let calls: [(&str, u32, [u32; 3]); 9] = [
            ("add_key", 248, [0, 0, 0]),
            ("request_key", 249, [0, 0, 0]),
            ("keyctl", 250, [0, 0, 0]),
            ("unshare(CLONE_NEWUSER)", 272, [new_user, 0, 0]),
            ("open_by_handle_at", 304, [0, 0, 0]),
            ("bpf", 321, [0, 0, 0]),
            ("kexec_load", 246, [0, 0, 0]),
            ("init_module", 175, [0, 0, 0]),
            ("mount", 165, [0, 0, 0]),
        ];
        let seen = errors(calls.iter().map(|(_, number, arguments)| wide(*number, *arguments)).collect());
        for ((name, ..), error) in calls.iter().zip(&seen) {
            assert_eq!(*error, 1, "{name} was not refused with EPERM: {seen:?}");
        }
        assert_eq!(seen.len(), calls.len());
    }

    /// A program of 32 bits runs, and its calls are no way round.
    #[test]
    fn programs_of_32_bits_run_confined() {
        // getpid, mount, unshare(CLONE_NEWUSER), keyctl
        let calls = [(20, [0; 3]), (21, [0; 3]), (310, [0x1000_0000, 0, 0]), (288, [0; 3])];
        let seen = errors(calls.into_iter().map(|(number, arguments)| narrow(number, arguments)).collect());
        let [pid, refused @ ..] = &seen[..] else { panic!("{seen:?}") };
        // A process id, negated and cut to eight bits.
        assert!(*pid > 128 && *pid != 126 && *pid != 159, "a program of 32 bits does not run: {seen:?}");
        assert_eq!(refused, [1, 1, 1]);
    }
}

/// Who may mount could make file systems on which device nodes are alive: the devices are out of reach all the same.
#[test]
fn mounting_brings_no_device_to_life() {
    // 10:237 is /dev/loop-control. Where mounting is refused altogether, nothing is left to try.
    let script = "mount -t tmpfs none /mnt 2>/dev/null || { echo refused; exit; }; \
        { mknod /mnt/n c 10 237 && : < /mnt/n; } 2>&1 | grep -q 'not permitted' && echo refused";
    assert_eq!(said(script, |c| c.cap_add("SYS_ADMIN")), "refused\n");
    let script = "mount -o remount,dev,rw / 2>/dev/null; \
        { mknod /n c 10 237 && : < /n; } 2>&1 | grep -q 'not permitted' && echo refused";
    assert_eq!(said(script, |c| c.cap_add("SYS_ADMIN")), "refused\n");
}

/// A mount whose target leads through a link of the container makes nothing on the host (CVE-2021-30465,
/// CVE-2024-45310).
#[test]
fn mounts_through_links_stay_inside() -> shakedown::Result {
    let (place, canary) = (tempfile::tempdir()?, tempfile::tempdir()?);
    symlink(canary.path(), place.path().join("out"))?;
    let mounted = sh("exec sleep 3600")
        .mount(Mount::bind(place.path().display().to_string(), "/data"))
        .mount(Mount::tmpfs("/data/out/deep"))
        .start()
        .blocking();
    assert_eq!(fs::read_dir(canary.path())?.count(), 0, "something was made on the host");
    drop(mounted);
    Ok(())
}

/// A link in the container does not lead a copy to the host, neither in nor out (CVE-2018-15664, CVE-2019-14271).
#[test]
fn copies_through_links_stay_inside() -> shakedown::Result {
    let canary = tempfile::tempdir()?;
    fs::write(canary.path().join("secret"), "of the host")?;
    let place = canary.path().display().to_string();
    let container = idle().start().blocking()?;
    container.exec(["ln", "-s", &place, "/out"]).blocking()?.success()?;
    let _ = container.copy_in(File::bytes("/out/x", "from the test")).blocking();
    assert!(!canary.path().join("x").exists(), "a copy was made on the host");
    let read = container.read_file("/out/secret").blocking();
    assert!(read.is_err(), "a file of the host was read: {read:?}");
    Ok(())
}

/// A volume's place that leads through a link of the image is where the link leads, as long as that is in the container.
#[test]
fn mounts_through_links_of_the_image_work() -> shakedown::Result {
    let shop = tempfile::tempdir()?;
    let steps = "FROM busybox\nRUN rm -rf /var/run && mkdir -p /run /var && ln -s /run /var/run\n";
    fs::write(shop.path().join("Dockerfile"), steps)?;
    let image = format!("build:{}", shop.path().display());
    let container =
        GenericContainer::new(image).name("box").command(["sh", "-c", "grep -c ' /run/shop ' /proc/mounts"]);
    let done = container.mount(Mount::tmpfs("/var/run/shop")).wait(Wait::exit()).start().blocking()?;
    assert_eq!(done.logs().blocking()?.stdout(), "1\n");
    Ok(())
}

/// Nothing is mounted over what the kernel shows in /proc, through a link neither: who starts programs in there would
/// write to files of the volume, or where links in it lead (CVE-2019-16884, CVE-2023-27561, CVE-2025-52881).
#[test]
fn the_kernels_files_are_not_covered() -> shakedown::Result {
    if is_the_engines_affair() {
        return Ok(());
    }
    let place = tempfile::tempdir()?;
    symlink("/proc/self", place.path().join("link"))?;
    let declared = || {
        let c = idle().sysctl("net.ipv4.ip_default_ttl", "42");
        c.mount(Mount::bind(place.path().display().to_string(), "/data"))
    };
    for target in ["/proc", "/proc/self", "/proc/self/attr", "/proc/sys/net", "/data/link", "/data/link/attr"]
    {
        let failure = refused(declared().mount(Mount::tmpfs(target)));
        assert!(
            matches!(failure.kind, FailureKind::LaunchFailed | FailureKind::Other),
            "{target}: {failure}"
        );
    }
    // Figures are nothing that anybody is told through.
    fs::write(place.path().join("uptime"), "42.00 42.00\n")?;
    let uptime = place.path().join("uptime").display().to_string();
    assert_eq!(said("cat /proc/uptime", |c| c.mount(Mount::bind(uptime, "/proc/uptime"))), "42.00 42.00\n");
    Ok(())
}

/// An image whose `/proc` or `/sys` is a link does not start: what is masked would be somewhere else (CVE-2019-19921).
#[test]
fn an_image_cannot_move_the_kernels_files() -> shakedown::Result {
    if is_the_engines_affair() {
        return Ok(());
    }
    for directory in ["proc", "sys"] {
        let name = Name::new(&format!("moved-{directory}"));
        let place = tempfile::tempdir()?;
        let base = idle().start().blocking()?;
        base.copy_out("/bin", place.path().join("bin")).blocking()?;
        drop(base);
        fs::create_dir(place.path().join("elsewhere"))?;
        symlink("/elsewhere", place.path().join(directory))?;
        import(place.path(), NewImage::named(&name.0))?;
        let moved = GenericContainer::new(&name.0).name("box").command(["sh", "-c", "sleep 3600"]);
        let failure = refused(moved);
        assert!(matches!(failure.kind, FailureKind::LaunchFailed | FailureKind::Other), "{failure}");
    }
    Ok(())
}

/// Descriptors of what starts containers lead to no program and no directory, at the start and for a further command:
/// the container's, another one's, or, by way of a process, the host's (CVE-2024-21626).
#[test]
fn descriptors_lead_nowhere() -> shakedown::Result {
    let paths = |number: u32| ["", "/1/root", "/1/cwd"].map(|way| format!("/proc/self/fd/{number}{way}"));
    let able = |c: GenericContainer| c.cap_add("SYS_PTRACE");
    let other = able(idle()).start().blocking()?;
    for path in (3..32).flat_map(paths) {
        let ran = other.exec([format!("{path}/bin/true")]).blocking();
        assert_eq!(
            ran.map_err(|failure| failure.kind).err(),
            Some(FailureKind::ExecFailed),
            "{path}/bin/true"
        );
        let entered = other.exec(Exec::new(["pwd"]).workdir(&path)).blocking();
        // What is made where it is missing is no way out.
        let directory = entered.map(|ended| ended.stdout().trim().to_owned());
        assert!(directory.as_ref().map_or(true, |seen| *seen == path), "{path}: {directory:?}");
    }
    for path in (3..20).map(|number| format!("/proc/self/fd/{number}/bin/true")) {
        let failure =
            refused(able(GenericContainer::new("busybox").name("box").command([&path])).wait(Wait::exit()));
        assert!(
            matches!(failure.kind, FailureKind::LaunchFailed | FailureKind::ExitedEarly),
            "{path}: {failure}"
        );
    }
    Ok(())
}

/// A command starts among processes that are not its friends: what starts it holds nothing that they could open, and
/// its program cannot be written to (CVE-2016-9962, CVE-2019-5736).
#[test]
fn what_starts_commands_is_out_of_reach() -> shakedown::Result {
    let script = "while :; do for p in /proc/[0-9]*; do (: >> $p/exe); for f in $p/exe $p/cwd $p/root $p/fd/*; do \
        readlink $f; done; done; done 2>/dev/null >> /seen";
    let container = sh(script).start().blocking()?;
    let own = std::env::current_exe()?;
    let state =
        || fs::metadata(&own).map(|found| (found.len(), found.mode(), found.mtime(), found.mtime_nsec()));
    let before = state()?;
    for _ in 0..50 {
        container.exec(["true"]).blocking()?.success()?;
    }
    assert_eq!(state()?, before, "the program of the test was changed");
    let seen = container.exec(["sort", "-u", "/seen"]).blocking()?.success()?.stdout().into_owned();
    let usual = ["/bin/", "/proc", "/dev/null", "/dev/pts", "/seen", "pipe:[", "socket:["];
    let strange = |line: &&str| *line != "/" && !usual.iter().any(|start| line.starts_with(start));
    assert_eq!(seen.lines().filter(strange).collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(seen.lines().any(|line| line.starts_with("/bin/")), "the loop has seen nothing:\n{seen}");
    Ok(())
}

/// A `/dev` in which the names of terminals lead elsewhere changes nothing where they lead (CVE-2025-52565).
#[test]
fn a_false_terminal_leads_nowhere() -> shakedown::Result {
    let canary = tempfile::tempdir()?;
    let file = canary.path().join("secret");
    fs::write(&file, "of the host")?;
    let state = || fs::metadata(&file).map(|found| (found.uid(), found.gid(), found.mode()));
    let before = state()?;
    for name in ["console", "ptmx", "tty", "pts"] {
        let place = tempfile::tempdir()?;
        let to = if name == "pts" { canary.path() } else { &file };
        symlink(to, place.path().join(name))?;
        let declared = sh("echo written > /dev/console; echo written > /dev/tty; exec sleep 3600").tty(true);
        // Whether it starts does not matter.
        let running =
            declared.mount(Mount::bind(place.path().display().to_string(), "/dev")).start().blocking();
        if let Ok(running) = &running {
            let _ = running.exec(Exec::new(["tty"]).tty(true)).blocking();
        }
        assert_eq!(state()?, before, "{name}");
        assert_eq!(fs::read_to_string(&file)?, "of the host", "{name}");
        assert_eq!(fs::read_dir(canary.path())?.count(), 1, "{name}");
    }
    Ok(())
}

/// A `/dev` whose `null` is another file does not put that in the place of what is masked (CVE-2025-31133), and one that
/// is a link does not lead what is mounted there to the host.
#[test]
fn a_false_null_unmasks_nothing() -> shakedown::Result {
    let place = tempfile::tempdir()?;
    symlink("/etc/passwd", place.path().join("null"))?;
    let declared = sh("cat /proc/keys /proc/timer_list; exec sleep 3600")
        .mount(Mount::bind(place.path().display().to_string(), "/dev"));
    if let Some(reason) = crate::check::missing("masks with a mounted /dev") {
        crate::check::say(&format!("not tried: {reason}"));
        return Ok(());
    }
    // Either it does not start, or what is masked stays empty.
    if let Ok(running) = declared.start().blocking() {
        let seen = running.logs().blocking()?.stdout();
        assert!(!seen.contains("root:"), "what is masked shows another file:\n{seen}");
    }
    Ok(())
}

/// Neither the first process nor a further one has inheritable capabilities (CVE-2022-24769, CVE-2022-29162), and a user
/// has no groups but its own (CVE-2022-36109).
#[test]
fn no_privilege_is_inherited() -> shakedown::Result {
    let script = "grep -e CapInh -e CapAmb /proc/self/status | tr -cd '0-9\n'";
    let none = "0000000000000000\n0000000000000000\n";
    assert_eq!(said(script, |c| c), none);
    let container = idle().start().blocking()?;
    assert_eq!(container.exec(["sh", "-c", script]).blocking()?.success()?.stdout(), none);
    assert_eq!(said("id -G", |c| c.user("1000:1000")), "1000\n");
    Ok(())
}

/// An id is what it reads as, and what is none never becomes root's (CVE-2026-30892).
#[test]
fn ids_are_what_they_read_as() -> shakedown::Result {
    if let Some(reason) = crate::check::missing("several users") {
        crate::check::say(&format!("not tried: {reason}"));
        return Ok(());
    }
    let container = idle().start().blocking()?;
    let ids = |user: &str| {
        let command = Exec::new(["sh", "-c", "echo $(id -u):$(id -g)"]).user(user);
        container.exec(command).blocking().and_then(shakedown::ExecOutput::success)
    };
    for (user, expected) in [("4242", "4242:0\n"), ("4242:17", "4242:17\n"), ("004242", "4242:0\n")] {
        assert_eq!(ids(user)?.stdout(), expected, "{user}");
    }
    for user in ["-1", "4294967295", "4294967296", "4242x", "4242:-1", "no-such-user"] {
        assert!(ids(user).is_err(), "{user}");
    }
    Ok(())
}

/// The control groups of the machine can be looked at, and not written to (CVE-2022-0492, CVE-2023-25809).
#[test]
fn control_groups_are_out_of_reach() {
    // Where there are several hierarchies, what they are mounted in is the container's own.
    let script = "[ -e /sys/fs/cgroup/cgroup.procs ] && least=0 || least=1; \
        find /sys/fs/cgroup -mindepth $least -maxdepth 2 -type d | while read d; do mkdir $d/escape 2>/dev/null && echo $d; done; \
        find /sys/fs/cgroup -maxdepth 2 -name release_agent | while read f; do (echo x > $f) 2>/dev/null && echo $f; done; \
        unshare -r -m true 2>/dev/null && echo unshared; echo end";
    assert_eq!(said(script, |c| c), "end\n");
    let limited = |c: GenericContainer| c.memory(64 << 20);
    if can("memory limit", || limited(idle())) {
        assert_eq!(said(script, limited), "end\n");
    }
}

/// What runs containers has no socket that one with the host's network could connect to (CVE-2020-15257).
#[test]
fn there_are_no_abstract_sockets_of_ours() {
    // Where containers have no host network, the machine's own table is what it would see.
    let seen = match crate::check::missing("host network") {
        None => said("cat /proc/net/unix", |c| c.network_mode(NetworkMode::Host)),
        Some(_) => fs::read_to_string("/proc/net/unix").unwrap_or_default(),
    };
    let ours = seen.lines().filter(|line| line.contains('@') && line.contains("shakedown")).count();
    assert_eq!(ours, 0, "{seen}");
}

/// What changes the machine through /proc and /sys cannot be written to.
#[test]
fn switches_of_the_machine_are_out_of_reach() {
    let script = "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe \
        /proc/irq/default_smp_affinity /sys/kernel/uevent_helper /sys/power/state; do \
        (echo x > $f) 2>/dev/null && echo $f; done; ls /sys/devices/virtual/powercap 2>/dev/null | wc -l; \
        ls -d /sys/devices/system/cpu/cpu*/thermal_throttle/* 2>/dev/null | wc -l; wc -c < /proc/interrupts 2>/dev/null || echo 0";
    assert!(said(script, |c| c).starts_with("0\n"));
}
