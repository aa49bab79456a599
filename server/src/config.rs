//! `shakedown.toml` and the environment: what a project says about where its containers run.
//!
//! ```toml
//! driver = "auto"           # or "native", "docker"; SHAKEDOWN_DRIVER overrides
//! timeout_scale = 2.0       # for slow machines; SHAKEDOWN_TIMEOUT_SCALE overrides
//!
//! [images]                  # this reference is taken from there; relative paths begin at this file
//! "postgres:17" = "oci:target/images/postgres"
//! ```

use serde::Deserialize;
pub use shakedown_runtime::DriverChoice;
use shakedown_spec::{Failure, FailureKind, ImageSource, ReferenceError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Overrides `driver`.
pub const DRIVER_VARIABLE: &str = "SHAKEDOWN_DRIVER";
/// Overrides `timeout_scale`.
pub const TIMEOUT_SCALE_VARIABLE: &str = "SHAKEDOWN_TIMEOUT_SCALE";
/// The file's name.
pub const FILE_NAME: &str = "shakedown.toml";

/// What applies to one directory: the nearest `shakedown.toml` above it, under the environment.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which driver to use.
    pub driver: DriverChoice,
    /// What every time limit is multiplied by.
    pub timeout_scale: f64,
    /// Completed reference to the image that replaces it; paths are absolute.
    images: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { driver: DriverChoice::Auto, timeout_scale: 1.0, images: BTreeMap::new() }
    }
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    driver: Option<DriverChoice>,
    timeout_scale: Option<f64>,
    images: BTreeMap<String, String>,
}

impl Config {
    /// Reads the nearest `shakedown.toml` in `directory` or above it, and the environment of this process.
    ///
    /// # Errors
    ///
    /// The file or a variable says something that is not understood.
    pub fn find(directory: &Path) -> Result<Self, Failure> {
        let file = directory.ancestors().map(|above| above.join(FILE_NAME)).find(|path| path.is_file());
        let config = match file {
            Some(path) => Self::read(&path)?,
            None => Self::default(),
        };
        config.under_environment(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(FailureKind::Invalid, format!("{FILE_NAME} cannot be read"))
                .fact("file", path.display().to_string())
                .fact("reason", error.to_string())
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Failure> {
        let written: Written = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            wrong(path, Some(line_of(text, start)), error.message())
        })?;
        let timeout_scale = written.timeout_scale.unwrap_or(1.0);
        check_scale(timeout_scale)
            .map_err(|reason| wrong(path, None, &format!("timeout_scale: {reason}")))?;
        let base = path.parent().unwrap_or(Path::new("/"));
        let mut images = BTreeMap::new();
        for (from, to) in &written.images {
            let bad = |error: ReferenceError| wrong(path, line_with(text, from), &error.to_string());
            let from = ImageSource::from_str(from).map_err(bad)?.to_string();
            images.insert(from, absolute(ImageSource::from_str(to).map_err(bad)?, base).to_string());
        }
        Ok(Self { driver: written.driver.unwrap_or_default(), timeout_scale, images })
    }

    fn under_environment(mut self, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let in_environment =
            |failure: Failure, name: &str| failure.fact("from", format!("the variable {name}"));
        if let Some(text) = variable(DRIVER_VARIABLE) {
            self.driver = text.parse().map_err(|failure| in_environment(failure, DRIVER_VARIABLE))?;
        }
        if let Some(text) = variable(TIMEOUT_SCALE_VARIABLE) {
            self.timeout_scale = text
                .parse()
                .map_err(|_| format!("`{text}` is not a number"))
                .and_then(|scale| check_scale(scale).map(|()| scale))
                .map_err(|reason| {
                    let failure =
                        Failure::new(FailureKind::Invalid, format!("the timeout scale is wrong: {reason}"));
                    in_environment(failure, TIMEOUT_SCALE_VARIABLE).hint("use a number such as `2.0`")
                })?;
        }
        Ok(self)
    }

    /// Where the image comes from: what `shakedown.toml` says, else what the declaration says. Relative paths of a
    /// declaration begin at `directory`.
    ///
    /// # Errors
    ///
    /// It is neither a reference nor a source.
    pub fn source(&self, image: &str, directory: &Path) -> Result<ImageSource, ReferenceError> {
        let asked = ImageSource::from_str(image)?;
        match self.images.get(&asked.to_string()) {
            Some(replacement) => replacement.parse(),
            None => Ok(absolute(asked, directory)),
        }
    }
}

