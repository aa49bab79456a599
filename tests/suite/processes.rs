//! The life of processes: terminals, input, pause, stop and start again, an init, health, restart policies.

use crate::check::{idle, missing, sh};
use shakedown::prelude::*;
use shakedown::{Exec, FailureKind, HealthStatus, Healthcheck, RestartPolicy};
use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

/// A command has a terminal of its own, of the size that it was given, and its output is one stream.
#[test]
fn a_command_has_a_terminal() -> shakedown::Result {
    let container = idle().start().blocking()?;
    // Engines before API 1.42 size it when the command runs. Until then `stty` complains, and does so in the terminal.
    let script = "test -t 0 && test -t 1 && test -t 2 || exit 1; \
        for turn in $(seq 1000); do test \"$(stty size 2>/dev/null)\" = '40 132' && break; sleep 0.01; done; \
        stty size; echo err >&2 && echo $TERM && tty";
    let ended = container.exec(Exec::new(["sh", "-c", script]).tty(true).size(40, 132)).blocking()?;
    assert_eq!((ended.code(), &*ended.stderr()), (0, ""), "{ended:?}");
    let lines: Vec<_> = ended.stdout().lines().map(str::to_owned).collect();
    assert_eq!(lines[..3], ["40 132", "err", "xterm"]);
    assert!(lines[3].starts_with("/dev/pts/"), "{lines:?}");
    Ok(())
}

/// Job control works: a shell in the terminal leads its session, Ctrl-C reaches what runs in front, and a change of size
/// is told.
#[test]
fn a_shell_is_used_as_by_a_person() -> shakedown::Result {
    let container = idle().start().blocking()?;
    let script = "trap 'echo size $(stty size)' WINCH; echo ready; while :; do sleep 0.05; done";
    let watcher = container.interact(Exec::new(["sh", "-c", script]).tty(true)).blocking()?;
    watcher.expect("ready").blocking()?;
    watcher.resize(50, 132).blocking()?;
    watcher.expect("size 50 132").blocking()?;
    let shell = container.interact(Exec::new(["sh"]).tty(true)).blocking()?;
    shell.write("sh -c 'echo run''ning; exec sleep 3600'\n").blocking()?;
    shell.expect("running").blocking()?;
    shell.write("\x03").blocking()?;
    shell.write("echo co''de $?\n").blocking()?;
    shell.expect("code 130").blocking()?;
    shell.write("exit 3\n").blocking()?;
    assert_eq!(shell.wait().blocking()?.code(), 3);
    Ok(())
}

/// Who goes away hangs up, and the programs in the terminal end.
#[test]
fn a_terminal_that_is_left_hangs_up() -> shakedown::Result {
    if missing("terminal hangup").is_some() {
        return Ok(());
    }
    let container = sh("mkfifo /gone; read line < /gone; echo $line; exec sleep 3600").start().blocking()?;
    let script = "trap 'echo hung up > /gone; exit' HUP; echo ready; while :; do sleep 0.05; done";
    let shell = container.interact(Exec::new(["sh", "-c", script]).tty(true)).blocking()?;
    shell.expect("ready").blocking()?;
    drop(shell);
    let first = container.attach().blocking()?;
    first.expect("hung up").blocking()?;
    Ok(())
}

/// A terminal is the container's own user's, so that programs may open it again.
#[test]
fn a_terminal_belongs_to_its_user() -> shakedown::Result {
    let container = idle().start().blocking()?;
    let command = Exec::new(["sh", "-c", "stat -c %u $(tty); echo again > $(tty)"]).tty(true);
    if missing("several users").is_none() {
        let ended = container.exec(command.user("1000")).blocking()?.success()?;
        assert_eq!(ended.stdout(), "1000\r\nagain\r\n");
    } else {
        assert_eq!(container.exec(command).blocking()?.success()?.stdout(), "0\r\nagain\r\n");
    }
    Ok(())
}

/// A container that has put something else at /dev/pts gives no terminal away, and does not get one of the machine.
#[test]
fn a_forged_devpts_is_refused() -> shakedown::Result {
    let container = idle().cap_add("SYS_ADMIN");
    let container = container.start().blocking()?;
    // Where the container may not mount, there is nothing to forge.
    let forged = container.exec(["mount", "-t", "tmpfs", "none", "/dev/pts"]).blocking()?;
    if forged.code() != 0 {
        return Ok(());
    }
    container.exec(["mkfifo", "/dev/pts/ptmx"]).blocking()?;
    let failure = container.exec(Exec::new(["true"]).tty(true)).blocking();
    assert!(failure.is_err_and(|failure| failure.kind == FailureKind::ExecFailed));
    Ok(())
}

