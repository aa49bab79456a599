//! Registries that want to know who asks: passwords, tokens, certificates.

use crate::crash::child;
use crate::images::{assert_consistent, quick, resolve, shop, store_with};
use crate::keys::Keys;
use crate::server::{Registry, shown};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use shakedown_runtime::native::image::{
    Credentials, LocalUnpacker, RegistriesConfig, RegistryConfig, Store, StoreOptions,
};
use shakedown_spec::{Failure, PullPolicy};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// A token server whose tokens the registry believes. The user is `orders` with the password `secret`, who may do
/// everything in the repository `shop`; the refresh token `refresh` is theirs, too. Nobody else may do anything.
struct TokenServer {
    address: String,
    /// The requests: method and path or form.
    asked: Arc<Mutex<Vec<String>>>,
}

impl TokenServer {
    fn start(keys: Keys, life: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &keys, life, &log);
            }
        });
        Self { address, asked }
    }

    /// The lines of the registry's configuration that make it believe this server.
    fn registry(&self, authority: &Path) -> Registry {
        Registry::start(&format!(
            "auth:\n  token:\n    realm: http://{}/token\n    service: the shop\n    issuer: shop\n    rootcertbundle: {}\n",
            self.address,
            authority.display()
        ))
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(mut stream: TcpStream, keys: &Keys, life: u64, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let head: Vec<_> =
        reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let Some(first) = head.first() else { return };
    let field = |name: &str| head.iter().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    let length = field("content-length: ").map_or(0, |length| length.parse().unwrap());
    let mut form = vec![0; length];
    reader.read_exact(&mut form).unwrap();
    let form = String::from_utf8(form).unwrap();
    log.lock().unwrap().push(format!("{} {form}", first.trim_end_matches(" HTTP/1.1")).trim_end().to_owned());
    let known = field("authorization: ").is_some_and(|value| value == "Basic b3JkZXJzOnNlY3JldA==")
        || form.contains("refresh_token=refresh&")
        || form.ends_with("refresh_token=refresh");
    let actions = if known { json!(["pull", "push"]) } else { json!([]) };
    let token = token(keys, life, &actions);
    // The two forms of the answer are those of the two forms of the question.
    let name = if form.is_empty() { "token" } else { "access_token" };
    let body = json!({name: token, "expires_in": life}).to_string();
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all((head + &body).as_bytes());
}

fn token(keys: &Keys, life: u64, actions: &Value) -> String {
    let pem = std::fs::read_to_string(&keys.certificate).unwrap();
    let certificate: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(json!({"typ": "JWT", "alg": "RS256", "x5c": [certificate]}));
    let claims = part(json!({
        "iss": "shop", "sub": "", "aud": "the shop", "exp": now + life.max(60), "nbf": now - 10, "iat": now, "jti": "1",
        "access": [{"type": "repository", "name": "shop", "actions": actions}],
    }));
    let signed = format!("{head}.{claims}");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(keys.sign(&signed)))
}

fn credentials(registry: &Registry, entry: &Value) -> StoreOptions {
    let inline = json!({"auths": {&registry.address: entry}}).to_string();
    StoreOptions { credentials: Credentials { inline: Some(inline), files: Vec::new() }, ..quick() }
}

fn password() -> Value {
    json!({"auth": STANDARD.encode("orders:secret")})
}

/// Pushes the shop's image from a layout and pulls it into another store.
async fn there_and_back(registry: &Registry, work: &Path, options: &StoreOptions) -> Result<Store, Failure> {
    let from = store_with(&work.join("from"), options.clone()).await;
    if !work.join("layout").exists() {
        shop().layout(&work.join("layout"), "1");
    }
    let layout = format!("oci:{}", work.join("layout").display());
    let image = resolve(&from, &layout, PullPolicy::Missing).await.unwrap();
    let name = format!("{}/shop:1", registry.address);
    from.push(&image, &name.parse().unwrap(), Arc::new(|_, _, _| {})).await?;
    let to = store_with(&work.join("to"), options.clone()).await;
    let pulled = resolve(&to, &name, PullPolicy::Missing).await?;
    assert_eq!(pulled.image.id, image.image.id);
    assert_consistent(&work.join("to"));
    Ok(to)
}

/// `docker login` at a registry with a token server opens it, for pushing and pulling; a token is used until it ends.
#[tokio::test]
async fn a_password_is_exchanged_for_tokens() {
    let work = tempfile::tempdir().unwrap();
    let (keys, authority) = (Keys::make(work.path()), work.path().join("authority.pem"));
    let tokens = TokenServer::start(keys, 300);
    let registry = tokens.registry(&authority);
    there_and_back(&registry, work.path(), &credentials(&registry, &password())).await.unwrap();
    let asked = |actions: &str| format!("GET /token?service=the%20shop&scope=repository:shop:{actions}");
    assert_eq!(tokens.asked(), [asked("pull,push"), asked("pull")]);
}

