//! The log of a container: which lines, and whether to wait for more.

use super::Refusal;
use super::containers::bad_query;
use crate::api::{LogEntry, LogQuery};
use crate::fixtures::{Instance, Session};
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::stream;
use shakedown_runtime::LogLine;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::timeout;

pub(super) async fn logs(
    State(session): State<Arc<Session>>,
    Path(id): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(mut query) = query.map_err(|error| bad_query(&error.body_text()))?;
    let instance = session.container(&id)?;
    query.from = query.from.max(query.tail.map_or(0, |count| instance.log.last(count)));
    // Without `follow`, what is written from now on is not asked for, however fast it comes.
    let end = (!query.follow).then(|| instance.log.last(0));
    let body = Body::from_stream(log_lines(instance, Reader { query, end }));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// How far a reader is.
#[derive(Debug)]
struct Reader {
    query: LogQuery,
    /// The number of the first line that is too late.
    end: Option<usize>,
}

/// Chunks of lines. The subscription is older than the first look, so that no line falls between the two.
fn log_lines(
    instance: Arc<Instance>,
    reader: Reader,
) -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
    let changes = instance.log.watch();
    stream::unfold(Some((changes, reader)), move |position| {
        let instance = Arc::clone(&instance);
        async move {
            let (mut changes, mut reader) = position?;
            loop {
                changes.mark_unchanged();
                let (lines, closed) = instance.log.read(reader.query.from);
                let next = lines.last().map_or(reader.query.from, |line| line.number + 1);
                let over = closed
                    || reader.end.is_some_and(|end| lines.is_empty() || next >= end)
                    || lines.last().is_some_and(|line| reader.is_beyond(line));
                reader.query.from = next;
                let chunk: Vec<u8> = lines.iter().filter(|line| reader.wants(line)).flat_map(entry).collect();
                if over || !chunk.is_empty() {
                    return Some((Ok(chunk.into()), (!over).then_some((changes, reader))));
                }
                if lines.is_empty() && !reader.wait(&mut changes).await {
                    return None;
                }
            }
        }
    })
}

impl Reader {
    fn wants(&self, line: &LogLine) -> bool {
        let time = microseconds(line.time);
        let LogQuery { stream, since_us, until_us, .. } = self.query;
        stream.is_none_or(|stream| stream == line.stream)
            && since_us.is_none_or(|since| time >= since)
            && until_us.is_none_or(|until| time < until)
            && self.end.is_none_or(|end| line.number < end)
    }

    /// Whether no later line can be wanted. A line has the time of its first byte and its place by its last, so that the
    /// other stream's may be a little older.
    fn is_beyond(&self, line: &LogLine) -> bool {
        const APART: u64 = 60_000_000;
        self.query.until_us.is_some_and(|until| microseconds(line.time) > until.saturating_add(APART))
    }

    /// Waits for more lines; false if there will be none.
    async fn wait(&self, changes: &mut watch::Receiver<u64>) -> bool {
        let changed = async { changes.changed().await.is_ok() };
        let Some(until) = self.query.until_us else { return changed.await };
        let left = until.saturating_sub(microseconds(SystemTime::now()));
        timeout(Duration::from_micros(left), changed).await.unwrap_or(false)
    }
}

fn microseconds(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}

fn entry(line: &LogLine) -> Vec<u8> {
    let entry = LogEntry {
        number: line.number,
        stream: line.stream,
        time_us: microseconds(line.time),
        partial: line.partial,
        bytes: STANDARD.encode(&line.bytes),
    };
    let mut bytes = serde_json::to_vec(&entry).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
