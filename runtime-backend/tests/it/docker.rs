//! The Docker driver against a real daemon, at `SHAKEDOWN_DOCKER_HOST` or `DOCKER_HOST`.
//!
//! The images are those of `target/images` (`SHAKEDOWN_TEST_IMAGES` names another directory). A missing daemon or
//! image is a failure, never a silent success.

use futures_util::FutureExt;
use shakedown_runtime::docker::{DockerDriver, SESSION_LABEL, candidates, connect_first};
use shakedown_runtime::{Create, Driver, ExecOutput, ExecRequest, LogBook};
use shakedown_spec::{
    Attachment, Container, Endpoints, FailureKind, File, ImageSource, Mount, Network, Port, PullPolicy,
    Stream,
};
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A session of its own for one test.
#[derive(Clone)]
pub(crate) struct Lab {
    pub(crate) driver: Arc<DockerDriver>,
    session: String,
    made: Arc<Mutex<Vec<String>>>,
    networks: Arc<Mutex<Vec<String>>>,
}

/// Runs a test in a session of its own, removes what it started through the driver, and looks for what is left.
pub(crate) async fn check<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F) {
    let session = format!("it-{:016x}", RandomState::new().hash_one(0));
    let driver = connect_first(candidates(|name| std::env::var(name).ok()), &session).await;
    let driver =
        driver.unwrap_or_else(|refusal| panic!("these tests need a Docker daemon: {}", refusal.reason));
    let lab = Lab {
        driver: Arc::new(driver),
        session: session.clone(),
        made: Arc::default(),
        networks: Arc::default(),
    };
    let limited = tokio::time::timeout(Duration::from_secs(120), test(lab.clone()));
    let outcome = AssertUnwindSafe(limited).catch_unwind().await;
    let made = std::mem::take(&mut *lab.made.lock().unwrap());
    for id in made {
        lab.driver.remove(&id).await.unwrap();
    }
    let networks = std::mem::take(&mut *lab.networks.lock().unwrap());
    for key in networks {
        lab.driver.remove_network(&key).await.unwrap();
    }
    let left = lab.left().await;
    lab.driver.sweep(&session).await.unwrap();
    let after_sweep = lab.left().await;
    match outcome {
        Err(panic) => std::panic::resume_unwind(panic),
        Ok(in_time) => in_time.expect("the test took longer than 120 s"),
    }
    assert_eq!(left, [""; 0], "left behind");
    assert_eq!(after_sweep, [""; 0], "left behind by the sweep");
}

impl Lab {
    /// Containers and networks with the session's label.
    async fn left(&self) -> Vec<String> {
        let host = std::env::var("SHAKEDOWN_DOCKER_HOST").or_else(|_| std::env::var("DOCKER_HOST"));
        let docker =
            bollard::Docker::connect_with_host(&host.unwrap_or("unix:///var/run/docker.sock".into()))
                .unwrap();
        let docker = docker.negotiate_version().await.unwrap();
        let filters = HashMap::from([("label", vec![format!("{SESSION_LABEL}={}", self.session)])]);
        let options = bollard::query_parameters::ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let containers = docker.list_containers(Some(options)).await.unwrap();
        let mut left: Vec<String> =
            containers.into_iter().flat_map(|found| found.names.unwrap_or_default()).collect();
        let options = bollard::query_parameters::ListNetworksOptionsBuilder::new().filters(&filters).build();
        left.extend(
            docker.list_networks(Some(options)).await.unwrap().into_iter().filter_map(|found| found.name),
        );
        left
    }

    pub(crate) async fn create(
        &self,
        container: Container,
    ) -> shakedown_runtime::Result<(String, Endpoints)> {
        let source: ImageSource = container.image.parse().unwrap();
        let image = self.driver.resolve(&source, PullPolicy::Missing, Arc::new(|_, _, _| ())).await?;
        self.create_of(container, image).await
    }

