//! What the steps of a build leave in an image: the same on every driver, because it is what Docker leaves.

use crate::check::{FILTERS, missing, say};
use shakedown::prelude::*;
use shakedown::{Build, Failure};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

/// What `script` says in a container of the image that is built.
#[track_caller]
fn said(build: Build, script: &str) -> String {
    let container = GenericContainer::build(build).name("built").entrypoint(["sh", "-c", script]);
    let done = container.wait(Wait::exit()).start().blocking();
    done.and_then(|done| done.logs().blocking()).unwrap_or_else(|failure| panic!("{failure}")).stdout()
}

/// Why the build fails.
#[track_caller]
fn refused(build: Build) -> Failure {
    let container = GenericContainer::build(build).name("built").entrypoint(["true"]);
    container.wait(Wait::exit()).start().blocking().expect_err("the build should have failed")
}

/// Compares the message of a failed build with its snapshot.
macro_rules! assert_refused {
    ($build:expr, @$expected:literal) => {
        insta::with_settings!({filters => FILTERS.to_vec()}, {
            insta::assert_snapshot!(refused($build).to_string(), @$expected);
        });
    };
}

/// Mode, owner, size and name of each of these, as `stat` has them. How large a directory is says something of the file
/// system only.
const LIST: &str = "list() { for f in \"$@\"; do s=%s; [ -h $f ] || [ ! -d $f ] || s=-; \
    stat -c \"%a %u:%g $s %n\" $f; done; }; ";

/// An owner that a container of a user without a range of ids can have, too.
fn owner() -> &'static str {
    if missing("several users").is_some() { "0:0" } else { "7:9" }
}

/// Two steps that write the same are one layer twice, which overlayfs refuses: such an image starts all the same, and has
/// what the upper of them wrote.
#[test]
fn the_same_layer_may_come_twice() {
    let build = Build::inline(
        "FROM busybox\n\
         COPY <<one /shop/order\nbread\none\n\
         RUN rm -r /shop\n\
         COPY <<one /shop/order\nbread\none\n",
    );
    assert_eq!(said(build, "cat /shop/order; ls /shop"), "bread\norder\n");
}

/// `RUN` writes files, sees what steps before it wrote, and can delete what the base image has.
#[test]
fn run_steps_build_on_each_other() {
    let build = Build::inline(
        "FROM busybox\n\
         RUN echo one > /a && mkdir -p /d/e && ln /a /hard && ln -s a /soft\n\
         RUN echo two >> /a && rm -r /d && rm /bin/vi\n\
         WORKDIR /w/x\n\
         ENV SHOP=open\n\
         RUN [\"sh\", \"-c\", \"echo $SHOP > here\"]\n\
         SHELL [\"/bin/sh\", \"-e\", \"-c\"]\n\
         RUN false || true; mkfifo /pipe; chmod 4711 /a; mkdir /new; touch -d @86400 /new/old\n",
    );
    let list = "cat /a /hard /soft here; pwd; echo $SHOP; ls -d /d /bin/vi 2>/dev/null; \
                stat -c '%F %a %n' /a /pipe /soft; stat -c %Y /new/old";
    let expected = "one\ntwo\none\ntwo\none\ntwo\nopen\n/w/x\nopen\n\
                    regular file 4711 /a\nfifo 644 /pipe\nsymbolic link 777 /soft\n86400\n";
    // A write to one name of two in a lower layer parts them in overlayfs, on every driver.
    assert_eq!(said(build, list).replacen("one\none\ntwo\nopen", "one\ntwo\none\ntwo\nopen", 1), expected);
}

