//! Images from a real registry on loopback, and from one that misbehaves.

use crate::crash::child;
use crate::images::{Parts, assert_consistent, bytes, quick, resolve, shop, store, store_with};
use crate::server::{Registry, shown};
use crate::tape::Tape;
use serde_json::json;
use shakedown_runtime::native::image::{Credentials, Digest, LocalUnpacker, Store, StoreOptions};
use shakedown_spec::{FailureKind, PullPolicy};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

/// An image is fetched once, and is there without the registry from then on.
#[tokio::test]
async fn an_image_is_fetched_once() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start("");
    registry.push(&shop(), "shop/orders", "7", "");
    let source = format!("{}/shop/orders:7", registry.address);
    let root = work.path().join("store");
    let image = resolve(&store(&root).await, &source, PullPolicy::Missing).await.unwrap();
    assert_eq!(std::fs::read(image.layers[0].join("etc/motd")).unwrap(), b"welcome");
    let by_digest = format!("{}/shop/orders@{}", registry.address, Digest::of(&bytes(&shop().manifest)));
    let again = resolve(&store(&root).await, &by_digest, PullPolicy::Missing).await.unwrap();
    assert_eq!(again.image.id, image.image.id);
    registry.finish();
    let offline = resolve(&store(&root).await, &source, PullPolicy::Never).await.unwrap();
    assert_eq!(offline.image, image.image);
    assert_consistent(&root);
}

/// A tag that has moved is noticed when it is asked for, and only then.
#[tokio::test]
async fn a_moved_tag_is_noticed() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start("");
    registry.push(&shop(), "orders", "latest", "");
    let store = store(&work.path().join("store")).await;
    let source = format!("{}/orders", registry.address);
    let old = resolve(&store, &source, PullPolicy::Always).await.unwrap();
    registry.push(&Parts::of(&[Tape::default().file("new", "").done()]), "orders", "latest", "");
    assert_eq!(resolve(&store, &source, PullPolicy::Missing).await.unwrap().image, old.image);
    let new = resolve(&store, &source, PullPolicy::Always).await.unwrap();
    assert!(new.layers[0].join("new").exists());
    assert_eq!(resolve(&store, &source, PullPolicy::Always).await.unwrap().image, new.image);
}

/// Eight processes want one image: the registry gives each of its blobs once.
#[tokio::test]
async fn eight_processes_fetch_once() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start("");
    registry.push(&shop(), "shop", "1", "");
    let source = format!("{}/shop:1", registry.address);
    let root = work.path().join("store");
    let children: Vec<_> =
        (0..8).map(|_| child(&[], "crash::resolve_in_a_child", &root, &source).spawn().unwrap()).collect();
    for mut process in children {
        assert!(process.wait().unwrap().success());
    }
    let log = registry.finish();
    let gets: Vec<_> = log.iter().filter(|line| line.contains("\"GET /v2/shop/blobs/")).collect();
    let mut blobs: Vec<_> =
        gets.iter().map(|line| line.split("/blobs/").nth(1).unwrap()[..71].to_owned()).collect();
    blobs.sort();
    let fetched = blobs.len();
    blobs.dedup();
    assert_eq!((fetched, blobs.len()), (4, 4), "{gets:#?}");
    store(&root).await;
    assert_consistent(&root);
}

