//! The name server of one container: its two sockets, and whom it asks for what it does not know.

use super::answer::{Reply, reply};
use super::directory::Directory;
use super::message::{Code, failed, is_refusal};
use crate::native::launcher::Handle;
use crate::native::network::ports::datagrams;
use crate::native::network::publish;
use crate::native::network::resolver::Resolver;
use crate::relay::persistent;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

const DNS: u16 = 53;
/// The largest query that is read from a datagram.
const LARGEST_QUERY: usize = 4096;
/// How many queries of one container are asked elsewhere at once; more are lost, and asked again.
const MOST_WAITING: usize = 256;
/// How many connections of one container are served at once.
const MOST_CONNECTIONS: usize = 64;
/// How long one name server may take; resolvers ask again after five seconds.
const PATIENCE: Duration = Duration::from_secs(4);
/// After how long the next one is asked as well.
const SOON: Duration = Duration::from_secs(1);
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// A container that asks for names.
#[derive(Debug)]
pub(crate) struct Asker {
    /// The container.
    pub(crate) id: String,
    /// Who is on its networks.
    pub(crate) directory: Arc<Directory>,
    /// Who is asked for all else.
    pub(crate) upstream: Upstream,
}

/// Who is asked for what is on no network.
#[derive(Clone, Debug)]
pub(crate) enum Upstream {
    /// Nobody: the container does not reach the outside, and there is no such name.
    Nobody,
    /// The host's name servers.
    Host,
    /// Those that the container declares, asked from its own network.
    Declared(Handle, Vec<IpAddr>),
}

/// Answers at these sockets until it is dropped. Must be called within a tokio runtime.
pub(crate) fn serve(sockets: Vec<OwnedFd>, asker: Asker) -> io::Result<JoinSet<()>> {
    let sockets = <[OwnedFd; 2]>::try_from(sockets);
    let [udp, tcp] = sockets.map_err(|_| io::Error::other("names are asked for at two sockets"))?;
    let (udp, tcp) = (UdpSocket::from_std(udp.into())?, TcpListener::from_std(tcp.into())?);
    let asker = Arc::new(asker);
    let mut tasks = JoinSet::new();
    tasks.spawn(by_datagram(Arc::new(udp), Arc::clone(&asker)));
    tasks.spawn(by_connection(tcp, asker));
    Ok(tasks)
}

async fn by_datagram(socket: Arc<UdpSocket>, asker: Arc<Asker>) {
    let mut waiting = JoinSet::new();
    loop {
        let received = || async {
            let mut query = vec![0; LARGEST_QUERY];
            let (length, from) = socket.recv_from(&mut query).await?;
            query.truncate(length);
            Ok((query, from))
        };
        let (query, from) = persistent(received).await;
        while waiting.try_join_next().is_some() {}
        match reply(&asker.directory, &asker.id, &query, false) {
            // What does not go is lost, as datagrams may be: whoever waits asks again.
            Reply::Answer(answer) => drop(socket.try_send_to(&answer, from)),
            Reply::Elsewhere if waiting.len() < MOST_WAITING => {
                let (socket, asker) = (Arc::clone(&socket), Arc::clone(&asker));
                waiting.spawn(async move {
                    if let Some(answer) = asker.elsewhere(&query, false).await {
                        let _ = socket.try_send_to(&answer, from);
                    }
                });
            }
            Reply::Elsewhere | Reply::Nothing => {}
        }
    }
}

async fn by_connection(listener: TcpListener, asker: Arc<Asker>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = publish::next_connection(&listener).await;
        while connections.try_join_next().is_some() {}
        if connections.len() < MOST_CONNECTIONS {
            let asker = Arc::clone(&asker);
            // Whatever ends a connection, its other end is gone or does not speak the protocol.
            connections.spawn(async move { drop(converse(stream, &asker).await) });
        }
    }
}

async fn converse(mut stream: TcpStream, asker: &Asker) -> io::Result<()> {
    loop {
        let query = timeout(SILENCE, read(&mut stream)).await??;
        let answer = match reply(&asker.directory, &asker.id, &query, true) {
            Reply::Answer(answer) => Some(answer),
            Reply::Elsewhere => asker.elsewhere(&query, true).await,
            Reply::Nothing => None,
        };
        let Some(answer) = answer else { return Ok(()) };
        timeout(SILENCE, write(&mut stream, &answer)).await??;
    }
}

/// A message over a connection follows its length (RFC 1035, 4.2.2).
async fn read<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write<S: tokio::io::AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

