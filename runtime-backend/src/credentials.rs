//! Passwords for registries, where Docker's and Podman's command lines keep them.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// A credential helper may ask the user for a PIN, and may hang.
const LONGEST_HELPER: Duration = Duration::from_secs(30);
/// What a helper gives as the user's name where the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Where passwords are found. Asked in order, the first that knows the registry decides. The default knows none.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The content of a Docker configuration, as the variable `DOCKER_AUTH_CONFIG` has it.
    pub inline: Option<String>,
    /// Configuration files of Docker or Podman; one that is not there is passed over.
    pub files: Vec<PathBuf>,
}

/// What opens a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Password {
        user: String,
        password: String,
    },
    /// To be exchanged for a token at the token server (`docker login` through a browser).
    IdentityToken(String),
    /// Shown to the registry as it is.
    RegistryToken(String),
}

/// The answer to "who am I for this registry?".
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) credential: Option<Credential>,
    /// Why something that should have known did not answer.
    pub(crate) trouble: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Configuration {
    auths: HashMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: String,
}

// No derive: it would print passwords.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inline = self.inline.is_some();
        f.debug_struct("Credentials").field("inline", &inline).field("files", &self.files).finish()
    }
}

impl Credentials {
    /// The places that Docker's command line reads (`DOCKER_AUTH_CONFIG`, `$DOCKER_CONFIG/config.json` or
    /// `~/.docker/config.json`), then Podman's (`REGISTRY_AUTH_FILE` alone, or `$XDG_RUNTIME_DIR/containers/auth.json`
    /// and `~/.config/containers/auth.json`).
    #[must_use]
    pub fn of_environment() -> Self {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = variable("HOME");
        let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let docker =
            variable("DOCKER_CONFIG").or_else(|| in_home(".docker")).map(|path| path.join("config.json"));
        let podman = match variable("REGISTRY_AUTH_FILE") {
            Some(file) => vec![Some(file)],
            None => vec![
                variable("XDG_RUNTIME_DIR").map(|path| path.join("containers/auth.json")),
                in_home(".config/containers/auth.json"),
            ],
        };
        let files = std::iter::once(docker).chain(podman).flatten().collect();
        Self { inline: std::env::var("DOCKER_AUTH_CONFIG").ok().filter(|text| !text.is_empty()), files }
    }

    /// Only what this file says.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { inline: None, files: vec![path.into()] }
    }

    /// What is known for this repository of this registry.
    pub(crate) async fn find(&self, registry: &str, repository: &str) -> Found {
        let inline = self.inline.clone().map(|text| ("DOCKER_AUTH_CONFIG".to_owned(), text.into_bytes()));
        let files = self
            .files
            .iter()
            .filter_map(|path| Some((path.display().to_string(), std::fs::read(path).ok()?)));
        let mut trouble = None;
        for (place, text) in inline.into_iter().chain(files) {
            let found = match serde_json::from_slice::<Configuration>(&text) {
                Ok(configuration) => configuration.find(registry, repository).await,
                Err(error) => Err(error.to_string()),
            };
            match found {
                Ok(Some(credential)) => return Found { credential: Some(credential), trouble: None },
                Ok(None) => {}
                Err(reason) => drop(trouble.get_or_insert(format!("{place}: {reason}"))),
            }
        }
        Found { credential: None, trouble }
    }
}

impl Configuration {
    /// As Docker: a helper for this registry, else the store for all, else what stands in the file.
    async fn find(&self, registry: &str, repository: &str) -> Result<Option<Credential>, String> {
        let server = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
        if let Some(helper) = self.cred_helpers.get(server).or_else(|| self.cred_helpers.get(registry)) {
            return ask(helper, server).await;
        }
        if let Some(store) = self.creds_store.as_ref().filter(|name| !name.is_empty())
            && let Some(credential) = ask(store, server).await?
        {
            return Ok(Some(credential));
        }
        let entry = names(registry, repository)
            .find_map(|name| self.auths.iter().find(|(key, _)| host(key) == name).map(|(_, entry)| entry));
        entry.map_or(Ok(None), Entry::credential)
    }
}

/// The names under which a registry may stand in a file: Podman's are of a repository or a part of it, too.
fn names(registry: &str, repository: &str) -> impl Iterator<Item = String> {
    let full = format!("{registry}/{repository}");
    let ends: Vec<_> = full.match_indices('/').map(|(at, _)| at).chain([full.len()]).rev().collect();
    let mut names: Vec<_> = ends.into_iter().map(|end| full[..end].to_owned()).collect();
    if registry == "docker.io" {
        names.extend(["index.docker.io", "registry-1.docker.io"].map(str::to_owned));
    }
    names.into_iter()
}

/// `https://index.docker.io/v1/` is what Docker writes; the scheme and the version mean nothing.
fn host(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key)
}

