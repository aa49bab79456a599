//! Signals by name and number.

use std::str::FromStr;

/// The number of a signal by name (`SIGTERM`, `TERM`, `SIGRTMIN+3`) or number.
pub(super) fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    // As glibc counts: it keeps the first two real-time signals for itself (signal(7)).
    let real_time = |prefix: &str, base: i32| {
        let offset = name.strip_prefix(prefix)?;
        let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().ok()? };
        Some(base + offset).filter(|number| (34..=64).contains(number))
    };
    if let Some(number) = real_time("SIGRTMIN", 34).or_else(|| real_time("SIGRTMAX", 64)) {
        return Some(number);
    }
    nix::sys::signal::Signal::from_str(&name).ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images name their stop signal as signal(7) does; systemd's is a real-time one.
    #[test]
    fn signals_are_read_by_name_and_number() {
        for (text, number) in
            [("SIGTERM", 15), ("int", 2), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("37", 37)]
        {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for wrong in ["", "SIGBOGUS", "0", "65", "SIGRTMIN+31", "SIGRTMIN+x"] {
            assert_eq!(signal_number(wrong), None, "{wrong}");
        }
    }
}
