//! Reads tar archives: ustar, GNU long names, PAX.
//!
//! An own parser of the headers, because what two parsers read differently is an attack (CVE-2025-62518): sizes follow
//! Go's `archive/tar`, which Docker, containerd and Podman use, and what is ambiguous is refused. Every header is
//! bounded before it is read.

use super::error::UnpackError;
use super::limits::Limits;
use super::stream::Plain;
use std::collections::BTreeMap;

const BLOCK: usize = 512;

/// One entry's header, with PAX records and long names applied. Its data follows in the stream.
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    /// Extended attributes by name.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// The archive, entry by entry.
pub(crate) struct Archive<'a> {
    input: &'a mut Plain,
    limits: Limits,
    offset: u64,
    /// Data and padding of the current entry that nobody has read yet.
    data: u64,
    padding: u64,
}

/// What the headers in front of an entry said about it.
#[derive(Default)]
struct Pending {
    pax: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl<'a> Archive<'a> {
    pub(crate) fn new(input: &'a mut Plain, limits: Limits) -> Self {
        Self { input, limits, offset: 0, data: 0, padding: 0 }
    }

    /// The next entry, or `None` at the archive's end. Unread data of the entry before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Header>, UnpackError> {
        let mut pending = Pending::default();
        loop {
            self.skip_rest()?;
            let Some(block) = self.header_block()? else {
                if !pending.is_empty() {
                    return Err(self.broken("it ends after an extended header"));
                }
                return Ok(None);
            };
            match block[156] {
                b'x' => pending.pax = Some(self.pax(&block)?),
                // Go forgets what stands before a global header, GNU tar keeps it.
                b'g' if !pending.is_empty() => {
                    return Err(self.broken("an extended header stands before a global header"));
                }
                b'g' => self.global(&block)?,
                b'L' => pending.long_name = Some(self.long_name(&block)?),
                b'K' => pending.long_link = Some(self.long_name(&block)?),
                _ => return self.entry(&block, pending).map(Some),
            }
        }
    }

