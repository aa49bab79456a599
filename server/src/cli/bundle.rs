//! `shakedown bundle`: images on their way to machines without network.

use super::local::with_store;
use super::{Done, chosen, here, io_failure, say};
use clap::Subcommand;
use shakedown_runtime::native::image::{Carried, Store};
use shakedown_runtime::{Bundled, DriverChoice, Wanted};
use shakedown_server::config::{Asked, Config};
use shakedown_server::{keeper, lockfile};
use shakedown_spec::{Failure, FailureKind, ImageReference, ImageSource, PullPolicy};
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Writes images into one archive, an OCI layout: those of `shakedown.lock`, or the ones that are named.
    Export {
        /// The archive.
        #[arg(short, long)]
        output: PathBuf,
        /// Takes the images for all kinds of machines, not only for this one's.
        #[arg(long)]
        all_platforms: bool,
        /// The images; all of the lock file when none is named.
        references: Vec<String>,
    },
    /// Takes the images of an archive in, so that they are found without network.
    Import {
        /// Which driver is to have them: `auto`, `native` or `docker`.
        #[arg(long)]
        driver: Option<DriverChoice>,
        /// The archive.
        archive: PathBuf,
    },
}

/// Does what is asked. Both come to what the native driver needs while the process has one thread.
pub(super) fn bundle(command: Command) -> Done {
    match command {
        Command::Export { output, all_platforms, references } => {
            with_store(async |store| export(&store, &output, all_platforms, &references).await)
        }
        Command::Import { driver, archive } => {
            let imported = keeper::with_driver(chosen(driver)?, async |driver| {
                driver.import_bundle(&archive, Arc::new(|_, _, _| {})).await
            })?;
            list("imported", &imported)
        }
    }
}

async fn export(store: &Store, output: &Path, all_platforms: bool, references: &[String]) -> Done {
    let config = Config::find(&here()?)?;
    let images = images(&config, references)?;
    let unfinished = Unfinished::beside(output);
    let cannot = |error: &io::Error| {
        io_failure("the bundle could not be written", error).fact("file", output.display().to_string())
    };
    let file = BufWriter::new(File::create(&unfinished.0).map_err(|error| cannot(&error))?);
    let bundled = store.export_bundle(&images, all_platforms, file, Arc::new(|_, _, _| {})).await?;
    std::fs::rename(&unfinished.0, output).map_err(|error| cannot(&error))?;
    list("bundled", &bundled)
}

/// An archive that is not whole yet; removed if it does not become so.
struct Unfinished(PathBuf);

impl Unfinished {
    fn beside(output: &Path) -> Self {
        let mut name = output.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        Self(name.into())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is not there any more when all went well.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What is to be carried: by the digest of the lock file, where there is one.
fn images(config: &Config, references: &[String]) -> Result<Vec<Carried>, Failure> {
    let names: Vec<String> = match (references, &config.lock) {
        ([], Some(lock)) if !lock.images.is_empty() => lock.images.keys().cloned().collect(),
        ([], _) => {
            return Err(Failure::new(FailureKind::Invalid, "there is nothing to put into a bundle")
                .fact("lock file", config.lock_path.display().to_string())
                .hint("write one with `shakedown lock -- cargo test`, or name the images"));
        }
        (named, _) => named.to_vec(),
    };
    names.iter().map(|name| carried(config, name)).collect()
}

fn carried(config: &Config, text: &str) -> Result<Carried, Failure> {
    let wrong = |reason: String| {
        Failure::new(FailureKind::Invalid, format!("{text} cannot be put into a bundle"))
            .fact("reason", reason)
    };
    let name: ImageReference = text.parse().map_err(|error| wrong(format!("{error}")))?;
    // As a test writes it, so that the hub prefix counts.
    let asked = config.asked(&name.familiar(), &here()?).map_err(|error| wrong(error.to_string()))?;
    let Asked { source: ImageSource::Registry(mut source), .. } = asked else {
        return Err(wrong("it is taken from files, which can be copied as they are".to_owned()));
    };
    match config.lock.as_ref().and_then(|lock| lock.get(&name)) {
        Some(locked) => source = lockfile::pinned(&source, &locked.digest).map_err(wrong)?,
        None if config.locked => return Err(wrong("it is not in shakedown.lock".to_owned())),
        None => {}
    }
    let wanted = Wanted {
        offline: config.offline,
        registries: config.registries.clone(),
        ..Wanted::new(ImageSource::Registry(source), PullPolicy::Missing)
    };
    Ok(Carried { name, wanted })
}

fn list(what: &str, images: &[Bundled]) -> Done {
    let lines: String =
        images.iter().map(|image| format!("{what} {} {}\n", image.name, image.digest)).collect();
    say(lines.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
