//! Archives that `ADD` unpacks: told by their content, as Docker does, not by their names.

use super::bzip2::Bzip2;
use crate::native::image::Limits;
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const BLOCK: usize = 512;

/// The plain bytes of the archive, if the file is one: tar, as it is or compressed.
pub(super) fn open(mut file: File, limits: Limits) -> io::Result<Option<Box<dyn Read + Send>>> {
    let start = beginning(&mut file)?;
    let packed = Arc::new(AtomicU64::new(0));
    let whole = Counted { input: Cursor::new(start.clone()).chain(file), bytes: Arc::clone(&packed) };
    let mut plain: Box<dyn Read + Send> = match &start[..] {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::new(whole)?),
        [b'B', b'Z', b'h', ..] => Box::new(Bzip2::new(whole)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(lzma_rust2::XzReader::new(whole, true)),
        _ => Box::new(whole),
    };
    let Ok(start) = beginning(&mut plain) else {
        // It begins like something compressed and is not: a file like any other.
        return Ok(None);
    };
    let whole = Cursor::new(start.clone()).chain(plain);
    let plain = Bounded { input: whole, bytes: 0, packed, limits };
    Ok(is_tar(&start).then(|| Box::new(plain) as Box<dyn Read + Send>))
}

/// Counts what is read of the file.
struct Counted<R> {
    input: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Ends with an error where few bytes of the file become too many: a bomb. How many there may be in all is the
/// reader's to see.
struct Bounded<R> {
    input: R,
    bytes: u64,
    packed: Arc<AtomicU64>,
    limits: Limits,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.bytes += read as u64;
        let Limits { ratio, ratio_from, .. } = self.limits;
        if self.bytes > ratio_from && self.bytes / self.packed.load(Ordering::Relaxed).max(1) > ratio {
            return Err(io::Error::other(format!("it has more than {ratio} bytes for each compressed byte")));
        }
        Ok(read)
    }
}

fn beginning(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(BLOCK);
    input.take(BLOCK as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// Whether this is the first header of an archive: its checksum fits.
fn is_tar(block: &[u8]) -> bool {
    if block.len() < BLOCK {
        return false;
    }
    let field = String::from_utf8_lossy(&block[148..156]);
    let Ok(told) = u32::from_str_radix(field.trim_matches(['\0', ' ']), 8) else { return false };
    let sum = |range: std::ops::Range<usize>| block[range].iter().map(|byte| u32::from(*byte)).sum::<u32>();
    told == sum(0..148) + sum(156..BLOCK) + 8 * u32::from(b' ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    fn opened(bytes: &[u8], limits: Limits) -> io::Result<Vec<u8>> {
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        file.rewind()?;
        let mut plain = Vec::new();
        open(file, limits)?.unwrap().read_to_end(&mut plain).map(|_| plain)
    }

    /// Parallel packers write one stream behind another, and all of them are the archive.
    #[test]
    fn all_streams_of_bzip2_are_read() {
        let plain = opened(include_bytes!("streams.tar.bz2"), Limits::default()).unwrap();
        let mut names = tar::Archive::new(&plain[..]);
        let names = names.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
        assert_eq!(names.collect::<Vec<_>>(), [std::path::Path::new("first"), "second".as_ref()]);
    }

    /// A few bytes in a repository must not fill the disk of whoever builds it.
    #[test]
    fn bombs_end() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(1 << 20);
        tar.append_data(&mut header, "zeros", io::repeat(0).take(1 << 20)).unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(&tar.into_inner().unwrap()).unwrap();
        let limits = Limits { ratio_from: 1 << 19, ..Limits::default() };
        let error = opened(&packed.finish().unwrap(), limits).unwrap_err();
        insta::assert_snapshot!(error, @"it has more than 250 bytes for each compressed byte");
    }
}
