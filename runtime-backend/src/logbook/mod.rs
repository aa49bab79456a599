//! What a container wrote: with stream and time, bounded in memory and on disk, followed without polling.
//!
//! The newest lines are in memory, and most logs are no longer than that. Older ones go to a file without a name, until
//! the log is as long as it may be; then the oldest go. Whoever follows a log reads what is there and waits for more: a
//! slow reader misses lines at last, and never holds the container up.

mod spill;

use self::spill::{BLOCK, Spill};
use bytes::Bytes;
use shakedown_spec::{LogTail, Stream};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::{mpsc, watch};

/// How many bytes of a container's log are in memory.
const IN_MEMORY: usize = 256 << 10;
/// How many bytes of a container's log are kept if its declaration does not say.
const KEPT: u64 = 64 << 20;
/// How many bytes a search looks at, the newest.
const SEARCHED: u64 = 4 << 20;
/// A line longer than this is kept in pieces.
const LONGEST_LINE: usize = 64 << 10;
/// A piece of output as it came.
pub type Chunk = (Stream, Bytes);

/// How many pieces of output a reader of [`LogBook::tap`] may be behind.
const TAP_CHUNKS: usize = 1024;
/// What a line costs beside its bytes.
const LINE: usize = size_of::<LogLine>();

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
    /// Whether no line feed came after it: a piece of a long line, or the end of the output.
    pub partial: bool,
    /// The bytes as they were written.
    pub bytes: Bytes,
}

impl LogLine {
    /// As it was written: with its line feed, if it had one.
    fn ended(&self) -> Bytes {
        if self.partial { self.bytes.clone() } else { [&self.bytes[..], b"\n"].concat().into() }
    }
}

#[derive(Debug)]
struct Pages {
    spill: Spill,
    /// The number of the line that says that something could not be written to disk.
    noted: Option<usize>,
    lines: VecDeque<LogLine>,
    /// The beginnings of lines whose line feed has not come yet, by stream.
    open: [Option<(SystemTime, Vec<u8>)>; 2],
    size: usize,
    written: usize,
    closed: bool,
    /// Those who want the output as it comes.
    taps: Vec<mpsc::Sender<Chunk>>,
}

impl Default for LogBook {
    fn default() -> Self {
        Self::new(None)
    }
}

/// Where long logs are written: a directory on disk. `/tmp` is often in memory.
pub(crate) fn directory() -> PathBuf {
    let chosen = std::env::var_os("TMPDIR").filter(|value| !value.is_empty()).map(PathBuf::from);
    let disk = || Some(PathBuf::from("/var/tmp")).filter(|path| path.is_dir());
    chosen.or_else(disk).unwrap_or_else(std::env::temp_dir)
}

impl LogBook {
    /// A log of which the newest `kept` bytes are kept; 64 MiB if that is not said.
    #[must_use]
    pub fn new(kept: Option<u64>) -> Self {
        Self::in_directory(directory(), kept.unwrap_or(KEPT))
    }

