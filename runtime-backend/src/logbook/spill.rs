//! The older part of a log, in files without a name: whatever happens to this process, nothing is left of them.

use super::LogLine;
use bytes::Bytes;
use shakedown_spec::Stream;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// How many bytes of lines are written and read at once.
pub(super) const BLOCK: usize = 64 << 10;

/// Number, time, stream and whether a line feed is missing, length.
const HEADER: usize = 8 + 8 + 1 + 4;

/// Lines in the order they were written. There are two files at most; as the second is full, the first goes.
#[derive(Debug)]
pub(super) struct Spill {
    directory: PathBuf,
    limit: u64,
    segments: VecDeque<Segment>,
}

#[derive(Debug)]
struct Segment {
    file: File,
    blocks: Vec<Block>,
    length: u64,
}

/// Some lines that are read at once.
#[derive(Clone, Copy, Debug)]
struct Block {
    last: usize,
    offset: u64,
    length: usize,
}

impl Spill {
    /// A log of at most `limit` bytes, in files of `directory`.
    pub(super) fn new(directory: PathBuf, limit: u64) -> Self {
        Self { directory, limit, segments: VecDeque::new() }
    }

    /// Adds lines. If that fails, as on a full disk, the log goes on after a gap.
    pub(super) fn append(&mut self, lines: &[LogLine]) -> io::Result<()> {
        let Some(last) = lines.last() else { return Ok(()) };
        let bytes: Vec<u8> = lines.iter().flat_map(record).collect();
        let half = (self.limit / 2).max(1);
        let full = |segment: &Segment| segment.length > 0 && segment.length + bytes.len() as u64 > half;
        if self.segments.back().is_none_or(full) {
            // First, so that the space of the oldest one can be had.
            if self.segments.len() > 1 {
                self.segments.pop_front();
            }
            let file = tempfile::tempfile_in(&self.directory)?;
            self.segments.push_back(Segment { file, blocks: Vec::new(), length: 0 });
        }
        let Some(segment) = self.segments.back_mut() else { return Ok(()) };
        segment.file.write_all_at(&bytes, segment.length)?;
        segment.blocks.push(Block { last: last.number, offset: segment.length, length: bytes.len() });
        segment.length += bytes.len() as u64;
        Ok(())
    }

    /// The next lines from number `from` on, a block of them; none if they are not here.
    pub(super) fn read(&self, from: usize) -> Vec<LogLine> {
        let mut blocks =
            self.segments.iter().flat_map(|segment| segment.blocks.iter().map(move |block| (segment, block)));
        let Some((segment, block)) = blocks.find(|(_, block)| block.last >= from) else { return Vec::new() };
        let mut bytes = vec![0; block.length];
        // A file of one's own that cannot be read is a broken disk: the lines are missing, their numbers say so.
        if segment.file.read_exact_at(&mut bytes, block.offset).is_err() {
            return Vec::new();
        }
        let mut lines = parse(&Bytes::from(bytes));
        lines.retain(|line| line.number >= from);
        lines
    }

    /// How many bytes are here.
    pub(super) fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// The number of the first line of the newest `bytes` bytes, whole blocks.
    pub(super) fn newest(&self, bytes: u64) -> Option<usize> {
        let mut blocks = self.segments.iter().flat_map(|segment| &segment.blocks);
        let mut left = self.size();
        let mut first = 0;
        blocks.find_map(|block| {
            if left <= bytes {
                return Some(first);
            }
            left -= block.length as u64;
            first = block.last + 1;
            None
        })
    }
}

fn record(line: &LogLine) -> Vec<u8> {
    let since_epoch = line.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanoseconds = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
    let kind = u8::from(line.stream == Stream::Stderr) | u8::from(line.partial) << 1;
    let mut bytes = Vec::with_capacity(HEADER + line.bytes.len());
    bytes.extend_from_slice(&(line.number as u64).to_le_bytes());
    bytes.extend_from_slice(&nanoseconds.to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(&u32::try_from(line.bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&line.bytes);
    bytes
}

fn parse(bytes: &Bytes) -> Vec<LogLine> {
    let mut lines = Vec::new();
    let mut rest = 0;
    while let Some(header) = bytes.get(rest..rest + HEADER) {
        let number = |range: std::ops::Range<usize>| {
            header[range].iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let begin = rest + HEADER;
        let end = begin + usize::try_from(number(17..21)).unwrap_or(usize::MAX);
        if end > bytes.len() {
            break;
        }
        lines.push(LogLine {
            number: usize::try_from(number(0..8)).unwrap_or(usize::MAX),
            time: SystemTime::UNIX_EPOCH + Duration::from_nanos(number(8..16)),
            stream: if header[16] & 1 == 0 { Stream::Stdout } else { Stream::Stderr },
            partial: header[16] & 2 != 0,
            bytes: bytes.slice(begin..end),
        });
        rest = end;
    }
    lines
}
