//! What a container wrote: bounded in memory, with stream and time, followed without polling.

use bytes::Bytes;
use shakedown_spec::{LogTail, Stream};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::watch;

/// How many bytes of a container's log are kept; the oldest lines go first.
const CAPACITY: usize = 4 << 20;
/// A line longer than this is kept in pieces.
const LONGEST_LINE: usize = 64 << 10;

/// The log of one container. The driver writes it, any number of readers follow it.
#[derive(Debug)]
pub struct LogBook {
    pages: Mutex<Pages>,
    changed: watch::Sender<u64>,
}

/// One line of output, without its line feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Its number in the log, from 0; readers continue from the number after it.
    pub number: usize,
    /// Which stream it was written to.
    pub stream: Stream,
    /// When its first byte was read.
    pub time: SystemTime,
    /// The bytes as they were written.
    pub bytes: Bytes,
}

#[derive(Debug, Default)]
struct Pages {
    lines: VecDeque<LogLine>,
    /// The beginnings of lines whose line feed has not come yet, by stream.
    open: [Option<(SystemTime, Vec<u8>)>; 2],
    size: usize,
    written: usize,
    closed: bool,
}

impl Default for LogBook {
    fn default() -> Self {
        Self { pages: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl LogBook {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        // A panic while the lock is held leaves at worst a line cut short.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds output as it was read; it may begin and end anywhere in a line.
    pub fn write(&self, stream: Stream, time: SystemTime, chunk: &[u8]) {
        let mut pages = self.pages();
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            pages.append(stream, time, piece);
        }
        drop(pages);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Marks the end of the output.
    pub fn close(&self) {
        let mut pages = self.pages();
        pages.flush(Stream::Stdout);
        pages.flush(Stream::Stderr);
        pages.closed = true;
        drop(pages);
        self.changed.send_modify(|version| *version += 1);
    }

    /// The complete lines from number `from` on, and whether the output has ended.
    #[must_use]
    pub fn read(&self, from: usize) -> (Vec<LogLine>, bool) {
        let pages = self.pages();
        let lines = pages.lines.iter().skip_while(|line| line.number < from).cloned().collect();
        (lines, pages.closed)
    }

    /// Everything written so far, the beginnings of unfinished lines included, for a search that must not miss a
    /// prompt without a line feed.
    #[must_use]
    pub fn text(&self, only: Option<Stream>) -> Vec<u8> {
        let pages = self.pages();
        let mut text = Vec::with_capacity(pages.size);
        for line in pages.lines.iter().filter(|line| only.is_none_or(|stream| stream == line.stream)) {
            text.extend_from_slice(&line.bytes);
            text.push(b'\n');
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some((_, open)) = &pages.open[index(stream)]
                && only.is_none_or(|wanted| wanted == stream)
            {
                text.extend_from_slice(open);
                text.push(b'\n');
            }
        }
        text
    }

    /// A receiver that is notified of every change; its value counts changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The last `count` lines for a failure's report, unfinished ones included; control characters are replaced.
    #[must_use]
    pub fn tail(&self, name: &str, count: usize) -> LogTail {
        let pages = self.pages();
        let open = pages.open.iter().flatten().map(|(_, bytes)| bytes.as_slice());
        let all: Vec<&[u8]> = pages.lines.iter().map(|line| &line.bytes[..]).chain(open).collect();
        let total = pages.written + all.len() - pages.lines.len();
        let lines = all[all.len().saturating_sub(count)..].iter().map(|bytes| printable(bytes)).collect();
        LogTail { name: name.to_owned(), lines, total }
    }
}

impl Pages {
    fn append(&mut self, stream: Stream, time: SystemTime, piece: &[u8]) {
        let (_, open) = self.open[index(stream)].get_or_insert_with(|| (time, Vec::new()));
        open.extend_from_slice(piece.strip_suffix(b"\n").unwrap_or(piece));
        if piece.ends_with(b"\n") || open.len() >= LONGEST_LINE {
            self.flush(stream);
        }
    }

    fn flush(&mut self, stream: Stream) {
        let Some((time, bytes)) = self.open[index(stream)].take() else { return };
        self.size += bytes.len();
        self.lines.push_back(LogLine { number: self.written, stream, time, bytes: bytes.into() });
        self.written += 1;
        while self.size > CAPACITY
            && let Some(oldest) = self.lines.pop_front()
        {
            self.size -= oldest.bytes.len();
        }
    }
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

/// What a terminal can show: escape sequences and other control characters would garble the report.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end_matches('\r')
        .chars()
        .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(chunks: &[(Stream, &str)]) -> LogBook {
        let book = LogBook::default();
        for (stream, chunk) in chunks {
            book.write(*stream, SystemTime::UNIX_EPOCH, chunk.as_bytes());
        }
        book
    }

    /// A line that arrives in two reads, with the other stream between, is one line.
    #[test]
    fn lines_are_put_together_across_reads_and_streams() {
        let book = book(&[(Stream::Stdout, "rea"), (Stream::Stderr, "warn\n"), (Stream::Stdout, "dy\nnext")]);
        let (lines, closed) = book.read(0);
        let seen: Vec<_> = lines.iter().map(|line| (line.number, line.stream, &line.bytes[..])).collect();
        assert_eq!(seen, [(0, Stream::Stderr, &b"warn"[..]), (1, Stream::Stdout, b"ready")]);
        assert!(!closed);
        book.close();
        assert_eq!(book.read(2).0[0].bytes, "next");
        assert!(book.read(2).1);
    }

    /// A prompt without a line feed can be waited for.
    #[test]
    fn unfinished_lines_are_searched() {
        assert_eq!(book(&[(Stream::Stdout, "login: ")]).text(None), b"login: \n");
        assert_eq!(book(&[(Stream::Stdout, "login: ")]).text(Some(Stream::Stderr)), b"");
    }

    /// A chatty container does not fill the memory; the report still counts all its lines.
    #[test]
    fn old_lines_go_first() {
        let book = LogBook::default();
        let line = [b'x'; 1023];
        for _ in 0..5000 {
            book.write(Stream::Stdout, SystemTime::UNIX_EPOCH, &line);
            book.write(Stream::Stdout, SystemTime::UNIX_EPOCH, b"\n");
        }
        let (lines, _) = book.read(0);
        assert!(lines.iter().map(|line| line.bytes.len()).sum::<usize>() <= CAPACITY);
        assert_eq!(book.tail("redis", 2).total, 5000);
        assert_eq!(book.tail("redis", 2).lines.len(), 2);
    }

    /// Escape sequences of a service do not colour the report.
    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(book(&[(Stream::Stdout, "\u{1b}[31mred\r\n")]).tail("x", 5).lines, ["\u{fffd}[31mred"]);
    }
}
