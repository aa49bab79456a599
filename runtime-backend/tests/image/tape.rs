//! Writes tar archives, wrong ones too: no library lets a test write what an attacker writes.

use std::fmt::Write as _;

/// An archive under construction.
#[derive(Clone, Default)]
pub(crate) struct Tape {
    pub(crate) bytes: Vec<u8>,
}

/// One header. The fields are written as they are.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) block: [u8; 512],
    data: Vec<u8>,
}

pub(crate) const FILE: u8 = b'0';
pub(crate) const HARD: u8 = b'1';
pub(crate) const SYMLINK: u8 = b'2';
pub(crate) const CHAR: u8 = b'3';
pub(crate) const BLOCK: u8 = b'4';
pub(crate) const DIR: u8 = b'5';
pub(crate) const FIFO: u8 = b'6';

impl Entry {
    pub(crate) fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        let mut entry = Self { block: [0; 512], data: Vec::new() };
        entry.block[156] = kind;
        entry.put(257, b"ustar\x0000");
        let mode = if kind == DIR { 0o755 } else { 0o644 };
        entry = entry.octal(100, 8, mode).octal(108, 8, 0).octal(116, 8, 0).octal(136, 12, 1_000_000_000);
        entry.octal(124, 12, 0).put_in(0, name)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put_in(mut self, at: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.put(at, bytes.as_ref());
        self
    }

    pub(crate) fn octal(mut self, at: usize, width: usize, value: u64) -> Self {
        let text = format!("{value:0>width$o}\0", width = width - 1);
        self.put(at, text.as_bytes());
        self
    }

    pub(crate) fn mode(self, mode: u64) -> Self {
        self.octal(100, 8, mode)
    }

    pub(crate) fn owner(self, uid: u64, gid: u64) -> Self {
        self.octal(108, 8, uid).octal(116, 8, gid)
    }

    pub(crate) fn link(self, target: impl AsRef<[u8]>) -> Self {
        self.put_in(157, target)
    }

    pub(crate) fn device(self, major: u64, minor: u64) -> Self {
        self.octal(329, 8, major).octal(337, 8, minor)
    }

    pub(crate) fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        let size = self.data.len() as u64;
        self.octal(124, 12, size)
    }

    /// Data without changing the size that the header says.
    pub(crate) fn hidden_data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self
    }
}

impl Tape {
    pub(crate) fn entry(mut self, entry: Entry) -> Self {
        let mut block = entry.block;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&block);
        self.bytes.extend_from_slice(&entry.data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.entry(Entry::new(FILE, name).data(data))
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(Entry::new(DIR, name))
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(Entry::new(SYMLINK, name).link(target))
    }

    pub(crate) fn hard(self, name: &str, target: &str) -> Self {
        self.entry(Entry::new(HARD, name).link(target))
    }

    /// An extended header with these records.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.entry(Entry::new(b'x', "PaxHeaders/x").data(records_of(records)))
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The archive with its two blocks of zeros.
    pub(crate) fn done(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

pub(crate) fn records_of(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        // The length counts its own digits.
        let length = (rest..).find(|length| length.to_string().len() + rest == *length).unwrap();
        let mut head = String::new();
        write!(head, "{length} {key}=").unwrap();
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
    }
    bytes
}