/// What the registry does not have is said in its words, with the tags it has.
#[tokio::test]
async fn missing_images_are_told_with_near_tags() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start("");
    for tag in ["10", "7", "8", "8.1"] {
        registry.push(&Parts::of(&[Tape::default().done()]), "shop/orders", tag, "");
    }
    let store = store(&work.path().join("store")).await;
    let ask = async |name: &str, policy: PullPolicy| {
        let source = format!("{}/{name}", registry.address);
        let failure = resolve(&store, &source, policy).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::ImageNotFound);
        shown(&failure, &registry.address, work.path())
    };
    insta::assert_snapshot!(ask("shop/orders:9", PullPolicy::Missing).await, @"
    image 127.0.0.1:5000/shop/orders:9 was not found
      registry:   http://127.0.0.1:5000
      answer:     status 404, MANIFEST_UNKNOWN: manifest unknown
      tags there: 7, 8, 8.1, 10
    ");
    insta::assert_snapshot!(ask("shop/refunds:9", PullPolicy::Always).await, @"
    image 127.0.0.1:5000/shop/refunds:9 was not found
      registry: http://127.0.0.1:5000
      answer:   status 404, MANIFEST_UNKNOWN: manifest unknown
    ");
    insta::assert_snapshot!(ask("shop/orders:8", PullPolicy::Never).await, @"
    image 127.0.0.1:5000/shop/orders:8 was not found
      store:  DIR/store
      reason: it is not in the local store, and the pull policy is `never`
    ");
}

/// Nothing listens: said so, with the address.
#[tokio::test]
async fn a_registry_that_is_not_there() {
    let work = tempfile::tempdir().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let store = store(&work.path().join("store")).await;
    let failure = resolve(&store, &format!("{address}/shop:1"), PullPolicy::Missing).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::ImageUnusable);
    insta::assert_snapshot!(shown(&failure, &address, work.path()), @"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: http://127.0.0.1:5000
      reason:   connection refused
    hint: nothing listens on 127.0.0.1:5000; start the registry
    ");
}

/// Passwords come from Docker's configuration; without one the failure says how to get one.
#[tokio::test]
async fn passwords_are_those_of_docker() {
    let work = tempfile::tempdir().unwrap();
    // bcrypt of `secret`, the only form the registry takes.
    let hash = "orders:$2b$05$2jZnuwh/QA3ho0gcgIFrZ.W.9NRxo8GY96QKluc5WhT1572uqh9HC";
    std::fs::write(work.path().join("htpasswd"), hash).unwrap();
    let auth = format!("auth:\n  htpasswd:\n    realm: shop\n    path: {}/htpasswd\n", work.path().display());
    let registry = Registry::start(&auth);
    registry.push(&shop(), "orders", "1", "Authorization: Basic b3JkZXJzOnNlY3JldA==\r\n");
    let config = |password: &str| {
        use base64::Engine;
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("orders:{password}"));
        let path = work.path().join(password);
        std::fs::write(&path, bytes(&json!({"auths": {&registry.address: {"auth": auth}}}))).unwrap();
        path
    };
    let ask = async |config: Option<_>| {
        let unpacker = Arc::new(LocalUnpacker::of_this_process());
        let credentials = config.map(|path: std::path::PathBuf| Credentials::file(path)).unwrap_or_default();
        let options = StoreOptions { credentials, ..StoreOptions::default() };
        let store = Store::open_with(&work.path().join("store"), unpacker, options).await.unwrap();
        resolve(&store, &format!("{}/orders:1", registry.address), PullPolicy::Always).await
    };
    let say = |failure: shakedown_spec::Failure| shown(&failure, &registry.address, work.path());
    insta::assert_snapshot!(say(ask(None).await.unwrap_err()), @"
    image 127.0.0.1:5000/orders:1 was not found
      registry: http://127.0.0.1:5000
      answer:   status 401, UNAUTHORIZED: authentication required
    hint: check the name, or log in with `docker login 127.0.0.1:5000` if the repository is private
    ");
    insta::assert_snapshot!(say(ask(Some(config("wrong"))).await.unwrap_err()), @"
    image 127.0.0.1:5000/orders:1 could not be fetched
      registry: http://127.0.0.1:5000
      request:  GET /v2/orders/manifests/1
      answer:   status 401, UNAUTHORIZED: authentication required
    hint: the password for this registry in Docker's or Podman's configuration does not open this repository
    ");
    assert_eq!(ask(Some(config("secret"))).await.unwrap().layers.len(), 3);
}

/// A request to a canned registry.
struct Asked {
    path: String,
    authorization: Option<String>,
    /// The registry's own address.
    own: String,
}

/// A registry made of canned answers by path, for what a real one never does.
fn canned(answers: impl Fn(&Asked) -> Vec<u8> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let own = address.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let Some(Ok(first)) = lines.next() else { continue };
            let head: Vec<_> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let authorization =
                head.iter().find_map(|line| line.strip_prefix("authorization: ")).map(str::to_owned);
            let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
            let _ = stream.write_all(&answers(&Asked { path, authorization, own: own.clone() }));
        }
    });
    address
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = if headers.contains("Content-Length") {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    [format!("HTTP/1.1 {status}\r\nConnection: close\r\n{length}{headers}\r\n").as_bytes(), body].concat()
}

/// Serves the shop's image, with `spoil` in place of what it answers for.
async fn misbehaves(spoil: impl Fn(&str, &str) -> Option<Vec<u8>> + Send + 'static) -> String {
    let parts = shop();
    let address = canned(move |asked| {
        let path = &asked.path;
        if let Some(answer) = spoil(path, &asked.own) {
            return answer;
        }
        let config = bytes(&parts.config);
        let blob = parts.blobs.iter().chain([&config]).find(|blob| path.ends_with(&Digest::of(blob).hex()));
        match blob {
            Some(blob) => answer("200 OK", "", blob),
            None if path.contains("/manifests/") => answer("200 OK", "", &bytes(&parts.manifest)),
            None => answer("404 Not Found", "", b""),
        }
    });
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("store");
    let store = store(&root).await;
    let failure = resolve(&store, &format!("{address}/shop:1"), PullPolicy::Missing).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::ImageUnusable);
    assert_consistent(&root);
    shown(&failure, &address, work.path())
}

