//! `shakedown oci` with real bundles: a root file system of the busybox image, and a `config.json` as engines write it.
//!
//! As an ordinary user the container gets a user namespace that maps this user alone.

use serde_json::{Value, json};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A bundle and a place for states. Containers that are left are deleted.
struct Lab {
    work: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.work.path().join("state")).into_iter().flatten().flatten() {
            let _ = self.command(&["delete", "--force", &entry.file_name().to_string_lossy()]).output();
        }
    }
}

impl Lab {
    fn new() -> Self {
        let lab = Self { work: tempfile::tempdir().unwrap() };
        let layout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/images/busybox");
        let layout = layout.canonicalize().expect("`cargo xtask images` makes the images of the tests");
        let unpacked = Command::new(env!("CARGO_BIN_EXE_shakedown"))
            .args(["images", "unpack", &format!("oci:{}", layout.display())])
            .arg(lab.bundle().join("rootfs"))
            .env("SHAKEDOWN_STORE", lab.work.path().join("store"))
            .output()
            .unwrap();
        assert!(unpacked.status.success(), "{}", text(&unpacked.stderr));
        lab
    }

    fn bundle(&self) -> PathBuf {
        let bundle = self.work.path().join("bundle");
        std::fs::create_dir_all(&bundle).unwrap();
        bundle
    }

    /// Writes the `config.json` of a shell script, after `change` has been at it.
    fn config(&self, script: &str, change: impl FnOnce(&mut Value)) {
        let path = self.bundle().join("config.json");
        let _ = std::fs::remove_file(&path);
        let rootless: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["--rootless"] };
        let bundle = self.bundle();
        let made =
            self.command(&[&["spec", "--bundle", bundle.to_str().unwrap()], rootless].concat()).output();
        assert!(made.unwrap().status.success());
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["process"]["terminal"] = false.into();
        change(&mut config);
        std::fs::write(path, config.to_string()).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shakedown"));
        command.arg("oci").arg("--root").arg(self.work.path().join("state")).args(arguments);
        command.current_dir(self.bundle()).stdin(Stdio::null());
        command
    }

    /// The exit code and what was written, with places made the same for every run.
    fn ask(&self, arguments: &[&str]) -> (i32, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let all = text(&stdout) + &text(&stderr);
        (status.code().unwrap(), all.replace(self.work.path().to_str().unwrap(), "DIR"))
    }

    /// `create` with its output in a pipe, which the container keeps.
    fn create(&self, id: &str) -> Child {
        let mut command = self.command(&["create", id]);
        command.stdout(Stdio::piped()).spawn().unwrap()
    }

    fn state(&self, id: &str) -> Value {
        let (code, text) = self.ask(&["state", id]);
        assert_eq!(code, 0, "{text}");
        serde_json::from_str(&text).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Engines make a container first and start it later, and ask for its state all the time.
#[test]
fn a_container_is_created_started_and_deleted() {
    let lab = Lab::new();
    lab.config("echo started; exec tail -f /dev/null", |_| {});
    let mut create = lab.create("one");
    assert!(create.wait().unwrap().success());
    let state = lab.state("one");
    assert_eq!((&state["status"], &state["id"]), (&json!("created"), &json!("one")));
    assert!(state["pid"].as_i64().unwrap() > 0);
    assert_eq!(lab.ask(&["start", "one"]), (0, String::new()));
    let mut line = [0; 8];
    let stdout = create.stdout.as_mut().unwrap();
    stdout.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"started\n");
    assert_eq!(lab.state("one")["status"], "running");
    insta::assert_snapshot!(lab.ask(&["start", "one"]).1, @"error: container `one` is running, so it cannot be started");
    insta::assert_snapshot!(lab.ask(&["delete", "one"]).1, @"error: container `one` is running, so it cannot be deleted");
    assert_eq!(lab.ask(&["exec", "one", "sh", "-c", "echo in $HOME; exit 7"]), (7, "in /root\n".to_owned()));
    assert_eq!(lab.ask(&["kill", "one", "KILL"]), (0, String::new()));
    assert_eq!(lab.ask(&["delete", "--force", "one"]), (0, String::new()));
    insta::assert_snapshot!(lab.ask(&["state", "one"]).1, @"error: container `one` does not exist");
}