    /// The next bytes of the current entry's data; empty at its end.
    pub(crate) fn data(&mut self) -> Result<&[u8], UnpackError> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let (offset, left) = (self.offset, self.data);
        let seen = self.input.peek()?;
        if seen.is_empty() {
            return Err(UnpackError::Broken {
                reason: "it ends inside of an entry's data".to_owned(),
                offset,
            });
        }
        let usable = seen.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        Ok(&seen[..usable])
    }

    /// Takes `count` bytes that [`data`](Self::data) showed.
    pub(crate) fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.data -= count as u64;
        self.offset += count as u64;
    }

    fn broken(&self, reason: impl Into<String>) -> UnpackError {
        UnpackError::Broken { reason: reason.into(), offset: self.offset }
    }

    fn skip_rest(&mut self) -> Result<(), UnpackError> {
        while self.data > 0 {
            let length = self.data()?.len();
            self.consume(length);
        }
        while self.padding > 0 {
            let seen = self.input.peek()?.len();
            if seen == 0 {
                // Some writers leave the last padding out.
                self.padding = 0;
                return Ok(());
            }
            let taken = seen.min(usize::try_from(self.padding).unwrap_or(usize::MAX));
            self.input.consume(taken);
            self.offset += taken as u64;
            self.padding -= taken as u64;
        }
        Ok(())
    }

    /// A header, or `None` at the end: two blocks of zeros, or the stream's end at a block's edge.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().any(|byte| *byte != 0) {
            check_sum(&block).map_err(|reason| self.broken(reason))?;
            return Ok(Some(block));
        }
        match self.block()? {
            Some(second) if second.iter().any(|byte| *byte != 0) => {
                Err(self.broken("a single block of zeros stands between two entries"))
            }
            _ => Ok(None),
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let seen = self.input.peek()?;
            if seen.is_empty() && filled == 0 {
                return Ok(None);
            }
            if seen.is_empty() {
                return Err(self.broken("it ends inside of a header"));
            }
            let taken = seen.len().min(BLOCK - filled);
            block[filled..filled + taken].copy_from_slice(&seen[..taken]);
            self.input.consume(taken);
            self.offset += taken as u64;
            filled += taken;
        }
        Ok(Some(block))
    }

    fn frame(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// The data of an extended header, bounded before it is read.
    fn extension(&mut self, block: &[u8; BLOCK]) -> Result<Vec<u8>, UnpackError> {
        let size = self.number(block, SIZE, "size")?;
        let size =
            u64::try_from(size).map_err(|_negative| self.broken("an extended header has a negative size"))?;
        if size > self.limits.header {
            return Err(UnpackError::limit("bytes in an extended header", self.limits.header));
        }
        self.frame(size);
        let mut bytes = Vec::new();
        loop {
            let seen = self.data()?;
            if seen.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(seen);
            let length = seen.len();
            self.consume(length);
        }
    }

    fn pax(&mut self, block: &[u8; BLOCK]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, UnpackError> {
        let bytes = self.extension(block)?;
        pax_records(&bytes).map_err(|reason| self.broken(reason))
    }

    /// Go ignores global records and GNU tar obeys them, so those that would make a difference are refused.
    fn global(&mut self, block: &[u8; BLOCK]) -> Result<(), UnpackError> {
        let records = self.pax(block)?;
        let meaningful = |key: &[u8]| {
            matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid")
                || key.starts_with(b"GNU.sparse.")
        };
        match records.keys().find(|key| meaningful(key)) {
            Some(key) => {
                Err(self.broken(format!("a global header sets `{}` for all entries", key.escape_ascii())))
            }
            None => Ok(()),
        }
    }

    fn long_name(&mut self, block: &[u8; BLOCK]) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.extension(block)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn number(
        &self,
        block: &[u8; BLOCK],
        field: std::ops::Range<usize>,
        name: &str,
    ) -> Result<i64, UnpackError> {
        number(&block[field]).ok_or_else(|| self.broken(format!("an entry's {name} is not a number")))
    }

    fn entry(&mut self, block: &[u8; BLOCK], pending: Pending) -> Result<Header, UnpackError> {
        let mut pax = pending.pax.unwrap_or_default();
        if let Some(key) = pax.keys().find(|key| key.starts_with(b"GNU.sparse.")) {
            return Err(
                self.broken(format!("it has a sparse file (`{}`), which images may not", key.escape_ascii()))
            );
        }
        let path = self.name(name_field(block), pending.long_name, pax.remove(&b"path"[..]))?;
        let link =
            self.name(text(&block[157..257]).to_vec(), pending.long_link, pax.remove(&b"linkpath"[..]))?;
        let kind = self.kind(block[156], &path)?;
        let size = match pax_number(&mut pax, b"size").map_err(|reason| self.broken(reason))? {
            Some(size) => size,
            None => self.number(block, SIZE, "size")?,
        };
        let size = u64::try_from(size).map_err(|_negative| self.broken("an entry has a negative size"))?;
        if size > self.limits.bytes {
            return Err(UnpackError::limit("bytes in one entry", self.limits.bytes));
        }
        if kind == Kind::Directory && block[156] == 0 && size > 0 {
            // Some readers skip such data, some read it as entries.
            return Err(UnpackError::refused(
                &path,
                "it is a directory with data, in the form of before 1988",
            ));
        }
        // As Go: the size of what has no data is ignored.
        let size = if kind == Kind::File { size } else { 0 };
        self.frame(size);
        let header = Header {
            mode: (self.number(block, 100..108, "mode")? & 0o7777) as u32,
            uid: self.id(&mut pax, block, "uid", 108..116, &path)?,
            gid: self.id(&mut pax, block, "gid", 116..124, &path)?,
            mtime: self.mtime(&mut pax, block)?,
            device: self.device(block, kind)?,
            xattrs: xattrs(pax),
            kind,
            path,
            link,
        };
        Ok(header)
    }

    fn name(
        &self,
        short: Vec<u8>,
        long: Option<Vec<u8>>,
        pax: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, UnpackError> {
        let pax = pax.filter(|value| !value.is_empty());
        let name = match (long, pax) {
            (Some(_), Some(_)) => return Err(self.broken("an entry has two long names, GNU's and PAX's")),
            (Some(name), None) | (None, Some(name)) => name,
            (None, None) => short,
        };
        if name.len() > self.limits.path {
            return Err(UnpackError::limit("bytes in a path", self.limits.path as u64));
        }
        Ok(name)
    }

    fn kind(&self, flag: u8, path: &[u8]) -> Result<Kind, UnpackError> {
        Ok(match flag {
            // Archives older than ustar, and only those, mark directories by a slash: as Go, whose readers would take the
            // data of such a file for data.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(self.broken("it has a sparse file, which images may not")),
            other => {
                return Err(self.broken(format!("an entry is of unknown type `{}`", other.escape_ascii())));
            }
        })
    }

    /// A user or group. Other tools let -1 through, which `chown` reads as "leave it": the file becomes root's.
    fn id(
        &self,
        pax: &mut BTreeMap<Vec<u8>, Vec<u8>>,
        block: &[u8; BLOCK],
        name: &str,
        field: std::ops::Range<usize>,
        path: &[u8],
    ) -> Result<u32, UnpackError> {
        let id = match pax_number(pax, name.as_bytes()).map_err(|reason| self.broken(reason))? {
            Some(id) => id,
            None => self.number(block, field, name)?,
        };
        u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| {
            UnpackError::refused(path, format!("its {name} {id} is not between 0 and {}", u32::MAX - 1))
        })
    }

    fn mtime(
        &self,
        pax: &mut BTreeMap<Vec<u8>, Vec<u8>>,
        block: &[u8; BLOCK],
    ) -> Result<(i64, u32), UnpackError> {
        match pax.remove(&b"mtime"[..]).filter(|value| !value.is_empty()) {
            Some(value) => pax_time(&value).ok_or_else(|| self.broken("an entry's mtime is not a time")),
            None => Ok((self.number(block, 136..148, "mtime")?, 0)),
        }
    }

    fn device(&self, block: &[u8; BLOCK], kind: Kind) -> Result<(u32, u32), UnpackError> {
        // Archives older than ustar have no such fields.
        if &block[257..262] != b"ustar" {
            return Ok((0, 0));
        }
        // As Go: they have to be numbers in every entry.
        let numbers =
            (self.number(block, 329..337, "device number")?, self.number(block, 337..345, "device number")?);
        if !matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            return Ok((0, 0));
        }
        let part =
            |number| u32::try_from(number).map_err(|_range| self.broken("a device's number is out of range"));
        Ok((part(numbers.0)?, part(numbers.1)?))
    }
}