    /// A container of an image that is resolved already.
    pub(crate) async fn create_of(
        &self,
        container: Container,
        image: shakedown_runtime::Image,
    ) -> shakedown_runtime::Result<(String, Endpoints)> {
        let id = format!("{}-{}", self.session, self.made.lock().unwrap().len());
        self.made.lock().unwrap().push(id.clone());
        for attachment in &container.networks {
            self.networks.lock().unwrap().push(attachment.network.key.clone());
            self.driver.create_network(&attachment.network).await?;
        }
        let request = Create {
            id: id.clone(),
            session: self.session.clone(),
            container,
            image,
            mounted: Default::default(),
        };
        let endpoints = self.driver.create(request).await?;
        Ok((id, endpoints))
    }

    pub(crate) async fn start(
        &self,
        container: Container,
    ) -> shakedown_runtime::Result<(String, Endpoints, Arc<LogBook>)> {
        let (id, endpoints) = self.create(container).await?;
        let log = Arc::new(LogBook::default());
        self.driver.start(&id, Arc::clone(&log)).await?;
        Ok((id, endpoints, log))
    }

    async fn sh(&self, id: &str, line: &str) -> ExecOutput {
        self.driver.exec(id, ExecRequest::of(["sh", "-c", line])).await.unwrap().collect().await.unwrap()
    }

    #[track_caller]
    fn says(&self, id: &str, line: &str, expected: &str) -> impl Future<Output = ()> {
        let (lab, id, line, expected) = (self.clone(), id.to_owned(), line.to_owned(), expected.to_owned());
        async move {
            let output = lab.sh(&id, &line).await;
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "{line}: {output:?}");
        }
    }
}

/// One of the project's test images.
pub(crate) fn image(name: &str) -> String {
    let fallback = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/images");
    let directory = std::env::var("SHAKEDOWN_TEST_IMAGES").unwrap_or_else(|_| fallback.to_owned());
    assert!(
        std::path::Path::new(&directory).join(name).exists(),
        "there is no test image {directory}/{name}"
    );
    format!("oci:{directory}/{name}")
}

/// A busybox container that runs this line.
pub(crate) fn busybox(line: &str) -> Container {
    let mut container = Container::of(image("busybox"));
    container.entrypoint = Some(["sh", "-c", line].map(str::to_owned).to_vec());
    container
}

/// Waits for the end of the output.
pub(crate) async fn closed(log: &LogBook) {
    let mut changes = log.watch();
    while !log.read(usize::MAX).1 {
        changes.changed().await.unwrap();
    }
}

/// The log is complete, has both streams, and the exit code is the program's.
#[tokio::test]
async fn output_and_exit_code_arrive() {
    check(async |lab| {
        let (id, _, log) =
            lab.start(busybox("echo out; echo err >&2; printf unfinished; exit 3")).await.unwrap();
        let exit = lab.driver.exited(&id).await.unwrap();
        assert_eq!((exit.code, exit.signal), (3, None));
        assert_eq!(lab.driver.exited(&id).await.unwrap(), exit);
        closed(&log).await;
        assert_eq!(log.text(Some(Stream::Stdout)), b"out\nunfinished");
        assert_eq!(log.text(Some(Stream::Stderr)), b"err\n");
    })
    .await;
}

/// Everything a declaration says reaches the container.
#[tokio::test]
async fn the_declaration_reaches_the_container() {
    check(async |lab| {
        let mut container = busybox("exec sleep 1000");
        container.name = Some("orders_db".to_owned());
        container.env.insert("PRICE".to_owned(), "4=2".to_owned());
        container.workdir = Some("/tmp".to_owned());
        container.user = Some("12:34".to_owned());
        container.extra_hosts.insert("shop.example".to_owned(), "10.9.8.7".to_owned());
        container.sysctls.insert("net.core.somaxconn".to_owned(), "77".to_owned());
        container.mounts.push(Mount::tmpfs("/scratch"));
        container.resources.shm_size = Some(8 << 20);
        container.resources.pids = Some(50);
        container.resources.memory = Some(64 << 20);
        container.resources.ulimits =
            vec![shakedown_spec::Ulimit { name: "nofile".to_owned(), soft: 99, hard: 100 }];
        container.no_new_privileges = true;
        container.cap_drop = vec!["ALL".to_owned()];
        let (id, ..) = lab.start(container).await.unwrap();
        lab.says(&id, "hostname", "orders-db").await;
        lab.says(&id, "echo $PRICE; pwd; id -u; id -g", "4=2\n/tmp\n12\n34").await;
        lab.says(&id, "grep -c 'shop.example' /etc/hosts; cat /proc/sys/net/core/somaxconn", "1\n77").await;
        lab.says(&id, "ulimit -n; ulimit -Hn", "99\n100").await;
        lab.says(&id, "awk '$2==\"/scratch\"{print $3}' /proc/mounts", "tmpfs").await;
        lab.says(&id, "df -m /dev/shm | awk 'NR==2{print $2}'", "8").await;
        lab.says(
            &id,
            "grep -E 'NoNewPrivs|CapBnd' /proc/1/status | tr -d '\\t'",
            "CapBnd:0000000000000000\nNoNewPrivs:1",
        )
        .await;
    })
    .await;
}

