//! An image that is built from a Dockerfile.

use crate::{query, serial};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::str::FromStr;

/// A build: its context, its Dockerfile, and what it is told.
///
/// ```
/// use shakedown_spec::Build;
///
/// let web = Build::directory("tests/web").arg("VERSION", "3").target("dev");
/// assert_eq!(web.to_string(), "tests/web?arg.VERSION=3&target=dev");
///
/// let tool = Build::inline("FROM alpine:3\nCOPY tool.sh /\n").executable("tool.sh", "#!/bin/sh\n");
/// assert!(tool.dockerfile.is_some());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Build {
    /// What `COPY` and `ADD` take files from.
    pub context: BuildContext,
    /// The Dockerfile; `Dockerfile` of the context when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<Dockerfile>,
    /// Values of `ARG`s.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// The stage that is wanted, by name or number; the last when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Labels of the image, over those of the Dockerfile.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether everything is done again, whatever was built before.
    pub no_cache: bool,
    /// Whether registries are asked for newer base images.
    pub pull: bool,
    /// What the image is for, as `linux/arm64`; this machine when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// What `RUN --mount=type=secret` can see, by id; never a part of the image.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, BuildSecret>,
    /// The network of `RUN`: `default`, `none` or `host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Extra lines of `/etc/hosts` during `RUN`: name to address.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_hosts: BTreeMap<String, String>,
    /// What its steps may ask for beyond what any step may: `network.host`, `security.insecure`. A Dockerfile is often
    /// somebody else's, and a base image's triggers are.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub allow: BTreeSet<String>,
}

/// What a build may take files from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildContext {
    /// A directory of this machine, without what its `.dockerignore` names.
    Directory(String),
    /// These files and no others.
    Files(Vec<ContextFile>),
}

impl Default for BuildContext {
    fn default() -> Self {
        Self::Files(Vec::new())
    }
}

/// A file of a context in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextFile {
    /// Its path in the context.
    pub path: String,
    /// Its content (base64 in JSON).
    #[serde(with = "serial::base64")]
    pub bytes: Vec<u8>,
    /// Permission bits; 0644 when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// Where a Dockerfile is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dockerfile {
    /// A path in the context; an absolute one is a file of this machine.
    Path(String),
    /// This text.
    Text(String),
}

/// Something a build may read and not keep.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildSecret {
    /// A file of this machine.
    File(String),
    /// These bytes (base64 in JSON).
    Value(#[serde(with = "serial::base64")] Vec<u8>),
}

impl fmt::Debug for BuildSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Value(_) => f.write_str("Value(…)"),
        }
    }
}

impl Build {
    /// A build of the directory's `Dockerfile`.
    pub fn directory(path: impl Into<String>) -> Self {
        Self { context: BuildContext::Directory(path.into()), ..Self::default() }
    }

    /// A build of this Dockerfile, with a context that is empty until [`file`](Build::file) puts something in.
    pub fn inline(dockerfile: impl Into<String>) -> Self {
        Self { dockerfile: Some(Dockerfile::Text(dockerfile.into())), ..Self::default() }
    }

    /// Uses another file than `Dockerfile`: a path in the context, or an absolute one.
    #[must_use]
    pub fn dockerfile(mut self, path: impl Into<String>) -> Self {
        self.dockerfile = Some(Dockerfile::Path(path.into()));
        self
    }

    /// Uses this text as the Dockerfile.
    #[must_use]
    pub fn dockerfile_text(mut self, text: impl Into<String>) -> Self {
        self.dockerfile = Some(Dockerfile::Text(text.into()));
        self
    }

    /// Puts a file into a context in memory, mode 0644. A directory's context becomes one in memory.
    #[must_use]
    pub fn file(self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.add(path.into(), bytes.into(), None)
    }

    /// Puts a program into a context in memory, mode 0755.
    #[must_use]
    pub fn executable(self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.add(path.into(), bytes.into(), Some(0o755))
    }

    fn add(mut self, path: String, bytes: Vec<u8>, mode: Option<u32>) -> Self {
        let file = ContextFile { path, bytes, mode };
        match &mut self.context {
            BuildContext::Files(files) => files.push(file),
            BuildContext::Directory(_) => self.context = BuildContext::Files(vec![file]),
        }
        self
    }

