//! What is locked, offline, bundled, replaced: a real registry on loopback, the command line, both drivers.

use crate::lab::{Lab, check};
use crate::registry::{Registry, own_busybox};
use shakedown_server::client::Client;
use shakedown_spec::{Configure, Container, Failure, FailureKind, PullPolicy, Wait};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const DRIVERS: [&str; 2] = ["native", "docker"];

/// A project with tests, on a machine with a store of its own.
pub(crate) struct Shop<'a> {
    lab: &'a Lab,
    driver: &'static str,
    pub(crate) directory: PathBuf,
    store: PathBuf,
}

impl<'a> Shop<'a> {
    pub(crate) fn new(lab: &'a Lab, driver: &'static str) -> Self {
        let directory = lab.path().join(format!("shop-{driver}"));
        std::fs::create_dir_all(&directory).unwrap();
        Self { lab, driver, store: lab.path().join(format!("store-{driver}")), directory }
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.join(name), text).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shakedown"));
        command
            .args(arguments)
            .env("SHAKEDOWN_RUN_DIR", self.lab.run())
            .env("SHAKEDOWN_DRIVER", self.driver)
            .env("SHAKEDOWN_STORE", &self.store)
            .env("HOME", self.lab.path())
            .env_remove("SHAKEDOWN_SOCKET")
            .current_dir(&self.directory);
        command
    }

    /// What the command says: standard output, or standard error if it fails.
    pub(crate) fn says(&self, arguments: &[&str]) -> Result<String, String> {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        if status.success() { Ok(text(&stdout)) } else { Err(text(&stderr)) }
    }

    /// Starts a container of this declaration under a server with these options, and waits until it has ended well.
    async fn run(&self, options: &[&str], container: &Container) -> Result<(), Failure> {
        let socket = self.lab.path().join(format!("{}.sock", self.driver));
        let mut server = Server::start(self, &socket, options);
        let client = Client::at(socket).await.unwrap();
        let started = match client.lease("shop", &self.directory).await {
            Ok(lease) => client.start_container(lease.id(), container).await,
            Err(failure) => Err(failure),
        };
        client.end_session().await.unwrap();
        assert!(server.0.wait().unwrap().success());
        started.map(drop)
    }

    /// Takes the image out of the store: the machine is as if it had never had it.
    async fn forget(&self, image: &str) {
        match self.driver {
            "native" => drop(shakedown_runtime::native::image::remove_tree(&self.store)),
            _ => {
                let docker = crate::lab::docker().await;
                let options = bollard::query_parameters::RemoveImageOptionsBuilder::new().force(true).build();
                let id = docker.inspect_image(image).await.unwrap().id.unwrap();
                docker.remove_image(&id, Some(options), None).await.unwrap();
            }
        }
    }
}

/// A server in the foreground. It is killed with the test.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(shop: &Shop<'_>, socket: &Path, options: &[&str]) -> Self {
        let mut command = shop.command(&["serve", "--socket", socket.to_str().unwrap()]);
        let mut server = Self(command.args(options).stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("SHAKEDOWN_SOCKET="), "{line}");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Ends well on the busybox image, and not on another one.
fn busybox(image: &str) -> Container {
    Container::of(image).name("orders").command(["/bin/busybox", "true"]).wait(Wait::exit_code(0))
}

/// With the address, digests and directories of this run taken out.
fn shown(text: &str, lab: &Lab, names: &[(&str, &str)]) -> String {
    let mut text = text.replace(lab.path().to_str().unwrap(), "DIR");
    for (from, to) in names {
        text = text.replace(from, to);
    }
    text
}

