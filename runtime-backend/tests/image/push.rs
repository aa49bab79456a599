//! Images sent to a registry.

use crate::images::{LAYER, Parts, assert_consistent, quick, resolve, shop, store_with};
use crate::proxy::{Asked, Fault, Proxy};
use crate::server::{Registry, shown};
use crate::tape::{Entry, FILE, Tape};
use serde_json::Value;
use shakedown_runtime::native::image::{Store, StoredImage};
use shakedown_spec::{Failure, PullPolicy};
use std::sync::Arc;

struct Scene {
    work: tempfile::TempDir,
    registry: Registry,
    proxy: Proxy,
    store: Store,
}

impl Scene {
    async fn new(fault: impl Fn(&Asked, &[Asked]) -> Fault + Send + Sync + 'static) -> Self {
        let work = tempfile::tempdir().unwrap();
        let registry = Registry::start("");
        let proxy = Proxy::start(&registry.address, fault);
        let mut options = quick();
        options.retry.attempts = 6;
        let store = store_with(&work.path().join("store"), options).await;
        Self { work, registry, proxy, store }
    }

    /// An image from a layout.
    async fn image(&self, parts: &Parts) -> StoredImage {
        let layout = self.work.path().join("layout");
        parts.layout(&layout, "1");
        resolve(&self.store, &format!("oci:{}", layout.display()), PullPolicy::Missing).await.unwrap()
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.proxy.address)
    }

    async fn push(&self, image: &StoredImage, name: &str) -> Result<String, Failure> {
        self.store.push(image, &self.name(name).parse().unwrap(), Arc::new(|_, _, _| {})).await
    }

    /// Pulls the image into a store of its own.
    async fn pull(&self, name: &str) -> StoredImage {
        let root = self.work.path().join("other");
        let image = resolve(&store_with(&root, quick()).await, &self.name(name), PullPolicy::Missing).await;
        assert_consistent(&root);
        assert_consistent(&self.work.path().join("store"));
        image.unwrap()
    }

    fn count(&self, method: &str) -> usize {
        self.proxy.asked().iter().filter(|asked| asked.method == method).count()
    }

    fn manifest(&self, name: &str) -> Value {
        let (_, answer) = self.registry.send(
            "GET",
            &format!("/v2/{name}"),
            "Accept: application/vnd.oci.image.manifest.v1+json\r\n",
            b"",
        );
        serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap()
    }
}

fn pass(_: &Asked, _: &[Asked]) -> Fault {
    Fault::Pass
}

/// An image arrives as it is, digest included, and nothing is sent that is there already.
#[tokio::test]
async fn an_image_is_pushed_once() {
    let scene = Scene::new(pass).await;
    let image = scene.image(&shop()).await;
    let digest = scene.push(&image, "shop:1").await.unwrap();
    assert_eq!(scene.count("PATCH"), 4);
    assert_eq!(scene.push(&image, "shop:2").await.unwrap(), digest);
    assert_eq!(scene.count("PATCH"), 4);
    let pulled = scene.pull(&format!("shop@{digest}")).await;
    assert_eq!(pulled.image.id, image.image.id);
    assert_eq!(std::fs::read(pulled.layers[1].join("etc/shop")).unwrap(), b"orders");
}

/// A blob that another repository of the registry has is not sent again.
#[tokio::test]
async fn blobs_of_other_repositories_are_mounted() {
    let scene = Scene::new(pass).await;
    scene.registry.push(&shop(), "shop", "1", "");
    let image = resolve(&scene.store, &scene.name("shop:1"), PullPolicy::Missing).await.unwrap();
    scene.push(&image, "copies/shop:1").await.unwrap();
    assert_eq!((scene.count("POST"), scene.count("PATCH")), (4, 0));
    assert_eq!(scene.pull("copies/shop:1").await.image.id, image.image.id);
}

/// Layers that lie here uncompressed travel compressed; the image stays the same.
#[tokio::test]
async fn plain_layers_are_compressed_for_the_way() {
    let scene = Scene::new(pass).await;
    let archive = scene.work.path().join("shop.tar");
    std::fs::write(&archive, shop().docker_archive("shop:1")).unwrap();
    let source = format!("docker-archive:{}", archive.display());
    let image = resolve(&scene.store, &source, PullPolicy::Missing).await.unwrap();
    scene.push(&image, "shop:1").await.unwrap();
    let manifest = scene.manifest("shop/manifests/1");
    let layers = manifest["layers"].as_array().unwrap();
    assert!(layers.iter().all(|layer| layer["mediaType"] == LAYER), "{manifest}");
    assert!(layers[2]["size"].as_u64().unwrap() < 1000, "{manifest}");
    assert_eq!(scene.pull("shop:1").await.image.id, image.image.id);
}

/// A connection that breaks in the middle of a layer, and a registry that is busy, are overcome.
#[tokio::test]
async fn broken_uploads_are_made_again() {
    let scene = Scene::new(|asked, before| {
        let earlier = before.iter().filter(|other| other.method == asked.method).count();
        match asked.method.as_str() {
            "PATCH" if earlier == 0 => Fault::Drop(100_000),
            "POST" | "PUT" if earlier < 2 => {
                let answer = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                Fault::Answer(answer.to_owned())
            }
            _ => Fault::Pass,
        }
    });
    let scene = scene.await;
    // Not compressed, so that it is long.
    let wares = "0123456789abcdef".repeat(40_000);
    let wares = Tape::default().entry(Entry::new(FILE, "wares").data(wares)).done();
    let mut parts = Parts::of(std::slice::from_ref(&wares));
    parts.blobs = vec![wares];
    parts.describe();
    parts.manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar".into();
    let image = scene.image(&parts).await;
    scene.push(&image, "shop:1").await.unwrap();
    assert_eq!(scene.pull("shop:1").await.image.id, image.image.id);
}

/// A registry that refuses says why, in its own words.
#[tokio::test]
async fn refusals_are_told() {
    let answer = "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 81\r\nConnection: close\r\n\r\n\
                  {\"errors\":[{\"code\":\"UNSUPPORTED\",\"message\":\"The operation is unsupported: cache\"}]}";
    let answer = answer.replace(": 81", &format!(": {}", answer.split("\r\n\r\n").nth(1).unwrap().len()));
    let scene = Scene::new(move |asked, _| match asked.method.as_str() {
        "POST" => Fault::Answer(answer.clone()),
        _ => Fault::Pass,
    });
    let scene = scene.await;
    let parts = Parts::of(&[]);
    let image = scene.image(&parts).await;
    let failure = scene.push(&image, "shop:1").await.unwrap_err();
    insta::assert_snapshot!(shown(&failure, &scene.proxy.address, scene.work.path()), @"
    image 127.0.0.1:5000/shop:1 could not be pushed
      registry: http://127.0.0.1:5000
      request:  POST /v2/shop/blobs/uploads/
      answer:   status 405, UNSUPPORTED: The operation is unsupported: cache
    ");
    assert_consistent(&scene.work.path().join("store"));
}
