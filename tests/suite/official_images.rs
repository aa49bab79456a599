//! Dockerfiles in the manner of well-known images (`tests/dockerfiles`): each builds, starts, and answers.
//!
//! What they made is written to `target/official-images`, and compared with what is there already: the drivers make the
//! same files.

use futures::StreamExt;
use shakedown::prelude::*;
use shakedown::{Build, Error, Exec};
use shakedown_runtime::Image;
use shakedown_server::api::BuildLine;
use shakedown_server::client::Client;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// One image.
struct Official {
    name: &'static str,
    /// What the build is told, as in `build:DIR?QUERY`.
    query: &'static str,
    env: &'static [(&'static str, &'static str)],
    ready: Ready,
}

/// What shows that it works, asked again until it does.
enum Ready {
    /// A command in the container, and what it prints.
    Says(&'static str, &'static str),
    /// An HTTP path on a port of the container, and what is in the answer.
    Serves(u16, &'static str, &'static str),
    /// An HTTP path on a port, asked from outside: nothing but the server is in the image.
    Answers(u16, &'static str),
}

use Ready::{Answers, Says, Serves};

fn official(name: &'static str, ready: Ready) -> Official {
    Official { name, query: "", env: &[], ready }
}

/// Their packages are installed from a directory of the base image; a busy machine takes its time.
const LIMIT: Duration = Duration::from_secs(180);
#[track_caller]
fn check(official: &Official) -> shakedown::Result {
    let query = if official.query.is_empty() { String::new() } else { format!("?{}", official.query) };
    let source = format!("build:{}{query}", package().join("dockerfiles").join(official.name).display());
    compare(official.name, &source)?;
    let mut container = GenericContainer::new(source).name(official.name).timeout(LIMIT);
    for (name, value) in official.env {
        container = container.env(*name, *value);
    }
    let wait = match official.ready {
        Answers(port, path) => Wait::http(port, path),
        Says(command, expected) => ready(command, expected),
        Serves(port, path, expected) => {
            let get = format!(
                "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
            );
            ready(&get, expected)
        }
    };
    drop(container.wait(wait).start().blocking()?);
    Ok(())
}

fn ready(command: &str, expected: &str) -> Wait {
    Wait::command(["bash", "-c", &format!("set -o pipefail; ({command}) | grep -F '{expected}'")])
}

/// The directory of this package, at run time: the suite may run from a copy.
fn package() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Files that no two builds write alike, on whichever driver: kind, mode and owner are compared, contents are not.
const UNLIKE: [(&str, &str); 9] = [
    ("/var/log/", "times of installation"),
    ("/var/cache/apt/", "times and numbers of inodes"),
    ("/var/cache/ldconfig/", "times and numbers of inodes"),
    ("/var/cache/fontconfig/", "times of directories"),
    ("/etc/ssl/certs/java/cacerts", "times of import"),
    ("/etc/ssl/certs/ssl-cert-snakeoil.pem", "a key made at installation"),
    ("/etc/ssl/private/ssl-cert-snakeoil.key", "a key made at installation"),
    ("/etc/machine-id", "chosen at installation"),
    ("/etc/shadow", "the day of a user's first password"),
];
/// What is not compared, by image (all for none) and path.
const KNOWN: [(&str, &str, &str); 6] = [
    ("", "/.dockerenv", "Docker puts it into each container"),
    ("python-app", "/tools", "Docker leaves the place of a mount of `RUN` in the layer"),
    ("rabbitmq", "/var/lib/rabbitmq/.erlang.cookie", "in a volume, which is a mount of its own in Docker"),
    ("rabbitmq", "/var/lib/rabbitmq/mnesia", "in a volume, which is a mount of its own in Docker"),
    (
        "node-app",
        "/home",
        "`--link --chown` gives parents away as BuildKit does; Docker before 23 knows no `--link`",
    ),
    ("node-app", "/home/node/app", "as `/home`"),
];

/// Everything in the image `/image` of a container: kind, mode, owner, name, and the target of links or the digest of
/// contents. The packages of the base image are left out, for they are in all images, and large.
const LIST: &str = r#"cd "$1" && find . -path ./proc -prune -o -path ./sys -prune -o -path ./dev -prune \
    -o -path ./etc/hosts -o -path ./etc/hostname -o -path ./etc/resolv.conf -o -path ./etc/mtab \
    -o -path ./usr/local/share/debian -prune \
    -o -xdev ! -type f -printf '%y %m %U:%G /%P %l\n' \
    -o -printf '%y %m %U:%G /%P\n' -fprintf /dev/shm/files '%P\0' && xargs -0 sha256sum < /dev/shm/files"#;

/// Compares an image with what another run made of the same Dockerfile, if there was one: a driver's name is nowhere
/// asked, so this is how the drivers are compared. The first of two runs leaves its record for the second.
fn compare(name: &str, source: &str) -> shakedown::Result {
    let mut image = built(source)?;
    // Docker before 23 keeps the last slash of `WORKDIR /a/`.
    if image.config.workdir.len() > 1 {
        image.config.workdir.truncate(image.config.workdir.trim_end_matches('/').len());
    }
    let record = format!("{}\n{}", serde_json::to_string_pretty(&image.config)?, files(name, &image.id)?);
    let directory = package().join("../target/official-images");
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(name);
    if !path.exists() {
        // Set where another driver has run before.
        let is_second = std::env::var_os("SHAKEDOWN_OFFICIAL_IMAGES_COMPARED").is_some();
        assert!(!is_second, "there is no {} to compare with: the run before this one failed", path.display());
        return Ok(std::fs::write(path, record)?);
    }
    let before = std::fs::read_to_string(&path)?;
    let differences = differences(&before, &record);
    assert!(differences.is_empty(), "{} is of another run:\n{}", path.display(), differences.join("\n"));
    Ok(())
}
/// What a driver makes of a source.
fn built(source: &str) -> shakedown::Result<Image> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let image: shakedown::Result<Image> = runtime.block_on(async {
        let keeper = Client::connect(&package()).await?;
        let lease = keeper.lease("official images", &package()).await?;
        let build: Build = source.trim_start_matches("build:").parse().map_err(Error::new)?;
        let mut lines = keeper.build(lease.id(), &build, &[]).await?;
        loop {
            let Some(line) = lines.next().await else { return Err(Error::new("the build came to no end")) };
            match line? {
                BuildLine::Image(image) => return Ok(*image),
                BuildLine::Failure(failure) => return Err(failure.into()),
                BuildLine::Event(_) => {}
            }
        }
    });
    image
}

