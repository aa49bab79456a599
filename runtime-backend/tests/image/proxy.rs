//! A proxy in front of a registry that does to answers what networks and overloaded servers do to them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to one answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It passes as it is.
    Pass,
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// It ends there without a sign that more should come: no length is announced.
    Truncate(usize),
    /// Nothing more comes after so many bytes, and the connection stays open.
    Stall(usize),
    /// It comes a byte at a time.
    Trickle,
    /// The byte at this place is another one.
    Spoil(usize),
    /// The announced length is another one.
    Length(usize),
    /// This is the answer; the registry is not asked.
    Answer(String),
    /// The registry is asked for all of it, whatever part was asked for.
    NoParts,
    /// The connection ends after the request has been read up to so many bytes of its body.
    Drop(usize),
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,

    /// Bytes of the answer's body that were sent.
    pub(crate) sent: usize,
}

/// The proxy; it ends with the test's process.
pub(crate) struct Proxy {
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

struct Request {
    head: Vec<String>,
    body: Vec<u8>,
}

impl Proxy {
    /// Stands in front of `upstream`; `fault` is asked for each request, with the requests before it.
    pub(crate) fn start(
        upstream: &str,
        fault: impl Fn(&Asked, &[Asked]) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (fault, log, upstream, own) =
            (Arc::new(fault), Arc::clone(&asked), upstream.to_owned(), address.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (fault, log, upstream, own) =
                    (Arc::clone(&fault), Arc::clone(&log), upstream.clone(), own.clone());
                std::thread::spawn(move || {
                    // A client that hangs up is part of the tests.
                    let _ = serve(&mut stream.unwrap(), &upstream, &own, &*fault, &log);
                });
            }
        });
        Self { address, asked }
    }

    /// The requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(
    client: &mut TcpStream,
    upstream: &str,
    own: &str,
    fault: &(dyn Fn(&Asked, &[Asked]) -> Fault + Send + Sync),
    log: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    for line in reader.by_ref().lines() {
        match line? {
            line if line.is_empty() => break,
            line => head.push(line),
        }
    }
    let Some(first) = head.first() else { return Ok(()) };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut asked = Asked { method, path, range: header(&head, "range"), sent: 0 };
    let (number, fault) = {
        let mut log = log.lock().unwrap();
        let fault = fault(&asked, &log);
        log.push(asked.clone());
        (log.len() - 1, fault)
    };
    let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; if let Fault::Drop(after) = fault { after.min(length) } else { length }];
    reader.read_exact(&mut body)?;
    if let Fault::Answer(answer) = &fault {
        return client.write_all(answer.replace("OWN", own).as_bytes());
    }
    if let Fault::Drop(_) = fault {
        return Ok(());
    }
    if let Fault::NoParts = fault {
        head.retain(|line| !line.to_ascii_lowercase().starts_with("range:"));
    }
    let (head, body) = forward(upstream, own, &Request { head, body })?;
    asked.sent = answer(client, head, body, &fault, asked.method == "HEAD")?;
    log.lock().unwrap()[number] = asked;
    Ok(())
}

fn header(head: &[String], name: &str) -> Option<String> {
    head.iter().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// What the registry answers; addresses of its own become the proxy's.
fn forward(upstream: &str, own: &str, request: &Request) -> std::io::Result<(Vec<String>, Vec<u8>)> {
    let mut registry = TcpStream::connect(upstream)?;
    let kept = |line: &&String| {
        let line = line.to_ascii_lowercase();
        !line.starts_with("connection:") && !line.starts_with("host:")
    };
    let lines: Vec<_> = request.head.iter().filter(kept).map(String::as_str).collect();
    let head = format!("{}\r\nHost: {upstream}\r\nConnection: close\r\n\r\n", lines.join("\r\n"));
    registry.write_all(head.as_bytes())?;
    registry.write_all(&request.body)?;
    let mut answer = Vec::new();
    registry.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).replace(upstream, own);
    Ok((head.split("\r\n").map(str::to_owned).collect(), answer[end + 4..].to_vec()))
}

/// Sends the answer with its fault; gives how many bytes of the body went out.
fn answer(
    client: &mut TcpStream,
    mut head: Vec<String>,
    mut body: Vec<u8>,
    fault: &Fault,
    bodiless: bool,
) -> std::io::Result<usize> {
    head.retain(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    head.push("Connection: close".to_owned());
    let announced = |head: &mut Vec<String>, length: Option<usize>| {
        head.retain(|line| !line.to_ascii_lowercase().starts_with("content-length:"));
        head.extend(length.map(|length| format!("Content-Length: {length}")));
    };
    match fault {
        Fault::Cut(after) | Fault::Stall(after) => body.truncate(*after),
        Fault::Truncate(after) => {
            announced(&mut head, None);
            body.truncate(*after);
        }
        Fault::Spoil(at) => body[*at] ^= 1,
        Fault::Length(length) => announced(&mut head, Some(*length)),
        _ => {}
    }
    client.write_all(format!("{}\r\n\r\n", head.join("\r\n")).as_bytes())?;
    if bodiless {
        return Ok(0);
    }
    if let Fault::Trickle = fault {
        body.iter().try_for_each(|byte| client.write_all(&[*byte]))?;
    } else {
        client.write_all(&body)?;
    }
    if let Fault::Stall(_) = fault {
        // Until the client gives up.
        client.set_read_timeout(Some(Duration::from_secs(60)))?;
        let _ = client.read(&mut [0]);
    }
    Ok(body.len())
}
