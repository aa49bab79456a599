//! Mirrors: asked first, trusted with nothing.

use crate::images::{assert_consistent, quick, resolve, shop, store_with};
use crate::proxy::{Asked, Fault, Proxy};
use crate::server::{Registry, shown};
use shakedown_runtime::native::image::{RegistriesConfig, RegistryConfig, StoreOptions};
use shakedown_spec::PullPolicy;

struct Scene {
    work: tempfile::TempDir,
    mirror: Proxy,
    main: Proxy,
    _registries: [Registry; 2],
}

impl Scene {
    /// A registry and a mirror of it, which both have the image, and their faults.
    fn new(
        mirror: impl Fn(&Asked, &[Asked]) -> Fault + Send + Sync + 'static,
        main: impl Fn(&Asked, &[Asked]) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let registries = [Registry::start(""), Registry::start("")];
        registries[0].push(&shop(), "cache/shop", "1", "");
        registries[1].push(&shop(), "shop", "1", "");
        let mirror = Proxy::start(&registries[0].address, mirror);
        let main = Proxy::start(&registries[1].address, main);
        Self { work: tempfile::tempdir().unwrap(), mirror, main, _registries: registries }
    }

    async fn pull(&self) -> Result<usize, String> {
        let config = RegistryConfig {
            mirrors: vec![format!("{}/cache", self.mirror.address)],
            ..RegistryConfig::default()
        };
        let registries = RegistriesConfig { registries: [(self.main.address.clone(), config)].into() };
        let root = self.work.path().join("store");
        let store = store_with(&root, StoreOptions { registries, ..quick() }).await;
        let image = resolve(&store, &format!("{}/shop:1", self.main.address), PullPolicy::Missing).await;
        assert_consistent(&root);
        image.map(|image| image.layers.len()).map_err(|failure| {
            let text = shown(&failure, &self.main.address, self.work.path());
            text.replace(&self.mirror.address, "127.0.0.1:4000")
        })
    }
}

fn pass(_: &Asked, _: &[Asked]) -> Fault {
    Fault::Pass
}

fn is_blob(asked: &Asked) -> bool {
    asked.path.contains("/blobs/")
}

fn status(status: &str) -> Fault {
    Fault::Answer(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
}

/// What a mirror has is not fetched from far away.
#[tokio::test]
async fn a_mirror_spares_the_registry() {
    let scene = Scene::new(pass, pass);
    assert_eq!(scene.pull().await, Ok(3));
    assert_eq!(scene.main.asked().len(), 0);
    assert!(scene.mirror.asked().iter().all(|asked| asked.path.starts_with("/v2/cache/shop/")));
}

/// A mirror that is down, empty or overloaded delays nothing for long and breaks nothing.
#[tokio::test]
async fn a_mirror_that_fails_is_passed_over() {
    for answer in ["404 Not Found", "401 Unauthorized", "503 Busy", "429 Too Many Requests"] {
        let scene = Scene::new(move |_, _| status(answer), pass);
        assert_eq!(scene.pull().await, Ok(3), "{answer}");
    }
    let without_blobs =
        Scene::new(|asked, _| if is_blob(asked) { status("404 Not Found") } else { Fault::Pass }, pass);
    assert_eq!(without_blobs.pull().await, Ok(3));
    assert_eq!(without_blobs.main.asked().iter().filter(|asked| is_blob(asked)).count(), 4);
}

/// What a mirror gives wrong is fetched from the registry: a mirror cannot change an image.
#[tokio::test]
async fn a_mirror_that_lies_is_found_out() {
    let scene = Scene::new(|asked, _| if is_blob(asked) { Fault::Spoil(50) } else { Fault::Pass }, pass);
    assert_eq!(scene.pull().await, Ok(3));
    assert_eq!(scene.main.asked().iter().filter(|asked| is_blob(asked)).count(), 4);
}

/// A blob that breaks off at the mirror goes on at the registry, from the same byte.
#[tokio::test]
async fn a_blob_goes_on_at_the_registry() {
    let scene = Scene::new(|asked, _| if is_blob(asked) { Fault::Cut(40) } else { Fault::Pass }, pass);
    assert_eq!(scene.pull().await, Ok(3));
    let ranges: Vec<_> = scene.main.asked().into_iter().filter_map(|asked| asked.range).collect();
    assert_eq!(ranges, ["bytes=40-"; 4]);
}

/// Where nobody has it, the failure says what the mirror said, too.
#[tokio::test]
async fn the_failure_names_the_mirror() {
    let scene = Scene::new(|_, _| status("503 Busy"), |_, _| status("400 Bad Request"));
    insta::assert_snapshot!(scene.pull().await.unwrap_err(), @"
    image 127.0.0.1:5000/shop:1 could not be fetched
      registry: http://127.0.0.1:5000
      request:  GET /v2/shop/manifests/1
      answer:   status 400
      mirror:   http://127.0.0.1:4000: status 503
    ");
}
