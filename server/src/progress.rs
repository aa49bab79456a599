//! What a pull or push tells while it lasts, where there is no terminal: a line now and then.

use shakedown_runtime::Progress;
use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// No two lines come closer to each other, but those of what is finished.
const PAUSE: Duration = Duration::from_secs(1);

/// Says nothing.
#[must_use]
pub fn quiet() -> Progress {
    Arc::new(|_, _, _| {})
}

/// Writes a line when a layer is finished, and otherwise one in a second; none within the first `silence`, so that what
/// takes no time is not talked about. What cannot be written is left out.
#[must_use]
pub fn lines(to: impl Write + Send + 'static, silence: Duration) -> Progress {
    let state = Mutex::new((Lines::new(Instant::now(), silence), to));
    Arc::new(move |step, done, of| {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = state.0.line(step, done, of, Instant::now()) {
            let _ = writeln!(state.1, "{line}");
        }
    })
}

/// Which lines are worth writing.
#[derive(Debug)]
struct Lines {
    from: Instant,
    last: Option<Instant>,
    /// How far each step is.
    steps: HashMap<String, (u64, u64)>,
}

impl Lines {
    fn new(begin: Instant, silence: Duration) -> Self {
        Self { from: begin + silence, last: None, steps: HashMap::new() }
    }

    fn line(&mut self, step: &str, done: u64, of: u64, now: Instant) -> Option<String> {
        let before = self.steps.insert(step.to_owned(), (done, of));
        if now < self.from {
            return None;
        }
        // A step of nothing is told once, too.
        let finished = done >= of && before.is_none_or(|(before, _)| before < of);
        if finished {
            self.last = Some(now);
            return Some(format!("{step}: done, {}", amount(of)));
        }
        if done >= of || self.last.is_some_and(|last| now < last + PAUSE) {
            return None;
        }
        self.last = Some(now);
        Some(format!("{step}: {} of {}", amount(done), amount(of)))
    }
}

/// Bytes for people, in decimal units as registries and disks have them.
fn amount(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{} kB", bytes / 1000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The log of a build server has a few lines about a pull, not thousands.
    #[test]
    fn lines_are_sparse() {
        let begin = Instant::now();
        let mut lines = Lines::new(begin, Duration::from_secs(2));
        let mut said = Vec::new();
        for tick in 0..=5000 {
            let now = begin + Duration::from_millis(tick);
            said.extend(lines.line("fetch 3f2a", tick * 10_000, 50_000_000, now));
            said.extend(lines.line("unpack 3f2a", (tick * 10_000).min(900), 900, now));
        }
        insta::assert_snapshot!(said.join("\n"), @"
        fetch 3f2a: 20.0 MB of 50.0 MB
        fetch 3f2a: 30.0 MB of 50.0 MB
        fetch 3f2a: 40.0 MB of 50.0 MB
        fetch 3f2a: done, 50.0 MB
        ");
    }

    /// A pull that takes no time is not talked about.
    #[test]
    fn a_short_pull_is_silent() {
        let begin = Instant::now();
        let mut lines = Lines::new(begin, Duration::from_secs(2));
        assert_eq!(lines.line("fetch 3f2a", 5, 5, begin + Duration::from_millis(100)), None);
        assert_eq!(lines.line("fetch 3f2a", 5, 5, begin + Duration::from_secs(3)), None);
        let other = lines.line("fetch 77", 1_500, 1_500, begin + Duration::from_secs(3));
        assert_eq!(other.as_deref(), Some("fetch 77: done, 1 kB"));
    }
}