/// The files of an image, with contents where those are alike.
fn files(name: &str, id: &str) -> shakedown::Result<String> {
    // An image of one program cannot list itself.
    let (container, root) = if name == "nats" {
        let text = format!("FROM debian:bookworm-slim\nCOPY --from={id} / /image/\n");
        (GenericContainer::build(Build::inline(text)), "/image")
    } else {
        (GenericContainer::new(id), "/")
    };
    let container = container.name("files").entrypoint(["sleep", "1000"]).wait(Wait::command(["true"]));
    let running = container.timeout(LIMIT).start().blocking()?;
    let listed =
        running.exec(Exec::new(["bash", "-c", LIST, "list", root]).user("0")).blocking()?.success()?;
    Ok(joined(name, &listed.stdout()))
}

/// Each file on a line, with its digest if it has one.
fn joined(name: &str, listed: &str) -> String {
    let is_digest = |word: &str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut digests = BTreeMap::new();
    let mut files = BTreeSet::new();
    for line in listed.lines() {
        match line.split_once("  ") {
            Some((digest, path)) if is_digest(digest) => drop(digests.insert(format!("/{path}"), digest)),
            _ => drop(files.insert(line)),
        }
    }
    let mut text = String::new();
    for file in files {
        let path = file.splitn(4, ' ').nth(3).unwrap_or(file);
        let known =
            |(of, known, _): &(&str, &str, &str)| (of.is_empty() || *of == name) && path.trim_end() == *known;
        if KNOWN.iter().any(known) {
            continue;
        }
        let alike = !UNLIKE.iter().any(|(prefix, _)| path.starts_with(prefix));
        let digest = digests.get(path).filter(|_| alike).copied().unwrap_or_default();
        text += &format!("{file} {digest}\n");
    }
    text
}

