//! The files of an image, in memory: read from one archive, changed, compared, and written as another.
//!
//! Paths are relative and have no leading `./`. They are kept sorted, so a directory comes before what is in it, and
//! the same files always make the same archive.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::io::{Read, Write};

use anyhow::{Context as _, Result};
use tar::{EntryType, Header};

use super::EPOCH;

/// The files of an image or of a layer.
#[derive(Debug, Default, Clone)]
pub(super) struct Tree(BTreeMap<String, Inode>);

/// One file, without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Inode {
    mode: u32,
    owner: (u64, u64),
    contents: Contents,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Contents {
    File(Vec<u8>),
    Directory,
    Symlink(String),
}

impl Tree {
    /// Reads the files of an archive whose paths are to be kept. Device files are never kept: runtimes make their own.
    pub(super) fn from_tar(reader: impl Read, keeps: impl Fn(&str) -> bool) -> Result<Self> {
        let mut tree = Self::default();
        for entry in tar::Archive::new(reader).entries()? {
            let mut entry = entry?;
            let path = relative(&entry.path()?.to_string_lossy());
            if path.is_empty() || !keeps(&path) {
                continue;
            }
            let target = entry.link_name()?.map(|target| target.to_string_lossy().into_owned());
            let contents = match entry.header().entry_type() {
                EntryType::Directory => Contents::Directory,
                EntryType::Symlink => Contents::Symlink(target.unwrap_or_default()),
                // A second name becomes a second file: its first name may be left out, or be in another layer.
                EntryType::Link => match tree.0.get(&relative(&target.unwrap_or_default())) {
                    Some(inode) => inode.contents.clone(),
                    None => continue,
                },
                EntryType::Regular => {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).with_context(|| format!("cannot read {path}"))?;
                    Contents::File(bytes)
                }
                _ => continue,
            };
            let header = entry.header();
            let inode =
                Inode { mode: header.mode()? & 0o7777, owner: (header.uid()?, header.gid()?), contents };
            tree.0.insert(path, inode);
        }
        Ok(tree)
    }

    /// Adds or replaces a file that belongs to root.
    pub(super) fn file(&mut self, path: &str, mode: u32, contents: impl Into<Vec<u8>>) {
        self.insert(path, mode, (0, 0), Contents::File(contents.into()));
    }

    /// Adds a directory, or changes its mode and owner.
    pub(super) fn directory(&mut self, path: &str, mode: u32, owner: (u64, u64)) {
        self.insert(path, mode, owner, Contents::Directory);
    }

    /// Adds or replaces a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.insert(path, 0o777, (0, 0), Contents::Symlink(target.to_owned()));
    }

    /// Adds a file, and those of its parents that are not there.
    fn insert(&mut self, path: &str, mode: u32, owner: (u64, u64), contents: Contents) {
        for parent in parents(path) {
            if let Slot::Vacant(slot) = self.0.entry(parent.to_owned()) {
                slot.insert(Inode { mode: 0o755, owner: (0, 0), contents: Contents::Directory });
            }
        }
        self.0.insert(path.to_owned(), Inode { mode, owner, contents });
    }

    /// Removes the regular files whose contents the function does not want.
    pub(super) fn retain_contents(&mut self, wants: impl Fn(&[u8]) -> bool) {
        self.0.retain(|_, inode| match &inode.contents {
            Contents::File(bytes) => wants(bytes),
            _ => true,
        });
    }

    /// Removes the symbolic links whose target the function does not want.
    pub(super) fn retain_symlinks(&mut self, wants: impl Fn(&str) -> bool) {
        self.0.retain(|_, inode| match &inode.contents {
            Contents::Symlink(target) => wants(target),
            _ => true,
        });
    }

    /// All paths, sorted.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The contents of a regular file.
    pub(super) fn contents(&self, path: &str) -> Result<&[u8]> {
        match self.0.get(path).map(|inode| &inode.contents) {
            Some(Contents::File(bytes)) => Ok(bytes),
            _ => anyhow::bail!("the packages have no file /{path}"),
        }
    }

    /// The contents of a text file.
    pub(super) fn text(&self, path: &str) -> Result<&str> {
        std::str::from_utf8(self.contents(path)?).with_context(|| format!("/{path} is no text"))
    }

    /// The installed version of a package, without what Debian adds to that of the program (`5:7.0.15-1~deb12u5`).
    pub(super) fn version_of(&self, package: &str) -> Result<String> {
        let status = self.text("var/lib/dpkg/status")?;
        let head = format!("Package: {package}\n");
        let paragraph =
            status.split("\n\n").find(|paragraph| format!("{}\n", paragraph.trim()).starts_with(&head));
        let version =
            paragraph.and_then(|paragraph| paragraph.lines().find_map(|line| line.strip_prefix("Version: ")));
        let version = version.with_context(|| format!("package {package} is not installed"))?;
        let version = version.split_once(':').map_or(version, |(_epoch, version)| version);
        Ok(version.split(['-', '+', '~']).next().unwrap_or(version).to_owned())
    }

    /// The layer that makes `lower` into this tree: what is new or changed, with its parents (some unpackers give
    /// parents that a layer does not mention a mode of their own), and a whiteout for what is gone.
    pub(super) fn on_top_of(&self, lower: &Self) -> Self {
        let mut layer = Self::default();
        for (path, inode) in &self.0 {
            if lower.0.get(path) != Some(inode) {
                layer.copy_with_parents(self, path);
            }
        }
        for path in lower.0.keys().filter(|path| !self.0.contains_key(*path)) {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            if parent.is_empty() || self.0.contains_key(parent) {
                parents(path).for_each(|parent| layer.copy_with_parents(self, parent));
                layer.file(format!("{parent}/.wh.{name}").trim_start_matches('/'), 0o644, []);
            }
        }
        layer
    }

    /// Copies a file and the directories above it from the tree it is in.
    fn copy_with_parents(&mut self, from: &Self, path: &str) {
        for path in parents(path).chain([path]) {
            if let Some(inode) = from.0.get(path) {
                self.0.insert(path.to_owned(), inode.clone());
            }
        }
    }

    /// Writes all files as an archive.
    pub(super) fn write_tar(&self, writer: impl Write) -> Result<()> {
        let mut archive = tar::Builder::new(writer);
        for (path, inode) in &self.0 {
            let mut header = Header::new_gnu();
            header.set_mode(inode.mode);
            header.set_uid(inode.owner.0);
            header.set_gid(inode.owner.1);
            header.set_mtime(EPOCH);
            header.set_size(0);
            let written = match &inode.contents {
                Contents::Directory => {
                    header.set_entry_type(EntryType::Directory);
                    archive.append_data(&mut header, format!("{path}/"), &[][..])
                }
                Contents::Symlink(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    archive.append_link(&mut header, path, target)
                }
                Contents::File(bytes) => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_size(bytes.len() as u64);
                    archive.append_data(&mut header, path, bytes.as_slice())
                }
            };
            written.with_context(|| format!("cannot archive {path}"))?;
        }
        archive.finish().context("cannot finish the archive")
    }
}

