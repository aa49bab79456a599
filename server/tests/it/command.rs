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
        let host = format!("unix://{}/none.sock", lab.path().display());
        let fails = shakedown(lab, &["doctor"]).env("SHAKEDOWN_DOCKER_HOST", host).output().unwrap();
        let report = text(&fails.stdout);
        assert!(report.contains("docker: does not work\n  reason: "), "{report}");
        // The native driver may work here; one driver is enough.
        assert_eq!(fails.status.success(), report.contains(": works; "), "{report}");
    });
}
