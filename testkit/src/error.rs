//! What a test returns: any error, with the line of the `?` and the logs of the containers that were alive.

use crate::{Failure, evidence};
use shakedown_spec::FailureKind;
use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::panic::Location;

/// What a test returns: `fn orders_are_totalled() -> shakedown::Result`.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// Any error, with the line of the `?` that made it one, and the end of the log of every container of the test that
/// was alive then.
///
/// `Debug`, which is how a test that returns an error is printed, shows all of it; so does `Display`.
///
/// ```
/// fn stock() -> shakedown::Result<u32> {
///     Ok("twelve".parse::<u32>()?)
/// }
/// let text = format!("{:?}", stock().unwrap_err());
/// assert!(text.starts_with("invalid digit found in string\n  at "), "{text}");
/// ```
pub struct Error {
    failure: Box<Failure>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error that says `message`.
    #[track_caller]
    pub fn new(message: impl Into<String>) -> Self {
        let mut failure = Failure::new(FailureKind::Other, message);
        locate(&mut failure, Location::caller());
        failure.logs = evidence::of_this_test(&mut failure.facts);
        Self { failure: Box::new(failure), source: None }
    }

    /// What is shown.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        &self.failure
    }

    /// The kind of failure; [`FailureKind::Other`] for errors that come from elsewhere.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        self.failure.kind
    }

    /// The error that the `?` met, if it is an `E`.
    #[must_use]
    pub fn downcast_ref<E: StdError + 'static>(&self) -> Option<&E> {
        self.source.as_deref().and_then(|source| source.downcast_ref())
    }
}

/// Where `location` is, as failures show it.
pub(crate) fn locate(failure: &mut Failure, location: &Location<'_>) {
    failure.location.get_or_insert_with(|| location.to_string());
}

impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    #[track_caller]
    fn from(error: E) -> Self {
        // A failure of Shakedown's own is told as it is: it has its line and the logs that matter.
        if let Some(failure) = (&error as &dyn Any).downcast_ref::<Failure>() {
            let mut failure = failure.clone();
            locate(&mut failure, Location::caller());
            return Self { failure: Box::new(failure), source: Some(Box::new(error)) };
        }
        let mut error = Self { source: Some(Box::new(error)), ..Self::new(String::new()) };
        let (title, causes) = error.source.as_deref().map(told).unwrap_or_default();
        error.failure.title = title;
        locate(&mut error.failure, Location::caller());
        error.failure.facts.splice(0..0, causes.into_iter().map(|cause| ("caused by".to_owned(), cause)));
        error
    }
}

/// The message of an error, and of those beneath it that it does not repeat itself.
fn told(error: &(dyn StdError + Send + Sync + 'static)) -> (String, Vec<String>) {
    let title = error.to_string();
    let mut causes = Vec::new();
    let mut next = error.source();
    let mut said = title.clone();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !said.contains(&text) {
            said.clone_from(&text);
            causes.push(text);
        }
        next = cause.source();
    }
    (title, causes)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}