/// Files are there before the first process runs, with owner, mode and links; parents are made, and existing
/// directories stay as they are.
#[tokio::test]
async fn files_are_there_before_the_start() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir(tree.path().join("conf.d")).unwrap();
    std::fs::write(tree.path().join("conf.d/a"), "A").unwrap();
    std::os::unix::fs::symlink("conf.d/a", tree.path().join("link")).unwrap();
    let path = tree.path().to_str().unwrap().to_owned();
    check(async |lab| {
        let mut container = busybox("cat /etc/shop/orders.conf; exec sleep 1000");
        container.files = vec![
            File::bytes("/etc/shop/orders.conf", "vat=19\n").mode(0o640).owner(7, 8),
            File::bytes("/tmp/here", ""),
            File::host("/srv/tree", path.clone()),
        ];
        let (id, _, log) = lab.start(container).await.unwrap();
        lab.says(&id, "stat -c '%a %u %g' /etc/shop /etc/shop/orders.conf", "755 0 0\n640 7 8").await;
        lab.says(&id, "cat /srv/tree/conf.d/a; readlink /srv/tree/link", "Aconf.d/a").await;
        assert!(log.text(None).starts_with(b"vat=19"));
        // The image's own /tmp is sticky and open to all.
        let fresh = lab.start(busybox("exec sleep 1000")).await.unwrap().0;
        let as_made = lab.sh(&fresh, "stat -c %a /tmp").await.stdout;
        lab.says(&id, "stat -c %a /tmp", String::from_utf8_lossy(&as_made).trim()).await;
    })
    .await;
}

/// A missing host file is told by its path, and the container is gone afterwards.
#[tokio::test]
async fn a_missing_host_file_is_named() {
    check(async |lab| {
        let mut container = busybox("true");
        container.files = vec![File::host("/a", "/nonexistent/orders.sql")];
        let failure = lab.create(container).await.unwrap_err();
        insta::assert_snapshot!(failure, @r"
        the files for busybox could not be copied
          reason: /nonexistent/orders.sql: No such file or directory (os error 2)
        ");
    })
    .await;
}

/// The ports told at creation are those that work: TCP and UDP, chosen and fixed.
#[tokio::test]
async fn published_ports_work() {
    check(async |lab| {
        let mut container = busybox("httpd -p 80; exec nc -ll -p 81 -e cat");
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        container.ports = vec![Port::tcp(80), Port::tcp(81).on_host(free), Port::udp(53)];
        let (id, endpoints, _) = lab.start(container).await.unwrap();
        assert_eq!((endpoints.host.as_str(), endpoints.tcp(81)), ("127.0.0.1", Some(free)));
        listens(&lab, &id, 80).await;
        listens(&lab, &id, 81).await;
        let mut echo = lab.driver.connect(&id, 81).await.unwrap();
        echo.write_all(b"ping\n").await.unwrap();
        let mut answer = [0; 5];
        echo.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping\n");
        // The images have no UDP server; that the daemon holds the port shows that it is published.
        let udp = std::net::UdpSocket::bind(("127.0.0.1", endpoints.published[2].host));
        assert_eq!(udp.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
        assert!(!lab.driver.listening(&id, 82).await.unwrap());
        let refused = lab.driver.connect(&id, 82).await.err().unwrap();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    })
    .await;
}

async fn listens(lab: &Lab, id: &str, port: u16) {
    use shakedown_runtime::wait::{Poll, poll};
    let listening = poll(Duration::from_secs(20), || async {
        match lab.driver.listening(id, port).await {
            Ok(true) => Poll::Ready(()),
            Ok(false) => Poll::NotYet("nobody listens".to_owned()),
            Err(failure) => Poll::Never(failure.to_string()),
        }
    });
    listening.await.unwrap();
}

/// Many containers at once get ports of their own.
#[tokio::test]
async fn ports_do_not_clash_under_load() {
    check(async |lab| {
        let mut container = busybox("exec sleep 1000");
        container.ports = vec![Port::tcp(80), Port::tcp(81)];
        let started = futures_util::future::join_all((0..6).map(|_| lab.start(container.clone()))).await;
        let mut ports: Vec<u16> = started
            .into_iter()
            .flat_map(|started| started.unwrap().1.published)
            .map(|port| port.host)
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 12);
    })
    .await;
}

/// A fixed port that is taken is named.
#[tokio::test]
async fn a_taken_fixed_port_is_named() {
    check(async |lab| {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut container = busybox("exec sleep 1000");
        container.ports = vec![Port::tcp(80).on_host(port)];
        let failure = lab.start(container).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::LaunchFailed);
        assert!(failure.to_string().contains(&format!("{port} for 80")), "{failure}");
    })
    .await;
}

