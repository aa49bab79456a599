//! Images of Debian packages, made with `mmdebstrap`: as root, or as an ordinary user with a range of ids.
//!
//! ```text
//! mmdebstrap ──► tar ──► without devices ──► digest ──► gzip ──► a layer's blob
//! ```

mod sources;

use crate::build::document::{Config, Document, History, Rootfs};
use crate::image_files::created;
use crate::image_files::digest::{Digest, Hasher};
use crate::image_files::failures::unusable;
use crate::image_files::spool::unnamed;
use flate2::Compression;
use flate2::write::GzEncoder;
use shakedown_spec::{DebianSource, Failure, ImageSource, LogTail, Platform};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// What is there if the source does not say: the essential packages and apt.
const VARIANT: &str = "apt";
/// Where programs are looked for: what Docker's images of Debian have.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How many lines of the log a failure shows.
const LOG_LINES: usize = 20;
/// Put back after the packages are there: what mmdebstrap took from this machine.
const CLEAN: &str = r#"rm -f "$1/etc/resolv.conf" "$1/etc/hostname" "$1/etc/apt/apt.conf.d/99mmdebstrap" "#;

/// Installs the packages and writes them as a layer compressed with gzip; gives the digest of the uncompressed one.
/// Blocking, and for minutes if the packages are many.
///
/// # Errors
///
/// `mmdebstrap` is not there, or fails; or `out` cannot be written to.
pub(crate) fn build<W: Write>(source: &DebianSource, out: W) -> Result<(W, Digest), Failure> {
    let image = ImageSource::Debian(source.clone());
    let trouble = |error: io::Error| unusable(&image, "could not be built").fact("reason", error.to_string());
    let mut log = unnamed(&std::env::temp_dir()).map_err(trouble)?;
    let mut command = command(source);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.try_clone().map_err(trouble)?);
    let mut child = command.spawn().map_err(|error| not_started(&image, &error))?;
    let stdout = child.stdout.take();
    // Read to its end whatever happens: a program whose output nobody takes stands still.
    let layer = stdout.map(|tar| layer(tar, out));
    let status = child.wait().map_err(trouble)?;
    if !status.success() {
        return Err(failed(&image, &mut log, status));
    }
    layer.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into())).map_err(trouble)
}

/// The image's configuration.
pub(crate) fn configuration(source: &DebianSource, diff_id: Digest) -> serde_json::Result<Vec<u8>> {
    let Platform { architecture, os, variant } = Platform::here();
    let shell = || vec!["/bin/sh".to_owned()];
    let created = Some(created::now());
    let created_by = format!("mmdebstrap {}", ImageSource::Debian(source.clone()));
    let document = Document {
        architecture,
        os,
        variant,
        created: created.clone(),
        config: Config {
            env: vec![PATH.to_owned()],
            cmd: Some(source.command.as_deref().map_or_else(shell, argv)),
            ..Config::default()
        },
        rootfs: Rootfs { diff_ids: vec![diff_id.to_string()], ..Rootfs::default() },
        history: vec![History { created, created_by, ..History::default() }],
        ..Document::default()
    };
    serde_json::to_vec(&document)
}

/// A command in either form of a Dockerfile's `CMD`.
fn argv(command: &str) -> Vec<String> {
    let shell = || ["/bin/sh", "-c", command].map(str::to_owned).into();
    serde_json::from_str(command).unwrap_or_else(|_no_list| shell())
}

fn command(source: &DebianSource) -> Command {
    let mut command = Command::new("mmdebstrap");
    // The user `_apt` may not be able to reach the directories of an ordinary user.
    command.args(["--format=tar", "--aptopt=APT::Sandbox::User \"root\"", "--quiet"]);
    let variant = source.variant.as_deref().unwrap_or(VARIANT);
    command.arg(format!("--variant={variant}"));
    if !source.include.is_empty() {
        command.arg(format!("--include={}", source.include.join(",")));
    }
    // The variants without a shell have no hooks, and take nothing from this machine.
    if !matches!(variant, "extract" | "custom") {
        command.arg(format!("--customize-hook={CLEAN}"));
    }
    let sources = sources::Sources::of(source);
    command.args(sources.options).arg(&source.suite).arg("-").args(sources.lines);
    command.env_remove("LC_ALL").env("LANG", "C.UTF-8");
    command
}

