//! `shakedown doctor`: what works here, what does not, why, and what to do.

use super::{Done, say};
use shakedown_server::keeper::{Finding, findings};
use std::fmt::Write;
use std::process::ExitCode;

pub(super) fn doctor() -> Done {
    let findings = findings()?;
    let report = findings.iter().fold(String::new(), |mut report, finding| {
        describe(&mut report, finding);
        report
    });
    say(report.as_bytes())?;
    let works = findings.iter().any(|finding| finding.verdict.is_ok());
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
        insta::assert_snapshot!(report, @r"
        native: does not work
          reason: user namespaces are off
          hint: `sudo sysctl user.max_user_namespaces=100`
        docker: works; Docker 28.2 at /var/run/docker.sock
          yes  exec
          no   memory limit: cgroups are read-only
        ");
    }
}