/// Files that the driver mounts for a step are no part of the image, nor is what was made to mount them on.
#[test]
fn a_step_leaves_only_what_it_wrote() {
    let build = Build::inline(
        "FROM busybox AS made\n\
         RUN --mount=type=tmpfs,target=/scratch --mount=type=cache,target=/var/kept/cache,id=left-out \
             --mount=type=secret,id=token,target=/run/secrets/token \
             echo x > /scratch/x && echo y > /var/kept/cache/y && cat /run/secrets/token > /dev/null\n\
         FROM busybox\n\
         COPY --from=made / /made/\n",
    );
    let build = build.secret("token", "none of your business");
    let found = said(
        build,
        "cd /made; ls scratch/x var/kept/cache/y etc/hosts 2>/dev/null; cat run/secrets/* 2>/dev/null; true",
    );
    assert_eq!(found, "");
}

/// Sources end up where Docker puts them, with the modes that Docker gives them.
#[test]
fn copies_end_up_where_docker_puts_them() {
    let build = Build::inline(
        "FROM busybox\n\
         RUN mkdir -p /real /there/inner && ln -s /real /link && ln -s /real/through /dangling && echo old > /there/a\n\
         COPY a.txt /one\n\
         COPY a.txt /new/deep/\n\
         COPY a.txt b.txt /two/\n\
         COPY *.txt ./three/\n\
         COPY dir /four\n\
         COPY dir /there\n\
         COPY a.txt /link/\n\
         COPY a.txt /dangling\n\
         COPY tool.sh /link\n\
         WORKDIR /work\n\
         COPY a.txt .\n\
         COPY dir/sub here\n",
    );
    let build = build
        .file("a.txt", "a\n")
        .file("b.txt", "bb\n")
        .file("dir/a", "new\n")
        .file("dir/sub/c", "ccc\n")
        .executable("tool.sh", "#!/bin/sh\n");
    let files = "/one /new /new/deep/a.txt /two/a.txt /two/b.txt /three/b.txt /four /four/a /four/sub/c /there/a \
                 /there/sub/c /real/a.txt /real/through /real/tool.sh /work/a.txt /work/here/c; ls -d /link/tool.sh /there/inner";
    let found = said(build, &format!("{LIST} list {files}"));
    let expected = "\
644 0:0 2 /one\n755 0:0 - /new\n644 0:0 2 /new/deep/a.txt\n644 0:0 2 /two/a.txt\n644 0:0 3 /two/b.txt\n\
644 0:0 3 /three/b.txt\n755 0:0 - /four\n644 0:0 4 /four/a\n644 0:0 4 /four/sub/c\n644 0:0 4 /there/a\n\
644 0:0 4 /there/sub/c\n644 0:0 2 /real/a.txt\n644 0:0 2 /real/through\n755 0:0 10 /real/tool.sh\n\
644 0:0 2 /work/a.txt\n644 0:0 4 /work/here/c\n/link/tool.sh\n/there/inner\n";
    assert_eq!(found, expected);
}

/// Owners and permissions are those that the Dockerfile says, by number or by the names that the image knows.
#[test]
fn copies_get_their_owner_and_mode() {
    if missing("several users").is_some() {
        say("cannot run here: a container has one user");
        return;
    }
    let build = Build::inline(
        "FROM busybox\n\
         RUN printf 'shop:x:41:42::/:\\n' >> /etc/passwd && printf 'tills:x:43:\\n' >> /etc/group\n\
         COPY --chown=7:9 a.txt /numbers\n\
         COPY --chown=shop a.txt /name\n\
         COPY --chown=shop:tills a.txt /both\n\
         COPY --chown=55 a.txt /alone\n\
         COPY --chown=7:9 dir /made/dir\n\
         COPY --chmod=0600 a.txt /mode\n\
         COPY --chmod=640 dir /modes\n\
         FROM busybox\n\
         COPY --from=0 /both /kept\n\
         COPY --from=0 --chown=1:2 /both /given\n\
         COPY --from=0 /numbers /name /alone /mode /\n\
         COPY --from=0 /made /made\n\
         COPY --from=0 /modes /modes\n",
    );
    let build = build.file("a.txt", "a\n").file("dir/a", "new\n");
    let files = "/numbers /name /kept /given /alone /mode /made/dir /made/dir/a /modes/a";
    let found = said(build, &format!("{LIST} list {files}"));
    let expected = "644 7:9 2 /numbers\n644 41:42 2 /name\n644 41:43 2 /kept\n644 1:2 2 /given\n644 55:55 2 /alone\n\
                    600 0:0 2 /mode\n755 7:9 - /made/dir\n644 7:9 4 /made/dir/a\n640 0:0 4 /modes/a\n";
    assert_eq!(found, expected);
}

