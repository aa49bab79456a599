//! Image references as Docker reads them.

use std::fmt;
use std::str::FromStr;

/// A reference such as `postgres`, `ghcr.io/shop/orders:3`, or `redis@sha256:…`, completed as Docker completes it.
///
/// The grammar is the one of the `distribution/reference` package.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageReference {
    /// The registry, with its port if one is given; `docker.io` when the reference names none.
    pub registry: String,
    /// The path in the registry, such as `library/postgres`.
    pub repository: String,
    /// The tag; `latest` when neither tag nor digest is given.
    pub tag: Option<String>,
    /// The digest, `sha256:` and 64 hexadecimal digits.
    pub digest: Option<String>,
}

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: String,
}

impl ReferenceError {
    /// Says about `text` what is wrong with it.
    pub fn new(text: &str, reason: impl Into<String>) -> Self {
        Self { text: text.to_owned(), reason: reason.into() }
    }

    /// What is wrong, without the text.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl ImageReference {
    /// Whether the registry is this machine, where plain HTTP is allowed.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = match self.registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => self.registry.split(':').next().unwrap_or(&self.registry),
        };
        host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// What the registry is asked for: the digest if there is one, else the tag.
    #[must_use]
    pub fn selector(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// Registry and repository, without tag and digest: `docker.io/library/postgres`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Whether `text` names its registry itself, so that none has to be added to it.
    #[must_use]
    pub fn names_registry(text: &str) -> bool {
        split_registry(text).0.is_some()
    }

    /// The short form Docker shows: `postgres:17` for `docker.io/library/postgres:17`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        short.strip_prefix("library/").unwrap_or(short).to_owned()
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl FromStr for ImageReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError::new(text, reason))
    }
}

fn parse(text: &str) -> Result<ImageReference, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if let Some(scheme) =
        ["https://", "http://", "docker://"].iter().find(|scheme| text.starts_with(**scheme))
    {
        return Err(format!("leave out `{scheme}`"));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(check_digest(digest)?)),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(check_tag(tag)?)),
        _ => (rest, None),
    };
    let (registry, path) = split_registry(name);
    let repository = match registry {
        None if !path.contains('/') => format!("library/{path}"),
        Some("docker.io" | "index.docker.io") if !path.contains('/') => format!("library/{path}"),
        _ => path.to_owned(),
    };
    check_registry(registry)?;
    check_repository(path)?;
    let registry = match registry {
        None | Some("index.docker.io") => "docker.io",
        Some(named) => named,
    };
    let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
    Ok(ImageReference { registry: registry.to_owned(), repository, tag, digest })
}

/// The first component is a registry if it could not be part of a path: it has a dot, a port, or is `localhost`.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, path))
            if first.contains(['.', ':']) || first == "localhost" || first.to_lowercase() != first =>
        {
            (Some(first), path)
        }
        _ => (None, name),
    }
}

fn check_registry(registry: Option<&str>) -> Result<(), String> {
    let Some(registry) = registry else { return Ok(()) };
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(format!("the port of registry `{registry}` is not a number from 0 to 65535"));
    }
    let v6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let valid = match v6 {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    if valid { Ok(()) } else { Err(format!("`{host}` is not a host name or address")) }
}

fn check_repository(path: &str) -> Result<(), String> {
    if path.len() > 255 {
        return Err("the name is longer than 255 characters".to_owned());
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("the name has to be lower case; try `{}`", path.to_lowercase()));
    }
    for part in path.split('/') {
        if part.is_empty() {
            return Err("a part of the name is empty".to_owned());
        }
        check_path_component(part)?;
    }
    Ok(())
}

