//! What BuildKit tells of a build: `moby.buildkit.v1.StatusResponse`, as far as it is shown here.
//!
//! The messages are protocol buffers, of which only lengths, strings and truth values are needed: reading those is less
//! than what a library for all of it costs.

/// A report.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) vertices: Vec<Vertex>,
    pub(super) logs: Vec<Log>,
}

/// A step of the build, in BuildKit's sense.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Vertex {
    pub(super) digest: String,
    pub(super) name: String,
    pub(super) cached: bool,
    pub(super) started: bool,
    pub(super) error: String,
}

/// A piece of what a step wrote.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) vertex: String,
    pub(super) bytes: Vec<u8>,
}

impl Status {
    /// Reads a message; what cannot be read is left out.
    pub(super) fn read(message: &[u8]) -> Self {
        let mut status = Self::default();
        for (field, value) in Fields(message) {
            match (field, value) {
                (1, Value::Bytes(vertex)) => status.vertices.push(read_vertex(vertex)),
                (3, Value::Bytes(log)) => status.logs.push(read_log(log)),
                _ => {}
            }
        }
        status
    }
}

fn read_vertex(message: &[u8]) -> Vertex {
    let mut vertex = Vertex::default();
    for (field, value) in Fields(message) {
        match (field, value) {
            (1, Value::Bytes(text)) => vertex.digest = String::from_utf8_lossy(text).into_owned(),
            (3, Value::Bytes(text)) => vertex.name = String::from_utf8_lossy(text).into_owned(),
            (4, Value::Number(number)) => vertex.cached = number != 0,
            (5, Value::Bytes(_)) => vertex.started = true,
            (7, Value::Bytes(text)) => vertex.error = String::from_utf8_lossy(text).into_owned(),
            _ => {}
        }
    }
    vertex
}

fn read_log(message: &[u8]) -> Log {
    let mut log = Log::default();
    for (field, value) in Fields(message) {
        match (field, value) {
            (1, Value::Bytes(text)) => log.vertex = String::from_utf8_lossy(text).into_owned(),
            (4, Value::Bytes(bytes)) => log.bytes = bytes.to_vec(),
            _ => {}
        }
    }
    log
}

enum Value<'m> {
    Number(u64),
    Bytes(&'m [u8]),
}

/// The fields of a message (protobuf.dev, "Encoding"); it ends at the first that is damaged.
struct Fields<'m>(&'m [u8]);

impl<'m> Iterator for Fields<'m> {
    type Item = (u64, Value<'m>);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'m> Fields<'m> {
    fn take(&mut self, length: usize) -> Option<&'m [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine, engine::general_purpose::STANDARD};

    /// A report of a daemon of version 20.10 is understood; one that is cut off is no fault.
    #[test]
    fn a_report_is_read() {
        let message = STANDARD
            .decode(
                "Cn0KR3NoYTI1NjozYzE5ZjNjNzQ1OGE2OTQyYjgxZDY4MDU3YmE5MTFjNjg1M2FkNmYwNGE4NjhlODI5ZjNlNDI5YTcyYjYx\
                 ZTU5GiRbaW50ZXJuYWxdIGxvYWQgcmVtb3RlIGJ1aWxkIGNvbnRleHQqDAjJxojYBhCHltm9Aw==",
            )
            .unwrap();
        let status = Status::read(&message);
        assert_eq!(status.vertices[0].name, "[internal] load remote build context");
        assert_eq!((status.vertices[0].started, status.vertices[0].cached), (true, false));
        for length in 0..message.len() {
            Status::read(&message[..length]);
        }
    }
}