/// What `.dockerignore` names is not copied, and a link never reaches out of the context.
#[test]
fn the_context_is_what_is_not_ignored() {
    let build = Build::inline("FROM busybox\nCOPY . /all/\n")
        .file(".dockerignore", "*.log\nsecret\n!secret/public\n# a comment\n**/skip\n")
        .file("a.log", "")
        .file("kept", "")
        .file("secret/private", "")
        .file("secret/public", "")
        .file("deep/er/skip", "")
        .file("deep/er/take", "");
    let found = said(build, "cd /all && find . -type f | sort");
    assert_eq!(found, "./.dockerignore\n./deep/er/take\n./kept\n./secret/public\n");
}

/// Heredocs are scripts and files.
#[test]
fn heredocs_are_scripts_and_files() {
    let build = Build::inline(
        "FROM busybox\n\
         ARG WHO=shop\n\
         RUN <<EOF\n\
         set -e\n\
         echo first > /out\n\
         echo \"by $WHO\" >> /out\n\
         EOF\n\
         RUN <<\"END\"\n\
         #!/bin/cat\n\
         END\n\
         COPY <<one <<'two' /files/\n\
         of $WHO\n\
         one\n\
         of $WHO\n\
         two\n\
         COPY --chmod=755 <<-run /bin/run\n\
         \t#!/bin/sh\n\
         \techo ran\n\
         run\n",
    );
    let found = said(build, "cat /out /files/one /files/two; run; stat -c %a /files/one");
    assert_eq!(found, "first\nby shop\nof shop\nof $WHO\nran\n644\n");
}

/// Archives of the context are unpacked by `ADD`, whatever they are compressed with, and copied by `COPY`.
#[test]
fn archives_are_unpacked() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("in/dir")).unwrap();
    std::fs::write(directory.path().join("in/dir/file"), "packed\n").unwrap();
    let mut build = Build::inline(
        "FROM busybox\n\
         ADD plain.tar /plain/\n\
         ADD some.gz /gz/\n\
         ADD some.xz /xz\n\
         ADD some.bz2 /bz2/\n\
         COPY plain.tar /copied.tar\n\
         ADD text.gz /text/\n",
    );
    for (name, option) in [("plain.tar", "-c"), ("some.gz", "-cz"), ("some.xz", "-cJ"), ("some.bz2", "-cj")] {
        let packed = Command::new("tar")
            .arg(option)
            .args(["-C", "in", "dir"])
            .current_dir(&directory)
            .output()
            .unwrap();
        assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
        build = build.file(name, packed.stdout);
    }
    let build = build.file("text.gz", "not compressed at all");
    let found = said(build, "cat /*/dir/file; ls -d /copied.tar /text/text.gz");
    assert_eq!(found, "packed\npacked\npacked\npacked\n/copied.tar\n/text/text.gz\n");
}

/// `ADD` of an address has the file of that server, if its checksum is right.
#[test]
fn addresses_are_fetched() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/goods/list.txt?page=1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let _ = connection.read(&mut [0; 4096]);
            let _ = connection.write_all(
                b"HTTP/1.1 200 OK\r\nLast-Modified: Tue, 14 Nov 2023 22:13:20 GMT\r\nContent-Length: 6\r\n\
                  Connection: close\r\n\r\ngoods\n",
            );
        }
    });
    let sum = format!("sha256:{}", "0".repeat(64));
    let wrong = refused(Build::inline(format!("FROM busybox\nADD --checksum={sum} {address} /got/\n")));
    assert!(wrong.to_string().contains(&sum), "{wrong}");
    let build = Build::inline(format!("FROM busybox\nADD {address} /got/\n"));
    let found = said(build, "cat /got/list.txt; stat -c '%a %Y' /got/list.txt");
    assert_eq!(found, "goods\n600 1700000000\n");
}

