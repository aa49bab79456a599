//! How far a pull or push is, on standard error: bars on a terminal, a line now and then elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use shakedown_runtime::Progress;
use shakedown_server::progress::{lines, quiet};
use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The way that fits where standard error goes to.
pub(super) fn progress(silent: bool) -> Progress {
    if silent {
        quiet()
    } else if io::stderr().is_terminal() {
        bars(ProgressDrawTarget::stderr())
    } else {
        lines(io::stderr(), Duration::ZERO)
    }
}

/// A bar for each step, taken away when the step is done.
fn bars(target: ProgressDrawTarget) -> Progress {
    let all = MultiProgress::with_draw_target(target);
    let bars: Mutex<HashMap<String, ProgressBar>> = Mutex::default();
    let style =
        ProgressStyle::with_template("{msg:20} {bar:30} {bytes:>10} of {total_bytes:10} {bytes_per_sec}")
            .unwrap_or_else(|_error| ProgressStyle::default_bar());
    Arc::new(move |step, done, of| {
        let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
        if done >= of {
            if let Some(bar) = bars.remove(step) {
                bar.finish_and_clear();
                all.remove(&bar);
            }
            return;
        }
        let bar = bars.entry(step.to_owned()).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(of).with_style(style.clone()));
            bar.with_message(step.to_owned())
        });
        bar.set_position(done);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the steps come, the bars neither fail nor stay.
    #[test]
    fn bars_take_what_comes() {
        let progress = bars(ProgressDrawTarget::hidden());
        for (step, done, of) in
            [("fetch a", 0, 10), ("fetch b", 0, 0), ("fetch a", 5, 10), ("fetch a", 10, 10)]
        {
            progress(step, done, of);
        }
    }
}