    /// Sets an `ARG`.
    #[must_use]
    pub fn arg(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.args.insert(name.into(), value.into());
        self
    }

    /// Builds this stage instead of the last, by name or number.
    #[must_use]
    pub fn target(mut self, stage: impl Into<String>) -> Self {
        self.target = Some(stage.into());
        self
    }

    /// Adds a label to the image.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Does everything again, whatever was built before.
    #[must_use]
    pub fn no_cache(mut self) -> Self {
        self.no_cache = true;
        self
    }

    /// Asks registries for newer base images.
    #[must_use]
    pub fn pull(mut self) -> Self {
        self.pull = true;
        self
    }

    /// Builds for this platform, such as `linux/arm64`.
    #[must_use]
    pub fn platform(mut self, platform: impl Into<String>) -> Self {
        self.platform = Some(platform.into());
        self
    }

    /// Lets `RUN --mount=type=secret,id=…` see these bytes.
    #[must_use]
    pub fn secret(mut self, id: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.secrets.insert(id.into(), BuildSecret::Value(value.into()));
        self
    }

    /// Lets `RUN --mount=type=secret,id=…` see this file.
    #[must_use]
    pub fn secret_file(mut self, id: impl Into<String>, path: impl Into<String>) -> Self {
        self.secrets.insert(id.into(), BuildSecret::File(path.into()));
        self
    }

    /// The network of `RUN`: `default`, `none` or `host`.
    #[must_use]
    pub fn network(mut self, network: impl Into<String>) -> Self {
        self.network = Some(network.into());
        self
    }

    /// Adds a line to `/etc/hosts` during `RUN`.
    #[must_use]
    pub fn extra_host(mut self, name: impl Into<String>, address: impl Into<String>) -> Self {
        self.extra_hosts.insert(name.into(), address.into());
        self
    }

    /// Lets steps ask for `network.host` (`RUN --network=host`) or `security.insecure` (`RUN --security=insecure`).
    #[must_use]
    pub fn allow(mut self, entitlement: impl Into<String>) -> Self {
        self.allow.insert(entitlement.into());
        self
    }

    /// What the image is of: the directory's name, as far as it can be one of a service.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.context {
            BuildContext::Directory(path) => {
                Path::new(path).file_name()?.to_str().filter(|name| !name.starts_with('.'))
            }
            BuildContext::Files(_) => None,
        }
    }

    /// The same build with its relative paths beginning at `base`.
    #[must_use]
    pub fn beneath(mut self, base: &Path) -> Self {
        let at = |path: &mut String| *path = base.join(&path).to_string_lossy().into_owned();
        if let BuildContext::Directory(path) = &mut self.context {
            at(path);
        }
        for secret in self.secrets.values_mut() {
            if let BuildSecret::File(path) = secret {
                at(path);
            }
        }
        self
    }

    fn option(&mut self, name: &str, value: String) -> Result<(), String> {
        let switch = |value: &str| match value {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(format!("`{name}` is `true` or `false`, not `{other}`")),
        };
        let map = match name.split_once('.') {
            Some(("arg", key)) => Some((&mut self.args, key)),
            Some(("label", key)) => Some((&mut self.labels, key)),
            Some(("host", key)) => Some((&mut self.extra_hosts, key)),
            Some(("secret", key)) => {
                self.secrets.insert(key.to_owned(), BuildSecret::File(value));
                return Ok(());
            }
            _ => None,
        };
        if let Some((map, key)) = map {
            map.insert(key.to_owned(), value);
            return Ok(());
        }
        match name {
            "dockerfile" => self.dockerfile = Some(Dockerfile::Path(value)),
            "target" => self.target = Some(value),
            "platform" => self.platform = Some(value),
            "network" => self.network = Some(value),
            "allow" => self.allow = value.split(',').map(str::to_owned).collect(),
            "no_cache" => self.no_cache = switch(&value)?,
            "pull" => self.pull = switch(&value)?,
            _ => {
                let names = "`dockerfile`, `target`, `platform`, `network`, `allow`, `no_cache`, `pull`, `arg.NAME`, \
                    `label.NAME`, `host.NAME` and `secret.ID`";
                return Err(format!("a build has no option `{name}`; there are {names}"));
            }
        }
        Ok(())
    }

    fn options(&self) -> Vec<(String, String)> {
        let mut options = Vec::new();
        for (prefix, map) in [("arg", &self.args), ("label", &self.labels), ("host", &self.extra_hosts)] {
            options.extend(map.iter().map(|(name, value)| (format!("{prefix}.{name}"), value.clone())));
        }
        if let Some(Dockerfile::Path(path)) = &self.dockerfile {
            options.push(("dockerfile".to_owned(), path.clone()));
        }
        let single = [("target", &self.target), ("platform", &self.platform), ("network", &self.network)];
        for (name, value) in single {
            options.extend(value.iter().map(|value| (name.to_owned(), value.clone())));
        }
        if !self.allow.is_empty() {
            options.push(("allow".to_owned(), self.allow.iter().cloned().collect::<Vec<_>>().join(",")));
        }
        for (name, on) in [("no_cache", self.no_cache), ("pull", self.pull)] {
            options.extend(on.then(|| (name.to_owned(), "true".to_owned())));
        }
        for (id, secret) in &self.secrets {
            if let BuildSecret::File(path) = secret {
                options.push((format!("secret.{id}"), path.clone()));
            }
        }
        options.sort();
        options
    }
}