/// A cache outlives its build; secrets, binds and memory are there for one step.
#[test]
fn mounts_are_there_for_one_step() {
    let id = format!("test-{}", std::process::id());
    let build = |note: &str| {
        Build::inline(format!(
            "FROM busybox AS other\n\
             RUN mkdir /lib && echo library > /lib/a\n\
             FROM busybox\n\
             ARG NOTE\n\
             RUN --mount=type=cache,id={id},target=/cache echo $NOTE >> /cache/notes; cp /cache/notes /notes\n\
             RUN --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN \
                 cat /run/secrets/token > /seen && echo $TOKEN >> /seen && stat -c %a /run/secrets/token >> /seen\n\
             RUN --mount=type=bind,target=/context cat /context/file > /bound && ! touch /context/no\n\
             RUN --mount=type=bind,from=other,source=/lib,target=/mnt,rw cp /mnt/a /lib-a && touch /mnt/thrown-away\n\
             RUN --mount=type=tmpfs,target=/mem touch /mem/x\n"
        ))
        .arg("NOTE", note)
        .secret("token", "t0ken\n")
        .file("file", "of the context\n")
    };
    let script =
        "cat /notes /seen /bound /lib-a; ls /mem/x /mnt/thrown-away /run/secrets/token 2>/dev/null; true";
    assert_eq!(said(build("one"), script), "one\nt0ken\nt0ken\n400\nof the context\nlibrary\n");
    assert_eq!(said(build("two"), script), "one\ntwo\nt0ken\nt0ken\n400\nof the context\nlibrary\n");
}

/// What was built before is not built again, until something it depends on changes.
#[test]
fn steps_are_taken_from_the_cache() {
    let build = |content: &str, arg: &str| {
        Build::inline(format!(
            "FROM busybox\nENV TEST_RUN={}\n\
             RUN cat /proc/sys/kernel/random/uuid > /first\n\
             COPY file /\n\
             RUN cat /proc/sys/kernel/random/uuid > /second\n\
             ARG LATE\n\
             RUN cat /proc/sys/kernel/random/uuid > /third\n",
            std::process::id()
        ))
        .file("file", content)
        .file("other", arg)
        .arg("LATE", arg)
    };
    let script = "cat /first /second /third";
    let of = |build: Build| said(build, script).lines().map(str::to_owned).collect::<Vec<_>>();
    let first = of(build("a", "1").no_cache());
    assert_eq!(of(build("a", "1")), first);
    let changed = of(build("b", "1"));
    assert!(changed[0] == first[0] && changed[1] != first[1], "{first:?} {changed:?}");
    let late = of(build("a", "2"));
    assert!(late[1] == first[1] && late[2] != first[2], "{first:?} {late:?}");
    assert_ne!(of(build("a", "1").no_cache())[0], first[0]);
}

/// Stages that are not needed are not built; `--target` chooses one.
#[test]
fn only_what_is_needed_is_built() {
    let build = Build::inline(
        "FROM busybox AS base\n\
         RUN echo base > /who\n\
         FROM base AS broken\n\
         RUN exit 3\n\
         FROM busybox AS left\n\
         RUN echo left > /left\n\
         FROM busybox AS right\n\
         RUN echo right > /right\n\
         FROM base AS wanted\n\
         COPY --from=left /left /\n\
         COPY --from=right /right /\n\
         COPY --link --from=busybox /bin/busybox /linked/busybox\n\
         FROM base\n",
    );
    let wanted = said(build.clone().target("wanted"), "cat /who /left /right; ls /linked");
    assert_eq!(wanted, "base\nleft\nright\nbusybox\n");
    assert_eq!(said(build, "cat /who; ls /left 2>/dev/null; true"), "base\n");
}

