//! `HEALTHCHECK`.

use super::ast::{Check, Command};
use super::flags::Flags;
use super::instruction::Reading;
use super::problem::Problem;
use super::words;
use std::time::Duration;

/// `None` is `HEALTHCHECK NONE`.
pub(super) fn check(reading: &Reading<'_>) -> Result<Option<Check>, Problem> {
    let known = ["interval", "timeout", "start-period", "start-interval", "retries"];
    let (flags, rest) = reading.flags(&known, &[])?;
    let (kind, command) = words::first(rest);
    match kind.to_ascii_uppercase().as_str() {
        "NONE" if command.is_empty() => return Ok(None),
        "NONE" => return Err(reading.wrong(command, "nothing follows `HEALTHCHECK NONE`")),
        "CMD" => {}
        _ => {
            let message = format!("`{kind}` is no kind of health check: it is `CMD` or `NONE`");
            return Err(reading.wrong(kind, message));
        }
    }
    let command = words::command(command, reading.line.lines)?;
    if matches!(&command, Command::Exec(argv) if argv.is_empty())
        || matches!(&command, Command::Shell(line) if line.is_empty())
    {
        return Err(reading.wrong(kind, "a command follows `HEALTHCHECK CMD`"));
    }
    Ok(Some(Check {
        command,
        interval: time(reading, &flags, "interval")?,
        timeout: time(reading, &flags, "timeout")?,
        start_period: time(reading, &flags, "start-period")?,
        start_interval: time(reading, &flags, "start-interval")?,
        retries: retries(reading, &flags)?,
    }))
}

fn retries(reading: &Reading<'_>, flags: &Flags) -> Result<Option<u32>, Problem> {
    let Some(text) = flags.value("retries")? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        reading.wrong(&text, format!("`{text}` is no number of retries: it is a whole number from 0"))
    })
}

/// Zero is Docker's default.
fn time(reading: &Reading<'_>, flags: &Flags, name: &str) -> Result<Option<Duration>, Problem> {
    let Some(text) = flags.value(name)? else { return Ok(None) };
    let Some(time) = duration(&text) else {
        let message = format!("`{text}` is not a time, such as `30s`, `1m30s` or `500ms`");
        return Err(reading.wrong(&text, message));
    };
    if !time.is_zero() && time < Duration::from_millis(1) {
        return Err(reading.wrong(&text, format!("`--{name}` is shorter than a millisecond")));
    }
    Ok(Some(time).filter(|time| !time.is_zero()))
}

/// Go's way to write times: numbers with units, added up.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut sum, mut rest) = (0.0_f64, text.strip_prefix('+').unwrap_or(text));
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..unit_at].parse().ok()?;
        rest = &rest[unit_at..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum += number * seconds;
        rest = &rest[unit_end..];
    }
    let nanos = Duration::try_from_secs_f64(sum).ok()?;
    Some(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times of health checks are read as Go writes them.
    #[test]
    fn times_are_gos() {
        for (text, millis) in
            [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("1.5h", 5_400_000), ("0", 0)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "-5s", "5 s", "5d", "1.2.3s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