/// A container that was run in the foreground leaves its exit code and nothing else.
#[test]
fn run_gives_the_exit_code_and_leaves_nothing() {
    let lab = Lab::new();
    lab.config("echo $((6 * 7)); exit 3", |_| {});
    assert_eq!(lab.ask(&["run", "one"]), (3, "42\n".to_owned()));
    assert_eq!(lab.ask(&["list", "--quiet"]), (0, String::new()));
}

/// Hooks are where engines set networks up: each runs at its time, is told the state, and stops the container if it fails.
#[test]
fn hooks_run_in_order_and_may_refuse() {
    let lab = Lab::new();
    let log = lab.work.path().join("log");
    let hook = |name: &str, end: &str| {
        let script =
            format!("grep -o '\"status\":\"[a-z]*\"' | sed 's/^/{name} /' >> {}; {end}", log.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }])
    };
    lab.config("true", |config| {
        config["hooks"] = json!({ "createRuntime": hook("createRuntime", ""), "poststart": hook("poststart", ""),
            "poststop": hook("poststop", "") });
    });
    assert_eq!(lab.ask(&["run", "one"]), (0, String::new()));
    insta::assert_snapshot!(std::fs::read_to_string(&log).unwrap(), @r#"
    createRuntime "status":"creating"
    poststart "status":"running"
    poststop "status":"stopped"
    "#);
    lab.config("echo never", |config| {
        config["hooks"] = json!({ "createRuntime": hook("createRuntime", "exit 4") });
    });
    insta::assert_snapshot!(lab.ask(&["run", "one"]).1, @r"
    error: container `one` could not be created: cannot run the createRuntime hook /bin/sh
      reason: exit status: 4
    ");
    assert_eq!(lab.ask(&["list", "--quiet"]), (0, String::new()));
}

/// A container of a pod shares namespaces with the first one of it.
#[test]
fn namespaces_of_another_container_are_joined() {
    let lab = Lab::new();
    lab.config("echo up; exec tail -f /dev/null", |_| {});
    let mut first = lab.create("first");
    assert!(first.wait().unwrap().success());
    // Until it executes its program, an ordinary user may not look at it.
    assert_eq!(lab.ask(&["start", "first"]), (0, String::new()));
    let pid = lab.state("first")["pid"].as_i64().unwrap();
    let root = rustix::process::geteuid().is_root();
    lab.config("readlink /proc/self/ns/uts", |config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            let file = match namespace["type"].as_str().unwrap() {
                "uts" => "uts",
                // Who is nobody in a user namespace may join nothing that belongs to it.
                "user" if !root => "user",
                _ => continue,
            };
            namespace["path"] = format!("/proc/{pid}/ns/{file}").into();
        }
        if !root {
            config["linux"]["uidMappings"] = Value::Null;
            config["linux"]["gidMappings"] = Value::Null;
        }
    });
    let its = std::fs::read_link(format!("/proc/{pid}/ns/uts")).unwrap();
    assert_eq!(lab.ask(&["run", "second"]), (0, format!("{}\n", its.display())));
}