/// Triggers of a stage run where something is based on it.
#[test]
fn triggers_run_in_what_is_based_on_them() {
    let build = Build::inline(
        "FROM busybox AS base\n\
         ONBUILD RUN echo triggered > /trigger\n\
         FROM base\n\
         RUN cat /trigger > /seen\n",
    );
    assert_eq!(said(build, "cat /seen"), "triggered\n");
}

/// A directory of `WORKDIR` belongs to the user in force, and steps run as that user.
#[test]
fn steps_run_as_their_user() {
    let build = Build::inline(format!(
        "FROM busybox\n\
         USER {}\n\
         WORKDIR /mine/too\n\
         RUN touch made && id -u > id\n",
        owner()
    ));
    let found = said(build, "stat -c %u:%g /mine/too /mine/too/made; cat id");
    let (uid, _) = owner().split_once(':').unwrap();
    assert_eq!(found, format!("{0}\n{0}\n{uid}\n", owner()));
}

/// A step that fails is shown with its line, its code, and the end of what it wrote.
#[test]
fn a_failing_step_is_shown() {
    let build = Build::inline("FROM busybox\nRUN echo fine\nRUN echo going && echo wrong; exit 7\n");
    assert_refused!(build, @"
    the inline Dockerfile could not be built: RUN failed
      at tests/suite/build_steps.rs:LINE
      at:     the inline Dockerfile:3
      line:   RUN echo going && echo wrong; exit 7
      reason: exit code 7
    --- RUN, all of its log
    | going
    | wrong
    ");
}

/// A source that is not there is named, and if `.dockerignore` is the reason, that is said.
#[test]
fn a_missing_source_is_named() {
    let failure = refused(Build::inline("FROM busybox\nCOPY nothing /\n")).to_string();
    assert!(failure.contains("nothing") && failure.contains(":2"), "{failure}");
    let build =
        Build::inline("FROM busybox\nCOPY hidden /\n").file("hidden", "").file(".dockerignore", "hidden\n");
    let failure = refused(build).to_string();
    assert!(failure.contains("hidden"), "{failure}");
}

/// The same build by several tests at once does each step once.
#[test]
fn equal_builds_share_their_steps() {
    let text =
        format!("FROM busybox\n# {}\nRUN cat /proc/sys/kernel/random/uuid > /id\n", std::process::id());
    let builds: Vec<_> = (0..4)
        .map(|_| {
            let text = text.clone();
            std::thread::spawn(move || said(Build::inline(text), "cat /id"))
        })
        .collect();
    let mut found: Vec<String> = builds.into_iter().map(|build| build.join().unwrap()).collect();
    found.dedup();
    assert_eq!(found.len(), 1, "{found:?}");
}

/// How long a build takes, done and from the cache; for `cargo xtask bench`.
#[test]
#[ignore = "a measurement"]
fn measure() {
    let steps = (0..5).map(|n| format!("RUN echo {n} > /run{n}\nCOPY f{n} /copied{n}\n")).collect::<String>();
    let build = |note: usize| {
        let build = Build::inline(format!("FROM busybox\nENV NOTE={note}\n{steps}"));
        (0..5).fold(build, |build, n| build.file(format!("f{n}"), format!("{n} {note}")))
    };
    for note in 0..3 {
        let note = std::process::id() as usize * 10 + note;
        let clock = std::time::Instant::now();
        said(build(note), "true");
        let cold = clock.elapsed();
        let clock = std::time::Instant::now();
        said(build(note), "true");
        say(&format!("cold {cold:?}, cached {:?}", clock.elapsed()));
    }
}
