//! Ways out of a container that need a race to be won: something is exchanged again and again while it is used.
//!
//! A race that is lost a hundred times proves little: that a path is looked at once only is a matter of the code. What is
//! shown here is that nothing of it is obvious, and that what loses a race fails clearly.

use crate::check::{is_the_engines_affair, missing, say, sh};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use shakedown::prelude::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Does `work` while two paths of the host are exchanged without a pause.
fn exchanging<T>(one: &Path, other: &Path, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
                std::thread::yield_now();
            }
        });
        // However the work ends, or the scope would wait for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The place of a mount that turns into a link while it is looked for makes nothing on the host (CVE-2021-30465,
/// CVE-2024-45310).
#[test]
fn mounts_stay_inside() -> shakedown::Result {
    if is_the_engines_affair() {
        return Ok(());
    }
    let (place, canary) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (real, link) = (place.path().join("shop"), place.path().join("link"));
    fs::create_dir(&real)?;
    symlink(canary.path(), &link)?;
    exchanging(&real, &link, || {
        for _ in 0..30 {
            // Whether it starts does not matter.
            let started = sh("echo written > /data/shop/deep/file; exec sleep 3600")
                .mount(Mount::bind(place.path().display().to_string(), "/data"))
                .mount(Mount::tmpfs("/data/shop/deep"))
                .start()
                .blocking();
            assert_eq!(fs::read_dir(canary.path())?.count(), 0, "something was made on the host");
            drop(started);
        }
        Ok(())
    })
}

/// What is masked stays so for a container whose `/dev/null` is exchanged by another one while it starts
/// (CVE-2025-31133).
#[test]
fn masks_stay_masks() -> shakedown::Result {
    if let Some(reason) = missing("masks with a mounted /dev") {
        say(&format!("not tried: {reason}"));
        return Ok(());
    }
    let shared = Volume::new();
    let script = "while :; do ln -sf /etc/passwd /data/null; rm -f /data/null; mknod /data/null c 1 3; rm -f /data/null; done";
    let _exchanging = sh(script).volume(&shared, "/data").start().blocking()?;
    for _ in 0..30 {
        let declared = sh("cat /proc/keys /proc/timer_list /proc/interrupts").volume(&shared, "/dev");
        if let Ok(done) = declared.wait(Wait::exit()).start().blocking() {
            let seen = done.logs().blocking()?.stdout();
            assert_eq!(seen, "", "what is masked shows a file");
        }
    }
    Ok(())
}

/// A directory that turns into a link while files are copied leads no copy to the host, neither in nor out
/// (CVE-2018-15664, CVE-2026-41567).
#[test]
fn copies_stay_inside() -> shakedown::Result {
    if is_the_engines_affair() {
        return Ok(());
    }
    let canary = tempfile::tempdir()?;
    fs::write(canary.path().join("secret"), "of the host")?;
    let place = canary.path().display();
    let script = format!(
        "cd /srv 2>/dev/null || mkdir -p /srv && cd /srv; while :; do ln -sn {place} shop; rm -f shop; mkdir shop; \
        rm -rf shop; done"
    );
    let container = sh(&script).start().blocking()?;
    for number in 0..100 {
        let _ = container.copy_in(File::bytes(format!("/srv/shop/{number}"), "from the test")).blocking();
        let read = container.read_file("/srv/shop/secret").blocking();
        assert!(read.is_err(), "a file of the host was read: {read:?}");
    }
    assert_eq!(fs::read_dir(canary.path())?.count(), 1, "a copy was made on the host");
    Ok(())
}
