//! Writes tar archives as layers: PAX records only where the plain header does not do, so that equal content gives equal
//! bytes, and Go's `archive/tar`, which reads layers nearly everywhere, reads them as they are meant.

use std::io::{self, Read, Write};

const BLOCK: usize = 512;
/// Numbers in a plain header have seven octal digits.
const LARGEST_ID: u64 = 0o777_7777;
/// Sizes and times have eleven.
const LARGEST_SIZE: u64 = 0o777_7777_7777;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    /// A file of this many bytes.
    File(u64),
    /// A further name of the file at this path.
    HardLink(&'a [u8]),
    /// A symbolic link.
    Symlink(&'a [u8]),
    /// A directory.
    Directory,
    /// A device: character or block, major and minor number.
    Device { block: bool, number: (u32, u32) },
    /// A named pipe.
    Fifo,
}

/// Everything about an entry but its content.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds. Layers have no finer times: Docker cuts them off, too.
    pub(crate) mtime: i64,
    /// Extended attributes by name, in order.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive that is being written.
#[derive(Debug)]
pub(crate) struct Tape<W> {
    out: W,
}

impl<W: Write> Tape<W> {
    /// A new archive.
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes an entry that has no content.
    pub(crate) fn entry(&mut self, path: &[u8], entry: Entry<'_>, meta: &Meta) -> io::Result<()> {
        let name = match entry {
            Entry::Directory => [path, b"/"].concat(),
            _ => path.to_vec(),
        };
        let mut header = Header { block: [0; BLOCK], records: Vec::new() };
        header.text(0, 100, b"path", &name);
        header.number(100, 8, b"", meta.mode.into(), LARGEST_ID);
        header.number(108, 8, b"uid", meta.uid.into(), LARGEST_ID);
        header.number(116, 8, b"gid", meta.gid.into(), LARGEST_ID);
        let size = if let Entry::File(size) = entry { size } else { 0 };
        header.number(124, 12, b"size", size, LARGEST_SIZE);
        match u64::try_from(meta.mtime) {
            Ok(mtime) => header.number(136, 12, b"mtime", mtime, LARGEST_SIZE),
            Err(_before_1970) => {
                header.number(136, 12, b"", 0, 0);
                header.record(b"mtime", meta.mtime.to_string().as_bytes());
            }
        }
        header.kind(entry);
        for (name, value) in &meta.xattrs {
            header.record(&[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        header.write(&mut self.out)
    }

    /// Writes a file with `size` bytes of `content`. What is missing by then, as of a file that shrinks while it is read,
    /// is filled up with zeros; the archive stays whole.
    pub(crate) fn file(&mut self, path: &[u8], size: u64, content: impl Read, meta: &Meta) -> io::Result<()> {
        self.entry(path, Entry::File(size), meta)?;
        let copied = io::copy(&mut content.take(size), &mut self.out)?;
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        io::copy(&mut io::repeat(0).take(size - copied + padding), &mut self.out).map(drop)
    }

    /// Writes the end of the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

struct Header {
    block: [u8; BLOCK],
    records: Vec<u8>,
}

impl Header {
    /// A field of text; what does not fit, or is not ASCII, becomes a record.
    fn text(&mut self, at: usize, length: usize, key: &[u8], text: &[u8]) {
        let fits = text.len().min(length);
        self.block[at..at + fits].copy_from_slice(&text[..fits]);
        if text.len() > length || !text.is_ascii() {
            self.record(key, text);
        }
    }

    /// A field of octal digits; a number that is too large becomes a record.
    fn number(&mut self, at: usize, length: usize, key: &[u8], number: u64, largest: u64) {
        let shown = if number > largest { 0 } else { number };
        let digits = format!("{shown:0width$o}", width = length - 1);
        self.block[at..at + length - 1].copy_from_slice(digits.as_bytes());
        if number > largest {
            self.record(key, number.to_string().as_bytes());
        }
    }

    fn kind(&mut self, entry: Entry<'_>) {
        let (flag, link) = match entry {
            Entry::File(_) => (b'0', &b""[..]),
            Entry::HardLink(target) => (b'1', target),
            Entry::Symlink(target) => (b'2', target),
            Entry::Device { block: false, .. } => (b'3', &b""[..]),
            Entry::Device { block: true, .. } => (b'4', &b""[..]),
            Entry::Directory => (b'5', &b""[..]),
            Entry::Fifo => (b'6', &b""[..]),
        };
        self.block[156] = flag;
        self.text(157, 100, b"linkpath", link);
        self.block[257..265].copy_from_slice(b"ustar\x0000");
        let (major, minor) = if let Entry::Device { number, .. } = entry { number } else { (0, 0) };
        self.number(329, 8, b"SCHILY.devmajor", major.into(), LARGEST_ID);
        self.number(337, 8, b"SCHILY.devminor", minor.into(), LARGEST_ID);
    }

    /// Adds a record `LENGTH KEY=VALUE\n`, whose length counts its own digits (pax(1), "Extended Header").
    fn record(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.records.extend(length.to_string().as_bytes());
        self.records.extend([b" ", key, b"=", value, b"\n"].concat());
    }

    fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.records.is_empty() {
            let mut extended = Self { block: [0; BLOCK], records: Vec::new() };
            extended.text(0, 100, b"", b"PaxHeaders.0/entry");
            for (at, length) in [(100, 8), (108, 8), (116, 8), (136, 12)] {
                extended.number(at, length, b"", 0, 0);
            }
            extended.number(124, 12, b"", self.records.len() as u64, LARGEST_SIZE);
            extended.block[156] = b'x';
            extended.block[257..265].copy_from_slice(b"ustar\x0000");
            extended.seal();
            out.write_all(&extended.block)?;
            out.write_all(&self.records)?;
            let padding = (BLOCK - self.records.len() % BLOCK) % BLOCK;
            out.write_all(&[0; BLOCK][..padding])?;
        }
        self.seal();
        out.write_all(&self.block)
    }

    /// The checksum counts its own field as blanks.
    fn seal(&mut self) {
        self.block[148..156].fill(b' ');
        let sum: u32 = self.block.iter().map(|byte| u32::from(*byte)).sum();
        let digits = format!("{sum:06o}\0");
        self.block[148..155].copy_from_slice(digits.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a plain header cannot say arrives all the same: long names, large ids, times before 1970, attributes.
    #[test]
    fn other_readers_read_what_is_written() {
        let long = "directory/".repeat(30) + "naïve";
        let xattrs = vec![(b"user.shop".to_vec(), b"open=\0".to_vec())];
        let meta = Meta { mode: 0o4755, uid: 3_000_000, gid: 7, mtime: -5, xattrs };
        let mut tape = Tape::new(Vec::new());
        tape.file(long.as_bytes(), 5, &b"hello"[..], &meta).unwrap();
        tape.entry(b"link", Entry::Symlink(long.as_bytes()), &Meta::default()).unwrap();
        let bytes = tape.finish().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entries = archive.entries().unwrap();
        let mut first = entries.next().unwrap().unwrap();
        assert_eq!(first.path_bytes(), long.as_bytes());
        assert_eq!(first.header().mode().unwrap(), 0o4755);
        let pairs: Vec<_> = first.pax_extensions().unwrap().unwrap().map(Result::unwrap).collect();
        let value = |key: &str| {
            pairs.iter().find(|pair| pair.key() == Ok(key)).map(|pair| pair.value_bytes().to_vec()).unwrap()
        };
        assert_eq!((value("uid"), value("mtime")), (b"3000000".to_vec(), b"-5".to_vec()));
        assert_eq!(value("SCHILY.xattr.user.shop"), b"open=\0");
        let mut text = String::new();
        first.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        drop(first);
        let second = entries.next().unwrap().unwrap();
        assert_eq!(second.link_name_bytes().unwrap(), long.as_bytes());
    }

    /// A file that shrinks while it is read does not make the archive unreadable.
    #[test]
    fn a_short_file_is_filled_up() {
        let mut tape = Tape::new(Vec::new());
        tape.file(b"short", 600, &b"x"[..], &Meta::default()).unwrap();
        assert_eq!(tape.finish().unwrap().len(), 512 + 1024 + 1024);
    }
}