impl Asker {
    /// What others answer. If nobody does, that it could not be learnt.
    async fn elsewhere(&self, query: &[u8], stream: bool) -> Option<Vec<u8>> {
        let servers = match &self.upstream {
            Upstream::Nobody => return failed(query, Code::NameError),
            // As the host is set up now: it may have changed networks.
            Upstream::Host => Resolver::of_host().asked,
            Upstream::Declared(_, servers) => servers.clone(),
        };
        let servers: Vec<_> = servers.into_iter().map(|server| SocketAddr::new(server, DNS)).collect();
        let answer = self.first_answer(&servers, query, stream).await;
        answer.or_else(|| failed(query, Code::ServerFailure))
    }

    /// What the first of these servers answers that does not refuse to; a refusal if that is all there is.
    async fn first_answer(&self, servers: &[SocketAddr], query: &[u8], stream: bool) -> Option<Vec<u8>> {
        let (mut asked, mut refusal) = (FuturesUnordered::new(), None);
        let mut servers = servers.iter();
        loop {
            if let Some(server) = servers.next() {
                asked.push(timeout(PATIENCE, self.ask(*server, query, stream)));
            }
            let wait = if servers.as_slice().is_empty() { PATIENCE } else { SOON };
            match timeout(wait, asked.next()).await {
                Ok(Some(Ok(Ok(answer)))) if is_refusal(&answer) => refusal = Some(answer),
                Ok(Some(Ok(Ok(answer)))) => return Some(answer),
                Ok(None) => return refusal,
                // It could not be asked, or has not answered yet: the next one.
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }

    async fn ask(&self, server: SocketAddr, query: &[u8], stream: bool) -> io::Result<Vec<u8>> {
        let inner = match &self.upstream {
            // From within the container's network, which has sockets of IPv4 only.
            Upstream::Declared(launcher, _) if server.is_ipv4() => Some(launcher),
            _ => None,
        };
        if stream {
            let mut connection = match inner {
                Some(launcher) => publish::connect(launcher, &self.id, server).await?,
                None => TcpStream::connect(server).await?,
            };
            write(&mut connection, query).await?;
            return read(&mut connection).await;
        }
        let socket = match inner {
            Some(launcher) => datagrams(launcher, &self.id, server).await?,
            None => {
                let any: IpAddr = match server {
                    SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let socket = UdpSocket::bind((any, 0)).await?;
                socket.connect(server).await?;
                socket
            }
        };
        socket.send(query).await?;
        let mut answer = vec![0; 1 << 16];
        loop {
            let length = socket.recv(&mut answer).await?;
            // The number tells it from an answer to somebody else's query.
            if length >= 2 && answer[..2] == query[..2] {
                answer.truncate(length);
                return Ok(answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const QUERY: &[u8] = b"\x00\x15\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01";

    /// A name server that answers each query with this code, or not at all.
    async fn server(code: Option<u8>) -> SocketAddr {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                if let Some(code) = code {
                    (query[2], query[3]) = (query[2] | 0x80, 0x80 | code);
                    socket.send_to(&query[..length], from).await.unwrap();
                }
            }
        });
        address
    }

    async fn code(servers: &[SocketAddr]) -> Option<u8> {
        let asker = Asker { id: "web".into(), directory: Arc::default(), upstream: Upstream::Host };
        asker.first_answer(servers, QUERY, false).await.map(|answer| answer[3] & 15)
    }

    /// A name server that is broken, or refuses, keeps nobody from the next one; that there is no such name is an answer.
    #[tokio::test]
    async fn the_next_server_is_asked_after_a_refusal() {
        let [good, unknown] = [server(Some(0)).await, server(Some(3)).await];
        for refusal in [2, 4, 5] {
            let bad = server(Some(refusal)).await;
            assert_eq!(code(&[bad, good]).await, Some(0));
            assert_eq!(code(&[bad]).await, Some(refusal), "there is nobody else");
        }
        assert_eq!(code(&[unknown, good]).await, Some(3));
    }

    /// Servers that are silent are not waited for one after the other: resolvers give up after five seconds.
    #[tokio::test(start_paused = true)]
    async fn the_next_server_is_asked_soon() {
        let silent = server(None).await;
        let begin = Instant::now();
        assert_eq!(code(&[silent, silent, server(Some(0)).await]).await, Some(0));
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
        assert_eq!(code(&[silent, silent]).await, None);
    }
}
