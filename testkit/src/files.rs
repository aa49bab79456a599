//! Files on their way into a container and out of it, as tar streams.

use crate::{Failure, FailureKind, File, FileContent};
use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// A tar stream that puts `file` in its place when it is unpacked at `/`.
pub(crate) fn pack(file: &File) -> Result<Vec<u8>, Failure> {
    write(file).map_err(|error| {
        let title = format!("{} could not be copied into the container", file.path);
        let failure = Failure::new(FailureKind::CopyFailed, title).fact("reason", error.to_string());
        match &file.content {
            FileContent::Host(source) => failure.fact("source", source.clone()),
            FileContent::Bytes(_) => failure,
        }
    })
}

fn write(file: &File) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let path = Path::new(file.path.trim_start_matches('/'));
    match &file.content {
        FileContent::Bytes(bytes) => {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(bytes.len() as u64);
            own(&mut header, file, Some(file.mode.unwrap_or(0o644)));
            tar.append_data(&mut header, path, bytes.as_slice())?;
        }
        FileContent::Host(source) => add(&mut tar, file, Path::new(source), path, file.mode)?,
    }
    tar.into_inner()
}

/// Adds what is at `source` of this machine as `path`, and what is beneath it. Symbolic links stay what they are.
fn add(
    tar: &mut tar::Builder<Vec<u8>>,
    file: &File,
    source: &Path,
    path: &Path,
    mode: Option<u32>,
) -> io::Result<()> {
    let metadata = fs::symlink_metadata(source)?;
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&metadata);
    own(&mut header, file, mode);
    if metadata.is_symlink() {
        header.set_size(0);
        return tar.append_link(&mut header, path, fs::read_link(source)?);
    }
    if !metadata.is_dir() {
        return tar.append_data(&mut header, path, fs::File::open(source)?);
    }
    tar.append_data(&mut header, path, io::empty())?;
    let mut entries = fs::read_dir(source)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    // The mode is the top's: a directory's 0700 on each file beneath it would be a surprise.
    entries.iter().try_for_each(|entry| add(tar, file, &entry.path(), &path.join(entry.file_name()), None))
}

fn own(header: &mut tar::Header, file: &File, mode: Option<u32>) {
    if let Some(mode) = mode {
        header.set_mode(mode);
    }
    header.set_uid(u64::from(file.uid));
    header.set_gid(u64::from(file.gid));
}

/// Unpacks a tar stream with one top entry as `target`.
pub(crate) fn unpack(tar: &[u8], target: &Path) -> io::Result<()> {
    let parent = target.parent().unwrap_or(target);
    fs::create_dir_all(parent)?;
    // Beside the target, so that putting it in place is one rename.
    let landing = tempfile::Builder::new().prefix(".shakedown-").tempdir_in(parent)?;
    let mut archive = tar::Archive::new(tar);
    archive.set_preserve_permissions(true);
    archive.unpack(landing.path())?;
    let mut tops = fs::read_dir(landing.path())?;
    let top = tops.next().ok_or_else(|| io::Error::other("the container sent an empty archive"))??;
    fs::rename(top.path(), target)
}

/// The content of the one regular file in a tar stream.
pub(crate) fn only_file(tar: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let mut entry = archive
        .entries()?
        .next()
        .ok_or_else(|| io::Error::other("the container sent an empty archive"))??;
    match entry.header().entry_type() {
        tar::EntryType::Regular | tar::EntryType::Continuous => {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            Ok(bytes)
        }
        tar::EntryType::Directory => Err(io::ErrorKind::IsADirectory.into()),
        tar::EntryType::Symlink => {
            let target = entry.link_name()?.unwrap_or_default().display().to_string();
            Err(io::Error::other(format!("it is a symbolic link to `{target}`")))
        }
        _ => Err(io::Error::other("it is no regular file")),
    }
}

/// The failure of a copy out of the container.
pub(crate) fn failed(path: &str, error: &io::Error) -> Failure {
    Failure::new(FailureKind::CopyFailed, format!("{path} could not be copied out of the container"))
        .fact("reason", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A directory comes back as it went in: modes, links, names.
    #[test]
    fn a_tree_survives_the_way_in_and_out() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("conf");
        fs::create_dir_all(tree.join("d")).unwrap();
        fs::write(tree.join("d/run.sh"), "echo").unwrap();
        fs::set_permissions(tree.join("d/run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
        std::os::unix::fs::symlink("d/run.sh", tree.join("link")).unwrap();

        let tar = pack(&File::host("/conf", tree.display().to_string())).unwrap();
        let back = place.path().join("deep/back");
        unpack(&tar, &back).unwrap();
        assert_eq!(fs::read_to_string(back.join("d/run.sh")).unwrap(), "echo");
        assert_eq!(fs::metadata(back.join("d/run.sh")).unwrap().permissions().mode() & 0o7777, 0o750);
        assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("d/run.sh"));
        assert_eq!(fs::read_dir(back.parent().unwrap()).unwrap().count(), 1, "no landing place is left");
    }

    /// A path longer than a tar header's 100 bytes keeps its name.
    #[test]
    fn long_paths_are_kept() {
        let path = format!("/{}/orders.conf", "d".repeat(150));
        let tar = pack(&File::bytes(path, "x")).unwrap();
        assert_eq!(only_file(&tar).unwrap(), b"x");
        let mut archive = tar::Archive::new(&tar[..]);
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().components().count(), 2);
    }
}
