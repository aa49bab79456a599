//! What the user has set up for the Testcontainers libraries: `~/.testcontainers.properties`.

use std::path::Path;

/// Stands before images of Docker Hub.
pub(super) const HUB_PREFIX: &str = "hub.image.name.prefix";
/// The variable that overrides [`HUB_PREFIX`].
pub(super) const HUB_PREFIX_VARIABLE: &str = "TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX";
const FILE_NAME: &str = ".testcontainers.properties";

/// A property of the file in the home directory; none if there is no such file, as for Testcontainers.
pub(super) fn property(home: Option<&Path>, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(home?.join(FILE_NAME)).ok()?;
    find(&text, name)
}

/// The last value of `name`, in the plain part of Java's format: `name=value`, `name: value`, `name value`, and comments
/// that begin with `#` or `!`.
fn find(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().map(str::trim_start).filter(|line| !line.starts_with(['#', '!']));
    let mut value = lines.filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = rest.trim_start();
        let value = match value.strip_prefix(['=', ':']) {
            Some(value) => value,
            None if rest.len() > value.len() => value,
            None => return None,
        };
        Some(value.trim().to_owned())
    });
    value.rfind(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file is read as Java reads it, as far as people write it.
    #[test]
    fn properties_are_found() {
        let text = "# mirror\n!hub.image.name.prefix=no\ndocker.client.strategy=x\n hub.image.name.prefix = a/b/ \n\
            hub.image.name.prefixes=no\nryuk.disabled true\ncolon: yes";
        assert_eq!(find(text, HUB_PREFIX).as_deref(), Some("a/b/"));
        assert_eq!(find(text, "ryuk.disabled").as_deref(), Some("true"));
        assert_eq!(find(text, "colon").as_deref(), Some("yes"));
        assert_eq!(find(text, "absent"), None);
    }
}