/// A capability for one more process is that process's alone: what it executes does not inherit it (CVE-2022-29162).
#[test]
fn added_capabilities_are_not_inherited() {
    let lab = Lab::new();
    lab.config("exec tail -f /dev/null", |config| config["process"]["capabilities"] = json!({}));
    assert!(lab.create("one").wait().unwrap().success());
    assert_eq!(lab.ask(&["start", "one"]).0, 0);
    let asked = lab.ask(&["exec", "--cap", "CAP_SYS_CHROOT", "one", "grep", "^Cap", "/proc/self/status"]);
    insta::assert_snapshot!(asked.1, @r"
    CapInh:	0000000000000000
    CapPrm:	0000000000040000
    CapEff:	0000000000040000
    CapBnd:	0000000000040000
    CapAmb:	0000000000000000
    ");
}

/// A service manager that starts a container is told once the service in it says that it is ready, and `start` returns then.
#[test]
fn readiness_is_passed_on() {
    let lab = Lab::new();
    let path = lab.work.path().join("manager");
    let manager = UnixDatagram::bind(&path).unwrap();
    let script = "test -S $NOTIFY_SOCKET && echo $NOTIFY_SOCKET; exec tail -f /dev/null";
    lab.config(script, |_| {});
    let mut create =
        lab.command(&["create", "one"]).env("NOTIFY_SOCKET", &path).stdout(Stdio::piped()).spawn().unwrap();
    assert!(create.wait().unwrap().success());
    let mut start = lab.command(&["start", "one"]).env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let expected = format!("{}/notify\n", path.display());
    let mut line = vec![0; expected.len()];
    create.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(text(&line), expected);
    // As the service would.
    let service = UnixDatagram::unbound().unwrap();
    service.send_to(b"STATUS=warm\nREADY=1", lab.work.path().join("state/one/notify/notify")).unwrap();
    assert!(start.wait().unwrap().success());
    let mut heard = [0; 64];
    let length = manager.recv(&mut heard).unwrap();
    assert_eq!(text(&heard[..length]), "READY=1");
    assert_eq!(lab.ask(&["delete", "--force", "one"]), (0, String::new()));
}

/// In a user namespace a device works as well, and belongs to whom the file says; it takes root outside.
#[test]
fn devices_work_in_a_user_namespace() {
    let lab = Lab::new();
    let root = rustix::process::geteuid().is_root();
    lab.config("echo > /dev/orders; stat -c '%u:%g %t:%T' /dev/orders", |config| {
        let device =
            json!({ "path": "/dev/orders", "type": "c", "major": 1, "minor": 3, "uid": 10, "gid": 11 });
        config["linux"]["devices"] = json!([device]);
        if root {
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
            let all = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
            config["linux"]["uidMappings"] = all.clone();
            config["linux"]["gidMappings"] = all;
        }
    });
    let (code, text) = lab.ask(&["run", "one"]);
    if root {
        assert_eq!((code, &*text), (0, "10:11 1:3\n"));
    } else {
        // An ordinary user has the devices of the host only.
        assert!(code == 1 && text.contains("cannot mount `/dev/orders` of the host"), "{text}");
    }
}

/// A program in the container has descriptors that the caller passes on, and none of those that the runtime had.
#[test]
fn only_preserved_descriptors_are_passed_on() {
    let lab = Lab::new();
    lab.config("ls /proc/self/fd | tr '\\n' ' '; cat <&3", |_| {});
    let file = lab.work.path().join("file");
    std::fs::write(&file, "passed").unwrap();
    let script = format!("exec 3<{} 9</dev/null; exec \"$@\"", file.display());
    let run = |arguments: &[&str]| {
        let oci = lab.command(arguments);
        let output = Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(oci.get_program())
            .args(oci.get_args())
            .current_dir(lab.bundle())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        text(&output.stdout)
    };
    // The last one is the directory that `ls` reads.
    assert_eq!(run(&["run", "--preserve-fds", "1", "one"]), "0 1 2 3 4 passed");
    assert_eq!(run(&["run", "one"]), "0 1 2 3 ");
}

/// What a container finds at `/proc/PID/exe` of a process that comes in from outside is not the program of the host
/// (CVE-2019-5736).
#[test]
fn the_program_cannot_be_overwritten_from_inside() {
    let lab = Lab::new();
    lab.config("echo up; exec tail -f /dev/null", |config| {
        config["process"]["noNewPrivileges"] = false.into();
    });
    // Executes the runtime itself, whose file it then tries to open for writing.
    let script = lab.bundle().join("rootfs/evil");
    std::fs::write(&script, "#!/proc/self/exe\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut create = lab.create("one");
    assert!(create.wait().unwrap().success());
    let pid = lab.state("one")["pid"].as_i64().unwrap();
    // Before its start the first process still is the runtime's program.
    let exe = format!("/proc/{pid}/exe");
    let refused = std::fs::File::options().write(true).open(&exe).is_err();
    // Refused for as long as the file is executed; afterwards because of the mount. An ordinary user does not even see it.
    let read_only = rustix::fs::statvfs(&*exe)
        .map_or(true, |on| on.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    assert!(refused && read_only);
    assert_eq!(lab.ask(&["start", "one"]).0, 0);
    let (code, _) = lab.ask(&["exec", "one", "/evil"]);
    assert_ne!(code, 0);
}

/// A link in the place of a mount does not lead out of the container's root.
#[test]
fn links_do_not_lead_out() {
    let lab = Lab::new();
    let outside = lab.work.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let rootfs = lab.bundle().join("rootfs");
    let mounted_at = |path: &str| {
        lab.config(&format!("grep -c ' {path} tmpfs ' /proc/mounts"), |config| {
            let mount = json!({ "destination": "/data/deep", "type": "tmpfs", "source": "t" });
            config["mounts"].as_array_mut().unwrap().push(mount);
        });
        lab.ask(&["run", "one"])
    };
    // As the container sees it, the link leads to a directory of its own.
    std::os::unix::fs::symlink("/../../etc", rootfs.join("data")).unwrap();
    assert_eq!(mounted_at("/etc/deep"), (0, "1\n".to_owned()));
    std::fs::remove_file(rootfs.join("data")).unwrap();
    std::os::unix::fs::symlink(&outside, rootfs.join("data")).unwrap();
    assert_eq!(mounted_at("/data/deep").0, 1);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "something was made outside");
    std::fs::remove_file(rootfs.join("data")).unwrap();
    lab.config("true", |_| {});
    let _ = std::fs::remove_dir(rootfs.join("proc"));
    std::os::unix::fs::symlink("/sys", rootfs.join("proc")).unwrap();
    insta::assert_snapshot!(lab.ask(&["run", "two"]).1, @r"
    error: container `two` could not be created: cannot mount /proc in the container
      reason: /proc in the container's root is not a directory
    ");
}

/// What cannot be done is told before anything is made.
#[test]
fn what_is_not_supported_is_told() {
    let lab = Lab::new();
    let refused = |change: &dyn Fn(&mut Value)| {
        lab.config("true", |config| change(config));
        let (code, text) = lab.ask(&["run", "one"]);
        assert_eq!(code, 1, "{text}");
        text.lines().find(|line| line.contains("reason")).unwrap_or(&text).trim().to_owned()
    };
    let all = [
        refused(&|config| config["linux"]["intelRdt"] = json!({ "closID": "x" })),
        refused(&|config| {
            config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1, "nanosecs": 0 } });
        }),
        refused(&|config| config["process"]["cwd"] = "relative".into()),
        refused(&|config| config["linux"]["sysctl"] = json!({ "kernel.hostname": "x" })),
        refused(&|config| config["root"]["path"] = "missing".into()),
    ];
    insta::assert_snapshot!(all.join("\n"), @r"
    reason: `linux.intelRdt` is not supported
    reason: `linux.timeOffsets` are not supported
    reason: `process.cwd` is not an absolute path
    reason: it is a parameter of the whole machine, or of a namespace that the container does not have
    reason: the root file system is not there
    ");
    let (code, text) = lab.ask(&["--systemd-cgroup", "run", "one"]);
    assert_eq!(code, 1);
    insta::assert_snapshot!(text, @"error: control groups made by systemd are not supported; use `cgroupfs`");
    let missing = lab.ask(&["kill", "none"]);
    insta::assert_snapshot!(missing.1, @"error: container `none` does not exist");
    assert_eq!(lab.ask(&["list", "--quiet"]), (0, String::new()));
}

/// A shell script that stops once it has told something.
const WAITS: &str = "echo; exec tail -f /dev/null";

/// Monitors read these lines, and wait for their end instead of asking again and again.
#[test]
fn events_are_told_until_the_container_ends() {
    let lab = Lab::new();
    lab.config(WAITS, |_| {});
    assert!(lab.create("one").wait().unwrap().success());
    let (code, line) = lab.ask(&["events", "--stats", "one"]);
    assert_eq!(code, 0, "{line}");
    assert!(line.starts_with(r#"{"type":"stats","id":"one","data":{"#), "{line}");
    let told: Value = serde_json::from_str(&line).unwrap();
    assert!(told["data"]["cpu"]["usage"]["total"].is_u64(), "{line}");
    let mut events = lab.command(&["events", "--interval", "10ms", "one"]);
    let mut events = events.stdout(Stdio::piped()).spawn().unwrap();
    let mut begin = [0; 15];
    events.stdout.as_mut().unwrap().read_exact(&mut begin).unwrap();
    assert_eq!(text(&begin), r#"{"type":"stats""#);
    assert_eq!(lab.ask(&["delete", "--force", "one"]), (0, String::new()));
    // A pipe that nobody reads would fill.
    let mut rest = Vec::new();
    events.stdout.as_mut().unwrap().read_to_end(&mut rest).unwrap();
    assert!(events.wait().unwrap().success());
    insta::assert_snapshot!(lab.ask(&["events", "one"]).1, @"error: container `one` does not exist");
}

/// A further process can be put into a group that the container has made below its own, and nowhere else.
#[test]
fn a_process_joins_groups_below_the_container() {
    let lab = Lab::new();
    lab.config(WAITS, |_| {});
    assert!(lab.create("one").wait().unwrap().success());
    let refused = |group: &str| {
        let (code, text) = lab.ask(&["exec", "--cgroup", group, "one", "true"]);
        assert_eq!(code, 255, "{text}");
        text.lines().find(|line| line.contains("reason")).unwrap_or(&text).trim().to_owned()
    };
    insta::assert_snapshot!(refused(".."), @"reason: .. is not a sub cgroup path");
    insta::assert_snapshot!(refused("a/../.."), @"reason: a/../.. is not a sub cgroup path");
    insta::assert_snapshot!(refused("whaaat:/"), @"reason: unknown controller whaaat");
    // An ordinary user's containers may have no groups at all.
    if rustix::process::geteuid().is_root() {
        assert!(refused("none").ends_with("/none/cgroup.procs: no such file or directory"));
    }
    assert_eq!(lab.ask(&["exec", "--cgroup", "/", "one", "true"]), (0, String::new()));
}

/// Programs that read the list find the fields in the order in which runc has them, and the root file system.
#[test]
fn the_list_reads_as_that_of_others() {
    let lab = Lab::new();
    lab.config(WAITS, |_| {});
    assert!(lab.create("one").wait().unwrap().success());
    let (_, list) = lab.ask(&["list", "--format", "json"]);
    let at = |name: &str| list.find(&format!("\"{name}\":")).unwrap();
    let order = ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created"].map(at);
    assert!(order.is_sorted(), "{list}");
    assert!(list.contains(r#""rootfs":"DIR/bundle/rootfs""#), "{list}");
}

/// A terminal's master goes to whoever listens at the console socket, as conmon and containerd do.
#[test]
fn the_console_socket_gets_the_terminal() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let lab = Lab::new();
    lab.config("tty; stty size", |config| {
        config["process"]["terminal"] = true.into();
        config["process"]["consoleSize"] = json!({ "height": 24, "width": 99 });
    });
    let path = lab.work.path().join("console");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (code, text) = lab.ask(&["create", "--console-socket", path.to_str().unwrap(), "one"]);
    assert_eq!((code, text.as_str()), (0, ""));
    let (stream, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let mut parts = [std::io::IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(&stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let master = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut master = std::fs::File::from(master.unwrap());
    assert_eq!(lab.ask(&["start", "one"]).0, 0);
    let mut written = Vec::new();
    // EIO once the container has closed its end.
    let _ = master.read_to_end(&mut written);
    assert_eq!(text_of(&written), "/dev/pts/0\n24 99\n");
}

fn text_of(bytes: &[u8]) -> String {
    text(bytes).replace('\r', "")
}