/// Containers on a network reach each other by every name, on every network.
#[tokio::test]
async fn networks_join_by_name() {
    check(async |lab| {
        let (shop, back) = (Network::new(), Network::named("back office").internal());
        let mut server = busybox("mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www");
        server.name = Some("orders".to_owned());
        server.networks = vec![Attachment::to(&shop).alias("api"), Attachment::to(&back).alias("ledger")];
        let (id, endpoints, _) = lab.start(server).await.unwrap();
        assert_eq!(endpoints.peer_host.as_deref(), Some("api"));
        listens(&lab, &id, 80).await;
        for (network, name) in [(&shop, "api"), (&shop, "orders"), (&back, "ledger"), (&back, "orders")] {
            let mut client = busybox("exec sleep 1000");
            client.networks = vec![Attachment::to(network)];
            let (client, ..) = lab.start(client).await.unwrap();
            lab.says(&client, &format!("wget -qO- http://{name}/"), "hello").await;
            lab.driver.remove(&client).await.unwrap();
        }
        // Not published, and still reached by a wait condition.
        drop(lab.driver.connect(&id, 80).await.unwrap());
        lab.driver.remove(&id).await.unwrap();
        for network in [shop, back] {
            lab.driver.create_network(&network).await.unwrap();
            lab.driver.remove_network(&network.key).await.unwrap();
            lab.driver.remove_network(&network.key).await.unwrap();
        }
    })
    .await;
}

/// A container without a way out is still reached by the test.
#[tokio::test]
async fn ports_of_internal_networks_are_published() {
    check(async |lab| {
        let mut container = busybox("echo hello > /index.html; exec httpd -f -p 80 -h /");
        container.ports.push(Port::tcp(80));
        container.networks = vec![Attachment::to(&Network::new().internal())];
        let (id, endpoints, _) = lab.start(container).await.unwrap();
        listens(&lab, &id, 80).await;
        let port = endpoints.tcp(80).unwrap();
        let mut socket = tokio::net::TcpStream::connect((endpoints.host.as_str(), port)).await.unwrap();
        socket.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("hello\n"), "{answer}");
        lab.driver.remove(&id).await.unwrap();
        assert!(tokio::net::TcpStream::connect((endpoints.host.as_str(), port)).await.is_err());
    })
    .await;
}

