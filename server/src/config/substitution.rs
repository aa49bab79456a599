//! Which image is taken in another one's place: the rules of `[images]`, and the hub prefix of Testcontainers.
//!
//! ```text
//! reference ─► a rule for exactly it ─► the longest rule with a `*` ─► the hub prefix ─► the reference itself
//! ```
//! The first that applies decides; what it gives is not looked up again.

use shakedown_spec::{ImageReference, ImageSource, ReferenceError};
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

/// The rules of one directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Substitution {
    /// Completed reference or source to what replaces it; paths are absolute.
    exact: BTreeMap<String, String>,
    /// Those with the longest text first.
    patterns: Vec<Pattern>,
    /// What stands before images of Docker Hub.
    hub_prefix: Option<String>,
}

/// `before*after`, and what replaces the whole of it, where `*` is what the other `*` stood for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    before: String,
    after: String,
    replacement: String,
}

impl Substitution {
    /// Adds a rule as it is written. Relative paths of `to` begin at `base`.
    pub(super) fn rule(&mut self, from: &str, to: &str, base: &Path) -> Result<(), ReferenceError> {
        let Some((before, after)) = from.split_once('*') else {
            let from = ImageSource::from_str(from)?.to_string();
            self.exact.insert(from, ImageSource::from_str(to)?.beneath(base).to_string());
            return Ok(());
        };
        // A second star, and what else cannot stand in a reference, is found by putting a letter in the star's place.
        // A letter fits wherever a part of a name or a tag does.
        let example = format!("{before}a{after}");
        ImageSource::from_str(&example).map_err(|_| ReferenceError::new(from, reason_of(&example)))?;
        let filled = to.replacen('*', "a", 1);
        ImageSource::from_str(&filled).map_err(|_| ReferenceError::new(to, reason_of(&filled)))?;
        let replacement = match ImageSource::from_str(&filled)? {
            ImageSource::Registry(_) => to.to_owned(),
            // Made absolute with the star in it: a path may have one.
            _ => ImageSource::from_str(to)?.beneath(base).to_string(),
        };
        self.patterns.push(Pattern { before: completed(before), after: after.to_owned(), replacement });
        self.patterns.sort_by_key(|pattern| std::cmp::Reverse(pattern.before.len() + pattern.after.len()));
        Ok(())
    }

    pub(super) fn set_hub_prefix(&mut self, prefix: Option<String>) {
        self.hub_prefix = prefix.filter(|prefix| !prefix.is_empty());
    }

    /// What a rule puts in the place of `asked`.
    pub(super) fn replacement(&self, asked: &ImageSource) -> Result<Option<ImageSource>, ReferenceError> {
        if let Some(replacement) = self.exact.get(&asked.to_string()) {
            return replacement.parse().map(Some);
        }
        let ImageSource::Registry(reference) = asked else { return Ok(None) };
        let full = reference.to_string();
        self.patterns.iter().find_map(|pattern| pattern.apply(&full)).map(|text| text.parse()).transpose()
    }

    /// `asked`, which is written `text`, behind the hub prefix: an image of Docker Hub that does not name its registry.
    pub(super) fn prefixed(
        &self,
        asked: &ImageSource,
        text: &str,
    ) -> Result<Option<ImageSource>, ReferenceError> {
        match &self.hub_prefix {
            _ if !matches!(asked, ImageSource::Registry(_)) => Ok(None),
            Some(prefix) if !ImageReference::names_registry(text) => prefixed(prefix, text).parse().map(Some),
            _ => Ok(None),
        }
    }

    /// The references of exact rules that lead to a registry.
    pub(super) fn references(&self) -> impl Iterator<Item = ImageReference> {
        let leads_to_registry = |to: &str| matches!(to.parse(), Ok(ImageSource::Registry(_)));
        self.exact
            .iter()
            .filter(move |(_, to)| leads_to_registry(to))
            .filter_map(|(from, _)| from.parse().ok())
    }
}

impl Pattern {
    fn apply(&self, full: &str) -> Option<String> {
        let star = full.strip_prefix(&self.before)?.strip_suffix(&self.after)?;
        (!star.is_empty()).then(|| self.replacement.replacen('*', star, 1))
    }
}