/// Input is sent as the test goes along, and its end is the end that the command sees.
#[test]
fn a_command_is_talked_to() -> shakedown::Result {
    let container = idle().start().blocking()?;
    let cat =
        container.interact(["sh", "-c", "while read line; do echo got $line; done; echo end >&2; exit 4"]);
    let cat = cat.blocking()?;
    for line in ["one", "two"] {
        cat.write(format!("{line}\n")).blocking()?;
        assert_eq!(cat.expect(format!("got {line}\n")).blocking()?, format!("got {line}\n"));
    }
    cat.end_input().blocking()?;
    let ended = cat.wait().blocking()?;
    assert_eq!((ended.code(), &*ended.stderr()), (4, "end\n"));
    let failure = container.interact(["no-such-program"]).blocking();
    let failure = failure.and_then(|process| process.wait().blocking()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::ExecFailed);
    Ok(())
}

/// A command that nobody waits for goes on, however much it writes.
#[test]
fn a_detached_command_goes_on() -> shakedown::Result {
    let container = sh("mkfifo /done; read line < /done; echo $line; exec sleep 3600").start().blocking()?;
    container.exec_detached(["sh", "-c", "head -c 3000000 /dev/zero; echo detached > /done"]).blocking()?;
    container.attach().blocking()?.expect("detached").blocking()?;
    Ok(())
}

/// The first process has a terminal and an input if it is declared so, and everybody who attaches has the same.
#[test]
fn the_first_process_is_attached_to() -> shakedown::Result {
    let script = "echo ready; while read line; do echo got $line; stty size; done; exit 6";
    let container = sh(script).tty(true).stdin_open(true).wait(Wait::log("ready")).start().blocking()?;
    let (one, two) = container.attach().and(container.attach()).blocking()?;
    one.resize(33, 99).blocking()?;
    one.write("hello\n").blocking()?;
    for process in [&one, &two] {
        process.expect("got hello").blocking()?;
        process.expect("33 99").blocking()?;
    }
    two.write("\x04").blocking()?;
    assert_eq!(one.wait().blocking()?.code(), 6);
    assert_eq!(container.exited().blocking()?.code, 6);
    Ok(())
}

/// An input without a terminal stays open until it is closed.
#[test]
fn an_open_input_is_closed_once() -> shakedown::Result {
    let container =
        sh("while read line; do echo got $line; done; exit 5").stdin_open(true).start().blocking()?;
    let process = container.attach().blocking()?;
    process.write("a\nb").blocking()?;
    process.expect("got a").blocking()?;
    drop(process);
    let process = container.attach().blocking()?;
    process.write("\n").blocking()?;
    process.expect("got b").blocking()?;
    process.end_input().blocking()?;
    assert_eq!(process.wait().blocking()?.code(), 5);
    Ok(())
}

/// Paused, nothing of a container goes on, those it has forked included; afterwards everything does.
#[test]
fn a_pause_halts_all() -> shakedown::Result {
    let script = "for n in 1 2 3; do (i=0; while :; do i=$((i+1)); echo $i > /count$n; sleep 0.01; done) & done; \
        echo ready; wait";
    let container = sh(script).wait(Wait::log("ready")).start().blocking()?;
    let counts = || -> shakedown::Result<Vec<Vec<u8>>> {
        Ok((1..=3).map(|n| container.read_file(format!("/count{n}")).blocking()).collect::<Result<_, _>>()?)
    };
    if let Some(reason) = missing("pause") {
        let failure = container.pause().blocking().unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unsupported);
        assert!(failure.to_string().contains(&reason), "{failure}");
        return Ok(());
    }
    for _ in 0..3 {
        container.pause().blocking()?;
        assert_eq!(container.state().blocking()?.status, "paused");
        let before = counts()?;
        let failure = container.exec(["true"]).blocking().unwrap_err();
        assert!(failure.to_string().contains("paused"), "{failure}");
        // Time for 20 more rounds, if anything still ran.
        let waited = idle().command(["sleep", "0.2"]).wait(Wait::exit()).start().blocking()?;
        drop(waited);
        assert_eq!(counts()?, before);
        container.unpause().blocking()?;
        let goes_on = "a=$(cat /count1 /count2 /count3); for n in 1 2 3; do \
            while [ \"$(cat /count$n)\" = \"$(echo $a | cut -d' ' -f$n)\" ]; do sleep 0.01; done; done";
        container.exec(["sh", "-c", goes_on]).blocking()?.success()?;
    }
    Ok(())
}

