//! What is measured, and in which order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::bundle;
use crate::pulled::Registry;
use crate::results::{Results, Row};
use crate::say;
use crate::worker::{Place, Worker};

/// What is run: the name in results, and how often unless said otherwise.
const WORK: &[(&str, usize)] = &[
    ("true", 40),
    ("at-once", 5),
    ("redis", 15),
    ("postgres", 7),
    ("port-ping", 7),
    ("port-benchmark", 7),
    ("port-connect", 7),
    ("port-many", 7),
    ("port-bulk", 7),
    ("pull", 5),
    ("cold", 5),
];

/// Answers that are not counted: the first makes sessions, unpacks layers, fills caches.
const WARM_UP: usize = 2;

/// What is done through a published port.
const PORTS: &[&str] = &["port-ping", "port-benchmark", "port-connect", "port-many", "port-bulk"];
/// What is measured of Shakedown's own runtime.
const OURS: &[&str] = &[
    "true",
    "at-once",
    "redis",
    "postgres",
    "port-ping",
    "port-benchmark",
    "port-connect",
    "port-many",
    "port-bulk",
];

/// The engines of a row's name; what they are asked to do; the process that does it.
const ENGINES: &[(&str, &[&str], &str, Place)] = &[
    ("native.root", OURS, "native", Place::Here),
    ("native.user", OURS, "native", Place::User),
    ("crun", &["true", "at-once"], "crun", Place::WithoutUnifiedCgroups),
    ("runc", &["true"], "runc", Place::Here),
    // What the kernel takes for namespaces and a program, and for a connection without anything in between.
    ("bare", &["true"], "bare", Place::Here),
    ("loopback", PORTS, "loopback", Place::Here),
    // The daemon's own API, and Shakedown's driver for it: the two differ by what a test needs besides.
    ("docker", &["true", "at-once"], "engine", Place::Here),
    (
        "docker",
        &["redis", "postgres", "port-ping", "port-benchmark", "port-connect", "port-many", "port-bulk"],
        "docker",
        Place::Here,
    ),
    ("testcontainers", &["redis", "postgres"], "testcontainers", Place::Here),
    ("native.root", &["pull", "cold"], "pull", Place::Here),
    ("docker", &["pull", "cold"], "docker-pull", Place::Here),
    ("podman", &["pull", "cold"], "podman-pull", Place::WithoutUnifiedCgroups),
    ("skopeo-umoci", &["pull"], "skopeo-umoci", Place::Here),
];

/// What `cargo xtask bench` passes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The directory of the image layouts.
    pub(crate) images: PathBuf,
    /// The address of a Docker daemon.
    pub(crate) docker: String,
    /// The ordinary user.
    pub(crate) user: String,
    /// The program `shakedown`.
    pub(crate) program: PathBuf,
    /// How often; unset, each work's own number.
    n: Option<usize>,
    /// Only rows whose names contain this.
    only: String,
    json: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(name) = args.next() {
            if name == "--json" {
                options.json = true;
                continue;
            }
            let value = args.next().with_context(|| format!("`{name}` needs a value"))?;
            match name.as_str() {
                "--images" => options.images = value.into(),
                "--docker" => options.docker.clone_from(value),
                "--program" => options.program = value.into(),
                "--user" => options.user.clone_from(value),
                "--only" => options.only.clone_from(value),
                "--n" => options.n = Some(value.parse().context("`--n` takes a number")?),
                other => bail!("there is no option `{other}`"),
            }
        }
        if options.n == Some(0) {
            bail!("`--n` has to be at least 1");
        }
        Ok(options)
    }
}

/// One row to measure: its name, the work, the index of the engine, and how often.
struct Planned {
    name: String,
    work: &'static str,
    engine: usize,
    n: usize,
}

