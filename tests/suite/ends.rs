//! How containers end.

use crate::check::{idle, sh};
use shakedown::prelude::*;
use std::time::{Duration, Instant};

/// Runs until it is asked to stop, and says by which signal.
fn polite() -> GenericContainer {
    let traps = "trap 'echo TERM; exit 0' TERM; trap 'echo INT; exit 2' INT; echo ready";
    sh(&format!("{traps}; while :; do sleep 3600 & wait; done")).wait(Wait::log("ready"))
}

/// A stop sends the stop signal and gives the exit code; log and state stay.
#[test]
fn a_stop_asks_first() -> shakedown::Result {
    let container = polite().start().blocking()?;
    assert_eq!(container.stop().blocking()?.code, 0);
    assert_eq!(container.logs().blocking()?.stdout(), "ready\nTERM\n");
    assert_eq!(container.stop().blocking()?.code, 0, "a second stop gives the same answer");
    let other = polite().stop_signal("SIGINT").start().blocking()?;
    assert_eq!(other.stop().blocking()?.code, 2);
    Ok(())
}

/// Who does not listen is killed when the time is up, not later.
#[test]
fn a_stop_does_not_ask_for_ever() -> shakedown::Result {
    let deaf = idle().stop_timeout(Duration::from_secs(1)).start().blocking()?;
    let begin = Instant::now();
    let exit = deaf.stop().blocking()?;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert!(begin.elapsed() >= Duration::from_millis(900) && begin.elapsed() < Duration::from_secs(8));
    Ok(())
}

/// A signal reaches the first process.
#[test]
fn a_signal_is_sent() -> shakedown::Result {
    let container = sh("trap 'echo hup; exit 5' HUP; echo ready; while :; do sleep 3600 & wait; done");
    let container = container.wait(Wait::log("ready")).start().blocking()?;
    container.kill("SIGHUP").blocking()?;
    assert_eq!(container.exited().blocking()?.code, 5);
    Ok(())
}

/// Exit codes and signals are told apart, to every caller the same.
#[test]
fn exits_are_told() -> shakedown::Result {
    let container = sh("exit 42").wait(Wait::exit_code(42)).start().blocking()?;
    let (one, two) = container.exited().and(container.exited()).blocking()?;
    assert_eq!((one.code, one.signal, one), (42, None, two));
    let killed = idle().start().blocking()?;
    killed.kill("SIGKILL").blocking()?;
    let exit = killed.exited().blocking()?;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    Ok(())
}

/// A hundred in a row: nothing piles up, and each is gone before the next begins.
#[test]
fn a_hundred_in_a_row() -> shakedown::Result {
    for n in 0..100 {
        let container = sh(&format!("echo {n}")).port(80).wait(Wait::exit()).start().blocking()?;
        assert_eq!(container.logs().blocking()?.stdout(), format!("{n}\n"));
    }
    Ok(())
}

/// A stop signal may be a real-time one, as that of images which run systemd is.
#[test]
fn a_stop_signal_may_be_a_real_time_one() -> shakedown::Result {
    let script = "trap 'echo asked; exit 0' RTMIN+3 2>/dev/null || trap 'echo asked; exit 0' 37; echo up; \
        while :; do sleep 0.05; done";
    let container = sh(script).stop_signal("SIGRTMIN+3").wait(Wait::log("up")).start().blocking()?;
    assert_eq!(container.stop().blocking()?.code, 0);
    Ok(())
}