/// What forks all the time is halted as well.
#[test]
fn a_pause_halts_what_forks() -> shakedown::Result {
    let script = "fork() { while :; do (echo x >> /forks); done; }; fork & fork & fork & \
        until [ -s /forks ]; do sleep 0.01; done; echo ready; wait";
    let container = sh(script).wait(Wait::log("ready")).start().blocking()?;
    if missing("pause").is_some() {
        return Ok(());
    }
    container.pause().blocking()?;
    let size = || container.read_file("/forks").blocking().map(|file| file.len());
    let before = size()?;
    drop(idle().command(["sleep", "0.2"]).wait(Wait::exit()).start().blocking()?);
    assert_eq!(size()?, before);
    Ok(())
}

/// A paused container is stopped, killed and removed as any other.
#[test]
fn a_paused_container_ends() -> shakedown::Result {
    if missing("pause").is_some() {
        return Ok(());
    }
    let polite = "trap 'exit 9' TERM; echo ready; while :; do sleep 3600 & wait; done";
    let container = sh(polite).wait(Wait::log("ready")).start().blocking()?;
    container.pause().blocking()?;
    assert_eq!(container.stop().blocking()?.code, 9);
    assert_eq!(container.state().blocking()?.status, "exited");
    let container = idle().start().blocking()?;
    container.pause().blocking()?;
    container.kill("SIGKILL").blocking()?;
    assert_eq!(container.exited().blocking()?.signal, Some(9));
    let container = idle().start().blocking()?;
    container.pause().blocking()?;
    drop(container);
    Ok(())
}

/// What a server of `nc` says that writes a file of its own, on the port that leads to it. It is sent nothing: it reads
/// nothing, and a connection that is closed with something unread is reset.
fn asked(port: u16) -> String {
    let mut answer = String::new();
    let connected =
        TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| stream.read_to_string(&mut answer));
    connected.unwrap_or_else(|error| panic!("port {port}: {error}"));
    answer
}

/// Stopped and started again, a container has the same port and the same files; its log goes on, and it is ready again
/// by what it writes now.
#[test]
fn a_container_starts_again() -> shakedown::Result {
    let script = "echo run >> /runs; printf 'wc -l < /runs' > /say; chmod +x /say; \
        echo listening; trap 'exit 0' TERM; nc -ll -p 80 -e sh /say & wait";
    let container =
        sh(script).port(80).wait(Wait::log("listening")).wait(Wait::port(80)).start().blocking()?;
    let port = container.port(80)?;
    assert_eq!(asked(port), "1\n");
    container.stop().blocking()?;
    assert_eq!(container.state().blocking()?.status, "exited");
    container.start_again().blocking()?;
    assert_eq!(asked(port), "2\n");
    container.start_again().blocking()?;
    container.restart().blocking()?;
    assert_eq!((container.port(80)?, asked(port)), (port, "3\n".to_owned()));
    assert_eq!(container.logs().blocking()?.stdout(), "listening\n".repeat(3));
    assert_eq!(container.state().blocking()?.status, "ready");
    Ok(())
}

/// While it is stopped, nobody else gets its port.
#[test]
fn a_stopped_container_keeps_its_port() -> shakedown::Result {
    let container = sh("trap 'exit 0' TERM; nc -ll -p 80 -e echo here & wait").port(80).start().blocking()?;
    let port = container.port(80)?;
    container.stop().blocking()?;
    let others: Vec<_> = (0..200).map(|_| std::net::TcpListener::bind(("127.0.0.1", 0))).collect();
    for other in others {
        assert_ne!(other.and_then(|other| other.local_addr()).map(|address| address.port()).ok(), Some(port));
    }
    container.start_again().blocking()?;
    assert_eq!(asked(port), "here\n");
    Ok(())
}

