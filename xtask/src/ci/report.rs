//! The steps of a run: their headings, how long they took, how they ended.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::Silent;

/// What has been run so far.
#[derive(Debug)]
pub(super) struct Report {
    /// Only steps whose names contain this are run, and what they need.
    only: Option<String>,
    rows: Vec<Row>,
    started: Instant,
}

#[derive(Debug)]
struct Row {
    name: String,
    took: Duration,
    failure: Option<String>,
}

impl Report {
    pub(super) fn new(only: Option<String>) -> Self {
        Self { only, rows: Vec::new(), started: Instant::now() }
    }

    /// Runs a step that others need, if one of these is wanted.
    pub(super) fn set_up<T>(
        &mut self,
        name: &str,
        for_steps: &[&str],
        step: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        let wanted = self.wants(name) || for_steps.iter().any(|later| self.wants(later));
        wanted.then(|| self.run(name, step)).flatten()
    }

    /// Runs a step, if it is wanted.
    pub(super) fn step(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        if self.wants(name) {
            self.run(name, step);
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    fn run<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("\n== {name}");
        let started = Instant::now();
        let result = step();
        let took = started.elapsed();
        let failure = result.as_ref().err().map(|error| format!("{error:#}"));
        match &failure {
            Some(reason) => println!("-- {name}: FAILED after {took:.1?}: {reason}"),
            None => println!("-- {name}: passed in {took:.1?}"),
        }
        self.rows.push(Row { name: name.to_owned(), took, failure });
        result.ok()
    }

    /// Prints the summary. Its last line counts the steps.
    pub(super) fn finish(self) -> Result<()> {
        println!("\n{}", self.table());
        let failed = self.rows.iter().filter(|row| row.failure.is_some()).count();
        if self.rows.is_empty() {
            bail!("no step was run");
        }
        println!("ci: {} passed, {failed} failed", self.rows.len() - failed);
        if failed == 0 { Ok(()) } else { Err(Silent.into()) }
    }

    fn table(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        let line = |row: &Row| {
            let result = row.failure.as_ref().map_or("passed".to_owned(), |reason| {
                format!("FAILED  {}", reason.lines().next().unwrap_or_default())
            });
            format!("{:<width$}  {:>7.1} s  {result}\n", row.name, row.took.as_secs_f64())
        };
        let only = self.only.iter().map(|only| format!("only steps with `{only}` were asked for\n"));
        let lines: String = self.rows.iter().map(line).chain(only).collect();
        format!("{lines}{:<width$}  {:>7.1} s", "all", self.started.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step that could not be run counts as failed, and the run fails.
    #[test]
    fn a_failed_step_is_counted() {
        let mut report = Report::new(None);
        report.step("fmt", || Ok(()));
        report.step("suite", || bail!("no images\nlong story"));
        assert_eq!(report.rows.iter().filter(|row| row.failure.is_some()).count(), 1);
        let table = report.table();
        assert!(table.contains("fmt        0.0 s  passed\n"), "{table}");
        assert!(table.contains("suite      0.0 s  FAILED  no images\n"), "{table}");
        assert!(report.finish().is_err());
    }

    /// `--only` leaves out what was not asked for, but not what the rest needs.
    #[test]
    fn steps_are_selected_by_name() {
        let mut report = Report::new(Some("docker".to_owned()));
        report.set_up("build", &["suite: docker"], || Ok(()));
        report.set_up("users", &["suite: user"], || Ok(()));
        report.step("fmt", || Ok(()));
        report.step("suite: docker", || Ok(()));
        assert_eq!(
            report.rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(),
            ["build", "suite: docker"]
        );
    }
}
