//! `shakedown images`: what the store has, how big it is, and its upkeep.

use super::local::{meant, stored_name, with_store};
use super::{Done, io_failure, say};
use clap::Subcommand;
use serde::Serialize;
use shakedown_runtime::native::image::{
    Finding, Freed, ImageDetails, ImageSummary, PruneRules, Remedy, Shape, Store, StoreOptions,
};
use shakedown_server::amount::{age, bytes};
use shakedown_spec::{Failure, ImageReference};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Letters of a short id.
const SHORT: usize = 12;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists the images.
    Ls {
        /// As JSON, with all there is to say.
        #[arg(long)]
        json: bool,
    },
    /// Tells all about an image.
    Inspect {
        /// A name, an id or the beginning of one.
        image: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Takes names from images, and removes those that have none left.
    Rm {
        /// Names, ids or beginnings of ids.
        #[arg(required = true)]
        images: Vec<String>,
        /// All names of an image; one in use goes when it is not used any more.
        #[arg(short, long)]
        force: bool,
    },
    /// Gives an image a further name.
    Tag {
        /// A name, an id or the beginning of one.
        image: String,
        /// The name, such as `orders:7`.
        name: ImageReference,
    },
    /// Removes what no image has any more, and images without a name.
    Prune {
        /// All images that are not in use.
        #[arg(short, long)]
        all: bool,
        /// Images that nobody has asked for in this time, such as `7d` or `12h`.
        #[arg(long, value_parser = age)]
        older_than: Option<Duration>,
        /// Those that nobody has asked for the longest, until the rest has this size, such as `10GB`.
        #[arg(long, value_parser = bytes)]
        max_size: Option<u64>,
        /// Only tells what would go.
        #[arg(long)]
        dry_run: bool,
    },
    /// Unpacks an image into a directory, by the rules of the store, and keeps nothing else of it.
    Unpack {
        /// A reference, or a source such as `oci:DIR`.
        image: String,
        /// An empty directory, or one to be made.
        directory: PathBuf,
        /// A directory for each layer, as overlayfs reads them, instead of one tree.
        #[arg(long)]
        layers: bool,
    },
    /// Images on their way in and out.
    #[command(flatten)]
    Transfer(super::transfer::Command),
    /// Checks everything in the store. The exit code is 1 if anything is wrong.
    Verify {
        /// Removes what is damaged, so that it is fetched anew.
        #[arg(long)]
        remove: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn images(command: Command) -> Done {
    let command = match command {
        Command::Transfer(transfer) => return super::transfer::transfer(transfer),
        other => other,
    };
    with_store(async |store| match command {
        Command::Transfer(_) => Ok(ExitCode::FAILURE),
        Command::Ls { json } => ls(&store, json),
        Command::Inspect { image, json } => inspect(&store, &stored_name(&store, &image)?, json),
        Command::Rm { images, force } => Box::pin(rm(&store, &images, force)).await,
        Command::Tag { image, name } => {
            store.tag(&stored_name(&store, &image)?, &name).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Prune { all, older_than, max_size, dry_run } => {
            let nameless = !all;
            Box::pin(prune(&store, &PruneRules { nameless, all, older_than, max_size, dry_run })).await
        }
        Command::Unpack { image, directory, layers } => {
            Box::pin(unpack(&store, &image, directory, layers)).await
        }
        Command::Verify { remove, json } => Box::pin(verify(&store, remove, json)).await,
    })
}

fn as_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| io_failure("the answer cannot be written", &error.into()))?;
    text.push(b'\n');
    say(&text)
}

fn short(id: &impl ToString) -> String {
    id.to_string().trim_start_matches("sha256:")[..SHORT].to_owned()
}

/// In powers of ten, as disks are sold and Docker counts.
fn size(bytes: u64) -> String {
    let mut unit = "B";
    let (mut whole, mut tenths) = (bytes, 0);
    for larger in ["kB", "MB", "GB", "TB"] {
        if whole < 1000 {
            break;
        }
        (whole, tenths, unit) = (whole / 1000, whole % 1000 / 100, larger);
    }
    if unit == "B" || whole >= 100 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") }
}

/// The day of a time that an image says; what is no time is shown as it is.
fn day(created: Option<&str>) -> String {
    created.map_or_else(|| "-".to_owned(), |time| time.chars().take(10).collect())
}

fn ago(seconds: u64) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs());
    match now.saturating_sub(seconds) {
        age if age < 2 * 3600 => "just now".to_owned(),
        age if age < 2 * 86400 => format!("{} hours ago", age / 3600),
        age => format!("{} days ago", age / 86400),
    }
}

