//! `shakedown.toml` and the environment: what a project says about where its containers run.
//!
//! ```toml
//! driver = "auto"           # or "native", "docker"; SHAKEDOWN_DRIVER overrides
//! timeout_scale = 2.0       # for slow machines; SHAKEDOWN_TIMEOUT_SCALE overrides
//! pull_policy = "missing"   # or "always", "never", "older-than:12h"; SHAKEDOWN_PULL_POLICY overrides
//! offline = false           # no network for images; SHAKEDOWN_OFFLINE overrides
//! locked = false            # only what shakedown.lock says; SHAKEDOWN_LOCKED overrides
//!
//! [images]                  # this reference is taken from there; relative paths begin at this file
//! "postgres:17" = "oci:target/images/postgres"
//! "docker.io/*" = "registry.example/hub/*"      # the longest rule with a star that fits
//!
//! [registries."docker.io"]  # how a registry is reached, by the native driver
//! mirrors = ["mirror.example:5000"]
//!
//! [store]                   # what the native driver's store may keep; looked at once a day
//! max_size = "20 GB"        # of all projects of this user; the images used the longest ago go
//! max_age = "30d"           # since an image was last used
//! ```

mod substitution;
mod testcontainers;

use crate::amount;
use crate::lockfile::{self, Lockfile};
use serde::Deserialize;
pub use shakedown_runtime::DriverChoice;
use shakedown_runtime::{RegistriesConfig, StoreLimits};
use shakedown_spec::{Failure, FailureKind, ImageReference, ImageSource, PullPolicy, ReferenceError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use substitution::Substitution;

/// Overrides `driver`.
pub const DRIVER_VARIABLE: &str = "SHAKEDOWN_DRIVER";
/// Overrides `timeout_scale`.
pub const TIMEOUT_SCALE_VARIABLE: &str = "SHAKEDOWN_TIMEOUT_SCALE";
/// Overrides `pull_policy`.
pub const PULL_POLICY_VARIABLE: &str = "SHAKEDOWN_PULL_POLICY";
/// Overrides `offline`.
pub const OFFLINE_VARIABLE: &str = "SHAKEDOWN_OFFLINE";
/// Overrides `locked`.
pub const LOCKED_VARIABLE: &str = "SHAKEDOWN_LOCKED";
/// The file's name.
pub const FILE_NAME: &str = "shakedown.toml";

/// What applies to one directory: the nearest `shakedown.toml` above it, under the environment.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which driver to use.
    pub driver: DriverChoice,
    /// What every time limit is multiplied by.
    pub timeout_scale: f64,
    /// When to ask registries, for declarations that do not say it.
    pub pull_policy: PullPolicy,
    /// Whether no network is used for images.
    pub offline: bool,
    /// Whether only what the lock file says is used, and that has to be up to date.
    pub locked: bool,
    /// Where the lock file is or would be.
    pub lock_path: PathBuf,
    /// The lock file, if there is one.
    pub lock: Option<Lockfile>,
    /// Mirrors, plain HTTP and certificates of registries.
    pub registries: RegistriesConfig,
    /// What the native driver's store may keep.
    pub store: StoreLimits,
    substitution: Substitution,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            driver: DriverChoice::Auto,
            timeout_scale: 1.0,
            pull_policy: PullPolicy::Missing,
            offline: false,
            locked: false,
            lock_path: lockfile::FILE_NAME.into(),
            lock: None,
            registries: RegistriesConfig::default(),
            store: StoreLimits::default(),
            substitution: Substitution::default(),
        }
    }
}

/// What the command line says for a whole session, on top of files and environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct Overrides {
    /// Sets `offline`.
    pub offline: bool,
    /// Sets `locked`.
    pub locked: bool,
}

/// Where an image that was asked for is taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The reference that was asked for, which is its name in the lock file; `None` for what is no reference.
    pub reference: Option<ImageReference>,
    /// Where it is taken from; paths are absolute.
    pub source: ImageSource,
    /// Whether a rule of `shakedown.toml` put the source in the place of what was asked for.
    pub replaced: bool,
}