const SIZE: std::ops::Range<usize> = 124..136;

/// The sum is written over unsigned bytes; some old writers summed signed ones.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), String> {
    let outside = |index: &usize| !(148..156).contains(index);
    let unsigned: i64 = (0..BLOCK).filter(outside).map(|index| i64::from(block[index])).sum::<i64>() + 8 * 32;
    let signed: i64 =
        (0..BLOCK).filter(outside).map(|index| i64::from(block[index].cast_signed())).sum::<i64>() + 8 * 32;
    match number(&block[148..156]) {
        Some(sum) if sum == unsigned || sum == signed => Ok(()),
        _ => Err("a header's checksum is wrong".to_owned()),
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

fn name_field(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(&block[..100]);
    // `ustar\0`; GNU's magic is `ustar  \0`, and it keeps times where POSIX keeps the prefix.
    let prefix = match (&block[257..263], &block[508..512]) {
        (b"ustar\0", b"tar\0") => text(&block[345..476]),
        (b"ustar\0", _) => text(&block[345..500]),
        (b"ustar ", _) if &block[263..265] == b" \0" => prefix_instead_of_times(block),
        _ => b"",
    };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// Go wrote a prefix behind GNU's magic before 1.8, and so did Docker. Its readers take for one what is no time.
fn prefix_instead_of_times(block: &[u8; BLOCK]) -> &[u8] {
    let is_time = |field: &[u8]| field[0] == 0 || number(field).is_some();
    let prefix = text(&block[345..500]);
    if prefix.is_ascii() && !(is_time(&block[345..357]) && is_time(&block[357..369])) { prefix } else { b"" }
}

/// Octal digits, or base 256 if the first bit is set (GNU), in two's complement.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let first = if negative { i128::from(field[0]) - 256 } else { i128::from(field[0] & 0x7f) };
        let value = field[1..].iter().fold(first, |value, byte| (value << 8) | i128::from(*byte));
        return i64::try_from(value).ok();
    }
    // As Go: spaces and NULs around the digits, and nothing counts after a NUL.
    let start = field.iter().position(|byte| !matches!(byte, b' ' | 0)).unwrap_or(field.len());
    let digits = text(&field[start..]).trim_ascii_end();
    digits.iter().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// `LENGTH KEY=VALUE\n`, where the length counts all of it.
fn pax_records(mut bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let wrong = || "an extended header's record is malformed".to_owned();
        let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length =
            decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(wrong)?;
        if length < space + 3 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(wrong());
        }
        let record = &bytes[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let is_name = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
        if key.is_empty() || key.contains(&0) || (is_name && value.contains(&0)) {
            return Err("an extended header's record has a NUL byte or no name".to_owned());
        }
        records.insert(key.to_vec(), value.to_vec());
        bytes = &bytes[length..];
    }
    Ok(records)
}