/// A token that has ended is replaced, also in the middle of a pull.
#[tokio::test]
async fn tokens_that_end_are_replaced() {
    let work = tempfile::tempdir().unwrap();
    let (keys, authority) = (Keys::make(work.path()), work.path().join("authority.pem"));
    let tokens = TokenServer::start(keys, 1);
    let registry = tokens.registry(&authority);
    there_and_back(&registry, work.path(), &credentials(&registry, &password())).await.unwrap();
    assert!(tokens.asked().len() > 8, "{:?}", tokens.asked());
}

/// A login through a browser leaves an identity token, which opens the registry as a password does.
#[tokio::test]
async fn identity_tokens_are_exchanged() {
    let work = tempfile::tempdir().unwrap();
    let (keys, authority) = (Keys::make(work.path()), work.path().join("authority.pem"));
    let tokens = TokenServer::start(keys, 300);
    let registry = tokens.registry(&authority);
    let options = credentials(&registry, &json!({"identitytoken": "refresh"}));
    there_and_back(&registry, work.path(), &options).await.unwrap();
    let form = "POST /token grant_type=refresh_token&client_id=shakedown&service=the%20shop\
                &scope=repository%3Ashop%3Apull&refresh_token=refresh";
    assert!(tokens.asked().contains(&form.to_owned()), "{:?}", tokens.asked());
}