/// The part before the star with what Docker adds to it: `postgres:*` means `docker.io/library/postgres:*`.
fn completed(before: &str) -> String {
    // Nothing before the star is any registry.
    if before.is_empty() || ImageReference::names_registry(before) {
        return before.replacen("index.docker.io/", "docker.io/", 1);
    }
    if before.contains('/') { format!("docker.io/{before}") } else { format!("docker.io/library/{before}") }
}

/// As Testcontainers writes prefixes: with their slash. Where it is left out, and nothing else stands there that can
/// only be the beginning of a name (`mirror/hub-`), it is added.
fn prefixed(prefix: &str, text: &str) -> String {
    let slash = if prefix.ends_with(['/', '-', '_', '.']) { "" } else { "/" };
    format!("{prefix}{slash}{text}")
}

fn reason_of(example: &str) -> String {
    let reason =
        ImageSource::from_str(example).err().map(|error| error.reason().to_owned()).unwrap_or_default();
    format!("with `a` in the place of `*`, {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(rules: &[(&str, &str)]) -> Substitution {
        let mut substitution = Substitution::default();
        for (from, to) in rules {
            substitution.rule(from, to, Path::new("/shop")).unwrap();
        }
        substitution
    }

    #[track_caller]
    fn gives(substitution: &Substitution, text: &str, expected: &str) {
        let asked: ImageSource = text.parse().unwrap();
        let given = substitution.replacement(&asked).unwrap();
        let given = given.or_else(|| substitution.prefixed(&asked, text).unwrap());
        assert_eq!(given.map_or("itself".to_owned(), |source| source.to_string()), expected);
    }

    /// A company keeps all of Docker Hub at one place, and two images elsewhere.
    #[test]
    fn the_exact_rule_comes_first_and_then_the_longest() {
        let company = rules(&[
            ("docker.io/*", "registry.example/hub/*"),
            ("docker.io/library/*", "registry.example/official/*"),
            ("postgres:*", "registry.example/pg:*"),
            ("postgres:17", "oci:images/pg"),
            ("ghcr.io/shop/*-ci", "oci:ci/*"),
        ]);
        gives(&company, "postgres:17", "oci:/shop/images/pg");
        gives(&company, "postgres:16", "registry.example/pg:16");
        gives(&company, "redis:7", "registry.example/official/redis:7");
        gives(&company, "shop/orders", "registry.example/hub/shop/orders:latest");
        gives(&company, "ghcr.io/shop/orders:1", "itself");
        gives(&company, "ghcr.io/shop/orders:1-ci", "oci:/shop/ci/orders:1");
        gives(&company, "oci:images/web", "itself");
    }

    /// Everything through one proxy, whatever registry it names.
    #[test]
    fn a_star_alone_takes_all() {
        let all = rules(&[("*", "proxy.example/*")]);
        gives(&all, "redis:7", "proxy.example/docker.io/library/redis:7");
    }

    /// A machine set up for Testcontainers needs no second setting; what names its registry is left alone, `docker.io`
    /// included, as in Testcontainers.
    #[test]
    fn the_hub_prefix_stands_before_images_without_a_registry() {
        let mut substitution = rules(&[("redis:7", "redis:8")]);
        substitution.set_hub_prefix(Some("registry.example/mirror/".to_owned()));
        gives(&substitution, "postgres:17", "registry.example/mirror/postgres:17");
        gives(&substitution, "shop/orders", "registry.example/mirror/shop/orders:latest");
        gives(&substitution, "docker.io/library/postgres:17", "itself");
        gives(&substitution, "ghcr.io/shop/orders", "itself");
        gives(&substitution, "redis:7", "docker.io/library/redis:8");
        substitution.set_hub_prefix(Some("registry.example".to_owned()));
        gives(&substitution, "postgres:17", "registry.example/postgres:17");
        substitution.set_hub_prefix(Some("registry.example/hub-".to_owned()));
        gives(&substitution, "postgres:17", "registry.example/hub-postgres:17");
    }

    /// A rule that could never give an image is found when the file is read.
    #[test]
    fn wrong_rules_are_told() {
        let wrong = |from: &str, to: &str| {
            Substitution::default().rule(from, to, Path::new("/shop")).unwrap_err().to_string()
        };
        insta::assert_snapshot!(wrong("docker.io/*/*", "x/*"), @"`docker.io/*/*` is not an image reference: with `a` in the place of `*`, `*` may not stand in a name");
        insta::assert_snapshot!(wrong("docker.io/*", "https://x/*"), @"`https://x/*` is not an image reference: with `a` in the place of `*`, leave out `https://`");
    }
}