impl Asked {
    /// An image that is made here, under no name that could be replaced.
    pub(crate) fn made(source: ImageSource) -> Self {
        Self { reference: None, source, replaced: false }
    }
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    driver: Option<DriverChoice>,
    timeout_scale: Option<f64>,
    pull_policy: Option<PullPolicy>,
    offline: bool,
    locked: bool,
    images: BTreeMap<String, String>,
    registries: RegistriesConfig,
    store: WrittenStore,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenStore {
    max_size: Option<String>,
    max_age: Option<String>,
}

impl WrittenStore {
    /// What is not written is as it is without the table. The error names the key.
    fn limits(&self) -> Result<StoreLimits, String> {
        let mut limits = StoreLimits::default();
        if let Some(text) = &self.max_size {
            limits.max_size = amount::bytes(text).map_err(|reason| format!("store.max_size: {reason}"))?;
        }
        if let Some(text) = &self.max_age {
            limits.max_age = amount::age(text).map_err(|reason| format!("store.max_age: {reason}"))?;
        }
        Ok(limits)
    }
}

impl Config {
    /// Reads the nearest `shakedown.toml` in `directory` or above it, and the environment of this process. The lock file
    /// lies next to it; where there is no `shakedown.toml`, it is the nearest one.
    ///
    /// # Errors
    ///
    /// A file or a variable says something that is not understood.
    pub fn find(directory: &Path) -> Result<Self, Failure> {
        let nearest =
            |name: &str| directory.ancestors().map(|above| above.join(name)).find(|path| path.is_file());
        let file = nearest(FILE_NAME);
        let mut config = match &file {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        let beside = file.map(|path| path.with_file_name(lockfile::FILE_NAME));
        let own = || directory.join(lockfile::FILE_NAME);
        config.lock_path = beside.or_else(|| nearest(lockfile::FILE_NAME)).unwrap_or_else(own);
        config.lock = Lockfile::read(&config.lock_path)?;
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let prefix = testcontainers::property(home.as_deref(), testcontainers::HUB_PREFIX);
        config.substitution.set_hub_prefix(prefix);
        config.under_environment(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// What the command line says for the whole session.
    #[must_use]
    pub fn overridden(mut self, overrides: Overrides) -> Self {
        self.offline |= overrides.offline;
        self.locked |= overrides.locked;
        self
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
        let store = written.store.limits().map_err(|reason| wrong(path, None, &reason))?;
        let base = path.parent().unwrap_or(Path::new("/"));
        let mut substitution = Substitution::default();
        for (from, to) in &written.images {
            let bad = |error: ReferenceError| wrong(path, line_with(text, from), &error.to_string());
            substitution.rule(from, to, base).map_err(bad)?;
        }
        Ok(Self {
            driver: written.driver.unwrap_or_default(),
            timeout_scale,
            pull_policy: written.pull_policy.unwrap_or_default(),
            offline: written.offline,
            locked: written.locked,
            registries: beneath(written.registries, base),
            store,
            substitution,
            ..Self::default()
        })
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
        if let Some(text) = variable(PULL_POLICY_VARIABLE) {
            self.pull_policy =
                text.parse().map_err(|failure| in_environment(failure, PULL_POLICY_VARIABLE))?;
        }
        for (name, field) in [(OFFLINE_VARIABLE, &mut self.offline), (LOCKED_VARIABLE, &mut self.locked)] {
            if let Some(text) = variable(name) {
                *field = switch(&text).map_err(|failure| in_environment(failure, name))?;
            }
        }
        if let Some(prefix) = variable(testcontainers::HUB_PREFIX_VARIABLE) {
            self.substitution.set_hub_prefix(Some(prefix));
        }
        Ok(self)
    }

    /// Where the image comes from: what `shakedown.toml` says, else what the declaration says. Relative paths of a
    /// declaration begin at `directory`.
    ///
    /// # Errors
    ///
    /// It is neither a reference nor a source, or a rule makes something of it that is neither.
    pub fn asked(&self, image: &str, directory: &Path) -> Result<Asked, ReferenceError> {
        let source = ImageSource::from_str(image)?;
        let reference = match &source {
            ImageSource::Registry(reference) => Some(reference.clone()),
            _ => None,
        };
        if let Some(source) = self.substitution.replacement(&source)? {
            return Ok(Asked { reference, source, replaced: true });
        }
        let source = match self.substitution.prefixed(&source, image)? {
            Some(source) => source,
            None => source.beneath(directory),
        };
        Ok(Asked { reference, source, replaced: false })
    }

    /// As [`asked`](Self::asked), without the rest.
    ///
    /// # Errors
    ///
    /// See [`asked`](Self::asked).
    pub fn source(&self, image: &str, directory: &Path) -> Result<ImageSource, ReferenceError> {
        Ok(self.asked(image, directory)?.source)
    }

    /// The references that `shakedown.toml` names and that lead to a registry.
    pub fn references(&self) -> impl Iterator<Item = ImageReference> {
        self.substitution.references()
    }
}

/// With certificates' files that begin at `base`.
fn beneath(mut registries: RegistriesConfig, base: &Path) -> RegistriesConfig {
    for registry in registries.registries.values_mut() {
        registry.ca = registry.ca.take().map(|path| base.join(path));
    }
    registries
}

/// Reads what a variable that turns something on says.
fn switch(text: &str) -> Result<bool, Failure> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(Failure::new(FailureKind::Invalid, format!("`{text}` is neither yes nor no"))
            .hint("use `1` or `0`")),
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

    /// Rules with stars and the policy for images are read from the file, and overridden by the environment.
    #[test]
    fn the_policy_for_images_is_read() {
        let text = "pull_policy = \"older-than:12h\"\noffline = true\n[images]\n\"docker.io/*\" = \"registry.example/hub/*\"";
        let config = parse(text).unwrap();
        source(&config, "shop/orders", "registry.example/hub/shop/orders:latest");
        assert_eq!(
            (config.pull_policy.to_string(), config.offline, config.locked),
            ("older-than:12h".into(), true, false)
        );
        let set = |name: &str| match name {
            PULL_POLICY_VARIABLE => Some("always".to_owned()),
            OFFLINE_VARIABLE => Some("0".to_owned()),
            LOCKED_VARIABLE => Some("1".to_owned()),
            "TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX" => Some("registry.example/mirror/".to_owned()),
            _ => None,
        };
        let config = parse("offline = true").unwrap().under_environment(set).unwrap();
        assert_eq!((config.pull_policy, config.offline, config.locked), (PullPolicy::Always, false, true));
        source(&config, "redis:7", "registry.example/mirror/redis:7");
    }

    /// The lock lies next to `shakedown.toml`; where there is none, the nearest one counts.
    #[test]
    fn the_lock_is_found() {
        let shop = tempfile::tempdir().unwrap();
        let orders = shop.path().join("orders");
        std::fs::create_dir(&orders).unwrap();
        assert_eq!(Config::find(&orders).unwrap().lock_path, orders.join("shakedown.lock"));
        Lockfile::empty(shop.path().join("shakedown.lock")).write().unwrap();
        assert_eq!(Config::find(&orders).unwrap().lock.unwrap().path, shop.path().join("shakedown.lock"));
        std::fs::write(orders.join("shakedown.toml"), "").unwrap();
        let config = Config::find(&orders).unwrap();
        assert_eq!((config.lock_path, config.lock), (orders.join("shakedown.lock"), None));
    }

    /// A misspelt key is found before it is wondered about.
    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        insta::assert_snapshot!(refused("timeout_scale = 2.0\ndrvier = \"native\""), @r"
        shakedown.toml is not understood
          file:   /shop/shakedown.toml:2
          reason: unknown field `drvier`, expected one of `driver`, `timeout_scale`, `pull_policy`, `offline`, `locked`, `images`, `registries`, `store`
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

    /// A limit that is not understood is told: kept silently, it would remove images that somebody wanted to keep.
    #[test]
    fn the_store_has_limits() {
        let day = std::time::Duration::from_secs(86400);
        let limits = |text: &str| parse(text).unwrap().store;
        assert_eq!(limits(""), StoreLimits { max_size: 20_000_000_000, max_age: 30 * day });
        let written = "[store]\nmax_size = \"1.5GiB\"\nmax_age = \"7d\"";
        assert_eq!(limits(written), StoreLimits { max_size: 3 << 29, max_age: 7 * day });
        insta::assert_snapshot!(refused("[store]\nmax_size = \"much\""), @"
        shakedown.toml is not understood
          file:   /shop/shakedown.toml
          reason: store.max_size: `much` is no size; write one such as `10GB` or `512MiB`
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
        insta::assert_snapshot!(set(OFFLINE_VARIABLE, "maybe").unwrap_err(), @r"
        `maybe` is neither yes nor no
          from: the variable SHAKEDOWN_OFFLINE
        hint: use `1` or `0`
        ");
        insta::assert_snapshot!(set(PULL_POLICY_VARIABLE, "daily").unwrap_err(), @r"
        `daily` is not a pull policy
          from: the variable SHAKEDOWN_PULL_POLICY
        hint: use `missing`, `always`, `never`, or an age such as `older-than:12h`
        ");
        insta::assert_snapshot!(set(TIMEOUT_SCALE_VARIABLE, "fast").unwrap_err(), @r"
        the timeout scale is wrong: `fast` is not a number
          from: the variable SHAKEDOWN_TIMEOUT_SCALE
        hint: use a number such as `2.0`
        ");
    }
}