fn decimal(digits: &[u8]) -> Option<i64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all_digits.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

fn pax_number(records: &mut BTreeMap<Vec<u8>, Vec<u8>>, key: &[u8]) -> Result<Option<i64>, String> {
    let Some(value) = records.remove(key).filter(|value| !value.is_empty()) else { return Ok(None) };
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, &value[..]),
    };
    let number = decimal(digits).map(|number| if negative { -number } else { number });
    number.map(Some).ok_or_else(|| format!("an extended header's {} is not a number", key.escape_ascii()))
}

/// Seconds, maybe negative, maybe with a fraction; the fraction counts forward in time in the result.
fn pax_time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let point = value.iter().position(|byte| *byte == b'.').unwrap_or(value.len());
    let seconds = decimal(&value[..point])?;
    let mut fraction: Vec<u8> = value.get(point + 1..).unwrap_or_default().to_vec();
    fraction.resize(9, b'0');
    let nanos = u32::try_from(decimal(&fraction)?).ok()?;
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

/// What overlayfs keeps for itself would let a layer speak to the kernel in overlayfs's own language.
fn xattrs(records: BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let named = records.into_iter().filter_map(|(key, value)| {
        let name = key.strip_prefix(b"SCHILY.xattr.")?.to_vec();
        let overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        (!overlay).then_some((name, value))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Big files and times before 1970 are read as Go reads them.
    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  755 \0\0"), Some(0o755));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"\0 000012\0"), Some(10));
        assert_eq!(number(b"00000a4\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 8]), Some(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }

    /// A record whose length lies is refused, it does not shift the ones after it.
    #[test]
    fn records_are_exactly_as_long_as_they_say() {
        let records = pax_records(b"11 path=ab\n8 size=\n").unwrap();
        assert_eq!(records[&b"path"[..]], b"ab");
        assert_eq!(records[&b"size"[..]], b"");
        for wrong in [
            &b"12 path=ab\n"[..],
            b"10 path=ab\n",
            b"x path=ab\n",
            b"-1 a=b\n",
            b"5 a=b",
            b"6 =bb\n",
            b"3 \n",
        ] {
            assert!(pax_records(wrong).is_err(), "{}", wrong.escape_ascii());
        }
        assert!(pax_records(b"12 path=a\0b\n").is_err());
    }

    /// Times keep their nanoseconds, also before 1970.
    #[test]
    fn times_have_fractions() {
        assert_eq!(pax_time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(pax_time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(pax_time(b"7"), Some((7, 0)));
        assert_eq!(pax_time(b"1.2.3"), None);
    }
}
