//! Redis from the client's side: what goes through a published port, in the protocol's own bytes, and as redis-benchmark
//! measures it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

const PING: &[u8] = b"PING\r\n";
const PONG: &[u8] = b"+PONG\r\n";
/// How much a large value has.
const LARGE: usize = 64 << 10;

/// Does the work once. `port-ping` and `port-connect` give the time of one, the others that of all.
pub(crate) async fn measure(work: &str, at: (&str, u16)) -> Result<Duration> {
    match work {
        "port-ping" => {
            let mut stream = connect(at).await?;
            let mut times = Vec::new();
            for _ in 0..2000 {
                let started = Instant::now();
                ask(&mut stream, PING, PONG.len()).await?;
                times.push(started.elapsed());
            }
            Ok(median(times))
        }
        "port-connect" => {
            let mut times = Vec::new();
            for _ in 0..300 {
                let started = Instant::now();
                ask(&mut connect(at).await?, PING, PONG.len()).await?;
                times.push(started.elapsed());
            }
            Ok(median(times))
        }
        "port-many" => all(50, 400, at, PING, PONG.len()).await,
        "port-benchmark" => benchmark(at).await,
        "port-bulk" => {
            let value = vec![b'x'; LARGE];
            let mut set = format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n${LARGE}\r\n").into_bytes();
            set.extend(value.iter().chain(b"\r\n"));
            ask(&mut connect(at).await?, &set, b"+OK\r\n".len()).await?;
            let answer = format!("${LARGE}\r\n").len() + LARGE + 2;
            all(4, 500, at, b"GET large\r\n", answer).await
        }
        other => bail!("`{other}` is nothing to do through a port"),
    }
}

/// `clients` at the same time, each with `times` questions one after the other.
async fn all(
    clients: usize,
    times: usize,
    at: (&str, u16),
    question: &[u8],
    answer: usize,
) -> Result<Duration> {
    let mut streams = try_join_all((0..clients).map(|_| connect(at))).await?;
    let started = Instant::now();
    let work = streams.iter_mut().map(async |stream| {
        for _ in 0..times {
            ask(stream, question, answer).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(work).await?;
    Ok(started.elapsed())
}

/// The median that redis-benchmark tells for one client, which asks one question after the other.
async fn benchmark((host, port): (&str, u16)) -> Result<Duration> {
    let port = port.to_string();
    let args = ["-h", host, "-p", &port, "-c", "1", "-n", "10000", "-t", "ping_mbulk", "--csv"];
    let output = Command::new("redis-benchmark").args(args).output().await;
    let output = output.context("cannot start redis-benchmark (Debian package redis-tools)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let millis = p50(&text).with_context(|| format!("redis-benchmark says {text}"))?;
    Ok(Duration::from_secs_f64(millis / 1000.0))
}

/// The column of that name in the only line of a table.
fn p50(csv: &str) -> Option<f64> {
    let mut lines = csv.lines().map(|line| line.split(',').map(|field| field.trim_matches('"')));
    let column = lines.next()?.position(|name| name == "p50_latency_ms")?;
    lines.next()?.nth(column)?.parse().ok()
}

async fn connect(at: (&str, u16)) -> Result<TcpStream> {
    let stream = TcpStream::connect(at).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks, and reads the answer, whose length is known.
async fn ask(stream: &mut TcpStream, question: &[u8], answer: usize) -> Result<()> {
    stream.write_all(question).await?;
    let mut buffer = vec![0; answer];
    stream.read_exact(&mut buffer).await?;
    if buffer[0] == b'-' {
        bail!("Redis says {}", String::from_utf8_lossy(&buffer));
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Versions differ in how many columns they have.
    #[test]
    fn the_median_is_found_by_its_name() {
        let csv = "\"test\",\"rps\",\"min_latency_ms\",\"p50_latency_ms\"\n\"PING_MBULK\",\"9000.1\",\"0.01\",\"0.127\"\n";
        assert_eq!(p50(csv), Some(0.127));
        assert_eq!(p50("Could not connect to Redis"), None);
    }
}
