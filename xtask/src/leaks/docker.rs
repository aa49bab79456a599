//! Docker: containers, networks and volumes with the label of a session, asked over the daemon's socket.
//!
//! Three questions do not need a client library, and the answer must not depend on the code that is under test.

use std::env;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Found;

/// On everything that the Docker driver makes; its value is the session's name.
const LABEL: &str = "org.shakedown.session";
/// How long a daemon may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// What is asked, what it is called here, and where names are in the answer.
const QUESTIONS: [(&str, &str, &str); 3] = [
    ("/containers/json?all=1&", "Docker container", "/Names/0"),
    ("/networks?", "Docker network", "/Name"),
    ("/volumes?", "Docker volume", "/Name"),
];

pub(super) fn look(host: Option<&str>, found: &mut Found) {
    let mut hosts: Vec<String> =
        ["SHAKEDOWN_DOCKER_HOST", "DOCKER_HOST"].iter().filter_map(|name| env::var(name).ok()).collect();
    hosts.retain(|host| !host.is_empty());
    hosts.extend(host.map(str::to_owned));
    hosts.push(DEFAULT_HOST.to_owned());
    hosts.sort();
    hosts.dedup();
    for host in hosts {
        for (path, kind, name) in QUESTIONS {
            match ask(&host, path) {
                Ok(answer) => list(&answer, kind, name, found),
                Err(error) => {
                    found.unseen(format!("Docker at {host}: {error:#}"));
                    break;
                }
            }
        }
    }
}

/// Adds the objects of an answer.
fn list(answer: &Value, kind: &'static str, name: &str, found: &mut Found) {
    let objects = answer.as_array().or_else(|| answer["Volumes"].as_array());
    for object in objects.into_iter().flatten() {
        let name = object.pointer(name).and_then(Value::as_str).unwrap_or("?").trim_start_matches('/');
        let session = object["Labels"][LABEL].as_str().unwrap_or("?");
        let state = object["State"].as_str().map(|state| format!(", {state}")).unwrap_or_default();
        found.add(kind, name, format!("of session {session}{state}"));
    }
}

fn ask(host: &str, path: &str) -> Result<Value> {
    // {"label":["…"]}, with what may not be in an address written as codes.
    let path = format!("{path}filters=%7B%22label%22%3A%5B%22{LABEL}%22%5D%7D");
    let answer = if let Some(socket) = host.strip_prefix("unix://") {
        let stream = UnixStream::connect(socket).context("cannot connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        get(stream, &path)
    } else if let Some(address) = host.strip_prefix("tcp://").or_else(|| host.strip_prefix("http://")) {
        let stream = TcpStream::connect(address.trim_end_matches('/')).context("cannot connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        get(stream, &path)
    } else {
        bail!("only unix:// and tcp:// addresses are asked")
    };
    body(&answer?)
}

/// HTTP/1.0: the answer ends with the connection and is not cut into chunks (RFC 1945, 7.2.2).
fn get(mut stream: impl Read + Write, path: &str) -> Result<Vec<u8>> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").context("cannot ask")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("no answer")?;
    Ok(answer)
}

fn body(answer: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(answer).context("the answer is no text")?;
    let (head, body) = text.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("answered `{status}`");
    }
    serde_json::from_str(body).context("the answer is no JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(question: usize, text: &str, expected: &str) {
        let (_, kind, name) = QUESTIONS[question];
        let mut found = Found::default();
        let answer = format!("HTTP/1.0 200 OK\r\nApi-Version: 1.41\r\n\r\n{text}\n");
        list(&body(answer.as_bytes()).unwrap(), kind, name, &mut found);
        let lines: Vec<String> =
            found.leaks.iter().map(|leak| format!("{} {}: {}", leak.kind, leak.name, leak.detail)).collect();
        assert_eq!(lines.join("\n"), expected);
    }

    /// The three answers have three forms; none of ours is overlooked in any of them.
    #[test]
    fn answers_are_understood() {
        check(
            0,
            r#"[{"Names":["/shakedown-1f"],"State":"exited","Labels":{"org.shakedown.session":"run-1"}}]"#,
            "Docker container shakedown-1f: of session run-1, exited",
        );
        check(
            1,
            r#"[{"Name":"shakedown-net","Labels":{"org.shakedown.session":"run-1"}}]"#,
            "Docker network shakedown-net: of session run-1",
        );
        check(2, r#"{"Volumes":null,"Warnings":null}"#, "");
    }

    /// A daemon that refuses is told apart from one that has nothing of ours.
    #[test]
    fn a_refusal_is_no_answer() {
        let error = body(b"HTTP/1.0 403 Forbidden\r\n\r\n{}").unwrap_err();
        assert_eq!(error.to_string(), "answered `HTTP/1.0 403 Forbidden`");
    }
}
