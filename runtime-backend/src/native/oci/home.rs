//! The home directory of a process that is not told any: as the container's own `/etc/passwd` has it.

use crate::native::launch::mounts::resolve;
use oci_spec::runtime::Process;
use rustix::fs::{CWD, Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

/// The largest `/etc/passwd` that is read: it is the container's own, and may be anything.
const LARGEST: u64 = 1 << 20;

/// Adds `HOME` to the environment if it is missing.
pub(super) fn complete(mut process: Process, root: &Path) -> Process {
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|pair| pair.starts_with("HOME=")) {
        let home = passwd(root).and_then(|text| home_of(&text, process.user().uid()));
        env.push(format!("HOME={}", home.unwrap_or_else(|| "/".to_owned())));
        process.set_env(Some(env));
    }
    process
}

fn passwd(root: &Path) -> Option<String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty()).ok()?;
    // Opening a named pipe for reading would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(resolve(root.as_fd(), Path::new("/etc/passwd"), flags).ok()?);
    let mut text = Vec::new();
    file.take(LARGEST).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn home_of(text: &str, uid: u32) -> Option<String> {
    let of = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(uid)).then(|| fields.get(5).map(|&home| home.to_owned()))?
    };
    text.lines().find_map(of).filter(|home| !home.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell finds its own files, whoever runs it.
    #[test]
    fn the_line_with_the_id_has_the_home() {
        let text = "root:x:0:0:root:/root:/bin/sh\n\nbroken:x\nempty:x:7:7:::\nuser:x:1000:1000::/home/user:/bin/sh\n";
        assert_eq!(home_of(text, 0).as_deref(), Some("/root"));
        assert_eq!(home_of(text, 1000).as_deref(), Some("/home/user"));
        assert_eq!((home_of(text, 7), home_of(text, 8)), (None, None));
    }
}
