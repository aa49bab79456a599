//! An image that is made of Debian packages.

use crate::query;
use std::fmt;
use std::str::FromStr;

/// A release of Debian, and what of it is in the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DebianSource {
    /// The release, such as `bookworm` or `stable`.
    pub suite: String,
    /// Packages, with what they depend on.
    pub include: Vec<String>,
    /// What is there without being named, in the words of `mmdebstrap --variant`; `apt` when unset, which is all
    /// essential packages and apt.
    pub variant: Option<String>,
    /// Where the packages come from: an address such as `http://mirror.example/debian`. When unset, where this machine
    /// has its own from, else Debian's servers.
    pub mirror: Option<String>,
    /// The image's command, in either form of a Dockerfile's `CMD`; a shell when unset.
    pub command: Option<String>,
}

/// What `mmdebstrap --variant` takes.
const VARIANTS: [&str; 10] = [
    "extract",
    "custom",
    "essential",
    "apt",
    "required",
    "minbase",
    "buildd",
    "important",
    "debootstrap",
    "standard",
];

impl FromStr for DebianSource {
    type Err = String;

    /// Reads `SUITE?include=a,b&…`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (suite, options) = query::read(text)?;
        check_word("a release of Debian", &suite)?;
        let mut debian = Self { suite, ..Self::default() };
        for (name, value) in options {
            match name.as_str() {
                "include" => debian.include.extend(packages(&value)?),
                "variant" if VARIANTS.contains(&value.as_str()) => debian.variant = Some(value),
                "variant" => {
                    return Err(format!("variant `{value}` is none of {}", VARIANTS.join(", ")));
                }
                "mirror" => debian.mirror = Some(checked_mirror(value)?),
                "command" => debian.command = Some(value),
                _ => {
                    let options = "`include`, `variant`, `mirror` and `command`";
                    return Err(format!("it has no option `{name}`; there are {options}"));
                }
            }
        }
        Ok(debian)
    }
}

/// The texts become arguments of a program, where one with a dash at its front would be an option.
fn check_word(what: &str, text: &str) -> Result<(), String> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"+-.:~_=/".contains(&b);
    if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(inner) {
        Ok(())
    } else {
        Err(format!("`{text}` is not {what}"))
    }
}

fn packages(list: &str) -> Result<Vec<String>, String> {
    let names = list.split(',').filter(|name| !name.is_empty());
    names.map(|name| check_word("a package", name).map(|()| name.to_owned())).collect()
}

/// The address becomes a part of a line of `sources.list`.
fn checked_mirror(mirror: String) -> Result<String, String> {
    let known = ["http://", "https://", "file:/", "copy:/"].iter().any(|scheme| mirror.starts_with(scheme));
    if known && mirror.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(mirror)
    } else {
        Err(format!("mirror `{mirror}` is not an address such as `http://deb.debian.org/debian`"))
    }
}

impl fmt::Display for DebianSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let include = self.include.join(",");
        let options = [
            // `debian:bookworm` alone is an image of a registry, so that the `?` always stands.
            ("include", Some(&include)),
            ("variant", self.variant.as_ref()),
            ("mirror", self.mirror.as_ref()),
            ("command", self.command.as_ref()),
        ];
        query::print(
            f,
            &self.suite,
            options.into_iter().filter_map(|(name, value)| Some((name, value?.as_str()))),
        )
    }
}
