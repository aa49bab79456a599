//! containerd: `ctr image import`, then `ctr image mount`, which unpacks; with its usual snapshotter, overlayfs.

use super::{Answer, Tree, Written, run};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A daemon of this test's own.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(place: &Path) -> Self {
        let socket = place.join("socket");
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{0}/socket\"\n",
            place.display()
        );
        std::fs::write(place.join("config.toml"), config).unwrap();
        // It ends with this thread, even if the test is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--", "containerd", "--config"]).arg(place.join("config.toml"));
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("successfully booted")), "containerd did not start");
        // A full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, socket }
    }

    fn ctr(&self, arguments: &[&str], more: &[&Path]) -> Result<String, String> {
        run("ctr", |command| {
            command.arg("--address").arg(&self.socket).args(arguments).args(more);
        })
    }

    fn take(&self, place: &Path, layout: &Path) -> Answer {
        const NAME: &str = "judge/image:1";
        let (archive, mount) = (place.join("archive"), place.join("mount"));
        run("tar", |command| {
            command.arg("--directory").arg(layout).arg("--create").arg("--file").arg(&archive).arg(".");
        })?;
        std::fs::create_dir_all(&mount).unwrap();
        self.ctr(&["image", "import", "--no-unpack", "--index-name", NAME], &[&archive])?;
        let mounted = self.ctr(&["image", "mount", "--snapshotter=overlayfs", NAME], &[&mount]);
        let answer = mounted.map(|_| Tree::read(&mount));
        if answer.is_ok() {
            self.ctr(&["image", "unmount", "--rm"], &[&mount]).unwrap();
        }
        self.ctr(&["image", "rm", "--sync", NAME], &[]).unwrap();
        answer
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

pub(super) fn all(place: &Path, written: &[Written]) -> Vec<Answer> {
    let daemon = Daemon::start(place);
    written.iter().map(|written| daemon.take(place, &written.layout)).collect()
}
