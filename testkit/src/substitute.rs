//! Which image is run in another one's place: a function of the test binary's own.

use crate::Container;
use shakedown_spec::ImageReference;
use std::sync::{PoisonError, RwLock};

type Rule = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

static RULE: RwLock<Option<Rule>> = RwLock::new(None);

/// Has `rule` say which image is run in the place of each that is declared, from now on and in this process: another
/// image or source, or `None` for the one that was asked for. A second call replaces the rule.
///
/// It is asked first, with the text of the declaration; the rules of `shakedown.toml` apply to what it answers. What
/// can be said as a rule is better said there: it counts for all processes and languages of the project.
///
/// ```
/// shakedown::images::substitute(|image| {
///     let name = image.strip_prefix("shop/")?;
///     let registry = std::env::var("SHOP_REGISTRY").ok()?;
///     Some(format!("{registry}/shop/{name}"))
/// });
/// ```
pub fn substitute(rule: impl Fn(&str) -> Option<String> + Send + Sync + 'static) {
    *RULE.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(rule));
}

/// The declaration with the image that is to be run.
pub(crate) fn apply(mut container: Container) -> Container {
    let replacement = match &*RULE.read().unwrap_or_else(PoisonError::into_inner) {
        Some(rule) => rule(&container.image),
        None => None,
    };
    if let Some(image) = replacement {
        container.name.get_or_insert_with(|| Container::of(container.image.as_str()).display_name());
        // Whoever replaces an image says that the new one works like it.
        if let Ok(reference) = image.parse::<ImageReference>()
            && !container.compatible.is_empty()
        {
            container.compatible.push(reference.name());
        }
        container.image = image;
    }
    container
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Module, modules::Postgres};

    /// A team that keeps its images elsewhere says so once, in code; services keep their names.
    #[test]
    fn the_rule_replaces_images() {
        substitute(|image| image.strip_prefix("postgres:").map(|tag| format!("registry.example/pg:{tag}")));
        let replaced = apply(Postgres::new().declare());
        assert_eq!(
            (replaced.image.as_str(), replaced.display_name()),
            ("registry.example/pg:17", "postgres".into())
        );
        assert!(replaced.compatible.contains(&"registry.example/pg".to_owned()));
        assert_eq!(apply(Container::of("redis:7")), Container::of("redis:7"));
    }
}
