//! The command line.

use crate::lab::{Lab, check, image};
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

fn shakedown(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shakedown"));
    command
        .args(arguments)
        .env("SHAKEDOWN_RUN_DIR", lab.run())
        .env("SHAKEDOWN_DRIVER", "docker")
        .env_remove("SHAKEDOWN_SOCKET")
        .current_dir(lab.path());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A suite in any language gets a session around it, and its exit code is the suite's.
#[test]
fn run_gives_a_session_and_the_exit_code() {
    check(async |lab| {
        let script = "test -S \"$SHAKEDOWN_SOCKET\" && echo here; exit 7";
        let Output { status, stdout, .. } =
            shakedown(lab, &["run", "--", "sh", "-c", script]).output().unwrap();
        assert_eq!((status.code(), text(&stdout).as_str()), (Some(7), "here\n"));
        let missing = shakedown(lab, &["run", "no-such-program"]).output().unwrap();
        insta::assert_snapshot!(text(&missing.stderr), @r"
        error: `no-such-program` cannot be run
          reason: No such file or directory (os error 2)
        ");
    });
}

/// A server in the foreground serves other languages: a container, a look at it, a command in it.
#[test]
fn serve_ps_exec_logs() {
    check(async |lab| {
        let socket = lab.path().join("s.sock");
        let mut server = shakedown(lab, &["serve", "--socket", socket.to_str().unwrap()]);
        let mut server = server.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), format!("SHAKEDOWN_SOCKET={}", socket.display()));

        let client = shakedown_server::client::Client::at(socket.clone()).await.unwrap();
        let lease = client.lease("it", lab.path()).await.unwrap();
        let started = client.start_container(lease.id(), &crate::lab::shell()).await.unwrap();
        let ask = |arguments: &[&str]| {
            let output = shakedown(lab, arguments).env("SHAKEDOWN_SOCKET", &socket).output().unwrap();
            text(&output.stdout).replace(&started.id, "ID").replace(&image("busybox"), "IMAGE")
        };
        assert_eq!(ask(&["logs", &started.id]), "ready\n");
        assert_eq!(ask(&["exec", &started.id, "echo", "-n", "hi"]), "hi");
        let listed = ask(&["ps"]);
        assert!(listed.lines().nth(1).unwrap().split_whitespace().eq(["ID", "IMAGE", "ready"]), "{listed}");
        assert_eq!(
            ask(&["exec", "-e", "TILL=7", "-w", "/tmp", &started.id, "sh", "-c", "echo $TILL $PWD"]),
            "7 /tmp\n"
        );
        let no_terminal = shakedown(lab, &["exec", "-t", &started.id, "true"]).output().unwrap();
        insta::assert_snapshot!(text(&no_terminal.stderr), @r"
        error: the standard input is not a terminal
        hint: leave `-t` out; `-i` alone sends the standard input
        ");
        assert_eq!(ask(&["pause", &started.id]), "ID\n");
        assert!(ask(&["ps"]).contains("paused"));
        assert_eq!(ask(&["unpause", &started.id]), "ID\n");
        client.end_session().await.unwrap();
        assert!(server.wait().unwrap().success());
    });
}

/// `doctor` is the page that failure messages send to.
#[test]
fn doctor_tells_what_works() {
    check(async |lab| {
        let works = shakedown(lab, &["doctor"]).output().unwrap();
        assert!(works.status.success());
        assert!(text(&works.stdout).contains("docker: works; "), "{}", text(&works.stdout));
        // What takes the place of overlayfs is told, and why.
        let copied = shakedown(lab, &["doctor"]).env("SHAKEDOWN_OVERLAY", "copy").output().unwrap();
        let report = text(&copied.stdout);
        if report.contains("native: works; ") {
            let reason =
                "no   overlayfs: SHAKEDOWN_OVERLAY demands it: a copy of the image's files in memory";
            assert!(report.contains(reason), "{report}");
        }
        let host = format!("unix://{}/none.sock", lab.path().display());
        let fails = shakedown(lab, &["doctor"]).env("SHAKEDOWN_DOCKER_HOST", host).output().unwrap();
        let report = text(&fails.stdout);
        assert!(report.contains("docker: does not work\n  reason: "), "{report}");
        // The native driver may work here; one driver is enough.
        assert_eq!(fails.status.success(), report.contains(": works; "), "{report}");
    });
}

/// An image is built on the command line: its id on standard output, progress on standard error, a failure as such.
#[test]
fn build_prints_the_id() {
    check(async |lab| {
        let write = |name: &str, text: &str| std::fs::write(lab.path().join(name), text).unwrap();
        write("shakedown.toml", &format!("[images]\nbusybox = \"{}\"\n", image("busybox")));
        write("Dockerfile", "FROM busybox\nARG SHOP=closed\nCOPY Dockerfile /\nRUN echo the shop is $SHOP\n");
        let name = format!("shakedown-test/{}:1", lab.name);
        let built = shakedown(lab, &["build", "-t", &name, "--no-cache", "--build-arg", "SHOP=open", "."]);
        let Output { status, stdout, stderr } = { built }.output().unwrap();
        let (id, told) = (text(&stdout), text(&stderr));
        assert!(status.success() && id.starts_with("sha256:") && id.len() == 72, "{id}{told}");
        let steps: String = told
            .lines()
            .filter(|line| !line.contains("(as before)"))
            .map(|line| format!("{line}\n"))
            .collect();
        insta::assert_snapshot!(steps, @"
        [1/4] FROM busybox
        [2/4] ARG SHOP=closed
        [3/4] COPY Dockerfile /
        [4/4] RUN echo the shop is $SHOP
          the shop is open
        ");
        let quiet =
            shakedown(lab, &["build", "-q", "-t", &name, "--build-arg", "SHOP=open", "."]).output().unwrap();
        assert_eq!((text(&quiet.stdout), text(&quiet.stderr).as_str()), (id, ""));
        write("Dockerfile", "FROM busybox\nRUN exit 3\n");
        let failed = shakedown(lab, &["build", "-q", "."]).output().unwrap();
        assert!(!failed.status.success());
        insta::assert_snapshot!(text(&failed.stderr), @"
        error: Dockerfile could not be built: RUN failed
          at:     Dockerfile:2
          line:   RUN exit 3
          reason: exit code 3
        ");
        let host = std::env::var("SHAKEDOWN_DOCKER_HOST").or_else(|_| std::env::var("DOCKER_HOST"));
        let docker =
            bollard::Docker::connect_with_host(&host.unwrap_or("unix:///var/run/docker.sock".into()));
        docker
            .unwrap()
            .remove_image(&name, None::<bollard::query_parameters::RemoveImageOptions>, None)
            .await
            .unwrap();
    });
}
