//! When a service has answered: a connection, and the first message of its protocol understood. The same for every
//! engine, and without a client library, whose own work would be measured.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// After this time the service is taken for dead.
const LIMIT: Duration = Duration::from_secs(60);

/// A server's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// `PING` is answered by `+PONG`.
    Redis,
    /// A start-up message is answered by a request to authenticate, not by an error ("is starting up").
    Postgres,
}

impl Protocol {
    /// The protocol of this work, and the port of the official image.
    pub(crate) fn of(work: &str) -> Result<(Self, u16)> {
        match work {
            "redis" => Ok((Self::Redis, 6379)),
            "postgres" => Ok((Self::Postgres, 5432)),
            other => bail!("`{other}` is no service"),
        }
    }

    /// Returns when the server has answered for the first time.
    pub(crate) async fn answered(self, host: &str, port: u16) -> Result<()> {
        let end = Instant::now() + LIMIT;
        while Instant::now() < end {
            // docker-proxy accepts connections before the server does, and closes them again. No pause: it would be
            // measured.
            if matches!(timeout(LIMIT, self.try_once(host, port)).await, Ok(Ok(true))) {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
        bail!("no answer from {host}:{port} within {} s", LIMIT.as_secs())
    }

    async fn try_once(self, host: &str, port: u16) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let mut first = [0];
        match self {
            Self::Redis => {
                stream.write_all(b"PING\r\n").await?;
                let mut line = [0; 5];
                stream.read_exact(&mut line).await?;
                Ok(&line == b"+PONG")
            }
            Self::Postgres => {
                stream.write_all(&startup_message()).await?;
                stream.read_exact(&mut first).await?;
                Ok(first[0] == b'R')
            }
        }
    }
}

/// PostgreSQL manual, "Message Formats", StartupMessage: length with itself, protocol 3.0, pairs, a zero byte.
fn startup_message() -> Vec<u8> {
    let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let length = u32::try_from(body.len() + 4).unwrap_or_default();
    [&length.to_be_bytes(), body.as_slice()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length that is wrong by one makes the server wait for more, and every measurement a timeout.
    #[test]
    fn the_startup_message_tells_its_length() {
        let message = startup_message();
        assert_eq!(usize::from(message[3]), message.len());
        assert_eq!(message.len(), 4 + 4 + 14 + 18 + 1);
    }
}
