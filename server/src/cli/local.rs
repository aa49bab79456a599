//! The commands that need no session: they open the image store in this process.

use super::{Done, here, wait_for};
use shakedown_runtime::Wanted;
use shakedown_runtime::native::image::Store;
use shakedown_runtime::native::{open_store, store_directory, trees_need_launcher};
use shakedown_server::config::Config;
use shakedown_server::keeper::local_launcher;
use shakedown_spec::{Failure, FailureKind, ImageReference, ImageSource, PullPolicy};
use std::io::{self, Write};

/// Runs `command` with this user's image store. To be called while the process has one thread: where the files of trees
/// belong to a user's range of ids, only a launcher may touch them, and it is forked here.
pub(super) fn with_store(command: impl AsyncFnOnce(Store) -> Done) -> Done {
    let launcher = trees_need_launcher().then(local_launcher).transpose().unwrap_or_else(|refusal| {
        // What the user owns alone can be unpacked without namespaces. Nobody reads standard error if this fails.
        let _ = writeln!(io::stderr(), "note: files of images will all belong to you: {}", refusal.reason);
        None
    });
    let registries = Config::find(&here()?)?.registries;
    wait_for(async { command(open_store(launcher, &store_directory(), registries).await?).await })
}

/// What an image of the command line means: one that the store has by this name or id, else what a container of this
/// project would be started from, by the rules of `shakedown.toml`. With the name that it goes on by.
pub(super) fn meant(store: &Store, image: &str) -> Result<(Wanted, Option<ImageReference>), Failure> {
    let config = Config::find(&here()?)?;
    let wrong = |error: shakedown_spec::ReferenceError| Failure::new(FailureKind::Invalid, error.to_string());
    let source: ImageSource = image.parse().map_err(wrong)?;
    let mut name = match &source {
        ImageSource::Registry(name) | ImageSource::DockerDaemon(name) => Some(name.clone()),
        _ => None,
    };
    let mut wanted = match (&source, store.inspect(image)) {
        (ImageSource::Registry(reference), Ok(found)) => {
            let by_name = found.summary.names.contains(&reference.familiar());
            name = name.filter(|_| by_name);
            let known = if by_name { source } else { ImageSource::Id(found.summary.id.to_string()) };
            Wanted::new(known, PullPolicy::Missing)
        }
        _ => Wanted::new(config.source(image, &here()?).map_err(wrong)?, PullPolicy::Missing),
    };
    (wanted.offline, wanted.registries) = (config.offline, config.registries);
    Ok((wanted, name.filter(|name| name.tag.is_some())))
}

/// The name by which the store has an image: as it is written, else what a rule of `shakedown.toml` puts in its place.
pub(super) fn stored_name(store: &Store, image: &str) -> Result<String, Failure> {
    if store.inspect(image).is_err()
        && let Ok(source) = Config::find(&here()?)?.source(image, &here()?)
        && store.inspect(&source.to_string()).is_ok()
    {
        return Ok(source.to_string());
    }
    Ok(image.to_owned())
}