/// From the tool's archive to a compressed layer.
fn layer<W: Write>(mut tar: impl Read, out: W) -> io::Result<(W, Digest)> {
    let result = write_layer(&mut tar, out);
    io::copy(&mut tar, &mut io::sink())?;
    result
}

fn write_layer<W: Write>(tar: impl Read, out: W) -> io::Result<(W, Digest)> {
    // Fast: what is saved once is read at once.
    let mut hashing =
        Hashing { out: GzEncoder::new(out, Compression::fast()), hasher: Hasher::new(), padding: 0 };
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        if is_device(&entry.path_bytes()) {
            continue;
        }
        hashing.write_all(entry.header().as_bytes())?;
        io::copy(&mut entry, &mut hashing)?;
        hashing.pad()?;
    }
    // The end of an archive: two empty blocks.
    hashing.write_all(&[0; 1024])?;
    let digest = hashing.hasher.finish();
    Ok((hashing.out.finish()?, digest))
}

/// Devices are made by whoever runs the container, and nobody else may.
fn is_device(path: &[u8]) -> bool {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    path.len() > b"dev/".len() && path.starts_with(b"dev/")
}

struct Hashing<W: Write> {
    out: GzEncoder<W>,
    hasher: Hasher,
    /// How much of the current block of 512 bytes is written.
    padding: usize,
}

impl<W: Write> Hashing<W> {
    fn pad(&mut self) -> io::Result<()> {
        let rest = (512 - self.padding) % 512;
        self.write_all(&[0; 512][..rest])
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.padding = (self.padding + written) % 512;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn not_started(image: &ImageSource, error: &io::Error) -> Failure {
    let failure = unusable(image, "could not be built");
    if error.kind() != io::ErrorKind::NotFound {
        return failure.fact("reason", format!("mmdebstrap could not be started: {error}"));
    }
    let failure = failure.fact("reason", "mmdebstrap is not installed");
    if ["/usr/bin/apt-get", "/bin/apt-get"].iter().any(|path| Path::new(path).exists()) {
        let sudo = if rustix::process::geteuid().is_root() { "" } else { "sudo " };
        return failure.hint(format!("`{sudo}apt-get install mmdebstrap debian-archive-keyring uidmap`"));
    }
    failure
}

fn failed(image: &ImageSource, log: &mut File, status: std::process::ExitStatus) -> Failure {
    let mut text = String::new();
    let read = log.rewind().and_then(|()| log.read_to_string(&mut text));
    let lines: Vec<String> = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    let reason = match lines.iter().rev().find_map(|line| line.strip_prefix("E: ")) {
        Some(last) => last.to_owned(),
        None => format!("mmdebstrap ended with {status}"),
    };
    let failure = unusable(image, "could not be built").fact("reason", reason);
    if read.is_err() || lines.is_empty() {
        return failure;
    }
    let (total, first) = (lines.len(), lines.len().saturating_sub(LOG_LINES));
    failure.log(LogTail { name: "mmdebstrap".to_owned(), lines: lines[first..].to_vec(), total })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command is read as a Dockerfile's: with a shell, or as a list without one.
    #[test]
    fn commands_are_read_in_both_forms() {
        assert_eq!(argv(r#"["redis-server", "--port", "7"]"#), ["redis-server", "--port", "7"]);
        assert_eq!(argv("echo $HOME"), ["/bin/sh", "-c", "echo $HOME"]);
        assert_eq!(argv("[ -e /x ] && y"), ["/bin/sh", "-c", "[ -e /x ] && y"]);
    }

    /// The layer is the archive without the devices, which an ordinary user cannot make, and is named by its digest.
    #[test]
    fn devices_are_left_out() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        for (name, kind, content) in [
            ("./", tar::EntryType::Directory, ""),
            ("./dev/", tar::EntryType::Directory, ""),
            ("./dev/null", tar::EntryType::Char, ""),
            ("./etc/motd", tar::EntryType::Regular, "welcome"),
        ] {
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        let (gz, digest) = layer(&builder.into_inner().unwrap()[..], Vec::new()).unwrap();
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&gz[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(Digest::of(&plain), digest);
        let mut archive = tar::Archive::new(&plain[..]);
        let names: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, ["./", "dev/", "etc/motd"].map(std::path::PathBuf::from));
    }
}