/// Who may not push is told what to do; who may not pull, too.
#[tokio::test]
async fn refusals_are_told() {
    let work = tempfile::tempdir().unwrap();
    let (keys, authority) = (Keys::make(work.path()), work.path().join("authority.pem"));
    let tokens = TokenServer::start(keys, 300);
    let registry = tokens.registry(&authority);
    let say = |failure: Failure| shown(&failure, &registry.address, work.path());
    let nobody = there_and_back(&registry, work.path(), &quick()).await.unwrap_err();
    insta::assert_snapshot!(say(nobody), @"
    image 127.0.0.1:5000/shop:1 could not be pushed
      registry: http://127.0.0.1:5000
      request:  HEAD /v2/shop/blobs/sha256:54e6a721b287a2768b37b14764bb901b404f24808f6a56414bebbcf1e76d21fe
      answer:   status 401
    hint: log in with `docker login 127.0.0.1:5000`
    ");
    let entry = json!({"auth": STANDARD.encode("orders:wrong")});
    let wrong = there_and_back(&registry, work.path(), &credentials(&registry, &entry)).await.unwrap_err();
    insta::assert_snapshot!(say(wrong), @"
    image 127.0.0.1:5000/shop:1 could not be pushed
      registry: http://127.0.0.1:5000
      request:  HEAD /v2/shop/blobs/sha256:54e6a721b287a2768b37b14764bb901b404f24808f6a56414bebbcf1e76d21fe
      answer:   status 401
    hint: the password for this registry in Docker's or Podman's configuration does not open this repository
    ");
    let store = store_with(&work.path().join("store"), quick()).await;
    let source = format!("{}/shop:1", registry.address);
    let failure = resolve(&store, &source, PullPolicy::Missing).await.unwrap_err();
    insta::assert_snapshot!(say(failure), @"
    image 127.0.0.1:5000/shop:1 was not found
      registry: http://127.0.0.1:5000
      answer:   status 401, UNAUTHORIZED: authentication required
    hint: check the name, or log in with `docker login 127.0.0.1:5000` if the repository is private
    ");
}

/// A registry that knows one user, with an image.
fn with_password(work: &Path) -> Registry {
    // bcrypt of `secret`, the only form the registry takes.
    let hash = "orders:$2b$05$2jZnuwh/QA3ho0gcgIFrZ.W.9NRxo8GY96QKluc5WhT1572uqh9HC";
    std::fs::write(work.join("htpasswd"), hash).unwrap();
    let auth = format!("auth:\n  htpasswd:\n    realm: shop\n    path: {}/htpasswd\n", work.display());
    let registry = Registry::start(&auth);
    registry.push(&shop(), "shop", "1", "Authorization: Basic b3JkZXJzOnNlY3JldA==\r\n");
    registry
}

/// What `docker login` set up works here: the helper of a registry, the store for all, the variable of CI systems,
/// Podman's file.
#[tokio::test]
async fn the_environment_is_that_of_docker_and_podman() {
    let work = tempfile::tempdir().unwrap();
    let registry = with_password(work.path());
    let source = format!("{}/shop:1", registry.address);
    let helper = work.path().join("docker-credential-vault");
    let answer = r#"{"ServerURL": "", "Username": "orders", "Secret": "secret"}"#;
    std::fs::write(
        &helper,
        format!("#!/bin/sh\nread server\n[ \"$server\" = {} ] && echo '{answer}'", registry.address),
    )
    .unwrap();
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", work.path().display(), std::env::var("PATH").unwrap());
    let file = json!({"auths": {&registry.address: password()}}).to_string();
    for (number, (name, content)) in [
        ("config.json", json!({"credHelpers": {&registry.address: "vault"}}).to_string()),
        ("config.json", json!({"credsStore": "vault", "auths": {&registry.address: {}}}).to_string()),
        ("config.json", file.clone()),
        ("containers/auth.json", file.clone()),
        ("DOCKER_AUTH_CONFIG", file),
    ]
    .into_iter()
    .enumerate()
    {
        let place = work.path().join(number.to_string());
        std::fs::create_dir_all(place.join("containers")).unwrap();
        let mut child = child(&[], "auth::pull_as_the_environment_says", &place.join("store"), &source);
        child
            .env("PATH", &path)
            .env("HOME", &place)
            .env("DOCKER_CONFIG", &place)
            .env("XDG_RUNTIME_DIR", &place);
        if name == "DOCKER_AUTH_CONFIG" {
            child.env(name, content);
        } else {
            std::fs::write(place.join(name), content).unwrap();
        }
        assert!(child.status().unwrap().success(), "{number}: {name}");
    }
}

/// The body of the child processes of the test above.
#[tokio::test]
#[ignore = "another test runs it in an environment of its own"]
async fn pull_as_the_environment_says() {
    let told = |name: &str| std::env::var(name).expect("set by the test that runs this one");
    let unpacker = Arc::new(LocalUnpacker::of_this_process());
    let store = Store::open(told("SHAKEDOWN_TEST_STORE").as_ref(), unpacker).await.unwrap();
    resolve(&store, &told("SHAKEDOWN_TEST_SOURCE"), PullPolicy::Missing).await.unwrap();
}

/// A credential helper that is not there is named.
#[tokio::test]
async fn missing_helpers_are_named() {
    let work = tempfile::tempdir().unwrap();
    let registry = with_password(work.path());
    let inline = json!({"credHelpers": {&registry.address: "that-is-not-there"}}).to_string();
    let credentials = Credentials { inline: Some(inline), files: Vec::new() };
    let failure = there_and_back(&registry, work.path(), &StoreOptions { credentials, ..quick() }).await;
    insta::assert_snapshot!(shown(&failure.unwrap_err(), &registry.address, work.path()), @"
    image 127.0.0.1:5000/shop:1 could not be pushed
      registry:  http://127.0.0.1:5000
      request:   HEAD /v2/shop/blobs/sha256:54e6a721b287a2768b37b14764bb901b404f24808f6a56414bebbcf1e76d21fe
      answer:    status 401
      passwords: DOCKER_AUTH_CONFIG: docker-credential-that-is-not-there: no such file or directory
    hint: log in with `docker login 127.0.0.1:5000`
    ");
}

/// A registry with a certificate of the company's own is trusted where it is declared, and nowhere else.
#[tokio::test]
async fn a_declared_authority_is_trusted() {
    let work = tempfile::tempdir().unwrap();
    let keys = Keys::make(work.path());
    let (certificate, key) = (keys.certificate.display(), keys.key.display());
    let registry = Registry::start(&format!("  tls:\n    certificate: {certificate}\n    key: {key}\n"));
    let with = |ca: &Path| {
        let config = RegistryConfig { ca: Some(ca.to_owned()), ..RegistryConfig::default() };
        let registries = RegistriesConfig { registries: [(registry.address.clone(), config)].into() };
        StoreOptions { registries, ..quick() }
    };
    there_and_back(&registry, work.path(), &with(&keys.authority)).await.unwrap();
    let say = |failure: Failure| shown(&failure, &registry.address, work.path());
    let other = tempfile::tempdir().unwrap();
    let stranger = Keys::make(other.path());
    let store = store_with(&work.path().join("other"), with(&stranger.authority)).await;
    let source = format!("{}/shop:1", registry.address);
    let failure = resolve(&store, &source, PullPolicy::Missing).await.unwrap_err();
    insta::assert_snapshot!(say(failure), @r#"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: https://127.0.0.1:5000
      reason:   invalid peer certificate: BadSignature
    hint: for a registry with an authority of its own, name the authority's certificate in `shakedown.toml`: `[registries."127.0.0.1:5000"]`, `ca = "FILE.pem"`
    "#);
    let store = store_with(&work.path().join("other"), with(&work.path().join("nothing.pem"))).await;
    let failure = resolve(&store, &source, PullPolicy::Missing).await.unwrap_err();
    insta::assert_snapshot!(say(failure), @"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: https://127.0.0.1:5000
      reason:   the certificates in `DIR/nothing.pem` cannot be used: no such file or directory
    ");
}