/// The path without `./` or `/` in front, or `/` behind.
fn relative(path: &str) -> String {
    let path = path.strip_prefix('.').filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(path);
    path.trim_matches('/').to_owned()
}

/// The directories above a path, outermost first.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer that hides nothing, or forgets a parent's mode, makes another image than the one that was built.
    #[test]
    fn a_layer_has_changes_their_parents_and_whiteouts() {
        let mut lower = Tree::default();
        lower.file("etc/same", 0o644, "same");
        lower.file("etc/changed", 0o644, "old");
        lower.file("gone/file", 0o644, "");
        let mut upper = Tree::default();
        upper.file("etc/same", 0o644, "same");
        upper.file("etc/changed", 0o600, "old");
        upper.directory("tmp", 0o1777, (0, 0));
        upper.file("tmp/new", 0o644, "");
        let layer = upper.on_top_of(&lower);
        let paths: Vec<&str> = layer.paths().collect();
        assert_eq!(paths, [".wh.gone", "etc", "etc/changed", "tmp", "tmp/new"]);
        assert_eq!(layer.0["tmp"].mode, 0o1777);
    }

    /// Everything that is written can be read again.
    #[test]
    fn an_archive_keeps_what_a_tree_has() -> Result<()> {
        let mut tree = Tree::default();
        tree.directory("data", 0o700, (999, 999));
        tree.file(&format!("data/{}", "x".repeat(150)), 0o4755, "contents");
        tree.symlink("bin", "usr/bin");
        let mut archive = Vec::new();
        tree.write_tar(&mut archive)?;
        assert_eq!(Tree::from_tar(archive.as_slice(), |_| true)?.0, tree.0);
        Ok(())
    }
}