impl Entry {
    fn credential(&self) -> Result<Option<Credential>, String> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.registrytoken) {
            return Ok(Some(Credential::RegistryToken(token)));
        }
        if let Some(token) = filled(&self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        if let Some(auth) = filled(&self.auth) {
            let wrong = || "an `auth` is not the base64 of `user:password`".to_owned();
            let auth = auth.trim_end_matches(['\0', '=']);
            let plain = STANDARD_NO_PAD.decode(auth).map_err(|_error| wrong())?;
            let plain = String::from_utf8(plain).map_err(|_error| wrong())?;
            let (user, password) = plain.split_once(':').ok_or_else(wrong)?;
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Some(Credential::Password { user: user.to_owned(), password }));
        }
        // An entry without content is what `docker login` leaves where a store has the password.
        Ok(filled(&self.username)
            .zip(self.password.clone())
            .map(|(user, password)| Credential::Password { user, password }))
    }
}

/// Asks a credential helper: `docker-credential-NAME get`, the server's name on its standard input.
async fn ask(helper: &str, server: &str) -> Result<Option<Credential>, String> {
    let program = format!("docker-credential-{helper}");
    if helper.contains('/') {
        return Err(format!("`{helper}` is not the name of a credential helper"));
    }
    let failed =
        |error: std::io::Error| format!("{program}: {}", crate::image_files::failures::plain(&error));
    let exchange = async {
        let mut command = Command::new(&program);
        command
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(format!("{server}\n").as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = timeout(LONGEST_HELPER, exchange).await;
    let output =
        output.map_err(|_elapsed| format!("{program} did not answer for {} s", LONGEST_HELPER.as_secs()))?;
    let output = output.map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // The one refusal that is no trouble, in the words of docker-credential-helpers.
        let unknown = said.contains("credentials not found");
        return if unknown { Ok(None) } else { Err(format!("{program}: {}", said.trim())) };
    }
    let answer: Answer = serde_json::from_str(&said).map_err(|error| format!("{program}: {error}"))?;
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credential::IdentityToken(answer.secret),
        _ => Credential::Password { user: answer.username, password: answer.secret },
    }))
}

impl Credential {
    /// The value of the header `Authorization` that says it directly, if that may be done.
    pub(crate) fn header(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Self::RegistryToken(token) => Some(format!("Bearer {token}")),
            Self::IdentityToken(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(found: &Found) -> String {
        match (&found.credential, &found.trouble) {
            (Some(Credential::Password { user, password }), _) => format!("{user}:{password}"),
            (Some(Credential::IdentityToken(token)), _) => format!("identity {token}"),
            (Some(Credential::RegistryToken(token)), _) => format!("registry {token}"),
            (None, Some(trouble)) => format!("trouble {trouble}"),
            (None, None) => "nothing".to_owned(),
        }
    }

    async fn check(configuration: &str, registry: &str, expected: &str) {
        let credentials = Credentials { inline: Some(configuration.to_owned()), files: Vec::new() };
        assert_eq!(shown(&credentials.find(registry, "shop/orders").await), expected, "{configuration}");
    }

    /// Whatever `docker login` or `podman login` wrote is found under the registry's name.
    #[tokio::test]
    async fn entries_are_found_by_every_name() {
        let hub = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "YW5uOnM6ZWNyZXQ="}}}"#;
        check(hub, "docker.io", "ann:s:ecret").await;
        check(hub, "ghcr.io", "nothing").await;
        check(r#"{"auths": {"docker.io": {"auth": "YW5uOng="}}}"#, "docker.io", "ann:x").await;
        check(
            r#"{"auths": {"https://shop.example": {"username": "a", "password": "b"}}}"#,
            "shop.example",
            "a:b",
        )
        .await;
        let narrow = r#"{"auths": {"a.example": {"auth": "YTph"}, "a.example/shop": {"auth": "Yjpi"}}}"#;
        check(narrow, "a.example", "b:b").await;
        check(
            r#"{"auths": {"a.example": {"identitytoken": "i", "auth": "YTph"}}}"#,
            "a.example",
            "identity i",
        )
        .await;
        check(r#"{"auths": {"a.example": {"registrytoken": "r"}}}"#, "a.example", "registry r").await;
        check(r#"{"auths": {"a.example": {}}}"#, "a.example", "nothing").await;
    }

    /// A helper that is not installed and a broken file are named, not passed over in silence.
    #[tokio::test]
    async fn trouble_is_told() {
        let helper = r#"{"credHelpers": {"a.example": "not-installed-anywhere"}}"#;
        let expected =
            "trouble DOCKER_AUTH_CONFIG: docker-credential-not-installed-anywhere: no such file or directory";
        check(helper, "a.example", expected).await;
        check(helper, "b.example", "nothing").await;
        let wrong = "trouble DOCKER_AUTH_CONFIG: an `auth` is not the base64 of `user:password`";
        check(r#"{"auths": {"a.example": {"auth": "%"}}}"#, "a.example", wrong).await;
        check("{", "a.example", "trouble DOCKER_AUTH_CONFIG: EOF while parsing an object at line 1 column 1")
            .await;
    }
}