/// `[a-z0-9]+` runs, separated by one `.`, one or two `_`, or any number of `-`.
fn check_path_component(part: &str) -> Result<(), String> {
    if let Some(wrong) =
        part.chars().find(|c| !c.is_ascii_lowercase() && !c.is_ascii_digit() && !"._-".contains(*c))
    {
        return Err(format!("`{wrong}` may not stand in a name"));
    }
    let separators = part.split(|c: char| c.is_ascii_alphanumeric()).filter(|run| !run.is_empty());
    let edges = |c: char| c.is_ascii_alphanumeric();
    if !part.starts_with(edges) || !part.ends_with(edges) {
        return Err(format!("`{part}` has to start and end with a letter or digit"));
    }
    for run in separators {
        if !matches!(run, "." | "_" | "__") && !run.bytes().all(|b| b == b'-') {
            return Err(format!("`{run}` may not stand between letters of a name"));
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<String, String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = !tag.is_empty()
        && tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if valid {
        Ok(tag.to_owned())
    } else {
        Err(format!(
            "`{tag}` is not a tag: up to 128 letters, digits, `_`, `.`, `-`, the first no `.` or `-`"
        ))
    }
}

fn check_digest(digest: &str) -> Result<String, String> {
    let hex = digest
        .strip_prefix("sha256:")
        .ok_or_else(|| format!("digest `{digest}` does not start with `sha256:`"))?;
    if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        Ok(digest.to_owned())
    } else {
        Err(format!("digest `{digest}` is not `sha256:` and 64 lower-case hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(text: &str, full: &str) {
        assert_eq!(text.parse::<ImageReference>().unwrap().to_string(), full);
    }

    #[track_caller]
    fn refuses(text: &str, reason: &str) {
        let error = text.parse::<ImageReference>().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// The same text names the same image here as in Docker.
    #[test]
    fn references_are_completed_as_docker_completes_them() {
        reads("postgres", "docker.io/library/postgres:latest");
        reads("shop/orders:3", "docker.io/shop/orders:3");
        reads("docker.io/redis:7", "docker.io/library/redis:7");
        reads("index.docker.io/redis:7", "docker.io/library/redis:7");
        reads("ghcr.io/a/b:c", "ghcr.io/a/b:c");
        reads("localhost/a", "localhost/a:latest");
        reads("localhost:5000/a:1", "localhost:5000/a:1");
        reads("[::1]:5000/a", "[::1]:5000/a:latest");
        reads("a__b/c-d--e.f:1", "docker.io/a__b/c-d--e.f:1");
        reads(&format!("redis@{DIGEST}"), &format!("docker.io/library/redis@{DIGEST}"));
        reads(&format!("redis:7@{DIGEST}"), &format!("docker.io/library/redis:7@{DIGEST}"));
    }

    /// A wrong reference is told apart by what is wrong with it.
    #[test]
    fn errors_say_what_is_wrong() {
        refuses("", "it is empty");
        refuses("https://ghcr.io/a", "leave out `https://`");
        refuses("docker://redis", "leave out `docker://`");
        refuses("Postgres", "lower case; try `postgres`");
        refuses("redis:", "`` is not a tag");
        refuses("redis:-7", "is not a tag");
        refuses("a//b", "a part of the name is empty");
        refuses("a b", "` ` may not stand in a name");
        refuses("redis-", "has to start and end with a letter or digit");
        refuses("a..b", "`..` may not stand between letters");
        refuses("localhost:port/a", "is not a number");
        refuses("redis@sha256:12", "64 lower-case hexadecimal digits");
        refuses("redis@md5:12", "does not start with `sha256:`");
        refuses("exa_mple.com/a", "is not a host name or address");
    }

    /// Plain HTTP is used for this machine alone.
    #[test]
    fn loopback_registries_are_recognised() {
        for (text, loopback) in [
            ("localhost:5000/a", true),
            ("127.0.0.1:5000/a", true),
            ("[::1]:5000/a", true),
            ("localhost.example.com/a", false),
            ("192.168.1.2:5000/a", false),
            ("redis", false),
        ] {
            assert_eq!(text.parse::<ImageReference>().unwrap().is_loopback(), loopback, "{text}");
        }
    }

    /// `docker images` shows the short form; so do messages.
    #[test]
    fn the_familiar_form_is_short() {
        assert_eq!("docker.io/library/redis:7".parse::<ImageReference>().unwrap().familiar(), "redis:7");
        assert_eq!("ghcr.io/a/b".parse::<ImageReference>().unwrap().familiar(), "ghcr.io/a/b:latest");
    }
}
