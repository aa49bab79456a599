//! Builds as tests declare them: from a directory, from text, in memory; and what is said about a wrong one.

use crate::check::{assert_message, refused};
use shakedown::prelude::*;
use shakedown::{Build, BuildSecret};
use std::path::Path;

fn write(directory: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        std::fs::write(directory.join(path), content).unwrap();
    }
}

const WEB: &str = "ARG VERSION=1\n\
    FROM busybox AS base\n\
    ARG VERSION\n\
    COPY page.html /page\n\
    RUN sed -i \"s/VERSION/$VERSION/\" /page\n\
    FROM base AS dev\n\
    CMD cat /page && echo dev\n\
    FROM base\n\
    CMD [\"cat\", \"/page\"]\n";

#[track_caller]
fn said(container: GenericContainer) -> String {
    let done = container.wait(Wait::exit()).start().blocking().unwrap_or_else(|failure| panic!("{failure}"));
    done.logs().blocking().unwrap_or_else(|failure| panic!("{failure}")).stdout()
}

/// The same directory is built in Rust, in a line of text, and with another Dockerfile.
#[test]
fn a_directory_is_built() {
    let web = tempfile::tempdir().unwrap();
    write(
        web.path(),
        &[
            ("Dockerfile", WEB),
            ("page.html", "version VERSION\n"),
            ("Other", "FROM busybox\nCMD echo other\n"),
        ],
    );
    let directory = web.path().to_str().unwrap();
    assert_eq!(said(GenericContainer::build(Build::directory(directory))), "version 1\n");
    let dev = Build::directory(directory).arg("VERSION", "3").target("dev");
    assert_eq!(said(GenericContainer::build(dev)), "version 3\ndev\n");
    let text = format!("build:{directory}?arg.VERSION=2&target=dev");
    assert_eq!(said(GenericContainer::new(text)), "version 2\ndev\n");
    assert_eq!(
        said(GenericContainer::new("redis").build(Build::directory(directory).dockerfile("Other"))),
        "other\n"
    );
}

/// Labels, environment and command of what was built reach the container, and can be replaced there.
#[test]
fn what_is_built_is_an_image_like_others() {
    let text = "FROM busybox\nENV SHOP=open\nWORKDIR /shop\nENTRYPOINT [\"sh\", \"-c\"]\nCMD [\"pwd; echo $SHOP\"]\n";
    let built = || GenericContainer::build(Build::inline(text)).name("shop");
    assert_eq!(said(built()), "/shop\nopen\n");
    assert_eq!(said(built().env("SHOP", "closed").command(["echo $SHOP"])), "closed\n");
}

/// A wrong Dockerfile fails before anything is built, with the same words on every driver.
#[test]
fn a_wrong_dockerfile_quotes_its_line() {
    let inline = |text: &str| refused(GenericContainer::build(Build::inline(text)));
    assert_message!(inline("FROM busybox\nCOPPY a b\n"), @"
    the inline Dockerfile cannot be built: there is no instruction `COPPY`
      at tests/suite/build.rs:LINE
      at:   the inline Dockerfile:2:1
      line: COPPY a b
            ^^^^^
    hint: did you mean `COPY`?
    ");
    assert_message!(inline("FROM busybox\nENV A=\"${B:?say which}\"\n"), @r#"
    the inline Dockerfile cannot be built: `B`: say which
      at tests/suite/build.rs:LINE
      at:   the inline Dockerfile:2
      line: ENV A="${B:?say which}"
    "#);
    assert_message!(refused(GenericContainer::build(Build::inline("FROM busybox AS a").target("b"))), @"
    the inline Dockerfile cannot be built: it has no stage `b`
      at tests/suite/build.rs:LINE
      stages: a
    ");
}

/// What a build names and is not there is told before anything is built.
#[test]
fn what_is_not_there_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    let failure = refused(GenericContainer::build(Build::directory(place))).to_string();
    assert!(failure.starts_with("Dockerfile cannot be read\n"), "{failure}");
    let failure = refused(GenericContainer::new("build:no/such/directory")).to_string();
    assert!(failure.starts_with("Dockerfile cannot be read\n"), "{failure}");
    assert_message!(refused(GenericContainer::build(Build::inline("FROM busybox").file("../a", ""))), @"
    `../a` cannot be a file of a build context
      at tests/suite/build.rs:LINE
      reason: it has to be the path of a file within the context, without `..`
    ");
    let mut build = Build::inline("FROM busybox");
    build.secrets.insert("key".to_owned(), BuildSecret::File("/no/such/key".to_owned()));
    assert_message!(refused(GenericContainer::build(build)), @"
    the build secret `key` cannot be read
      at tests/suite/build.rs:LINE
      file:   /no/such/key
      reason: No such file or directory (os error 2)
    ");
}
