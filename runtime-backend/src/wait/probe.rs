//! First messages of services' own protocols: what answers them is the service, not a proxy in front of it.

use super::Poll;
use crate::driver::{Driver, Socket};
use shakedown_spec::ProbeProtocol;
use std::io;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// Asks once.
pub(super) async fn ask(driver: &dyn Driver, id: &str, protocol: ProbeProtocol, port: u16) -> Poll {
    let asked = async {
        let mut socket = driver.connect(id, port).await?;
        match protocol {
            ProbeProtocol::Postgres => postgres(&mut socket).await,
            ProbeProtocol::Redis => redis(&mut socket).await,
        }
    };
    asked.await.unwrap_or_else(|error| Poll::NotYet(words(&error)))
}

/// The errors of a connection in the words of a network user.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "the connection was reset".to_owned(),
        // The daemon's proxy accepts for a service that is not there yet, and closes at once.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
            "the connection was closed before an answer".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Sends a start-up message (PostgreSQL documentation, 55.7 "Message Formats") and reads the first answer.
async fn postgres(socket: &mut dyn Socket) -> io::Result<Poll> {
    let mut message = vec![0; 4];
    // Protocol 3.0; a user that need not exist.
    message.extend_from_slice(&196_608_u32.to_be_bytes());
    message.extend_from_slice(b"user\0postgres\0database\0postgres\0application_name\0shakedown\0\0");
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    message[..4].copy_from_slice(&length.to_be_bytes());
    socket.write_all(&message).await?;
    let kind = socket.read_u8().await?;
    let length = socket.read_u32().await?;
    // An error message is short; anything else is another protocol.
    let length = length.checked_sub(4).filter(|length| *length <= 64 << 10);
    let Some(length) = length else { return Ok(Poll::NotYet("the answer is not PostgreSQL's".to_owned())) };
    let mut body = vec![0; length as usize];
    socket.read_exact(&mut body).await?;
    // Nothing more is said: a client that goes away while it is asked for a password is not logged, one that answers
    // anything else is.
    Ok(match kind {
        b'R' => Poll::Ready(()),
        b'E' => postgres_error(&body),
        _ => Poll::NotYet("the answer is not PostgreSQL's".to_owned()),
    })
}

/// 57P03 is `cannot_connect_now`: starting up, shutting down, recovering. Any other error is the answer of a server
/// that looked at the user or the database and so is up; the probe has no password to give.
fn postgres_error(body: &[u8]) -> Poll {
    let field = |code: u8| {
        let fields = body.split(|byte| *byte == 0).filter(|field| !field.is_empty());
        fields
            .into_iter()
            .find(|field| field[0] == code)
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    };
    match field(b'C').as_deref() {
        Some("57P03") => Poll::NotYet(field(b'M').unwrap_or_else(|| "cannot connect now".to_owned())),
        _ => Poll::Ready(()),
    }
}

async fn redis(socket: &mut dyn Socket) -> io::Result<Poll> {
    socket.write_all(b"*1\r\n$4\r\nPING\r\n").await?;
    let mut line = String::new();
    // An answer is one line; a peer that sends none is cut off.
    BufReader::new(socket.take(1024)).read_line(&mut line).await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(redis_answer(line.trim_end()))
}

/// `+PONG`, or an error of a server that is up and wants a password.
fn redis_answer(line: &str) -> Poll {
    let code = line.split(' ').next().unwrap_or(line);
    match code {
        "+PONG" | "-NOAUTH" | "-NOPERM" | "-DENIED" => Poll::Ready(()),
        _ => {
            Poll::NotYet(line.trim_start_matches('-').chars().filter(|c| !c.is_control()).take(200).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_yet(status: &str) -> Poll {
        Poll::NotYet(status.to_owned())
    }

    /// A server that recovers is not ready; one that refuses the probe's user is.
    #[test]
    fn postgres_errors_are_told_apart() {
        let starting = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";
        assert_eq!(postgres_error(starting), not_yet("the database system is starting up"));
        assert_eq!(postgres_error(b"SFATAL\0C28000\0Mrole \"postgres\" does not exist\0\0"), Poll::Ready(()));
    }

    /// A server that loads its data is not ready; one that wants a password is.
    #[test]
    fn redis_answers_are_told_apart() {
        assert_eq!(redis_answer("+PONG"), Poll::Ready(()));
        assert_eq!(redis_answer("-NOAUTH Authentication required."), Poll::Ready(()));
        let loading = "-LOADING Redis is loading the dataset in memory";
        assert_eq!(redis_answer(loading), not_yet("LOADING Redis is loading the dataset in memory"));
    }
}
