//! The REST API as a client in another language sees it: bytes on a socket.

use crate::lab::{Lab, check};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Sends a request and gives the answer's status line and body.
async fn ask(lab: &Lab, head: &str, body: &[u8]) -> String {
    let mut stream = UnixStream::connect(lab.place().socket()).await.unwrap();
    let head =
        format!("{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that has seen enough answers and closes; then the rest cannot be written.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    format!("{} {body}", head.lines().next().unwrap().trim_start_matches("HTTP/1.1 "))
}

/// Every error is a failure as JSON, with a status that says whose fault it was.
#[test]
fn bad_requests_are_answered_in_kind() {
    check(async |lab| {
        let (_client, lease) = lab.lease().await;
        insta::assert_snapshot!(ask(lab, "GET /v2/nothing", b"").await, @r#"404 Not Found {"kind":"invalid","title":"there is no GET /v2/nothing"}"#);
        insta::assert_snapshot!(ask(lab, "PATCH /v1/info", b"").await, @r#"405 Method Not Allowed {"kind":"invalid","title":"/v1/info cannot be asked with PATCH"}"#);
        insta::assert_snapshot!(ask(lab, "POST /v1/containers", b"{").await, @r#"400 Bad Request {"kind":"invalid","title":"the request's body is not understood","facts":[["reason","EOF while parsing an object at line 1 column 1"]]}"#);
        insta::assert_snapshot!(ask(lab, "POST /v1/leases", br#"{"client":"x","directroy":"/"}"#).await, @r#"400 Bad Request {"kind":"invalid","title":"the request's body is not understood","facts":[["reason","unknown field `directroy`, expected `client` or `directory` at line 1 column 25"]]}"#);
        insta::assert_snapshot!(ask(lab, "POST /v1/leases", br#"{"client":"x","directory":"orders"}"#).await, @r#"400 Bad Request {"kind":"invalid","title":"the lease's directory `orders` is not absolute","hints":["send the absolute path in `directory`"]}"#);
        insta::assert_snapshot!(ask(lab, "GET /v1/containers/x/logs?from=z", b"").await, @r#"400 Bad Request {"kind":"invalid","title":"the request is not understood","facts":[["reason","Failed to deserialize query string: from: invalid digit found in string"]]}"#);
        let body = br#"{"lease":"gone","container":{"image":"redis"}}"#;
        insta::assert_snapshot!(ask(lab, "POST /v1/containers", body).await, @r#"400 Bad Request {"kind":"invalid","title":"there is no lease `gone`","hints":["a lease lives as long as the connection of its `POST /v1/leases`; keep that open"]}"#);
        let body =
            format!(r#"{{"lease":"{}","container":{{"image":"redis","workdir":"here"}}}}"#, lease.id());
        insta::assert_snapshot!(ask(lab, "POST /v1/containers", body.as_bytes()).await, @r#"400 Bad Request {"kind":"invalid","title":"redis is declared in a way that cannot work","facts":[["workdir","`here` is not an absolute path"]],"hints":["give an absolute path in the container, without `..`"]}"#);
    });
}

/// A request that would fill the keeper's memory is refused, and the keeper goes on.
#[test]
fn large_requests_are_refused() {
    check(async |lab| {
        let (client, _lease) = lab.lease().await;
        let spaces = vec![b' '; (4 << 20) + 1];
        insta::assert_snapshot!(ask(lab, "POST /v1/leases", &spaces).await, @r#"413 Payload Too Large {"kind":"invalid","title":"the request is larger than 4 MiB","hints":["name large files by their path on the host instead of sending their bytes"]}"#);
        let spaces = vec![b' '; (64 << 20) + 1];
        insta::assert_snapshot!(ask(lab, "POST /v1/containers", &spaces).await, @r#"413 Payload Too Large {"kind":"invalid","title":"the request is larger than 64 MiB","hints":["name large files by their path on the host instead of sending their bytes"]}"#);
        client.info().await.unwrap();
    });
}

/// Deleting twice is what a client does that did not hear the first answer.
#[test]
fn deleting_what_is_not_there_succeeds() {
    check(async |lab| {
        let (_client, _lease) = lab.lease().await;
        insta::assert_snapshot!(ask(lab, "DELETE /v1/containers/orders-0", b"").await, @"204 No Content");
        insta::assert_snapshot!(ask(lab, "DELETE /v1/leases/orders-0", b"").await, @"204 No Content");
    });
}
