//! Files without a name, for what is too big for memory: the kernel frees them with their last descriptor.

use super::blob::inflated;
use rustix::fs::{Mode, OFlags};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// How much may come out of a stream.
#[derive(Clone, Copy)]
struct Limits {
    /// How many bytes.
    largest: u64,
    /// How many bytes one compressed byte may become, once more than `ratio_from` came.
    ratio: u64,
    ratio_from: u64,
}

/// As for layers.
const LIMITS: Limits = Limits { largest: 64 << 30, ratio: 250, ratio_from: 1 << 30 };

/// A new file in `directory` for reading and writing.
///
/// # Errors
///
/// The directory cannot be written to.
pub(crate) fn unnamed(directory: &Path) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        Ok(file) => Ok(file.into()),
        // Not every file system has O_TMPFILE (open(2)).
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => named_for_an_instant(directory),
        Err(error) => Err(error.into()),
    }
}

fn named_for_an_instant(directory: &Path) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".shakedown-{}-{number}", std::process::id()));
        match File::options().create_new(true).read(true).write(true).open(&path) {
            Ok(file) => return std::fs::remove_file(&path).map(|()| file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// An archive whose members can be read in any order: the file itself, or, if it is compressed, what is in it.
///
/// # Errors
///
/// It cannot be read, is broken, or `directory` has no room for it.
pub(crate) fn seekable(mut archive: File, directory: &Path) -> io::Result<File> {
    let mut magic = [0; 4];
    let read = archive.read_at(&mut magic, 0)?;
    if !is_compressed(&magic[..read]) {
        return Ok(archive);
    }
    // Whoever has just written it has left it at its end.
    archive.rewind()?;
    let mut plain = unnamed(directory)?;
    inflate(&archive, &mut plain)?;
    Ok(plain)
}

/// Writes what is in a stream, compressed or not, within the limits of layers: a small one must not fill the disk.
///
/// # Errors
///
/// It cannot be read, is broken or too large, or cannot be written.
pub(crate) fn inflate(stream: impl Read, plain: &mut impl Write) -> io::Result<()> {
    inflate_within(LIMITS, stream, plain)
}

fn inflate_within(limits: Limits, stream: impl Read, plain: &mut impl Write) -> io::Result<()> {
    let Limits { largest, ratio, ratio_from } = limits;
    let consumed = Cell::new(0);
    let mut content = inflated(Counting { input: stream, bytes: &consumed })?;
    let (mut total, mut buffer) = (0, vec![0; 256 << 10]);
    loop {
        let read = content.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        total += read as u64;
        if total > largest {
            return Err(io::Error::other(format!("it has more than {largest} bytes uncompressed")));
        }
        if total > ratio_from && total / consumed.get().max(1) > ratio {
            return Err(io::Error::other(format!("it has more than {ratio} bytes for each compressed byte")));
        }
        plain.write_all(&buffer[..read])?;
    }
}

/// Counts what is read through it.
struct Counting<'a, R> {
    input: R,
    bytes: &'a Cell<u64>,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.bytes.set(self.bytes.get() + read as u64);
        Ok(read)
    }
}

/// Whether these are the first bytes of gzip or zstd.
pub(crate) fn is_compressed(magic: &[u8]) -> bool {
    matches!(magic, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small archive that becomes a huge one, or one that never ends, does not fill the disk.
    #[test]
    fn streams_are_limited() {
        let limits = Limits { largest: 4 << 20, ratio: 250, ratio_from: 1 << 20 };
        let inflate = |stream: &mut dyn Read| {
            let mut plain = Vec::new();
            let result = inflate_within(limits, stream, &mut plain);
            (plain.len(), result.map_err(|error| error.to_string()))
        };
        let zeros = |length: u64| io::repeat(0).take(length);
        let packed = zstd::encode_all(zeros(2 << 20), 1).unwrap();
        let (written, refusal) = inflate(&mut &packed[..]);
        assert_eq!(refusal.unwrap_err(), "it has more than 250 bytes for each compressed byte");
        assert!(written <= 1 << 20);
        let (written, refusal) = inflate(&mut io::repeat(0));
        assert_eq!(refusal.unwrap_err(), "it has more than 4194304 bytes uncompressed");
        assert!(written <= 4 << 20);
        assert_eq!(inflate(&mut zeros(2 << 20)), (2 << 20, Ok(())));
    }
}
