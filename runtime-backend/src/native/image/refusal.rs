//! What a registry's refusal means to the user.

use super::failures::{not_found, unusable, wrong_size};
use super::registry::{Reason, Registry, RegistryError};
use shakedown_spec::{Failure, ImageReference, ImageSource};

/// How many near tags a message shows.
const NEAR_TAGS: usize = 8;
const LATER: &str = "the registry cannot answer at the moment; try again later";
const NOT_OPENED: &str =
    "the password for this registry in Docker's or Podman's configuration does not open this repository";

/// The failure for an error of the registry; `what` was asked for.
pub(crate) async fn refused(
    registry: &Registry,
    source: &ImageSource,
    image: &ImageReference,
    what: &str,
    error: &RegistryError,
) -> Failure {
    let failure = match &error.reason {
        Reason::Status { code: code @ 404, words, .. } if error.request.contains("/manifests/") => {
            let failure =
                with_words(not_found(source).fact("registry", error.registry.clone()), *code, words);
            near_tags(registry, image, failure).await
        }
        Reason::Status { code: code @ (401 | 403), words, authenticated: false, trouble, .. } => {
            let failure = not_found(source).fact("registry", error.registry.clone());
            let mut failure = with_words(failure, *code, words);
            if let Some(trouble) = trouble {
                failure = failure.fact("passwords", trouble.clone());
            }
            failure.hint(log_in(image))
        }
        Reason::Status { .. } => status(source, error),
        Reason::Connection { reason, refused, .. } => {
            let failure = could_not(source, error).fact("reason", reason.clone());
            if *refused && image.is_loopback() {
                failure.hint(format!("nothing listens on {}; start the registry", image.registry))
            } else if reason.starts_with("invalid peer certificate") {
                failure.hint(format!(
                    "for a registry with an authority of its own, name the authority's certificate in `shakedown.toml`: \
                     `[registries.\"{}\"]`, `ca = \"FILE.pem\"`",
                    image.registry
                ))
            } else {
                failure
            }
        }
        Reason::Size(size) => wrong_size(source, what, error.received.map_or(0, |(_, of)| of), *size),
        Reason::Short if error.received.is_some() => {
            let (received, of) = error.received.unwrap_or_default();
            wrong_size(source, what, of, received)
        }
        other => {
            could_not(source, error).fact("request", error.request.clone()).fact("reason", other.to_string())
        }
    };
    with_history(failure, error)
}

/// The failure to send an image to a registry.
pub(crate) fn not_pushed(source: &ImageSource, to: &ImageReference, error: &RegistryError) -> Failure {
    let failure = unusable(source, "could not be pushed")
        .fact("registry", error.registry.clone())
        .fact("request", error.request.clone());
    let failure = match &error.reason {
        Reason::Status { code, words, authenticated, trouble, .. } => {
            let mut failure = with_words(failure, *code, words);
            if let Some(trouble) = trouble {
                failure = failure.fact("passwords", trouble.clone());
            }
            match code {
                401 | 403 if *authenticated => failure.hint(NOT_OPENED),
                401 | 403 => failure.hint(format!("log in with `docker login{}`", registry_of(to))),
                429 | 500.. => failure.hint(LATER),
                _ => failure,
            }
        }
        other => failure.fact("reason", other.to_string()),
    };
    with_history(failure, error)
}

fn could_not(source: &ImageSource, error: &RegistryError) -> Failure {
    unusable(source, "could not be fetched").fact("registry", error.registry.clone())
}

fn status(source: &ImageSource, error: &RegistryError) -> Failure {
    let failure = could_not(source, error).fact("request", error.request.clone());
    let Reason::Status { code, words, authenticated, .. } = &error.reason else { return failure };
    let failure = with_words(failure, *code, words);
    match code {
        429 | 500.. => failure.hint(LATER),
        401 | 403 if *authenticated => failure.hint(NOT_OPENED),
        _ => failure,
    }
}

/// How it came to this: what had arrived, how often it was tried, who else was asked.
fn with_history(mut failure: Failure, error: &RegistryError) -> Failure {
    let told = matches!(error.reason, Reason::Size(_) | Reason::Short);
    if let Some((received, of)) = error.received.filter(|(received, _)| *received > 0 && !told) {
        failure = failure.fact("received", format!("{received} of {of} bytes"));
    }
    if error.attempts > 1 {
        failure = failure.fact("attempts", error.attempts.to_string());
    }
    error.mirrors.iter().fold(failure, |failure, mirror| failure.fact("mirror", mirror.clone()))
}

fn log_in(image: &ImageReference) -> String {
    format!(
        "check the name, or log in with `docker login{}` if the repository is private",
        registry_of(image)
    )
}

/// The argument of `docker login`, which takes its own registry for granted.
fn registry_of(image: &ImageReference) -> String {
    if image.registry == "docker.io" { String::new() } else { format!(" {}", image.registry) }
}

async fn near_tags(registry: &Registry, image: &ImageReference, failure: Failure) -> Failure {
    let tags = registry.tags(image).await;
    let near = nearest(tags, image.tag.as_deref().unwrap_or_default());
    if near.is_empty() { failure } else { failure.fact("tags there", near.join(", ")) }
}

fn with_words(failure: Failure, code: u16, words: &str) -> Failure {
    let answer = if words.is_empty() { format!("status {code}") } else { format!("status {code}, {words}") };
    failure.fact("answer", answer)
}

/// The tags that look most like the wanted one, in natural order.
fn nearest(mut tags: Vec<String>, wanted: &str) -> Vec<String> {
    tags.sort_by_cached_key(|tag| (distance(tag, wanted), tag.clone()));
    tags.truncate(NEAR_TAGS);
    tags.sort_by_cached_key(|tag| natural(tag));
    tags
}

/// How many letters have to be changed, put in or left out (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other = other.as_bytes();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (number, letter) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], number + 1);
        for column in 0..other.len() {
            let changed = diagonal + usize::from(other[column] != letter);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

/// Numbers by value: 8 stands before 10.
fn natural(tag: &str) -> Vec<(u64, String)> {
    let parts = tag.split(['.', '-', '_']);
    parts.map(|part| (part.parse().unwrap_or(u64::MAX), part.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mistyped tag is answered with those that were meant.
    #[test]
    fn near_tags_come_first_and_in_order() {
        let tags = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(nearest(tags("10 8 7 8.1"), "9"), tags("7 8 8.1 10"));
        let many = (0..50).map(|n| format!("2024-{n}")).chain(["17.5".to_owned()]).collect();
        assert!(nearest(many, "17.6").contains(&"17.5".to_owned()));
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
