//! Small files in a container's root, read and written by descriptor, never outside it.

use super::protocol::WrittenFile;
use crate::native::launch::mounts::resolve;
use crate::native::launch::{Trouble, Trying};
use crate::native::sys::Called;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The most that is read of one file: two of them have to fit into a message.
const LONGEST: u64 = 48 << 10;

/// The text of a file; empty if it is not there or not readable, as for an image without `/etc/passwd`.
pub(super) fn read(root: &OwnedFd, path: &Path) -> String {
    let mut bytes = Vec::new();
    let opened =
        resolve(root.as_fd(), path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY);
    if let Ok(fd) = opened {
        let _ = File::from(fd).take(LONGEST).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes a file, mode 0644, in a directory that is made if it is missing.
pub(super) fn write(root: &OwnedFd, file: &WrittenFile) -> Result<(), Trouble> {
    let doing = || format!("write {} in the container", file.path.display());
    let (Some(directory), Some(name)) = (file.path.parent(), file.path.file_name()) else {
        return Err(Trouble::new(doing(), "it is no path of a file"));
    };
    let directory =
        open_directory(root, directory).call(|| format!("openat2({directory:?})")).trying(doing)?;
    // Beside its place, then renamed: a neighbour that looks a name up meanwhile finds the old file or the new one, and a
    // link that an image ships there is replaced, not followed.
    let mut beside = std::ffi::OsString::from(".shakedown-");
    beside.push(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let make = || rustix::fs::openat(&directory, &beside, flags, Mode::from_raw_mode(0o644));
    let made = match make() {
        Err(Errno::EXIST) => {
            let _ = rustix::fs::unlinkat(&directory, &beside, rustix::fs::AtFlags::empty());
            make()
        }
        made => made,
    };
    let fd = made.call(|| format!("openat({beside:?}, O_CREAT|O_EXCL)")).trying(doing)?;
    File::from(fd)
        .write_all(file.content.as_bytes())
        .map_err(|error| Trouble::new(doing(), error.to_string()))?;
    rustix::fs::renameat(&directory, &beside, &directory, name)
        .call(|| format!("renameat({beside:?}, {name:?})"))
        .trying(doing)
}

/// Opens a directory of the container, making it and its parents if they are missing.
pub(super) fn open_directory(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match resolve(root.as_fd(), path, flags) {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::NOENT) };
    let parent = open_directory(root, parent)?;
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => resolve(root.as_fd(), path, flags),
        Err(errno) => Err(errno),
    }
}
