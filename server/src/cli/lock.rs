//! `shakedown lock`: writes down which bytes image references mean.

use super::{Done, here, run, say};
use futures_util::future::join_all;
use shakedown_runtime::native::image::{LookedUp, look_up};
use shakedown_server::config::{Asked, Config, Overrides};
use shakedown_server::lockfile::{LockedImage, Lockfile};
use shakedown_spec::{Failure, FailureKind, ImageReference, ImageSource};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

/// Without references: all that are in the file, and those of `shakedown.toml`, as their registries mean them now.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// References to add, or to lock anew.
    references: Vec<String>,
    /// Locks only this one anew; may be given several times.
    #[arg(long, value_name = "REFERENCE", conflicts_with = "references")]
    update: Vec<String>,
    /// Writes nothing; fails if something would change.
    #[arg(long, conflicts_with = "command")]
    check: bool,
    /// A command, run in a session of its own; the references that it used and that are not locked yet are added.
    #[arg(last = true)]
    command: Vec<String>,
}

pub(super) async fn lock(arguments: Arguments) -> Done {
    let directory = here()?;
    let config = Config::find(&directory)?;
    if config.offline {
        return Err(Failure::new(FailureKind::Invalid, "nothing can be locked offline")
            .fact("reason", "registries are asked what references mean")
            .hint("unset `offline` and SHAKEDOWN_OFFLINE"));
    }
    let old = config.lock.clone().unwrap_or_else(|| Lockfile::empty(config.lock_path.clone()));
    let (code, references) = wanted(&arguments, &config, &old).await?;
    let new = locked(&config, &directory, &old, references).await?;
    report(&old, &new)?;
    match (old == new, arguments.check) {
        (true, _) if config.lock.is_some() => Ok(code),
        (false, true) => Err(Failure::new(FailureKind::Invalid, "shakedown.lock is not up to date")
            .fact("file", old.path.display().to_string())
            .hint("`shakedown lock` writes it anew")),
        (true, true) => Ok(code),
        (_, false) => new.write().map(|()| code),
    }
}

/// The references to look up, and how the command ended, if there is one.
async fn wanted(
    arguments: &Arguments,
    config: &Config,
    old: &Lockfile,
) -> Result<(ExitCode, Vec<ImageReference>), Failure> {
    let named = arguments.references.iter().chain(&arguments.update);
    let mut references = named.map(|text| parsed(text)).collect::<Result<BTreeSet<_>, _>>()?;
    let mut code = ExitCode::SUCCESS;
    if !arguments.command.is_empty() {
        let used;
        let command = arguments.command.clone();
        (code, used) =
            run::in_session(None, Overrides::default(), command, async |session| session.references().await)
                .await?;
        references.extend(used.into_iter().filter(|name| !old.images.contains_key(name)));
    } else if references.is_empty() {
        references.extend(old.images.keys().cloned());
        references.extend(config.references().map(|reference| reference.to_string()));
    }
    let references = references.iter().map(|text| text.parse::<ImageReference>());
    let references = references.collect::<Result<_, _>>().map_err(|error| wrong(&error.to_string()))?;
    Ok((code, references))
}

fn parsed(text: &str) -> Result<String, Failure> {
    let reference: ImageReference = text.parse().map_err(|error| wrong(&format!("{error}")))?;
    Ok(reference.to_string())
}

fn wrong(reason: &str) -> Failure {
    Failure::new(FailureKind::Invalid, "nothing was locked").fact("reason", reason)
}

/// The file with what registries mean by these references. One that has its digest with it needs no lock.
async fn locked(
    config: &Config,
    directory: &Path,
    old: &Lockfile,
    references: Vec<ImageReference>,
) -> Result<Lockfile, Failure> {
    let lookups = references.into_iter().filter(|reference| reference.digest.is_none()).map(async |name| {
        // As a test writes it, so that the hub prefix counts.
        let asked = config.asked(&name.familiar(), directory).map_err(|error| wrong(&error.to_string()))?;
        let Asked { source: ImageSource::Registry(source), .. } = asked else {
            // In files: there is no tag that could move.
            return Ok((name, None));
        };
        let LookedUp { digest, platforms } = look_up(&source, &config.registries).await?;
        Ok((name, Some(LockedImage { digest, platforms })))
    });
    let mut new = old.clone();
    for found in join_all(lookups).await {
        let (name, locked) = found?;
        match locked {
            Some(locked) => drop(new.images.insert(name.to_string(), locked)),
            None => drop(new.images.remove(&name.to_string())),
        }
    }
    Ok(new)
}

/// One line for each reference that is not as it was.
fn report(old: &Lockfile, new: &Lockfile) -> Result<(), Failure> {
    let mut text = String::new();
    for (name, locked) in &new.images {
        let line = match old.images.get(name) {
            None => format!("added    {name} {}\n", locked.digest),
            Some(before) if before.digest != locked.digest => {
                format!("updated  {name} {} (was {})\n", locked.digest, before.digest)
            }
            Some(before) if before != locked => format!("updated  {name} (its platforms)\n"),
            Some(_) => continue,
        };
        text.push_str(&line);
    }
    for name in old.images.keys().filter(|name| !new.images.contains_key(*name)) {
        text.push_str(&format!("removed  {name} (taken from files)\n"));
    }
    if text.is_empty() {
        text = format!("nothing changed: {} images are locked\n", new.images.len());
    }
    say(text.as_bytes())
}
