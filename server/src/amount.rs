//! Amounts as people write them: `10GB`, `7d`.

use std::time::Duration;

/// Reads a number of bytes: `512`, `10GB`, `1.5 GiB`.
///
/// # Errors
///
/// What was meant is not clear; the text says why.
pub fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("b", 1),
        ("kb", 1000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
    ];
    let amount = amount(text, &UNITS);
    amount.ok_or_else(|| format!("`{text}` is no size; write one such as `10GB` or `512MiB`"))
}

/// Reads a span of time: `90s`, `30m`, `12h`, `7d`, `2w`.
///
/// # Errors
///
/// What was meant is not clear; the text says why.
pub fn age(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 5] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("w", 7 * 86400)];
    let seconds = amount(text, &UNITS);
    let seconds =
        seconds.ok_or_else(|| format!("`{text}` is no span of time; write one such as `7d` or `12h`"))?;
    Ok(Duration::from_secs(seconds))
}

/// A whole number or one with decimals, and a unit.
fn amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let whole = u128::from(whole.parse::<u64>().ok()?);
    // More digits than a byte of a terabyte has mean nothing.
    if decimals.len() > 12 || !decimals.chars().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (tenths, parts) = (decimals.parse::<u128>().unwrap_or(0), 10_u128.pow(decimals.len() as u32));
    let factor = u128::from(*factor);
    u64::try_from(whole * factor + tenths * factor / parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A limit means what its author wrote, or is refused: a wrong one removes images.
    #[test]
    fn amounts_are_read_or_refused() {
        for (text, expected) in [("512", 512), ("10GB", 10_000_000_000), ("1.5 GiB", 3 << 29), ("0b", 0)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for (text, seconds) in [("90s", 90), ("12h", 43200), ("7d", 604_800), ("0.5h", 1800)] {
            assert_eq!(age(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(bytes("ten").unwrap_err(), "`ten` is no size; write one such as `10GB` or `512MiB`");
        assert_eq!(age("7").unwrap_err(), "`7` is no span of time; write one such as `7d` or `12h`");
        for wrong in ["-1GB", "GB", "1.2.3GB", "99999999999TB", "1XB", ""] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