fn ls(store: &Store, json: bool) -> Done {
    let images = store.list()?;
    if json {
        as_json(&images)?;
    } else {
        say(table(&images).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// An image with several names has a line for each.
fn table(images: &[ImageSummary]) -> String {
    let mut rows = vec![["NAME", "ID", "CREATED", "USED", "SIZE", "SHARED", "OWN"].map(str::to_owned)];
    for image in images {
        let names = if image.names.is_empty() { vec!["<none>".to_owned()] } else { image.names.clone() };
        for name in names {
            let created = day(image.created.as_deref());
            let [whole, shared, own] = [image.size, image.shared, image.own].map(size);
            rows.push([name, short(&image.id), created, ago(image.used), whole, shared, own]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..7).map(width).collect();
    let line = |row: &[String; 7]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn inspect(store: &Store, image: &str, json: bool) -> Done {
    let details = store.inspect(image)?;
    if json {
        as_json(&details)?;
    } else {
        say(described(&details).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writing to a `String` cannot fail.
fn described(details: &ImageDetails) -> String {
    let (image, config) = (&details.summary, &details.config);
    let mut text = String::new();
    let mut fact = |label: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{label:<12}{value}");
        }
    };
    fact("id", &image.id.to_string());
    fact("names", &image.names.join(", "));
    fact("manifest", &details.manifest.map_or_else(String::new, |digest| digest.to_string()));
    fact("platform", &image.platform);
    fact("created", image.created.as_deref().unwrap_or_default());
    fact("used", &ago(image.used));
    fact("size", &format!("{} ({} shared, {} own)", size(image.size), size(image.shared), size(image.own)));
    fact("entrypoint", &config.entrypoint.join(" "));
    fact("command", &config.command.join(" "));
    fact("user", &config.user);
    fact("workdir", &config.workdir);
    fact("ports", &config.exposed.join(", "));
    fact("volumes", &config.volumes.join(", "));
    for (number, layer) in details.layers.iter().enumerate() {
        let label = if number == 0 { "layers" } else { "" };
        let kept = if layer.stored { ", archive kept" } else { "" };
        fact(label, &format!("{} {}{kept}", layer.diff_id, size(layer.disk)));
        fact("", &layer.tree.display().to_string());
    }
    text
}

async fn rm(store: &Store, images: &[String], force: bool) -> Done {
    let mut done = ExitCode::SUCCESS;
    for image in images {
        match store.remove(image, force).await {
            Ok(freed) => say(told(&freed, false).as_bytes())?,
            Err(failure) => {
                // The others go all the same. Nobody reads standard error if this fails.
                let _ = writeln!(io::stderr(), "error: {failure}");
                done = ExitCode::FAILURE;
            }
        }
    }
    Ok(done)
}

async fn prune(store: &Store, rules: &PruneRules) -> Done {
    let freed = store.prune(rules).await?;
    say(told(&freed, rules.dry_run).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn told(freed: &Freed, dry: bool) -> String {
    let would = if dry { "would be " } else { "" };
    let mut text = String::new();
    freed.untagged.iter().for_each(|name| {
        let _ = writeln!(text, "{would}untagged: {name}");
    });
    freed.images.iter().for_each(|id| {
        let _ = writeln!(text, "{would}removed: {id}");
    });
    freed.in_use.iter().for_each(|id| {
        let _ = writeln!(text, "in use: {id}");
    });
    if freed.untagged.is_empty() || !freed.images.is_empty() || freed.bytes > 0 {
        let Freed { layers, blobs, .. } = freed;
        let _ = writeln!(
            text,
            "{would}freed: {} ({}, {})",
            size(freed.bytes),
            count(*layers, "layer"),
            count(*blobs, "blob")
        );
    }
    text
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

async fn unpack(store: &Store, image: &str, directory: PathBuf, layers: bool) -> Done {
    let (wanted, _) = meant(store, image)?;
    let shape = if layers { Shape::Layers } else { Shape::Merged };
    let options = StoreOptions::of_environment();
    let notes = store.unpack_to(&wanted, &directory, shape, options, Arc::new(|_, _, _| {})).await?;
    for note in notes {
        let _ = writeln!(io::stderr(), "note: {note}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn verify(store: &Store, remove: bool, json: bool) -> Done {
    let findings = store.verify(remove).await?;
    if json {
        as_json(&findings)?;
    } else {
        say(report(&findings).as_bytes())?;
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "everything is as it was written\n".to_owned();
    }
    let line = |finding: &Finding| {
        let remedy = match finding.remedy {
            Remedy::None => "",
            Remedy::Removed => "; removed",
            Remedy::InUse => "; left, for an image in use needs it: end the sessions that use it first",
        };
        format!("{}: {}{remedy}\n", finding.path.display(), finding.problem)
    };
    let mut text: String = findings.iter().map(line).collect();
    if findings.iter().any(|finding| finding.remedy == Remedy::None) {
        text.push_str(
            "hint: `shakedown images verify --remove` removes this, and it is made anew when it is asked for\n",
        );
    }
    text
}
