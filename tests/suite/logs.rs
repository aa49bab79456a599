//! What containers write.

use crate::check::sh;
use shakedown::{Configure, LogOptions, Start, Stream, Wait};
use std::time::SystemTime;

/// Streams, order and times of lines are kept; the last line needs no line feed.
#[test]
fn lines_have_stream_and_time() -> shakedown::Result {
    let before = SystemTime::now();
    let done = sh("echo one; echo two >&2; printf three").wait(Wait::exit()).start().blocking()?;
    let logs = done.logs().blocking()?;
    assert_eq!((logs.stdout(), logs.stderr()), ("one\nthree\n".to_owned(), "two\n".to_owned()));
    for line in logs.lines() {
        assert!(line.time >= before && line.time <= SystemTime::now(), "{line:?}");
    }
    assert_eq!(logs.lines().iter().filter(|line| line.stream == Stream::Stderr).count(), 1);
    Ok(())
}

/// Lines of one stream stay in order, however many there are, and none is lost.
#[test]
fn a_flood_is_kept_in_order() -> shakedown::Result {
    let done = sh("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done").wait(Wait::exit());
    let logs = done.start().blocking()?.logs().blocking()?;
    assert_eq!(logs.lines().len(), 20000);
    for (n, line) in logs.lines().iter().enumerate() {
        assert_eq!(line.text(), format!("line {n}"));
    }
    Ok(())
}

/// Bytes that are no text come through as they are.
#[test]
fn bytes_are_kept() -> shakedown::Result {
    let done = sh(r"printf '\001\377\n'").wait(Wait::exit()).start().blocking()?;
    assert_eq!(done.logs().blocking()?.lines()[0].bytes, [1, 0xff]);
    Ok(())
}

/// Only the lines that are asked for come: the last ones, of one stream, of a time.
#[test]
fn lines_are_chosen() -> shakedown::Result {
    let script = "echo one; echo two >&2; echo three; until [ -e /go ]; do sleep 0.05; done; echo four";
    // The streams are read one beside the other: the second may be there before the first.
    let written = Wait::log("two").and(Wait::log("three"));
    let running = sh(script).wait(written).start().blocking()?;
    let of = |options: LogOptions| Ok::<_, shakedown::Failure>(running.logs_of(options).blocking()?.text());
    assert_eq!(of(LogOptions::new().stderr())?, "two\n");
    assert_eq!(of(LogOptions::new().stdout())?, "one\nthree\n");
    assert_eq!(of(LogOptions::new().tail(0))?, "");
    let between = SystemTime::now();
    running.exec(["touch", "/go"]).blocking()?.success()?;
    running.exited().blocking()?;
    assert_eq!(of(LogOptions::new().since(between))?, "four\n");
    assert_eq!(of(LogOptions::new().until(between).stdout())?, "one\nthree\n");
    assert_eq!(of(LogOptions::new().tail(1))?, "four\n");
    Ok(())
}

/// Who follows a log has each line as it is written, and the end after the last one.
#[test]
fn a_log_is_followed_to_its_end() -> shakedown::Result {
    let script = "echo before; echo first; until [ -e /go ]; do sleep 0.05; done; printf last";
    let running = sh(script).wait(Wait::log("first")).start().blocking()?;
    let mut lines = running.follow_logs(LogOptions::new().tail(1)).blocking()?;
    let mut next =
        || Ok::<_, shakedown::Failure>(lines.next_line().blocking()?.map(|line| line.text().into_owned()));
    assert_eq!(next()?.as_deref(), Some("first"));
    running.exec(["touch", "/go"]).blocking()?.success()?;
    assert_eq!(next()?.as_deref(), Some("last"), "without a line feed");
    assert_eq!(next()?, None);
    Ok(())
}

/// A container that writes more than is kept comes to its end, whoever follows its log or does not; the newest lines are
/// there.
#[test]
fn the_newest_lines_of_a_flood_are_kept() -> shakedown::Result {
    let script = "yes $(printf '%01000d' 7) | head -n 20000; echo end";
    let done = sh(script).log_limit(1 << 20).wait(Wait::exit());
    let running = done.start().blocking()?;
    let _idle = running.follow_logs(LogOptions::new()).blocking()?;
    running.exited().blocking()?;
    let logs = running.logs().blocking()?;
    assert!((500..2000).contains(&logs.lines().len()), "{} lines", logs.lines().len());
    assert!(logs.text().ends_with("7\nend\n"));
    Ok(())
}

/// A line longer than any buffer loses nothing.
#[test]
fn long_lines_are_whole() -> shakedown::Result {
    let done = sh("printf '%0200000d\\n' 7").wait(Wait::exit()).start().blocking()?;
    let logs = done.logs().blocking()?;
    assert_eq!(logs.text(), format!("{}7\n", "0".repeat(199_999)));
    Ok(())
}
