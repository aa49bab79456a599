//! Declared files as one tar stream: how files get into a container before it starts, whichever driver makes it.

use shakedown_spec::{File, FileContent};
use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Writes the declared files as one archive; an error comes with the path it is about.
pub(crate) fn pack(files: &[File], out: impl Write) -> std::result::Result<(), (String, io::Error)> {
    let mut tar = tar::Builder::new(out);
    for file in files {
        let target = Path::new(file.path.trim_start_matches('/'));
        let packed = match &file.content {
            FileContent::Bytes(bytes) => {
                let mut header =
                    header((file.uid, file.gid), tar::EntryType::Regular, file.mode.unwrap_or(0o644), now());
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, target, &bytes[..]).map_err(|error| (file.path.clone(), error))
            }
            // The path itself may be a link to what is meant; links inside a tree are kept.
            FileContent::Host(source) => fs::canonicalize(source)
                .map_err(|error| (source.clone(), error))
                .and_then(|source| pack_tree(&mut tar, file, &source, target)),
        };
        packed?;
    }
    tar.finish().map_err(|error| ("the archive".to_owned(), error))
}

fn pack_tree(
    tar: &mut tar::Builder<impl Write>,
    file: &File,
    source: &Path,
    target: &Path,
) -> std::result::Result<(), (String, io::Error)> {
    let about = |error: io::Error| (source.display().to_string(), error);
    let metadata = fs::symlink_metadata(source).map_err(about)?;
    append(tar, source, &metadata, target, (file.uid, file.gid), file.mode).map_err(about)?;
    if !metadata.is_dir() {
        return Ok(());
    }
    let mut names: Vec<_> =
        fs::read_dir(source).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(about)?;
    names.sort_by_key(fs::DirEntry::file_name);
    names
        .into_iter()
        .try_for_each(|entry| pack_tree(tar, file, &entry.path(), &target.join(entry.file_name())))
}

/// Writes one file, link or directory, a directory without what is in it. `mode` is that of files.
pub(crate) fn append(
    tar: &mut tar::Builder<impl Write>,
    source: &Path,
    metadata: &Metadata,
    target: &Path,
    owner: (u32, u32),
    mode: Option<u32>,
) -> io::Result<()> {
    let kind = metadata.file_type();
    let own = metadata.mode() & 0o7777;
    if kind.is_dir() {
        let mut header = header(owner, tar::EntryType::Directory, own, mtime(metadata));
        return tar.append_data(&mut header, target, io::empty());
    }
    if kind.is_symlink() {
        let mut header = header(owner, tar::EntryType::Symlink, 0o777, mtime(metadata));
        return tar.append_link(&mut header, target, fs::read_link(source)?);
    }
    if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
        return Err(io::Error::other("is neither a file, a directory nor a symbolic link"));
    }
    let mut header = header(owner, tar::EntryType::Regular, mode.unwrap_or(own), mtime(metadata));
    let opened = fs::File::open(source)?;
    header.set_size(metadata.len());
    // A file that grows meanwhile is cut at the size its header says.
    tar.append_data(&mut header, target, io::Read::take(opened, metadata.len()))
}

fn header((uid, gid): (u32, u32), kind: tar::EntryType, mode: u32, mtime: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(uid.into());
    header.set_gid(gid.into());
    header.set_mtime(mtime);
    header.set_size(0);
    header
}

fn mtime(metadata: &Metadata) -> u64 {
    metadata.mtime().try_into().unwrap_or(0)
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