/// A container that ends at once when it is started again is a failure with its output, and is still there.
#[test]
fn a_start_again_may_fail() -> shakedown::Result {
    let script = "test -e /second && { echo broken; exit 3; }; touch /second; echo ready; exec sleep 3600";
    let container = sh(script).wait(Wait::log("ready")).start().blocking()?;
    container.kill("SIGKILL").blocking()?;
    container.exited().blocking()?;
    let failure = container.start_again().blocking().unwrap_err();
    assert_eq!(failure.kind, FailureKind::ExitedEarly, "{failure}");
    assert_eq!(container.exited().blocking()?.code, 3);
    Ok(())
}

/// With an init, process 1 collects what others leave, forwards signals, and ends as the program does.
#[test]
fn an_init_reaps_and_forwards() -> shakedown::Result {
    let script = "trap 'echo asked; exit 7' TERM; (sh -c 'sleep 0.01 & exit' &); echo $$; \
        while ls /proc/*/stat | xargs grep -l ' Z ' 2>/dev/null; do sleep 0.01; done; echo ready; \
        while :; do sleep 3600 & wait; done";
    let container = sh(script).init(true).wait(Wait::log("ready")).start().blocking()?;
    assert_ne!(container.logs().blocking()?.lines()[0].text(), "1");
    assert_eq!(container.stop().blocking()?.code, 7);
    assert!(container.logs().blocking()?.stdout().ends_with("asked\n"));
    Ok(())
}

/// The end of the program by a signal is told as such, and processes it leaves behind end with it.
#[test]
fn an_init_tells_how_the_program_ended() -> shakedown::Result {
    let killed = sh("sleep 3600 & kill -9 $$").init(true).wait(Wait::exit_code(137)).start().blocking()?;
    let exit = killed.exited().blocking()?;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    // Docker's init is started all the same, and ends with the code of shells.
    let missing = GenericContainer::new("busybox").command(["no-such-program"]).init(true);
    match missing.start().blocking().and_then(|container| container.exited().blocking()) {
        Err(failure) => assert!(failure.to_string().contains("no-such-program"), "{failure}"),
        Ok(exit) => assert_eq!(exit.code, 127),
    }
    Ok(())
}

/// An init gives nothing of the machine away: it has the program's user and capabilities, and no open files.
#[test]
fn an_init_holds_nothing() -> shakedown::Result {
    let script = "grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/1/status; echo --; \
        grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/self/status; echo --; \
        ls /proc/1/fd 2>/dev/null; (echo x > /proc/1/exe) 2>/dev/null && echo overwritten; true";
    let done = sh(script).init(true).wait(Wait::exit()).start().blocking()?;
    let seen = done.logs().blocking()?.stdout();
    let parts: Vec<&str> = seen.split("--\n").collect();
    assert_eq!(parts[0], parts[1], "{seen}");
    let open: Vec<&str> = parts[2].lines().collect();
    assert!(open.iter().all(|fd| ["0", "1", "2", "3", "4"].contains(fd)), "{seen}");
    Ok(())
}

/// An init and a terminal together: job control is the program's.
#[test]
fn an_init_with_a_terminal() -> shakedown::Result {
    let container = sh("trap 'echo caught; exit 8' INT; echo ready; while :; do sleep 0.05; done");
    let container =
        container.init(true).tty(true).stdin_open(true).wait(Wait::log("ready")).start().blocking()?;
    let process = container.attach().blocking()?;
    process.write("\x03").blocking()?;
    process.expect("caught").blocking()?;
    assert_eq!(process.wait().blocking()?.code(), 8);
    Ok(())
}

fn until(
    container: &Running<GenericContainer>,
    holds: impl Fn(&shakedown::State) -> bool,
) -> shakedown::State {
    for _ in 0..300 {
        let state = container.state().blocking().unwrap_or_else(|failure| panic!("{failure}"));
        if holds(&state) {
            return state;
        }
        // A command in the container takes a while.
        let _ = idle().command(["sleep", "0.05"]).wait(Wait::exit()).start().blocking();
    }
    panic!("it did not come to that: {:?}", container.state().blocking())
}

