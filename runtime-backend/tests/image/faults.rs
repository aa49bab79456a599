//! A real registry behind a network that fails: the image arrives, or the failure says why it does not.

use crate::images::{Parts, assert_consistent, quick, resolve, store_with};
use crate::proxy::{Asked, Fault, Proxy};
use crate::server::{Registry, shown};
use crate::tape::{Entry, FILE, Tape};
use shakedown_runtime::native::image::{Digest, RetryPolicy, StoreOptions};
use shakedown_spec::{FailureKind, PullPolicy};
use std::time::Duration;

/// How long the layer's file is. It does not compress.
const LONG: usize = 300 << 10;

/// An image of one layer that takes several pieces.
fn wares() -> Parts {
    let mut state = 1_u64;
    let noise = (0..LONG).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    let noise: Vec<u8> = noise.collect();
    Parts::of(&[Tape::default().entry(Entry::new(FILE, "wares").data(noise)).done()])
}

fn is_layer(asked: &Asked) -> bool {
    asked.path.ends_with(&Digest::of(&wares().blobs[0]).hex())
}

fn is_manifest(asked: &Asked) -> bool {
    asked.path.contains("/manifests/")
}

/// The requests for the layer.
fn of_layer(asked: &[Asked]) -> Vec<&Asked> {
    asked.iter().filter(|asked| is_layer(asked)).collect()
}

struct Outcome {
    /// The failure's text, if it failed.
    failure: Option<String>,
    asked: Vec<Asked>,
}

/// Pulls through a proxy with this fault. What is there afterwards is whole, and right if there was no failure.
async fn pull(
    options: StoreOptions,
    fault: impl Fn(&Asked, &[Asked]) -> Fault + Send + Sync + 'static,
) -> Outcome {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start("");
    registry.push(&wares(), "shop", "1", "");
    let proxy = Proxy::start(&registry.address, fault);
    let root = work.path().join("store");
    let store = store_with(&root, options).await;
    let result = resolve(&store, &format!("{}/shop:1", proxy.address), PullPolicy::Missing).await;
    assert_consistent(&root);
    let failure = match result {
        Ok(image) => {
            assert_eq!(std::fs::metadata(image.layers[0].join("wares")).unwrap().len(), LONG as u64);
            None
        }
        Err(failure) => {
            assert_eq!(failure.kind, FailureKind::ImageUnusable);
            assert_eq!(std::fs::read_dir(root.join("layers/root")).map_or(0, Iterator::count), 0);
            let text = shown(&failure, &proxy.address, work.path());
            Some(text.replace(&Digest::of(&wares().blobs[0]).to_string(), "sha256:LAYER"))
        }
    };
    Outcome { failure, asked: proxy.asked() }
}

/// The fault befalls the first `times` requests for the layer.
async fn layer_fault(times: usize, fault: Fault) -> Outcome {
    pull(
        quick(),
        move |asked, before| {
            if is_layer(asked) && of_layer(before).len() < times { fault.clone() } else { Fault::Pass }
        },
    )
    .await
}

fn patience(change: impl FnOnce(&mut RetryPolicy)) -> StoreOptions {
    let mut options = quick();
    change(&mut options.retry);
    options
}

/// A pull over a bad line costs what the image has in bytes, not that for each break.
#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let outcome =
        pull(quick(), |asked, _| if is_layer(asked) { Fault::Cut(70_000) } else { Fault::Pass }).await;
    assert_eq!(outcome.failure, None);
    let layer = of_layer(&outcome.asked);
    let ranges: Vec<_> = layer.iter().map(|asked| asked.range.as_deref().unwrap_or("all")).collect();
    assert_eq!(ranges, ["all", "bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"]);
    let sent: usize = layer.iter().map(|asked| asked.sent).sum();
    assert_eq!(sent, wares().blobs[0].len());
}

