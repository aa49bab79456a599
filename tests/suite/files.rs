//! Files on their way in and out, before the start and after it.

use crate::check::{can, idle, refused, said};
use shakedown::FailureKind;
use shakedown::prelude::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

/// Files are there before the first process looks, with mode and owner; missing directories are made.
#[test]
fn files_are_in_place_before_the_start() {
    let seen = said(
        "cat /etc/shop/orders.conf; stat -c '%a %u:%g' /etc/shop/run /etc/shop/orders.conf /etc/shop",
        |c| c.file("/etc/shop/orders.conf", "open\n").copy(File::bytes("/etc/shop/run", "x").mode(0o750)),
    );
    assert_eq!(seen, "open\n750 0:0\n644 0:0\n755 0:0\n");
}

/// A file belongs to whom the declaration says.
#[test]
fn files_have_owners() {
    let declared = |c: GenericContainer| c.copy(File::bytes("/srv/till", "x").owner(7, 8));
    if can("several users", || declared(idle())) {
        assert_eq!(said("stat -c %u:%g /srv/till", declared), "7:8\n");
    }
}

/// A directory of the host goes in with its links and modes.
#[test]
fn a_directory_goes_in_whole() -> shakedown::Result {
    let place = tempfile::tempdir()?;
    let tree = place.path().join("conf");
    fs::create_dir_all(tree.join("deep"))?;
    fs::write(tree.join("deep/run.sh"), "#!/bin/sh\necho run\n")?;
    fs::set_permissions(tree.join("deep/run.sh"), fs::Permissions::from_mode(0o755))?;
    symlink("deep/run.sh", tree.join("link"))?;
    let source = tree.display().to_string();
    let seen = said("/srv/conf/link; readlink /srv/conf/link", |c| c.copy(File::host("/srv/conf", &source)));
    assert_eq!(seen, "run\ndeep/run.sh\n");
    Ok(())
}

/// What goes into a running container comes out again as it was: bytes, modes, links, names.
#[test]
fn what_goes_in_comes_out() -> shakedown::Result {
    let place = tempfile::tempdir()?;
    let container = idle().start().blocking()?;
    container.copy_in(File::bytes("/srv/a/b.txt", "bytes").mode(0o640)).blocking()?;
    container.exec(["ln", "-s", "a/b.txt", "/srv/link"]).blocking()?.success()?;

    assert_eq!(container.read_file("/srv/a/b.txt").blocking()?, b"bytes");
    let back = place.path().join("not/there/yet");
    container.copy_out("/srv", &back).blocking()?;
    assert_eq!(fs::read(back.join("a/b.txt"))?, b"bytes");
    assert_eq!(fs::metadata(back.join("a/b.txt"))?.permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_link(back.join("link"))?, std::path::Path::new("a/b.txt"));
    Ok(())
}

/// Files of a container that has ended can still be read: a report, a core, a database.
#[test]
fn files_outlive_the_process() -> shakedown::Result {
    let done = crate::check::sh("echo report > /out.txt").wait(Wait::exit()).start().blocking()?;
    assert_eq!(done.read_file("/out.txt").blocking()?, b"report\n");
    Ok(())
}

/// A path that is not there is told with its name; a directory is not taken for a file.
#[test]
fn what_is_not_there_is_a_failure() -> shakedown::Result {
    let container = idle().start().blocking()?;
    for path in ["/no/such/file", "/etc"] {
        let failure = container.read_file(path).blocking().unwrap_err();
        assert_eq!(failure.kind, FailureKind::CopyFailed, "{failure}");
        assert!(failure.title.contains(path), "{failure}");
    }
    Ok(())
}

/// A declared file that the host does not have fails the start, and nothing is left of the container.
#[test]
fn a_missing_source_fails_the_start() {
    let failure = refused(idle().copy(File::host("/srv/x", "/no/such/source")));
    assert!(failure.to_string().contains("/no/such/source"), "{failure}");
}

/// Links inside the container do not lead a copy out of it: `/escape/x` stays in the container.
#[test]
fn a_link_does_not_lead_out_of_the_container() -> shakedown::Result {
    let place = tempfile::tempdir()?;
    let container = idle().start().blocking()?;
    let outside = place.path().display().to_string();
    container.exec(["ln", "-s", outside.as_str(), "/escape"]).blocking()?.success()?;
    drop(container.copy_in(File::bytes("/escape/x", "y")).blocking());
    assert_eq!(fs::read_dir(place.path())?.count(), 0);
    Ok(())
}