/// Input, output, exit code, user and terminal of a further process.
#[tokio::test]
async fn exec_has_input_output_and_exit_code() {
    check(async |lab| {
        let (id, ..) = lab.start(busybox("exec sleep 1000")).await.unwrap();
        let output = lab.sh(&id, "echo out; echo err >&2; exit 7").await;
        assert_eq!(
            (&output.stdout[..], &output.stderr[..], output.exit.code),
            (&b"out\n"[..], &b"err\n"[..], 7)
        );

        let request = ExecRequest { stdin: true, ..ExecRequest::of(["cat"]) };
        let mut exec = lab.driver.exec(&id, request).await.unwrap();
        let mut stdin = exec.stdin.take().unwrap();
        let sent = vec![b'x'; 300_000];
        let send = async {
            stdin.write_all(&sent).await.unwrap();
            drop(stdin);
        };
        let (output, ()) = tokio::join!(exec.collect(), send);
        assert_eq!(output.unwrap().stdout.len(), sent.len());

        let mut request = ExecRequest::of(["sh", "-c", "id -u; pwd; echo $VAT; tty"]);
        (request.user, request.workdir, request.tty) = (Some("5".to_owned()), Some("/etc".to_owned()), true);
        request.env.insert("VAT".to_owned(), "19".to_owned());
        let output = lab.driver.exec(&id, request).await.unwrap().collect().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.lines().collect::<Vec<_>>()[..3], ["5", "/etc", "19"]);
        assert!(text.contains("/dev/pts/"), "{text}");

        let missing =
            lab.driver.exec(&id, ExecRequest::of(["no-such-program"])).await.unwrap().collect().await;
        assert_eq!(missing.unwrap_err().kind, FailureKind::ExecFailed);
    })
    .await;
}

/// What is copied in comes out again, from a container that runs and from one that has ended.
#[tokio::test]
async fn copies_go_both_ways() {
    check(async |lab| {
        let (id, ..) = lab.start(busybox("exec sleep 1000")).await.unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o600);
        tar.append_data(&mut header, "bill", &b"total"[..]).unwrap();
        let tar = std::io::Cursor::new(tar.into_inner().unwrap());
        lab.driver.copy_in(&id, "/tmp", Box::pin(tar)).await.unwrap();
        lab.driver.kill(&id, "SIGKILL").await.unwrap();
        let exit = lab.driver.exited(&id).await.unwrap();
        assert_eq!((exit.code, exit.signal), (137, Some(9)));
        let mut out = Vec::new();
        lab.driver.copy_out(&id, "/tmp/bill").await.unwrap().read_to_end(&mut out).await.unwrap();
        let mut archive = tar::Archive::new(&out[..]);
        let names: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [std::path::Path::new("bill")]);
        let failure = lab.driver.copy_out(&id, "/no").await.err().unwrap();
        assert_eq!(failure.kind, FailureKind::CopyFailed);
    })
    .await;
}

/// A container killed for its memory is told from one that was killed.
#[tokio::test]
async fn running_out_of_memory_is_noticed() {
    check(async |lab| {
        let mut container = busybox("tail /dev/zero");
        container.resources.memory = Some(16 << 20);
        container.resources.memory_swap = Some(16 << 20);
        let (id, ..) = lab.start(container).await.unwrap();
        let exit = lab.driver.exited(&id).await.unwrap();
        assert!(exit.out_of_memory, "{exit:?}");
    })
    .await;
}

/// A removal that overtakes its creation still removes; a second one is no error.
#[tokio::test]
async fn a_cancelled_creation_leaves_nothing() {
    check(async |lab| {
        lab.driver.remove("never-made").await.unwrap();
        let source: ImageSource = image("busybox").parse().unwrap();
        let image = lab.driver.resolve(&source, PullPolicy::Missing, Arc::new(|_, _, _| ())).await.unwrap();
        let id = format!("{}-cut", lab.session);
        let request = Create {
            id: id.clone(),
            session: lab.session.clone(),
            container: busybox("true"),
            image,
            mounted: Default::default(),
        };
        // Polled once, so the request is under way, and dropped.
        assert!(lab.driver.create(request).now_or_never().is_none());
        lab.driver.remove(&id).await.unwrap();
        assert_eq!(lab.left().await, [""; 0]);
    })
    .await;
}

/// A later session of the same name removes what a dead one left.
#[tokio::test]
async fn a_sweep_removes_what_is_left() {
    check(async |lab| {
        let network = Network::new();
        let mut container = busybox("exec sleep 1000");
        container.networks = vec![Attachment::to(&network)];
        let (id, ..) = lab.start(container).await.unwrap();
        assert_eq!(lab.left().await.len(), 2);
        let again = connect_first(candidates(|name| std::env::var(name).ok()), "another").await.unwrap();
        again.sweep(&lab.session).await.unwrap();
        assert_eq!(lab.left().await, [""; 0]);
        assert_eq!(lab.driver.exited(&id).await.unwrap().code, 137);
    })
    .await;
}