fn absolute(source: ImageSource, base: &Path) -> ImageSource {
    let at = |path: PathBuf| base.join(path);
    match source {
        ImageSource::OciLayout { path, tag } => ImageSource::OciLayout { path: at(path), tag },
        ImageSource::OciArchive { path, tag } => ImageSource::OciArchive { path: at(path), tag },
        ImageSource::DockerArchive { path, reference } => {
            ImageSource::DockerArchive { path: at(path), reference }
        }
        other => other,
    }
}

/// Zero would let nothing ever become ready, and a thousand hours helps nobody to find a mistake.
fn check_scale(scale: f64) -> Result<(), String> {
    if (0.01..=1000.0).contains(&scale) {
        Ok(())
    } else {
        Err(format!("{scale} is not between 0.01 and 1000"))
    }
}

fn wrong(path: &Path, line: Option<usize>, reason: &str) -> Failure {
    let place = match line {
        Some(line) => format!("{}:{line}", path.display()),
        None => path.display().to_string(),
    };
    Failure::new(FailureKind::Invalid, format!("{FILE_NAME} is not understood"))
        .fact("file", place)
        .fact("reason", reason)
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

fn line_with(text: &str, key: &str) -> Option<usize> {
    text.find(key).map(|offset| line_of(text, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Failure> {
        Config::parse(Path::new("/shop/shakedown.toml"), text)
    }

    #[track_caller]
    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[track_caller]
    fn source(config: &Config, image: &str, expected: &str) {
        assert_eq!(config.source(image, Path::new("/shop/orders")).unwrap().to_string(), expected);
    }

    /// A suite written against `postgres:17` runs on an image built here, however it spells the reference.
    #[test]
    fn images_are_replaced_by_completed_reference() {
        let config =
            parse("[images]\npostgres = \"oci:target/images/pg\"\n\"redis:8\" = \"ghcr.io/shop/redis:8\"")
                .unwrap();
        source(&config, "docker.io/library/postgres:latest", "oci:/shop/target/images/pg");
        source(&config, "redis:8", "ghcr.io/shop/redis:8");
        source(&config, "redis:7", "docker.io/library/redis:7");
        source(&config, "oci:images/web", "oci:/shop/orders/images/web");
    }

    /// A misspelt key is found before it is wondered about.
    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        insta::assert_snapshot!(refused("timeout_scale = 2.0\ndrvier = \"native\""), @r"
        shakedown.toml is not understood
          file:   /shop/shakedown.toml:2
          reason: unknown field `drvier`, expected one of `driver`, `timeout_scale`, `images`
        ");
        insta::assert_snapshot!(refused("driver = \"podman\""), @r"
        shakedown.toml is not understood
          file:   /shop/shakedown.toml:1
          reason: unknown variant `podman`, expected one of `auto`, `native`, `docker`
        ");
        insta::assert_snapshot!(refused("timeout_scale = 0.0"), @r"
        shakedown.toml is not understood
          file:   /shop/shakedown.toml
          reason: timeout_scale: 0 is not between 0.01 and 1000
        ");
        insta::assert_snapshot!(refused("[images]\n\"Postgres:17\" = \"oci:x\""), @r"
        shakedown.toml is not understood
          file:   /shop/shakedown.toml:2
          reason: `Postgres:17` is not an image reference: the name has to be lower case; try `postgres`
        ");
        insta::assert_snapshot!(refused("[images\n"), @r"
        shakedown.toml is not understood
          file:   /shop/shakedown.toml:1
          reason: unclosed table, expected `]`
        ");
    }

    /// The environment has the last word: a CI job changes it without changing the project.
    #[test]
    fn the_environment_overrides_the_file() {
        let set = |name: &'static str, value: &'static str| {
            let config = parse("driver = \"native\"").unwrap();
            config.under_environment(move |asked| (asked == name).then(|| value.to_owned()))
        };
        assert_eq!(set(DRIVER_VARIABLE, "docker").unwrap().driver, DriverChoice::Docker);
        assert_eq!(set(TIMEOUT_SCALE_VARIABLE, "3").unwrap().timeout_scale.to_string(), "3");
        insta::assert_snapshot!(set(DRIVER_VARIABLE, "dokcer").unwrap_err(), @r"
        `dokcer` is not a driver
          from: the variable SHAKEDOWN_DRIVER
        hint: SHAKEDOWN_DRIVER is `auto`, `native` or `docker`
        ");
        insta::assert_snapshot!(set(TIMEOUT_SCALE_VARIABLE, "fast").unwrap_err(), @r"
        the timeout scale is wrong: `fast` is not a number
          from: the variable SHAKEDOWN_TIMEOUT_SCALE
        hint: use a number such as `2.0`
        ");
    }
}