    fn in_directory(directory: PathBuf, kept: u64) -> Self {
        let pages = Pages {
            spill: Spill::new(directory, kept),
            noted: None,
            lines: VecDeque::new(),
            open: [None, None],
            size: 0,
            written: 0,
            closed: false,
            taps: Vec::new(),
        };
        Self { pages: Mutex::new(pages), changed: watch::Sender::new(0) }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // A panic while the lock is held leaves at worst a line cut short.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds output as it was read; it may begin and end anywhere in a line.
    pub fn write(&self, stream: Stream, time: SystemTime, chunk: &[u8]) {
        let mut pages = self.pages();
        if !pages.taps.is_empty() {
            let bytes = Bytes::copy_from_slice(chunk);
            // One that does not keep up is let go: it must not hold the container up, nor fill the memory.
            pages.taps.retain(|tap| tap.try_send((stream, bytes.clone())).is_ok());
        }
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            pages.append(stream, time, piece);
        }
        drop(pages);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Marks the end of the output.
    pub fn close(&self) {
        let mut pages = self.pages();
        pages.flush(Stream::Stdout, true);
        pages.flush(Stream::Stderr, true);
        pages.closed = true;
        pages.taps.clear();
        drop(pages);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Goes on after [`close`](Self::close), for a container that is started again; gives the number of its first line.
    pub fn reopen(&self) -> usize {
        let mut pages = self.pages();
        pages.closed = false;
        pages.written
    }

    /// Returns when the output has ended.
    pub async fn closed(&self) {
        let mut changes = self.watch();
        loop {
            changes.mark_unchanged();
            if self.pages().closed || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// The output as it comes from now on, byte for byte, until it ends; with `replay`, the newest of what is kept of it
    /// comes first. A reader that falls far behind is let go: its stream ends.
    #[must_use]
    pub fn tap(&self, replay: bool) -> (Vec<Chunk>, mpsc::Receiver<Chunk>) {
        let (sender, receiver) = mpsc::channel(TAP_CHUNKS);
        let mut pages = self.pages();
        let mut before = Vec::new();
        if replay {
            pages.newest(0, |line| before.push((line.stream, line.ended())));
            for stream in [Stream::Stdout, Stream::Stderr] {
                let open = pages.open[index(stream)].as_ref();
                before.extend(open.map(|(_, bytes)| (stream, Bytes::copy_from_slice(bytes))));
            }
        }
        if !pages.closed {
            pages.taps.push(sender);
        }
        (before, receiver)
    }

    /// The next complete lines from number `from` on, and whether the output ends with them. There may be more; they are
    /// asked for by the number after the last.
    #[must_use]
    pub fn read(&self, from: usize) -> (Vec<LogLine>, bool) {
        let pages = self.pages();
        let lines = pages.next(from);
        let more = lines.last().is_some_and(|line| line.number + 1 < pages.written);
        (lines, pages.closed && !more)
    }

    /// The number of the first of the last `count` complete lines.
    #[must_use]
    pub fn last(&self, count: usize) -> usize {
        self.pages().written.saturating_sub(count)
    }

    /// What was written last, the beginnings of unfinished lines included, for a search that must not miss a prompt
    /// without a line feed: the newest 4 MiB.
    #[must_use]
    pub fn text(&self, only: Option<Stream>) -> Vec<u8> {
        self.text_from(0, only)
    }

    /// As [`text`](Self::text), from line number `from` on.
    #[must_use]
    pub fn text_from(&self, from: usize, only: Option<Stream>) -> Vec<u8> {
        let pages = self.pages();
        let mut text = Vec::with_capacity(pages.size);
        pages.newest(from, |line| {
            if only.is_none_or(|stream| stream == line.stream) {
                text.extend_from_slice(&line.ended());
            }
        });
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
        let mut piece = piece;
        while !piece.is_empty() {
            let (_, open) = self.open[index(stream)].get_or_insert_with(|| (time, Vec::new()));
            let (now, later) = piece.split_at(piece.len().min(LONGEST_LINE - open.len()));
            let line = now.strip_suffix(b"\n");
            open.extend_from_slice(line.unwrap_or(now));
            let full = open.len() >= LONGEST_LINE;
            if line.is_some() || full {
                self.flush(stream, line.is_none());
            }
            piece = later;
        }
    }

    fn flush(&mut self, stream: Stream, partial: bool) {
        let Some((time, bytes)) = self.open[index(stream)].take() else { return };
        self.push(LogLine { number: self.written, stream, time, partial, bytes: bytes.into() });
        if self.size > IN_MEMORY {
            self.spill();
        }
    }

    fn push(&mut self, line: LogLine) {
        self.size += line.bytes.len() + LINE;
        self.lines.push_back(line);
        self.written += 1;
    }

    /// The newest lines, on disk and in memory, that have number `from` or a higher one.
    fn newest(&self, from: usize, mut add: impl FnMut(&LogLine)) {
        let mut add = |line: &LogLine| {
            if line.number >= from {
                add(line);
            }
        };
        let mut next = self.spill.newest(SEARCHED).map(|first| first.max(from));
        while let Some(lines) = next.map(|next| self.spill.read(next)).filter(|lines| !lines.is_empty()) {
            lines.iter().for_each(&mut add);
            next = lines.last().map(|line| line.number + 1);
        }
        self.lines.iter().for_each(add);
    }

    /// Writes the oldest block in memory to disk.
    fn spill(&mut self) {
        let mut block = Vec::new();
        let mut size = 0;
        while size < BLOCK
            && let Some(oldest) = self.lines.pop_front()
        {
            size += oldest.bytes.len() + LINE;
            block.push(oldest);
        }
        self.size -= size;
        let Err(error) = self.spill.append(&block) else { return };
        // Where whoever looks for the missing lines sees it; again, if it is among them.
        if self.noted.is_none_or(|noted| block.iter().any(|line| line.number == noted)) {
            self.noted = Some(self.written);
            let note = format!("shakedown: older lines of this log could not be kept: {error}");
            let (number, time) = (self.written, SystemTime::now());
            let bytes = note.into_bytes().into();
            self.push(LogLine { number, stream: Stream::Stderr, time, partial: false, bytes });
        }
    }

    /// Some lines from number `from` on: a block of those on disk, or those in memory.
    fn next(&self, from: usize) -> Vec<LogLine> {
        let first = self.lines.front().map_or(self.written, |line| line.number);
        if from < first {
            let older = self.spill.read(from);
            if !older.is_empty() {
                return older;
            }
        }
        // Lines are numbered without gaps in memory.
        self.lines.range(from.saturating_sub(first).min(self.lines.len())..).cloned().collect()
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

    /// Who attaches gets every byte, those before a line feed too, and the end; a second run goes on in the same log.
    #[test]
    fn a_tap_has_what_comes() {
        let book = book(&[(Stream::Stdout, "old\nlog")]);
        let (before, mut tap) = book.tap(true);
        assert_eq!(before, [(Stream::Stdout, "old\n".into()), (Stream::Stdout, "log".into())]);
        book.write(Stream::Stderr, SystemTime::UNIX_EPOCH, b"in: ");
        book.close();
        assert_eq!(tap.try_recv(), Ok((Stream::Stderr, "in: ".into())));
        assert_eq!(tap.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        let next = book.reopen();
        assert!(!book.read(0).1);
        book.write(Stream::Stdout, SystemTime::UNIX_EPOCH, b"again\n");
        assert_eq!((next, book.text_from(next, None)), (3, b"again\n".to_vec()));
    }

    /// A reader that stands still does not fill the memory: it is let go.
    #[test]
    fn a_tap_that_falls_behind_is_let_go() {
        let book = LogBook::default();
        let (_, mut tap) = book.tap(false);
        (0..=TAP_CHUNKS).for_each(|_| book.write(Stream::Stdout, SystemTime::UNIX_EPOCH, b"x\n"));
        let mut read = 0;
        while tap.try_recv().is_ok() {
            read += 1;
        }
        assert_eq!(read, TAP_CHUNKS);
        assert!(book.pages().taps.is_empty());
    }

    fn all(book: &LogBook) -> Vec<LogLine> {
        let mut all: Vec<LogLine> = Vec::new();
        loop {
            let (lines, closed) = book.read(all.last().map_or(0, |line| line.number + 1));
            let done = closed || lines.is_empty();
            all.extend(lines);
            if done {
                return all;
            }
        }
    }

    fn chatter(book: &LogBook, lines: usize) {
        for number in 0..lines {
            let stream = if number % 3 == 0 { Stream::Stderr } else { Stream::Stdout };
            let text = format!("{number:-<1023}\n");
            book.write(
                stream,
                SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(number as u64),
                text.as_bytes(),
            );
        }
    }

    /// A chatty container fills neither memory nor disk; what is kept is what was written, from the newest line back.
    #[test]
    fn old_lines_go_to_disk_and_the_oldest_go() {
        let book = LogBook::new(Some(2 << 20));
        chatter(&book, 5000);
        book.close();
        let lines = all(&book);
        assert_eq!(lines.last().map(|line| line.number), Some(4999));
        assert!((1000..2400).contains(&lines.len()), "{} lines of 1 KiB are kept", lines.len());
        for (line, number) in lines.iter().zip(5000 - lines.len()..) {
            assert_eq!((line.number, line.stream == Stream::Stderr), (number, number % 3 == 0));
            assert_eq!(line.time, SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(number as u64));
            assert!(line.bytes.starts_with(format!("{number}-").as_bytes()) && line.bytes.len() == 1023);
        }
        let pages = book.pages();
        assert!(pages.size <= IN_MEMORY && pages.spill.size() <= 2 << 20);
        drop(pages);
        assert_eq!(book.tail("redis", 2).total, 5000);
        assert_eq!(book.tail("redis", 2).lines.len(), 2);
        assert_eq!(book.last(10), 4990);
    }

    /// A wait for a line finds it although much more was written since.
    #[test]
    fn lines_on_disk_are_searched() {
        let book = LogBook::default();
        chatter(&book, 2000);
        let text = book.text(Some(Stream::Stderr));
        assert!(text.starts_with(b"0---") && text.ends_with(b"---\n"));
        assert_eq!(text.len(), 667 * 1024);
    }

    /// On a full disk the container goes on, and the log says what is missing.
    #[test]
    fn a_log_that_cannot_be_written_says_so() {
        let book = LogBook::in_directory("/nonexistent".into(), KEPT);
        chatter(&book, 1000);
        book.close();
        let lines = all(&book);
        let notes: Vec<_> = lines.iter().filter(|line| line.bytes.starts_with(b"shakedown: ")).collect();
        assert_eq!(notes.len(), 1);
        assert!(lines.last().is_some_and(|line| line.bytes.starts_with(b"999-")));
    }

    /// A long line comes in pieces that say so, and nothing of it is lost; so does a last line without a line feed.
    #[test]
    fn long_lines_are_kept_in_pieces() {
        let book = LogBook::default();
        let long = vec![b'x'; 150_000];
        book.write(Stream::Stdout, SystemTime::UNIX_EPOCH, &long);
        book.write(Stream::Stdout, SystemTime::UNIX_EPOCH, b"\n\nend");
        book.close();
        let seen: Vec<_> = all(&book).iter().map(|line| (line.bytes.len(), line.partial)).collect();
        assert_eq!(seen, [(65536, true), (65536, true), (18928, false), (0, false), (3, true)]);
    }

    /// Escape sequences of a service do not colour the report.
    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(book(&[(Stream::Stdout, "\u{1b}[31mred\r\n")]).tail("x", 5).lines, ["\u{fffd}[31mred"]);
    }
}
