//! Sources with options, `PLACE?name=value&name=value`: read and printed.
//!
//! `%` and two hexadecimal digits stand for a byte, as in a URL; `+` stands for itself, because packages have it in
//! their names. Anything else is taken as it is written.

use std::fmt::{self, Write as _};

/// Options in the order in which they are written.
pub(crate) type Options = Vec<(String, String)>;

/// Splits at the first `?`, then at each `&`.
pub(crate) fn read(text: &str) -> Result<(String, Options), String> {
    let (place, options) = text.split_once('?').unwrap_or((text, ""));
    let pairs = options.split('&').filter(|pair| !pair.is_empty());
    let options = pairs.map(|pair| match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((decoded(name)?, decoded(value)?)),
        _ => Err(format!("`{pair}` is not `name=value`")),
    });
    Ok((decoded(place)?, options.collect::<Result<_, _>>()?))
}

/// Prints what [`read`] reads.
pub(crate) fn print<'a>(
    f: &mut fmt::Formatter<'_>,
    place: &str,
    options: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> fmt::Result {
    f.write_str(&encoded(place))?;
    for (index, (name, value)) in options.into_iter().enumerate() {
        let separator = if index == 0 { '?' } else { '&' };
        write!(f, "{separator}{}={}", encoded(name), encoded(value))?;
    }
    Ok(())
}

fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit =
                    |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                bytes.push(digit(*high).unwrap_or(0) << 4 | digit(*low).unwrap_or(0));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| format!("`{text}` is not UTF-8 after its `%` are decoded"))
}

/// Encodes what would be read as something else, and what would break a line.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '%' | '?' | '&' | '=') || c.is_ascii_control() {
            let _ = write!(out, "%{:02X}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}