/// A tag that moved in the registry changes nothing without being seen: a locked run refuses it and names both, any
/// other run takes the locked image, and `lock --update` takes the new one.
#[test]
fn a_moved_tag_is_refused_or_ignored() {
    check(async |lab| {
        for driver in DRIVERS {
            let (registry, shop) = (Registry::start(), Shop::new(lab, driver));
            let image = format!("{}/shop/orders:1", registry.address);
            let first = registry.push("busybox", "shop/orders:1");
            let names = |second: &str| {
                [
                    (registry.address.clone(), "REGISTRY"),
                    (first.clone(), "FIRST"),
                    (second.to_owned(), "SECOND"),
                ]
            };
            let say = |text: &str, second: &str| {
                let names = names(second);
                let names: Vec<_> = names.iter().map(|(from, to)| (from.as_str(), *to)).collect();
                shown(text, lab, &names)
            };
            let refused = shop.run(&["--locked"], &busybox(&image)).await.unwrap_err().to_string();
            let refused = say(&refused, "none yet").replace(driver, "DRIVER");
            insta::allow_duplicates! { insta::assert_snapshot!(refused, @r"
            image REGISTRY/shop/orders:1 is not in shakedown.lock
              file:   DIR/shop-DRIVER/shakedown.lock is not there
              reason: `locked` allows only images whose digests are written down
            hint: `shakedown lock REGISTRY/shop/orders:1` adds it
            "); }
            let added = say(&shop.says(&["lock", &image]).unwrap(), "none yet");
            insta::allow_duplicates! { insta::assert_snapshot!(added, @"added    REGISTRY/shop/orders:1 FIRST"); }
            shop.run(&["--locked"], &busybox(&image)).await.unwrap();

            let second = registry.push("redis", "shop/orders:1");
            let moved = shop.run(&["--locked"], &busybox(&image)).await.unwrap_err().to_string();
            let moved = say(&moved, &second).replace(driver, "DRIVER");
            insta::allow_duplicates! { insta::assert_snapshot!(moved, @r"
            image REGISTRY/shop/orders:1 is not what shakedown.lock says
              locked:   FIRST
              registry: SECOND
              file:     DIR/shop-DRIVER/shakedown.lock
            hint: `shakedown lock --update REGISTRY/shop/orders:1` takes the new one; without `locked` the locked one is run
            "); }
            shop.run(&[], &busybox(&image)).await.unwrap();
            shop.run(&[], &busybox(&image).pull_policy(PullPolicy::Always)).await.unwrap();
            assert!(
                shop.says(&["lock", "--check"]).unwrap_err().contains("shakedown.lock is not up to date")
            );

            let updated = say(&shop.says(&["lock", "--update", &image]).unwrap(), &second);
            insta::allow_duplicates! { insta::assert_snapshot!(updated, @"updated  REGISTRY/shop/orders:1 SECOND (was FIRST)"); }
            assert_eq!(shop.says(&["lock", "--check"]).unwrap(), "nothing changed: 1 images are locked\n");
            assert!(shop.run(&["--locked"], &busybox(&image)).await.is_err(), "the new image has no busybox");
        }
    });
}

/// A machine without network runs what a bundle brought, byte for byte what was locked; without the bundle it says all
/// that is missing.
#[test]
fn a_bundle_runs_without_network() {
    check(async |lab| {
        for driver in DRIVERS {
            let (registry, shop) = (Registry::start(), Shop::new(lab, driver));
            let image = format!("{}/shop/orders:1", registry.address);
            let other = format!("{}/shop/refunds:1", registry.address);
            let own = own_busybox(&shop.directory.join("layout"));
            let digest = registry.push_source(&own, "shop/orders:1");
            registry.push_source(&own, "shop/refunds:1");
            shop.says(&["lock", &image, &other]).unwrap();
            shop.run(&[], &busybox(&image)).await.unwrap();
            assert_eq!(shop.says(&["bundle", "export", "-o", "one.tar"]).unwrap().lines().count(), 2);
            shop.says(&["bundle", "export", "-o", "two.tar"]).unwrap();
            let bundle = std::fs::read(shop.directory.join("one.tar")).unwrap();
            assert!(
                bundle == std::fs::read(shop.directory.join("two.tar")).unwrap(),
                "the same bundle twice"
            );
            let size = bundle.len();
            accepted_by_skopeo(&shop, &image);

            let address = registry.address.clone();
            drop(registry);
            shop.forget(&format!("{address}/shop/orders@{digest}")).await;
            let missing = shop.run(&["--offline", "--locked"], &busybox(&image)).await.unwrap_err();
            assert_eq!(missing.kind, FailureKind::ImageNotFound);
            let missing = missing.to_string();
            assert!(missing.contains("shop/orders:1") && missing.contains("shop/refunds:1"), "{missing}");
            assert!(missing.contains("shakedown bundle import FILE"), "{missing}");

            damaged(&shop, bundle);
            let imported = shop.says(&["bundle", "import", "one.tar"]).unwrap();
            assert_eq!(imported.lines().count(), 2, "{imported}");
            shop.run(&["--offline", "--locked"], &busybox(&image)).await.unwrap();
            shop.run(&["--offline", "--locked"], &busybox(&other)).await.unwrap();
            shop.run(&["--offline"], &busybox(&image).pull_policy(PullPolicy::Always)).await.unwrap();
            // Without the network that lock needs, the lock stays as it is.
            let lock = shop.command(&["lock"]).env("SHAKEDOWN_OFFLINE", "1").output().unwrap();
            assert!(text(&lock.stderr).contains("nothing can be locked offline"));
            assert!(size < 20 << 20, "the two images share their layers: {size} at {address}");
        }
    });
}

/// Other tools read a bundle by the same names.
fn accepted_by_skopeo(shop: &Shop<'_>, image: &str) {
    let from = format!("oci-archive:{}:{image}", shop.directory.join("one.tar").display());
    let to = format!("dir:{}", shop.directory.join("copied").display());
    let copied = Command::new("skopeo").args(["copy", "--insecure-policy", &from, &to]).output().unwrap();
    assert!(copied.status.success(), "{}", text(&copied.stderr));
}

/// A bit that fell over on the way is found.
fn damaged(shop: &Shop<'_>, mut bundle: Vec<u8>) {
    let middle = bundle.len() / 2;
    bundle[middle] ^= 1;
    std::fs::write(shop.directory.join("damaged.tar"), bundle).unwrap();
    let refused = shop.says(&["bundle", "import", "damaged.tar"]).unwrap_err();
    assert!(refused.contains("digest"), "{refused}");
}

/// `shakedown lock -- cargo test` writes down what the tests really used.
#[test]
fn a_command_is_watched_for_what_it_uses() {
    check(async |lab| {
        let (registry, shop) = (Registry::start(), Shop::new(lab, "native"));
        let digest = registry.push("busybox", "shop/orders:1");
        shop.write("shakedown.toml", &format!("[images]\n\"shop/*\" = \"{}/shop/*\"\n", registry.address));
        let actor = std::env::current_exe().unwrap();
        let play = ["--exact", "actor::act", "--ignored", "--nocapture"];
        let ran = shop
            .command(&[&["lock", "--", actor.to_str().unwrap()][..], &play[..]].concat())
            .env("SHAKEDOWN_TEST_PLAY", "image")
            .env("SHAKEDOWN_TEST_IMAGE", "shop/orders:1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        let lock = std::fs::read_to_string(shop.directory.join("shakedown.lock")).unwrap();
        // By the name that the tests use: where it is fetched from is another matter.
        assert!(lock.contains("reference = \"docker.io/shop/orders:1\""), "{lock}");
        assert!(lock.contains(&digest), "{lock}");
        shop.run(&["--locked"], &busybox("shop/orders:1")).await.unwrap();
    });
}

/// When the registry is asked is the project's choice, and a single machine's.
#[test]
fn policies_come_from_the_declaration_the_file_and_the_environment() {
    check(async |lab| {
        for driver in DRIVERS {
            let (registry, shop) = (Registry::start(), Shop::new(lab, driver));
            let image = format!("{}/shop/orders:1", registry.address);
            registry.push("busybox", "shop/orders:1");
            let with = async |toml: &str, container: Container| {
                shop.write("shakedown.toml", toml);
                shop.run(&[], &container).await
            };
            let missing = with("pull_policy = \"never\"", busybox(&image)).await.unwrap_err();
            assert_eq!(missing.kind, FailureKind::ImageNotFound);
            with("", busybox(&image)).await.unwrap();
            registry.push("redis", "shop/orders:1");
            with("", busybox(&image)).await.unwrap();
            with("pull_policy = \"older-than:1h\"", busybox(&image)).await.unwrap();
            let declared = busybox(&image).pull_policy(PullPolicy::Missing);
            with("pull_policy = \"always\"", declared).await.unwrap();
            with("pull_policy = \"older-than:0s\"", busybox(&image)).await.unwrap_err();
            registry.push("busybox", "shop/orders:1");
            with("pull_policy = \"always\"", busybox(&image)).await.unwrap();
        }
    });
}

/// A mirror that `shakedown.toml` names is asked in the registry's place.
#[test]
fn mirrors_come_from_the_file() {
    check(async |lab| {
        let (registry, shop) = (Registry::start(), Shop::new(lab, "native"));
        registry.push("busybox", "shop/orders:1");
        let mirrors = format!("[registries.\"registry.invalid\"]\nmirrors = [\"{}\"]\n", registry.address);
        shop.write("shakedown.toml", &mirrors);
        shop.run(&[], &busybox("registry.invalid/shop/orders:1")).await.unwrap();
    });
}

/// An image for a processor that cannot be had here is refused before it is fetched.
#[test]
fn a_foreign_platform_is_refused() {
    // A machine that emulates every processor known to QEMU still has no Windows.
    check(async |lab| {
        for driver in DRIVERS {
            let shop = Shop::new(lab, driver);
            let declared = busybox("registry.invalid/shop/orders:1").platform("windows/amd64");
            let refused = shop.run(&[], &declared).await.unwrap_err();
            assert_eq!(refused.kind, FailureKind::Unsupported);
            let here = format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" });
            let refused = refused.to_string().replace(&here, "HERE");
            insta::allow_duplicates! { insta::assert_snapshot!(refused, @r"
            orders cannot run here: its image is for windows/amd64
              reason: a machine of kind HERE has no windows programs
            hint: leave `.platform(..)` out to run the image for this machine
            "); }
        }
    });
}