impl FromStr for Build {
    type Err = String;

    /// Reads `DIR?name=value&…`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (context, options) = query::read(text)?;
        if context.is_empty() {
            return Err("the path is empty".to_owned());
        }
        let mut build = Self::directory(context);
        options.into_iter().try_for_each(|(name, value)| build.option(&name, value))?;
        Ok(build)
    }
}

/// As [`FromStr`] reads it. What has no text form (files and a Dockerfile in memory) is told apart by a number.
impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match (&self.context, &self.dockerfile) {
            (BuildContext::Directory(path), None | Some(Dockerfile::Path(_))) => path.clone(),
            in_memory => {
                let mut hasher = DefaultHasher::new();
                in_memory.hash(&mut hasher);
                format!("inline-{:016x}", hasher.finish())
            }
        };
        let options = self.options();
        query::print(f, &place, options.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a build says survives the way to the keeper, and a misspelt field is told.
    #[test]
    fn a_build_survives_json() {
        let build =
            Build::inline("FROM scratch\nCOPY a /\n").file("a", "b").arg("V", "1").secret("key", "hush");
        let json = serde_json::to_string(&build).unwrap();
        assert_eq!(serde_json::from_str::<Build>(&json).unwrap(), build);
        insta::assert_snapshot!(serde_json::to_string(&Build::directory("web").dockerfile("Dev").pull()).unwrap(), @r#"{"context":{"directory":"web"},"dockerfile":{"path":"Dev"},"no_cache":false,"pull":true}"#);
        assert!(serde_json::from_str::<Build>(r#"{"contxt":{"directory":"."}}"#).is_err());
    }

    /// Every option of a build can be written in one line.
    #[test]
    fn builds_are_written_as_text() {
        let text = "web?arg.V=1&dockerfile=Dev&host.db=10.0.0.1&label.a=b&network=none&no_cache=true&platform=linux/arm64&pull=true&secret.key=/run/key&target=t";
        let build: Build = text.parse().unwrap();
        assert_eq!(build.to_string(), text);
        let written = Build::directory("web")
            .arg("V", "1")
            .dockerfile("Dev")
            .extra_host("db", "10.0.0.1")
            .label("a", "b");
        let written =
            written.network("none").no_cache().platform("linux/arm64").pull().secret_file("key", "/run/key");
        assert_eq!(written.target("t"), build);
        insta::assert_snapshot!("web?args.V=1".parse::<Build>().unwrap_err(), @"a build has no option `args.V`; there are `dockerfile`, `target`, `platform`, `network`, `allow`, `no_cache`, `pull`, `arg.NAME`, `label.NAME`, `host.NAME` and `secret.ID`");
        insta::assert_snapshot!("web?pull=yes".parse::<Build>().unwrap_err(), @"`pull` is `true` or `false`, not `yes`");
    }

    /// The value of a secret is in no message.
    #[test]
    fn secrets_are_not_shown() {
        let build = Build::inline("FROM scratch").secret("key", "hush");
        assert!(!format!("{build:?} {build}").contains("hush"));
        assert!(!format!("{build:?}").contains(&format!("{:?}", b"hush")));
    }
}
