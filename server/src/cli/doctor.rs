//! `shakedown doctor`: what works here, what does not, why, and what to do.

use super::{Done, say};
use serde_json::json;
use shakedown_runtime::doctor::{Check, Facts, Verdict, checks};
use shakedown_server::keeper::{Finding, findings};
use std::fmt::Write;
use std::process::ExitCode;

/// Where the pages are that verdicts name.
const PAGES: &str = "docs/";

pub(super) fn doctor(json: bool) -> Done {
    let checks = checks(&Facts::gather());
    let findings = findings()?;
    let report = if json { document(&checks, &findings) } else { report(&checks, &findings) };
    say(report.as_bytes())?;
    let works = findings.iter().any(|finding| finding.verdict.is_ok());
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(checks: &[Check], findings: &[Finding]) -> String {
    let mut report = String::from("machine\n");
    checks.iter().for_each(|check| tell(&mut report, check));
    findings.iter().for_each(|finding| describe(&mut report, finding));
    report
}

/// Writing to a `String` cannot fail.
fn tell(report: &mut String, check: &Check) {
    let verdict = match check.verdict {
        Verdict::Yes => "yes",
        Verdict::Limited => "part",
        Verdict::No => "no",
    };
    let _ = writeln!(report, "  {verdict:<4} {}: {}", check.name, check.found);
    if let Some(fix) = &check.fix {
        let _ = writeln!(report, "       fix: {fix}");
    }
    if let Some(page) = check.page.filter(|_| check.fix.is_some()) {
        let _ = writeln!(report, "       see: {PAGES}{page}");
    }
}

/// The same for programs.
fn document(checks: &[Check], findings: &[Finding]) -> String {
    let drivers: Vec<_> = findings
        .iter()
        .map(|finding| match &finding.verdict {
            Ok((description, capabilities)) => json!({
                "driver": finding.driver, "works": true, "description": description, "capabilities": capabilities,
            }),
            Err(refusal) => json!({
                "driver": finding.driver, "works": false, "reason": refusal.reason, "hints": refusal.hints,
            }),
        })
        .collect();
    format!("{:#}\n", json!({ "machine": checks, "drivers": drivers }))
}

/// Writing to a `String` cannot fail.
fn describe(report: &mut String, finding: &Finding) {
    match &finding.verdict {
        Ok((description, capabilities)) => {
            let _ = writeln!(report, "{}: works; {description}", finding.driver);
            for capability in capabilities {
                let _ = match &capability.missing {
                    None => writeln!(report, "  yes  {}", capability.name),
                    Some(reason) => writeln!(report, "  no   {}: {reason}", capability.name),
                };
            }
        }
        Err(refusal) => {
            let _ = writeln!(report, "{}: does not work", finding.driver);
            refusal.reason.lines().for_each(|line| {
                let _ = writeln!(report, "  reason: {line}");
            });
            refusal.hints.iter().for_each(|hint| {
                let _ = writeln!(report, "  hint: {hint}");
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shakedown_runtime::{Capability, Refusal};

    /// What somebody reads who asks why nothing works.
    #[test]
    fn the_report_has_verdict_reason_and_what_to_do() {
        let refusal = Refusal::new("native", "user namespaces are off")
            .hint("`sudo sysctl user.max_user_namespaces=100`");
        let memory =
            Capability { name: "memory limit".into(), missing: Some("cgroups are read-only".into()) };
        let exec = Capability { name: "exec".into(), missing: None };
        let mut report = String::new();
        describe(&mut report, &Finding { driver: "native", verdict: Err(refusal) });
        let verdict = Ok(("Docker 28.2 at /var/run/docker.sock".into(), vec![exec, memory]));
        describe(&mut report, &Finding { driver: "docker", verdict });
        let fixed = Check {
            name: "clock",
            verdict: Verdict::Limited,
            found: "before 2025".into(),
            fix: Some("set the clock".into()),
            page: Some("errors/clock.md"),
        };
        tell(&mut report, &fixed);
        tell(&mut report, &Check { verdict: Verdict::Yes, fix: None, ..fixed });
        insta::assert_snapshot!(report, @r"
        native: does not work
          reason: user namespaces are off
          hint: `sudo sysctl user.max_user_namespaces=100`
        docker: works; Docker 28.2 at /var/run/docker.sock
          yes  exec
          no   memory limit: cgroups are read-only
          part clock: before 2025
               fix: set the clock
               see: docs/errors/clock.md
          yes  clock: before 2025
        ");
    }
}
