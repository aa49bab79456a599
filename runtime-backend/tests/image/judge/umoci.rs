//! umoci: `umoci unpack` of a layout into a bundle.

use super::{Answer, Tree, Written, remove, run};
use std::path::Path;

pub(super) fn all(place: &Path, written: &[Written]) -> Vec<Answer> {
    let one = |written: &Written| {
        let bundle = place.join("bundle");
        let image = format!("{}:1", written.layout.display());
        let result = run("umoci", |command| {
            command.args(["unpack", "--image", &image]).arg(&bundle);
        });
        let answer = result.map(|_| Tree::read(&bundle.join("rootfs")));
        remove(&bundle);
        answer
    };
    written.iter().map(one).collect()
}