/// Measures everything. Whether nothing failed.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    let options = Options::parse(args)?;
    let planned = planned(&options);
    if planned.is_empty() {
        bail!("no row's name contains `{}`", options.only);
    }
    let bundle = bundle::Bundle::unpack(&options.images.join("busybox"))?;
    let mut results = Results::new(planned.iter().map(|row| row.name.clone()));
    let pulls = planned.iter().any(|row| matches!(row.work, "pull" | "cold"));
    let registry = pulls.then(|| Registry::start(&options.images)).transpose()?;
    let pulled = registry.as_ref().map_or(String::new(), Registry::image);
    let mut workers = start(&planned, &options, bundle.path(), &pulled, &mut results);
    let rounds = planned.iter().map(|row| row.n).max().unwrap_or(0) + WARM_UP;
    for round in 0..rounds {
        if round.is_multiple_of(10) {
            say(&format!("round {} of {rounds}", round + 1));
        }
        for row in planned.iter().filter(|row| round < row.n + WARM_UP) {
            // A row that failed once is not asked again: what it would measure is the failure.
            if results.has_failed(&row.name) {
                continue;
            }
            let Some(worker) = workers.get_mut(&row.engine) else { continue };
            match worker.ask(row.work) {
                Ok(millis) if round >= WARM_UP => results.add(&row.name, millis),
                Ok(_) => {}
                Err(error) => {
                    say(&format!("{}: {error:#}", row.name));
                    results.fail(&row.name, &format!("{error:#}"));
                }
            }
        }
    }
    drop(workers);
    report(&results, options.json);
    Ok(results.is_complete())
}

/// Starts the engines of these rows. The rows of one that does not start have failed.
fn start(
    planned: &[Planned],
    options: &Options,
    bundle: &Path,
    pulled: &str,
    results: &mut Results,
) -> HashMap<usize, Worker> {
    let mut workers = HashMap::new();
    for (engine, (_, _, process, place)) in ENGINES.iter().enumerate() {
        let mut rows = planned.iter().filter(|row| row.engine == engine).peekable();
        if rows.peek().is_none() {
            continue;
        }
        match Worker::start(process, *place, options, bundle, pulled) {
            Ok(worker) => drop(workers.insert(engine, worker)),
            Err(error) => rows.for_each(|row| results.fail(&row.name, &format!("{error:#}"))),
        }
    }
    workers
}

/// The rows that were asked for, in the order of the results: by work, then by engine.
fn planned(options: &Options) -> Vec<Planned> {
    let mut rows = Vec::new();
    for (work, n) in WORK {
        for (engine, (name, works, ..)) in ENGINES.iter().enumerate() {
            let name = format!("{work}.{name}");
            if works.contains(work) && name.contains(&options.only) {
                rows.push(Planned { name, work, engine, n: options.n.unwrap_or(*n) });
            }
        }
    }
    rows
}

#[expect(clippy::print_stdout, reason = "the results are what this program is for")]
fn report(results: &Results, as_json: bool) {
    let rows: Vec<Row> = results.rows();
    if as_json {
        println!("{:#}", results.json(&rows));
    } else {
        println!("{}", results.table(&rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who compares results by name finds every row, once.
    #[test]
    fn rows_have_the_agreed_names() {
        let names: Vec<String> = planned(&Options::default()).into_iter().map(|row| row.name).collect();
        let expected = "true.native.root true.native.user true.crun true.runc true.bare true.docker \
                        at-once.native.root at-once.native.user at-once.crun at-once.docker \
                        redis.native.root redis.native.user redis.docker redis.testcontainers \
                        postgres.native.root postgres.native.user postgres.docker postgres.testcontainers \
                        port-ping.native.root port-ping.native.user port-ping.loopback port-ping.docker \
                        port-benchmark.native.root port-benchmark.native.user port-benchmark.loopback \
                        port-benchmark.docker \
                        port-connect.native.root port-connect.native.user port-connect.loopback \
                        port-connect.docker port-many.native.root port-many.native.user port-many.loopback \
                        port-many.docker port-bulk.native.root port-bulk.native.user port-bulk.loopback \
                        port-bulk.docker \
                        pull.native.root pull.docker pull.podman pull.skopeo-umoci \
                        cold.native.root cold.docker cold.podman";
        assert_eq!(names.join(" "), expected);
    }
}