/// Layouts, archives of both kinds, and what the daemon has already, are one image.
#[tokio::test]
async fn images_come_from_files() {
    let directory = tempfile::tempdir().unwrap();
    let layout = image("busybox");
    let archives: Vec<String> = ["oci-archive", "docker-archive"]
        .iter()
        .map(|kind| {
            let place = format!("{kind}:{}/{kind}.tar", directory.path().display());
            let copied =
                std::process::Command::new("skopeo").args(["copy", "-q", &layout, &place]).status().unwrap();
            assert!(copied.success());
            place
        })
        .collect();
    check(async |lab| {
        let mut ids = Vec::new();
        for place in std::iter::once(&layout).chain(&archives) {
            let source = place.parse().unwrap();
            let resolved =
                lab.driver.resolve(&source, PullPolicy::Missing, Arc::new(|_, _, _| ())).await.unwrap();
            assert_eq!(resolved.config.command, ["sh"]);
            ids.push(resolved.id);
        }
        assert_eq!(ids[0], ids[1]);
    })
    .await;
}

/// A layer that is not what the manifest says is never given to the daemon as a whole.
#[tokio::test]
async fn a_wrong_digest_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let layout = format!("oci:{}", directory.path().display());
    // An image of its own: the daemon must not have it.
    let run = |program: &str, args: &[&str]| {
        assert!(
            std::process::Command::new(program)
                .args(args)
                .stdout(std::process::Stdio::null())
                .status()
                .unwrap()
                .success()
        );
    };
    run("skopeo", &["copy", "-q", &image("busybox"), &format!("{layout}:cut")]);
    let tag = format!("{}:cut", directory.path().display());
    run("umoci", &["config", "--image", &tag, "--config.env", &format!("NONCE={layout}")]);
    let blobs = std::fs::read_dir(directory.path().join("blobs/sha256")).unwrap();
    let layer =
        blobs.map(|blob| blob.unwrap().path()).max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    check(async |lab| {
        let source = format!("{layout}:cut").parse().unwrap();
        let failure =
            lab.driver.resolve(&source, PullPolicy::Missing, Arc::new(|_, _, _| ())).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::ImageUnusable);
        assert!(failure.to_string().contains("has digest sha256:"), "{failure}");
    })
    .await;
}

/// An image that is nowhere is named, with the daemon's reason.
#[tokio::test]
async fn a_missing_image_is_named() {
    check(async |lab| {
        let resolve = |name: &str, policy| {
            let (driver, source) = (Arc::clone(&lab.driver), name.parse().unwrap());
            async move { driver.resolve(&source, policy, Arc::new(|_, _, _| ())).await.unwrap_err() }
        };
        // Port 9 is the discard service, where nobody listens.
        let failure = resolve("localhost:9/shop/orders:3", PullPolicy::Missing).await;
        assert_eq!(failure.kind, FailureKind::ImageNotFound, "{failure}");
        assert_eq!(failure.title, "image localhost:9/shop/orders:3 was not found");
        insta::assert_snapshot!(resolve("shop/orders:3", PullPolicy::Never).await, @r"
        image shop/orders:3 is not in the daemon's store
        hint: `docker pull shop/orders:3`, or choose another pull policy
        ");
        insta::assert_snapshot!(resolve("oci:/no/such/layout", PullPolicy::Missing).await, @r"
        image oci:/no/such/layout was not found
          file:   /no/such/layout/index.json
          reason: no such file or directory
        ");
    })
    .await;
}

/// A program that is not in the image is told at the start.
#[tokio::test]
async fn a_missing_program_is_told() {
    check(async |lab| {
        let mut container = busybox("");
        container.entrypoint = Some(vec!["no-such-program".to_owned()]);
        let failure = lab.start(container).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::LaunchFailed);
        assert!(failure.to_string().contains("no-such-program"), "{failure}");
    })
    .await;
}

/// Output that comes in many pieces arrives whole and in order.
#[tokio::test]
async fn a_long_log_is_complete() {
    check(async |lab| {
        let (_, _, log) = lab.start(busybox("seq 1 50000")).await.unwrap();
        closed(&log).await;
        let text = log.text(Some(Stream::Stdout));
        let numbers: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        assert_eq!((numbers.len(), numbers[49_999]), (50_000, &b"50000"[..]));
    })
    .await;
}