/// Lines that only one of them has.
fn differences(before: &str, now: &str) -> Vec<String> {
    let (before, now): (BTreeSet<&str>, BTreeSet<&str>) = (before.lines().collect(), now.lines().collect());
    let gone = before.difference(&now).map(|line| format!("- {line}"));
    let mut all: Vec<String> = gone.chain(now.difference(&before).map(|line| format!("+ {line}"))).collect();
    all.sort_by(|one, other| one[2..].cmp(&other[2..]));
    all
}

macro_rules! official_images {
    ($($(#[$attribute:meta])* $name:ident: $official:expr;)*) => {$(
        $(#[$attribute])*
        #[test]
        #[ignore = "builds take minutes; a step of CI of its own runs them on both drivers"]
        fn $name() -> shakedown::Result {
            check(&$official)
        }
    )*};
}

official_images! {
    /// Users by `gosu`, a volume, an entry point of two scripts.
    postgres: Official {
        env: &[("POSTGRES_PASSWORD", "secret")],
        ..official("postgres", Says("PGPASSWORD=secret psql -h 127.0.0.1 -U postgres -tAc 'select 40+2'", "42"))
    };
    /// `COPY --chmod`, a working directory that is a volume.
    redis: official("redis", Says("redis-cli ping", "PONG"));
    /// Build arguments in `ENV` and `EXPOSE`, `.dockerignore` with exceptions, a health check.
    nginx: Official {
        query: "arg.NGINX_PORT=8080",
        ..official("nginx", Says("curl -fsS http://127.0.0.1:8080/", "<h1>orders</h1>"))
    };
    /// An argument before `FROM`, answers for debconf, users made before packages.
    mariadb: Official {
        env: &[("MARIADB_ROOT_PASSWORD", "secret")],
        ..official("mariadb", Says("mariadb -h127.0.0.1 -uroot -psecret -Ne 'select 40+2'", "42"))
    };
    /// Heredocs for `RUN` and `COPY`, mounts of caches and of memory, several stages.
    rabbitmq: official("rabbitmq", Says("rabbitmq-diagnostics -q check_running", "fully booted"));
    /// An ordinary `USER` of the image.
    memcached: official("memcached", Says(
        "exec 3<>/dev/tcp/127.0.0.1/11211; printf 'version\\r\\nquit\\r\\n' >&3; cat <&3", "VERSION",
    ));
    /// `FROM scratch` with what an earlier stage collected.
    nats: official("nats", Answers(8222, "/varz"));
    /// `ADD` of an archive with new owners, volumes as JSON.
    mosquitto: official("mosquitto", Says("mosquitto_sub -t '$SYS/broker/version' -C 1 -W 5", "mosquitto version"));
    /// A stage that is not the last one; one that fails is never built.
    etcd: Official {
        query: "target=release",
        ..official("etcd", Says("etcdctl put shop open && etcdctl get shop", "open"))
    };
    /// `SHELL`, and a command in its form.
    zookeeper: official("zookeeper", Says("echo srvr | nc -w 2 127.0.0.1 2181", "Zookeeper version"));
    /// Working directories that build on each other.
    httpd: official("httpd", Serves(80, "/", "refunds"));
    /// Packages that are taken out again in the same `RUN`; patterns that match nothing.
    haproxy: official("haproxy", Serves(8080, "/", "orders"));
    /// `ONBUILD`, arguments in arguments, mounts of the context and of secrets.
    python_app: Official {
        query: "arg.APP_VERSION=3",
        ..official("python-app", Serves(8000, "/", "hello, 3: 3 orders"))
    };
    /// `COPY --link`, a heredoc for another program, a cache by id.
    node_app: official("node-app", Serves(3000, "/", "total 6"));
    /// Another escape character, a compressed archive by `ADD`.
    tomcat: official("tomcat", Serves(8080, "/index.jsp", "total 42"));
}
