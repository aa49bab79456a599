//! What containers write.

use crate::check::sh;
use shakedown::{Configure, Start, Stream, Wait};
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
