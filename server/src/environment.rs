//! Variables that a declaration does not spell out: files of them, and those of the one who starts the container.

use shakedown_spec::{Container, Failure, FailureKind};
use std::collections::BTreeMap;
use std::path::Path;

/// The variables of the one who starts a container.
pub(crate) type HostVariables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Puts the values of `env_files` and `env_from_host` into `env`. `host` has the variables of the one who starts the
/// container; without it a name alone is refused, because nobody here knows its value.
///
/// # Errors
///
/// A file cannot be read, or has a line that is no variable.
pub(crate) fn settle(
    container: &mut Container,
    directory: &Path,
    host: Option<&HostVariables<'_>>,
) -> Result<(), Failure> {
    let mut found = BTreeMap::new();
    let mut names = Vec::new();
    for file in std::mem::take(&mut container.env_files) {
        let path = directory.join(&file);
        let failed = |reason: String| {
            let title = format!("the variables for {} could not be read", container.display_name());
            Failure::new(FailureKind::Invalid, title)
                .fact("file", path.display().to_string())
                .fact("reason", reason)
        };
        let text = std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) =
                line.split_once('=').map_or((line, None), |(name, value)| (name, Some(value)));
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(failed(format!("line {}: `{}` is no name", number + 1, name.escape_debug())));
            }
            match value {
                Some(value) => drop(found.insert(name.to_owned(), value.to_owned())),
                None => names.push(name.to_owned()),
            }
        }
    }
    names.append(&mut container.env_from_host);
    for name in names {
        let Some(host) = host else {
            let title = format!("{} has a variable without a value", container.display_name());
            return Err(Failure::new(FailureKind::Invalid, title)
                .fact("env_from_host", name)
                .hint("the client that starts the container puts the values into `env`"));
        };
        if let Some(value) = host(&name) {
            found.insert(name, value);
        }
    }
    for (name, value) in found {
        container.env.entry(name).or_insert(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shakedown_spec::Configure;

    /// What is declared counts before the host's variables, and those before files; comments are none.
    #[test]
    fn variables_are_found() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(
            place.path().join("shop.env"),
            "# till\nA=file\n  B=b=c \nC=file\nHOME_TOWN\nNOT_SET\n\n",
        )
        .unwrap();
        let declared = || Container::of("shop").env_file("shop.env").env("A", "declared").env_from_host("C");
        let host = |name: &str| ["C", "HOME_TOWN"].contains(&name).then(|| format!("host {name}"));
        let mut container = declared();
        settle(&mut container, place.path(), Some(&host)).unwrap();
        let env: Vec<_> = container.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(env, ["A=declared", "B=b=c ", "C=host C", "HOME_TOWN=host HOME_TOWN"]);
        assert!(container.env_files.is_empty() && container.env_from_host.is_empty());
        let told = settle(&mut declared(), place.path(), None).unwrap_err().to_string();
        assert!(told.contains("HOME_TOWN"), "{told}");
        std::fs::write(place.path().join("shop.env"), "A B=1\n").unwrap();
        let told = settle(&mut declared(), place.path(), Some(&host)).unwrap_err().to_string();
        assert!(told.contains("line 1: `A B` is no name"), "{told}");
    }
}
