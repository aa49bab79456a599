//! Which machine an image is for: `linux/amd64`, `linux/arm/v7`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A platform in the names of Go, which the images' documents use: operating system, architecture, and the
/// architecture's level if it has several.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, `386`, `riscv64`, ….
    pub architecture: String,
    /// `v7` of `arm`, `v3` of `amd64`; none means the usual one.
    pub variant: Option<String>,
}

/// Why a text names no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a platform such as `linux/amd64` or `linux/arm/v7`")]
pub struct PlatformError {
    text: String,
}

/// Images for another architecture that a processor runs as well come after all of its own.
const FOREIGN: u32 = 100;

impl Platform {
    /// The machine that this program was compiled for.
    #[must_use]
    pub fn here() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => normal(other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant }
    }

    /// A platform as an image's document names it, in the usual spelling.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, variant) = normal(architecture, variant.filter(|variant| !variant.is_empty()));
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant }
    }

    /// Whether a machine of this kind runs what is made for `other`, and how well it fits: less is better. A level runs
    /// those below it, `amd64` runs `386`, `arm64` runs `arm`.
    #[must_use]
    pub fn fit(&self, other: &Self) -> Option<u32> {
        if self.os != other.os {
            return None;
        }
        match (self.architecture.as_str(), other.architecture.as_str()) {
            ("amd64", "386") => Some(FOREIGN),
            ("arm64", "arm") => Some(FOREIGN + 8_u32.checked_sub(other.level()?)?),
            (own, others) if own != others => None,
            _ => match (self.level(), other.level()) {
                (Some(level), Some(others)) => level.checked_sub(others),
                _ => (self.variant == other.variant).then_some(0),
            },
        }
    }

    fn level(&self) -> Option<u32> {
        let usual = match self.architecture.as_str() {
            "amd64" => 1,
            "arm" => 7,
            "arm64" => 8,
            _ => return None,
        };
        let Some(variant) = &self.variant else { return Some(usual) };
        let number = variant.strip_prefix('v')?.split('.').next()?;
        number.parse().ok()
    }
}

/// The spellings of other tools, as containerd normalises them.
fn normal<'a>(architecture: &'a str, variant: Option<&str>) -> (&'a str, Option<String>) {
    let variant = variant.map(str::to_owned);
    match (architecture, variant.as_deref()) {
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64", _) => ("amd64", variant),
        ("i386" | "i686" | "x86", _) => ("386", None),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
        ("aarch64", _) => ("arm64", variant),
        ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7".to_owned())),
        ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6".to_owned())),
        ("arm", Some("5")) => ("arm", Some("v5".to_owned())),
        _ => (architecture, variant),
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let fits = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let parts: Vec<_> = text.split('/').collect();
        if !parts.iter().all(fits) {
            return Err(PlatformError { text: text.to_owned() });
        }
        match parts[..] {
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(PlatformError { text: text.to_owned() }),
        }
    }
}

impl TryFrom<String> for Platform {
    type Error = PlatformError;

    fn try_from(text: String) -> Result<Self, PlatformError> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn fits(machine: &str, image: &str) -> Option<u32> {
        machine.parse::<Platform>().unwrap().fit(&image.parse().unwrap())
    }

    /// `--platform linux/x86_64` means what `linux/amd64` means.
    #[test]
    fn spellings_are_one() {
        let spelled = |text: &str| text.parse::<Platform>().unwrap().to_string();
        let read =
            ["linux/x86_64", "linux/aarch64/v8", "linux/armhf", "linux/arm", "linux/i386", "windows/amd64"];
        let meant =
            ["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v7", "linux/386", "windows/amd64"];
        assert_eq!(read.map(spelled), meant);
        for wrong in ["", "linux", "linux/", "linux/arm/v7/x", "linux/../x y"] {
            assert!(wrong.parse::<Platform>().is_err(), "{wrong}");
        }
    }

    /// A Raspberry Pi gets the newest image that it runs, and never one that it does not.
    #[test]
    fn the_nearest_level_fits_best() {
        assert!(fits("linux/arm/v7", "linux/arm/v7") < fits("linux/arm/v7", "linux/arm/v5"));
        assert_eq!(fits("linux/arm/v6", "linux/arm/v7"), None);
        assert_eq!(fits("linux/amd64", "linux/amd64/v3"), None);
        assert!(fits("linux/amd64/v3", "linux/amd64/v2") < fits("linux/amd64/v3", "linux/386"));
        assert!(fits("linux/arm64", "linux/arm64/v8") < fits("linux/arm64", "linux/arm/v7"));
        assert_eq!(fits("linux/s390x", "linux/s390x"), Some(0));
        assert_eq!(fits("linux/amd64", "linux/arm64"), None);
        assert_eq!(fits("linux/amd64", "windows/amd64"), None);
    }
}