/// A server or cache that does not know ranges, or does them wrong, gives the right image all the same.
#[tokio::test]
async fn servers_without_ranges_are_coped_with() {
    let next = |second: Fault| {
        pull(quick(), move |asked, before| match (is_layer(asked), of_layer(before).len()) {
            (true, 0) => Fault::Cut(100_000),
            (true, 1) => second.clone(),
            _ => Fault::Pass,
        })
    };
    let whole = next(Fault::NoParts).await;
    assert_eq!((whole.failure, of_layer(&whole.asked).len()), (None, 2));
    let unsatisfiable =
        "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let refused = next(Fault::Answer(unsatisfiable.to_owned())).await;
    assert_eq!(refused.failure, None);
    assert_eq!(of_layer(&refused.asked)[2].range, None);
    let other = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n\
                 Connection: close\r\n\r\n12345";
    let wrong = next(Fault::Answer(other.to_owned())).await;
    assert_eq!(wrong.failure, None);
    assert_eq!(of_layer(&wrong.asked)[2].range, None);
}

fn busy(status: &str, headers: &str) -> Fault {
    Fault::Answer(format!("HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"))
}

/// An overloaded registry is asked again; one that stays so is named, with how often it was asked.
#[tokio::test]
async fn an_overloaded_registry_is_asked_again() {
    for status in ["429 Too Many Requests", "500 Oops", "502 Bad Gateway", "503 Busy", "504 Late"] {
        let outcome = layer_fault(2, busy(status, "Retry-After: 3600\r\n")).await;
        assert_eq!((outcome.failure, of_layer(&outcome.asked).len()), (None, 3), "{status}");
    }
    let manifest = pull(quick(), |asked, before| {
        let first = !before.iter().any(is_manifest);
        if is_manifest(asked) && first { busy("503 Busy", "") } else { Fault::Pass }
    });
    assert_eq!(manifest.await.failure, None);
    let never = layer_fault(usize::MAX, busy("429 Too Many Requests", "Retry-After: 1\r\n")).await;
    assert_eq!(of_layer(&never.asked).len(), 3);
    insta::assert_snapshot!(never.failure.unwrap(), @"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: http://127.0.0.1:5000
      request:  GET /v2/shop/blobs/sha256:LAYER
      answer:   status 429
      attempts: 3
    hint: the registry cannot answer at the moment; try again later
    ");
    let no = layer_fault(usize::MAX, busy("400 Bad Request", "")).await;
    assert_eq!(of_layer(&no.asked).len(), 1, "a `no` is an answer");
    insta::assert_snapshot!(no.failure.unwrap(), @"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: http://127.0.0.1:5000
      request:  GET /v2/shop/blobs/sha256:LAYER
      answer:   status 400
    ");
}

/// A connection that stands still is given up and made anew; a registry that always does this is named.
#[tokio::test]
async fn a_stalled_download_goes_on() {
    let stalling = |times: usize, after: usize| {
        let options = patience(|retry| retry.stall = Duration::from_millis(300));
        pull(options, move |asked, before| {
            if is_layer(asked) && of_layer(before).len() < times { Fault::Stall(after) } else { Fault::Pass }
        })
    };
    let once = stalling(1, 100_000).await;
    assert_eq!(once.failure, None);
    assert_eq!(of_layer(&once.asked)[1].range.as_deref(), Some("bytes=100000-"));
    let always = stalling(usize::MAX, 0).await;
    insta::assert_snapshot!(always.failure.unwrap(), @"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: http://127.0.0.1:5000
      request:  GET /v2/shop/blobs/sha256:LAYER
      reason:   the registry said nothing for 300ms
      attempts: 3
    ");
}

/// A byte at a time is too slow: it cannot keep a test for hours.
#[tokio::test]
async fn a_server_that_trickles_is_given_up() {
    let options = patience(|retry| {
        (retry.window, retry.least, retry.attempts) = (Duration::from_millis(10), 1 << 30, 2);
    });
    let outcome = pull(options, |asked, _| if is_layer(asked) { Fault::Trickle } else { Fault::Pass }).await;
    let text = outcome.failure.unwrap();
    let digits = |line: &str| line.replace(|c: char| c.is_ascii_digit(), "") == line;
    let text: String = text
        .lines()
        .map(|line| match line.split_once("only ") {
            Some((before, _)) if !digits(line) => format!("{before}only N bytes came in 10ms\n"),
            _ if line.contains("received:") => "  received: N bytes\n".to_owned(),
            _ => format!("{line}\n"),
        })
        .collect();
    insta::assert_snapshot!(text, @"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: http://127.0.0.1:5000
      request:  GET /v2/shop/blobs/sha256:LAYER
      reason:   only N bytes came in 10ms
      received: N bytes
      attempts: 2
    ");
}

/// What arrives wrong is refused, and nothing of it is left; a length that cannot be right is not waited for.
#[tokio::test]
async fn wrong_bytes_are_never_kept() {
    let spoilt = layer_fault(1, Fault::Spoil(200_000)).await;
    assert_eq!(of_layer(&spoilt.asked).len(), 1, "wrong bytes are not asked for again");
    assert!(spoilt.failure.unwrap().contains("has the wrong bytes: layer 1 does not match its digest"));
    let longer = layer_fault(1, Fault::Length(400_000)).await;
    insta::assert_snapshot!(longer.failure.unwrap(), @"
    image 127.0.0.1:5000/shop:1 is broken: layer 1 is longer than its manifest says
      expected: 324070 bytes
      actual:   400000 bytes
    hint: the copy at 127.0.0.1:5000 is damaged, or was on its way here; try again, then push it again
    ");
    let shorter = layer_fault(1, Fault::Length(1000)).await;
    assert!(shorter.failure.unwrap().contains("layer 1 is shorter than its manifest says"));
}

/// An answer that ends early without saying so counts as broken, not as the whole.
#[tokio::test]
async fn a_truncated_blob_is_completed() {
    let once = layer_fault(1, Fault::Truncate(100_000)).await;
    assert_eq!(once.failure, None);
    assert_eq!(of_layer(&once.asked)[1].range.as_deref(), Some("bytes=100000-"));
    let always = layer_fault(usize::MAX, Fault::Truncate(0)).await;
    insta::assert_snapshot!(always.failure.unwrap(), @"
    image 127.0.0.1:5000/shop:1 is broken: layer 1 is shorter than its manifest says
      expected: 324070 bytes
      actual:   0 bytes
      attempts: 3
    hint: the copy at 127.0.0.1:5000 is damaged, or was on its way here; try again, then push it again
    ");
}

/// Circles have an end.
#[tokio::test]
async fn circles_are_left() {
    let own = format!("Location: /v2/shop/blobs/{}\r\n", Digest::of(&wares().blobs[0]));
    let around = layer_fault(usize::MAX, busy("307 Temporary Redirect", &own)).await;
    assert_eq!(of_layer(&around.asked).len(), 6);
    insta::assert_snapshot!(around.failure.unwrap(), @"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: http://127.0.0.1:5000
      request:  GET /v2/shop/blobs/sha256:LAYER
      reason:   it redirects more than 5 times
    ");
    let challenge = "WWW-Authenticate: Bearer realm=\"http://OWN/token\"\r\n";
    let token = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n{\"token\":\"t\"}";
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start("");
    let proxy = Proxy::start(&registry.address, move |asked, _| {
        if asked.path.starts_with("/token") {
            Fault::Answer(token.to_owned())
        } else {
            busy("401 Unauthorized", challenge)
        }
    });
    let store = store_with(&work.path().join("store"), quick()).await;
    let source = format!("{}/shop:1", proxy.address);
    let failure = resolve(&store, &source, PullPolicy::Missing).await.unwrap_err();
    assert_eq!(proxy.asked().len(), 3, "{:?}", proxy.asked());
    insta::assert_snapshot!(shown(&failure, &proxy.address, work.path()), @"
    image 127.0.0.1:5000/shop:1 was not found
      registry: http://127.0.0.1:5000
      answer:   status 401
    hint: check the name, or log in with `docker login 127.0.0.1:5000` if the repository is private
    ");
}