fn third_layer(path: &str) -> bool {
    path.ends_with(&Digest::of(&shop().blobs[2]).hex())
}

/// Wrong, short, long and broken blobs are refused, and nothing of them stays.
#[tokio::test]
async fn blobs_are_verified_on_the_way_in() {
    let blob = || shop().blobs[2].clone();
    let wrong = misbehaves(move |path, _| {
        let mut spoilt = blob();
        spoilt[50] ^= 1;
        third_layer(path).then(|| answer("200 OK", "", &spoilt))
    });
    insta::assert_snapshot!(wrong.await, @"
    image 127.0.0.1:5000/shop:1 has the wrong bytes: layer 3 does not match its digest
      expected: sha256:537f8084de18648abfa3985d9494e0153b2515803b3b47e1661419760a9eb0c3
      actual:   sha256:118b58eefb4f7074b0d7cd908cc98f59a97c7b7f0b6872f2deede9a2ef2f895b
    hint: the copy at 127.0.0.1:5000 is damaged, or was on its way here; try again, then push it again
    ");
    let short = misbehaves(move |path, _| third_layer(path).then(|| answer("200 OK", "", &blob()[..100])));
    assert!(short.await.contains("layer 3 is shorter than its manifest says"));
    let long = misbehaves(move |path, _| {
        third_layer(path).then(|| answer("200 OK", "", &[&blob()[..], b"x"].concat()))
    });
    assert!(long.await.contains("layer 3 is longer than its manifest says"));
    let broken = misbehaves(move |path, _| {
        let length = format!("Content-Length: {}\r\n", blob().len());
        third_layer(path).then(|| answer("200 OK", &length, &blob()[..100]))
    });
    insta::assert_snapshot!(broken.await, @"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: http://127.0.0.1:5000
      reason:   end of file before message length reached
      received: 100 of 409 bytes
      attempts: 3
    ");
    let busy = misbehaves(move |path, _| {
        third_layer(path).then(|| answer("503 Service Unavailable", "", b"<html>"))
    });
    insta::assert_snapshot!(busy.await, @"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: http://127.0.0.1:5000
      request:  GET /v2/shop/blobs/sha256:537f8084de18648abfa3985d9494e0153b2515803b3b47e1661419760a9eb0c3
      answer:   status 503
      attempts: 3
    hint: the registry cannot answer at the moment; try again later
    ");
}

/// Manifests are bounded and checked; redirects cannot lead into other services or around for ever.
#[tokio::test]
async fn answers_are_not_believed() {
    let manifest = |path: &str| path.contains("/manifests/");
    let big =
        misbehaves(move |path, _| manifest(path).then(|| answer("200 OK", "", &vec![b' '; (4 << 20) + 1])));
    assert!(big.await.contains("longer than 4194304 bytes"));
    let claim = format!("Docker-Content-Digest: {}\r\n", Digest::of(b"other"));
    let lying = misbehaves(move |path, _| manifest(path).then(|| answer("200 OK", &claim, b"{}")));
    assert!(lying.await.contains("the manifest's digest is"));
    let html = misbehaves(move |path, _| manifest(path).then(|| answer("200 OK", "", b"<html>")));
    insta::assert_snapshot!(html.await, @"
    image 127.0.0.1:5000/shop:1 cannot be used
      document: manifests/1
      reason:   it is no manifest: expected value at line 1 column 1
    ");
    let around = misbehaves(move |path, _| {
        third_layer(path).then(|| answer("307 Temporary Redirect", &format!("Location: {path}\r\n"), b""))
    });
    assert!(around.await.contains("it redirects more than 5 times"));
    let away = misbehaves(move |path, _| {
        third_layer(path)
            .then(|| answer("307 Temporary Redirect", "Location: http://192.0.2.1/metadata\r\n", b""))
    });
    insta::assert_snapshot!(away.await, @"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: http://127.0.0.1:5000
      request:  GET /v2/shop/blobs/sha256:537f8084de18648abfa3985d9494e0153b2515803b3b47e1661419760a9eb0c3
      reason:   it sends to `http://192.0.2.1/metadata`, which is not encrypted
    ");
    let token = misbehaves(move |path, own| {
        let realm = format!("WWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"shop\"\r\n");
        manifest(path)
            .then(|| answer("401 Unauthorized", &realm, b""))
            .or_else(|| path.starts_with("/token").then(|| answer("200 OK", "", b"{\"token\": 5}")))
    });
    assert!(token.await.contains("its token server's answer is no token"));
}

/// An anonymous token is fetched where the registry wants one, and a redirected blob arrives.
#[tokio::test]
async fn tokens_and_redirects_work() {
    let parts = shop();
    let address = canned(move |asked| {
        let (path, own) = (&asked.path, &asked.own);
        let config = bytes(&parts.config);
        let blob = parts.blobs.iter().chain([&config]).find(|blob| path.ends_with(&Digest::of(blob).hex()));
        match (blob, asked.authorization.as_deref()) {
            (Some(blob), None) if path.starts_with("/cdn/") => answer("200 OK", "", blob),
            (Some(blob), Some("Bearer t0ken")) => {
                // Another host: what was meant for the registry must not get there.
                let own = own.replace("127.0.0.1", "localhost");
                let location = format!("Location: http://{own}/cdn/{}\r\n", Digest::of(blob).hex());
                answer("307 Temporary Redirect", &location, b"")
            }
            (None, Some("Bearer t0ken")) => answer("200 OK", "", &bytes(&parts.manifest)),
            _ if path == "/token?service=the%20shop&scope=repository:shop:pull" => {
                answer("200 OK", "", br#"{"token": "t0ken", "access_token": "t0ken"}"#)
            }
            _ => {
                let service = r#"service="the shop",scope="repository:shop:pull""#;
                let realm = format!("WWW-Authenticate: Bearer realm=\"http://{own}/token\",{service}\r\n");
                answer("401 Unauthorized", &realm, b"")
            }
        }
    });
    let work = tempfile::tempdir().unwrap();
    let store = store(&work.path().join("store")).await;
    let image = resolve(&store, &format!("{address}/shop:1"), PullPolicy::Missing).await.unwrap();
    assert_eq!(image.layers.len(), 3);
}

/// A registry that sends to another host does not let that host ask for the user's password (CVE-2020-15157).
#[tokio::test]
async fn passwords_are_for_the_registry_alone() {
    let (parts, stolen) = (shop(), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&stolen);
    let address = canned(move |asked| {
        let (path, own) = (&asked.path, &asked.own);
        if path.starts_with("/cdn/") || path.starts_with("/steal") {
            seen.lock().unwrap().push((path.clone(), asked.authorization.clone()));
            let realm = format!("WWW-Authenticate: Bearer realm=\"http://{own}/steal\"\r\n");
            return answer("401 Unauthorized", &realm, b"");
        }
        let config = bytes(&parts.config);
        let blob = parts.blobs.iter().chain([&config]).find(|blob| path.ends_with(&Digest::of(blob).hex()));
        match (blob, asked.authorization.as_deref()) {
            (Some(_), Some("Basic b3JkZXJzOnNlY3JldA==")) => {
                let away = own.replace("127.0.0.1", "localhost");
                answer("307 Temporary Redirect", &format!("Location: http://{away}/cdn/blob\r\n"), b"")
            }
            (None, Some(_)) => answer("200 OK", "", &bytes(&parts.manifest)),
            _ => answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"shop\"\r\n", b""),
        }
    });
    let work = tempfile::tempdir().unwrap();
    let entry = json!({"auths": {&address: {"auth": "b3JkZXJzOnNlY3JldA=="}}}).to_string();
    let credentials = Credentials { inline: Some(entry), files: Vec::new() };
    let store = store_with(&work.path().join("store"), StoreOptions { credentials, ..quick() }).await;
    resolve(&store, &format!("{address}/shop:1"), PullPolicy::Missing).await.unwrap_err();
    let stolen = stolen.lock().unwrap();
    assert!(!stolen.is_empty());
    assert!(
        stolen.iter().all(|(path, authorization)| path == "/cdn/blob" && authorization.is_none()),
        "{stolen:?}"
    );
}