/// Health checks go on after the start: who falls ill is unhealthy, who recovers is healthy again.
#[test]
fn health_is_checked_on_schedule() -> shakedown::Result {
    let check =
        Healthcheck::shell("echo checked; test -e /well").interval(Duration::from_millis(100)).retries(2);
    let script = "touch /well; exec sleep 3600";
    let container = sh(script).healthcheck(check).wait(Wait::healthy()).start().blocking()?;
    let status = |wanted: HealthStatus| {
        until(&container, |state| state.health.as_ref().is_some_and(|health| health.status == wanted))
    };
    status(HealthStatus::Healthy);
    container.exec(["rm", "/well"]).blocking()?;
    let ill = status(HealthStatus::Unhealthy);
    let health = ill.health.expect("it has a health check");
    assert!(health.failing_streak >= 2 && health.log.len() <= 5, "{health:?}");
    let last = health.log.last().expect("checks were made");
    assert_eq!((last.exit_code, last.output.trim()), (1, "checked"));
    container.exec(["touch", "/well"]).blocking()?;
    status(HealthStatus::Healthy);
    Ok(())
}

/// A check that hangs is given up, and counts as failed.
#[test]
fn a_check_that_hangs_fails() -> shakedown::Result {
    let check = Healthcheck::shell("exec sleep 3600").interval(Duration::from_millis(100)).retries(1);
    let container = idle().healthcheck(check.timeout(Duration::from_secs(1))).start().blocking()?;
    let ill = until(&container, |state| {
        state.health.as_ref().is_some_and(|health| health.status == HealthStatus::Unhealthy)
    });
    assert_eq!(ill.health.and_then(|health| health.log.last().map(|probe| probe.exit_code)), Some(-1));
    Ok(())
}

/// Without a check, or with one that is switched off, there is no health.
#[test]
fn no_check_no_health() -> shakedown::Result {
    let container = idle().start().blocking()?;
    assert_eq!(container.state().blocking()?.health, None);
    let container = idle().healthcheck(Healthcheck::none()).start().blocking()?;
    assert_eq!(container.state().blocking()?.health, None);
    Ok(())
}

/// A policy starts a container again after failures, so often as it says, and tells the last end.
#[test]
fn failures_are_tried_again() -> shakedown::Result {
    let script = "echo run >> /runs; echo run $(wc -l < /runs); exit 3";
    let policy = RestartPolicy::on_failure_at_most(2);
    let container = sh(script).restart(policy).wait(Wait::exit_code(3)).start().blocking()?;
    assert_eq!(container.exited().blocking()?.code, 3);
    assert_eq!(container.logs().blocking()?.stdout(), "run 1\nrun 2\nrun 3\n");
    assert_eq!(container.state().blocking()?.restarts, 2);
    let done = sh("echo once; exit 0").restart(RestartPolicy::on_failure()).wait(Wait::exit()).start();
    let done = done.blocking()?;
    assert_eq!(done.exited().blocking()?.code, 0);
    assert_eq!(done.logs().blocking()?.stdout(), "once\n");
    Ok(())
}

/// A service that comes up at the second attempt is ready; one that is stopped stays stopped.
#[test]
fn a_second_attempt_makes_it_ready() -> shakedown::Result {
    let script = "test -e /second || { touch /second; exit 1; }; echo up; exec sleep 3600";
    let container = sh(script).restart(RestartPolicy::Always).wait(Wait::log("up")).start().blocking()?;
    assert_eq!(container.state().blocking()?.restarts, 1);
    container.kill("SIGKILL").blocking()?;
    container.exited().blocking()?;
    assert_eq!(container.state().blocking()?.status, "exited");
    container.start_again().blocking()?;
    assert_eq!(container.state().blocking()?.status, "ready");
    container.kill("SIGKILL").blocking()?;
    assert_eq!(container.exited().blocking()?.signal, Some(9));
    Ok(())
}

/// A container that removes itself is gone when it has ended.
#[test]
fn a_container_may_remove_itself() -> shakedown::Result {
    let container = sh("read line; exit 4").stdin_open(true).auto_remove(true).start().blocking()?;
    let process = container.attach().blocking()?;
    process.write("go\n").blocking()?;
    for _ in 0..300 {
        match container.state().blocking() {
            Err(failure) => {
                assert_eq!(failure.kind, FailureKind::NoSuchContainer, "{failure}");
                return Ok(());
            }
            Ok(_) => drop(idle().command(["true"]).wait(Wait::exit()).start().blocking()?),
        }
    }
    panic!("it is still there")
}

/// A capability that is asked for by name is one that drivers know.
#[test]
fn pause_is_a_capability() -> shakedown::Result {
    let session = shakedown::session().blocking()?;
    assert!(session.capabilities().iter().any(|known| known.name == "pause"), "{:?}", session.capabilities());
    Ok(())
}
