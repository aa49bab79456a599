//! Podman's store: `skopeo copy` into it, which is what `podman load` does with a layout, then `podman image mount`.

use super::{Answer, Tree, Written, run};
use std::path::Path;
use std::process::Command;

const NAME: &str = "localhost/judge:1";

pub(super) fn all(place: &Path, written: &[Written]) -> Vec<Answer> {
    let podman = |command: &mut Command| {
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(place.join(name));
        }
        command.args(["--storage-driver=overlay", "--cgroup-manager=cgroupfs", "--log-level=error"]);
    };
    let one = |written: &Written| {
        let source = format!("oci:{}:1", written.layout.display());
        let (root, running) = (place.join("root"), place.join("run"));
        let store = format!("containers-storage:[overlay@{}+{}]{NAME}", root.display(), running.display());
        run("skopeo", |command| {
            command.args(["--insecure-policy", "copy", "--quiet", &source, &store]);
        })?;
        let podman = |words: &[&str]| {
            run("podman", |command| {
                podman(command);
                command.arg("image").args(words).arg(NAME);
            })
        };
        let answer = podman(&["mount"]).map(|path| Tree::read(Path::new(&path)));
        podman(&["umount", "--force"]).unwrap();
        podman(&["rm", "--force"]).unwrap();
        answer
    };
    written.iter().map(one).collect()
}
