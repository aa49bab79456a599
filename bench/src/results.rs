//! What was measured, as a table for people and as JSON for programs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What is compared: a row, what it is measured against, and the largest ratio that was wanted.
const TARGETS: &[(&str, &str, f64)] = &[
    ("true.native.root", "true.crun", 1.0 / 3.0),
    ("true.native.root", "true.runc", 1.0 / 7.0),
    ("true.native.root", "true.bare", 2.5),
    ("true.native.root", "true.docker", 1.0 / 30.0),
    ("true.native.user", "true.native.root", 1.5),
    ("true.native.user", "true.crun", 1.0 / 2.0),
    ("true.native.user", "true.docker", 1.0 / 30.0),
    ("at-once.native.root", "at-once.crun", 1.0 / 2.0),
    ("at-once.native.root", "at-once.docker", 1.0 / 30.0),
    ("port-benchmark.native.root", "port-benchmark.loopback", 2.0),
    ("port-benchmark.native.root", "port-benchmark.docker", 1.0),
    ("port-ping.native.root", "port-ping.docker", 1.0),
    ("port-many.native.root", "port-many.docker", 1.0),
    ("port-bulk.native.root", "port-bulk.docker", 1.0),
    ("redis.native.root", "redis.testcontainers", 1.0 / 5.0),
    ("redis.native.user", "redis.testcontainers", 1.0 / 5.0),
    ("pull.native.root", "pull.docker", 1.0),
    ("pull.native.root", "pull.podman", 1.0),
    ("pull.native.root", "pull.skopeo-umoci", 1.0),
    ("cold.native.root", "cold.docker", 1.0),
    ("cold.native.root", "cold.podman", 1.0),
];

/// One row's figures.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// `WORK.ENGINE[.USER]`.
    pub(crate) name: String,
    /// How many measurements.
    pub(crate) n: usize,
    /// Half of them took at most this long.
    pub(crate) median_ms: f64,
    /// The shortest.
    pub(crate) min_ms: f64,
}

/// Measurements and failures, by row.
#[derive(Debug)]
pub(crate) struct Results {
    /// In the order of the plan.
    names: Vec<String>,
    millis: BTreeMap<String, Vec<f64>>,
    failures: BTreeMap<String, String>,
}

impl Results {
    pub(crate) fn new(names: impl Iterator<Item = String>) -> Self {
        Self { names: names.collect(), millis: BTreeMap::new(), failures: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, name: &str, millis: f64) {
        self.millis.entry(name.to_owned()).or_default().push(millis);
    }

    pub(crate) fn fail(&mut self, name: &str, reason: &str) {
        self.failures.insert(name.to_owned(), reason.to_owned());
    }

    pub(crate) fn has_failed(&self, name: &str) -> bool {
        self.failures.contains_key(name)
    }

    /// Whether every row has figures.
    pub(crate) fn is_complete(&self) -> bool {
        self.failures.is_empty() && self.rows().len() == self.names.len()
    }

    /// The rows that were measured to the end.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let measured = self.names.iter().filter(|name| !self.has_failed(name));
        measured.filter_map(|name| figures(name, self.millis.get(name)?)).collect()
    }

    pub(crate) fn json(&self, rows: &[Row]) -> Value {
        let row = |row: &Row| {
            let round = |millis: f64| (millis * 1000.0).round() / 1000.0;
            json!({ "name": row.name, "n": row.n, "median_ms": round(row.median_ms), "min_ms": round(row.min_ms) })
        };
        json!({ "rows": rows.iter().map(row).collect::<Vec<Value>>(), "failed": self.failures })
    }

    /// Columns, then the comparisons with what was wanted, then what failed.
    pub(crate) fn table(&self, rows: &[Row]) -> String {
        let of = |name: &str| rows.iter().find(|row| row.name == name).map(|row| row.median_ms);
        let mut text = format!("{:<26} {:>4} {:>11} {:>10}  times\n", "", "n", "median ms", "min ms");
        for row in rows {
            let work = row.name.split('.').next().unwrap_or_default();
            let peers = ["bare", "loopback", "crun", "docker", "podman", "skopeo-umoci", "testcontainers"]
                .map(|peer| format!("{work}.{peer}"));
            let ratios = peers.iter().filter(|peer| **peer != row.name).filter_map(|peer| {
                Some(format!("{:.3} of {}", row.median_ms / of(peer)?, peer.split('.').next_back()?))
            });
            let ratios = ratios.collect::<Vec<_>>().join(", ");
            let Row { name, n, median_ms, min_ms } = row;
            text.push_str(&format!("{name:<26} {n:>4} {median_ms:>11.2} {min_ms:>10.2}  {ratios}\n"));
        }
        for (name, against, wanted) in TARGETS {
            if let (Some(this), Some(that)) = (of(name), of(against)) {
                let ratio = this / that;
                let verdict = if ratio <= *wanted { "met" } else { "missed" };
                let wanted = wanted_text(*wanted);
                text.push_str(&format!(
                    "target {verdict}: {name} is {ratio:.3} of {against} ({wanted} wanted)\n"
                ));
            }
        }
        for (name, reason) in &self.failures {
            text.push_str(&format!("failed: {name}: {reason}\n"));
        }
        text.trim_end().to_owned()
    }
}

fn figures(name: &str, millis: &[f64]) -> Option<Row> {
    let mut sorted = millis.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median_ms = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        sorted[..=middle].iter().rev().take(2).sum::<f64>() / 2.0
    };
    Some(Row { name: name.to_owned(), n: sorted.len(), median_ms, min_ms: *sorted.first()? })
}

/// A ratio as it was wanted: a fraction below 1.
fn wanted_text(ratio: f64) -> String {
    if ratio < 1.0 { format!("1/{:.0}", 1.0 / ratio) } else { ratio.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(millis: &[f64], median: f64, min: f64) {
        let row = figures("true.crun", millis).unwrap();
        assert_eq!((row.median_ms, row.min_ms, row.n), (median, min, millis.len()));
    }

    /// One slow start among many changes neither figure much.
    #[test]
    fn median_and_minimum() {
        check(&[3.0], 3.0, 3.0);
        check(&[4.0, 2.0], 3.0, 2.0);
        check(&[900.0, 1.0, 2.0], 2.0, 1.0);
        check(&[4.0, 1.0, 2.0, 900.0], 3.0, 1.0);
    }

    /// A row that failed has no figures: half a row would be taken for a whole one.
    #[test]
    fn a_failed_row_is_told_and_has_no_figures() {
        let mut results = Results::new(["true.crun".to_owned(), "true.runc".to_owned()].into_iter());
        results.add("true.crun", 12.0);
        results.add("true.crun", 12.5);
        results.add("true.runc", 30.0);
        results.fail("true.crun", "exit code 1");
        assert!(!results.is_complete());
        let json = results.json(&results.rows());
        assert_eq!(json["rows"], json!([{ "name": "true.runc", "n": 1, "median_ms": 30.0, "min_ms": 30.0 }]));
        assert_eq!(json["failed"], json!({ "true.crun": "exit code 1" }));
    }
}
