//! `shakedown images pull`, `push`, `save`, `load`, `import`, `commit`: images on their way in and out.

use super::containers::server;
use super::local::{meant, with_store};
use super::progress::progress;
use super::{Done, here, io_failure, say};
use clap::{Subcommand, ValueEnum};
use shakedown_runtime::native::image::{Store, StoredImage};
use shakedown_runtime::{ArchiveForm, ByteStream, NewImage, Wanted};
use shakedown_server::config::Config;
use shakedown_spec::{Failure, FailureKind, ImageReference, Platform, PullPolicy};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::io::AsyncReadExt;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Brings images into the store: from a registry anew, from other sources if they have changed.
    Pull {
        /// References, or sources such as `docker-daemon:redis:7`.
        #[arg(required = true)]
        images: Vec<String>,
        /// For another kind of machine, such as `linux/arm64`.
        #[arg(long)]
        platform: Option<Platform>,
        /// Prints the ids alone.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Sends an image to a registry.
    Push {
        /// A reference, an id or a source.
        image: String,
        /// What it is called there, if the image has no such name.
        name: Option<ImageReference>,
    },
    /// Writes images to a file, each layer once.
    Save {
        /// References, ids or sources.
        #[arg(required = true)]
        images: Vec<String>,
        /// The file, or the directory of a layout; standard output when unset.
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// In which form.
        #[arg(long, value_enum, default_value_t = Format::Docker)]
        format: Format,
    },
    /// Takes all images of a file into the store: of `docker save`, or an OCI archive, compressed or not.
    Load {
        /// The file; standard input when unset.
        #[arg(short, long)]
        input: Option<PathBuf>,
    },
    /// Makes an image of a root file system.
    Import {
        /// A tar file, compressed or not; `-` for standard input.
        file: PathBuf,
        /// What it is called.
        name: Option<String>,
        #[command(flatten)]
        said: Said,
    },
    /// Makes an image of a container of a session, with what was written to it.
    Commit {
        /// The container's id.
        container: String,
        /// What it is called.
        name: Option<String>,
        #[command(flatten)]
        said: Said,
    },
}

/// What is said about an image that is made.
#[derive(Debug, clap::Args)]
pub(super) struct Said {
    /// An instruction of a Dockerfile, such as `CMD ["serve"]`; may be given several times.
    #[arg(short, long = "change")]
    change: Vec<String>,
    /// A comment in its history.
    #[arg(short, long)]
    message: Option<String>,
    /// Who made it.
    #[arg(short, long)]
    author: Option<String>,
}

impl Said {
    fn of(self, name: Option<String>) -> NewImage {
        NewImage { name, changes: self.change, message: self.message, author: self.author }
    }
}

/// The forms of saved images.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Format {
    /// What `docker save` writes.
    Docker,
    /// An OCI layout in a tar file.
    Oci,
    /// An OCI layout in a directory.
    OciDir,
}

pub(super) fn transfer(command: Command) -> Done {
    let command = match command {
        Command::Commit { container, name, said } => {
            return super::wait_for(commit(&container, said.of(name)));
        }
        other => other,
    };
    with_store(async |store| match command {
        Command::Pull { images, platform, quiet } => pull(&store, &images, platform, quiet).await,
        Command::Push { image, name } => push(&store, &image, name).await,
        Command::Save { images, output, format } => save(&store, &images, output, format).await,
        Command::Load { input } => load(&store, input.as_deref()).await,
        Command::Import { file, name, said } => {
            let image = store.import(open(&file).await?, &said.of(name)).await?;
            say_line(&image.image.id)
        }
        Command::Commit { .. } => Ok(ExitCode::FAILURE),
    })
}

/// What a container of this project would be started from: the rules of `shakedown.toml` apply.
async fn pull(store: &Store, images: &[String], platform: Option<Platform>, quiet: bool) -> Done {
    let config = Config::find(&here()?)?;
    for image in images {
        let asked = config.asked(image, &here()?);
        let asked = asked.map_err(|error| Failure::new(FailureKind::Invalid, error.to_string()))?;
        let mut wanted = Wanted::new(asked.source, PullPolicy::Always);
        (wanted.platform, wanted.offline) = (platform.clone(), config.offline);
        wanted.registries = config.registries.clone();
        let pulled = store.obtain(&wanted, progress(quiet)).await?;
        say_line(&pulled.image.id)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn push(store: &Store, image: &str, name: Option<ImageReference>) -> Done {
    let (stored, own) = find(store, image).await?;
    let name = name.or(own).ok_or_else(|| {
        Failure::new(FailureKind::Invalid, format!("it is not said what {image} is called in the registry"))
            .hint(format!("shakedown images push {image} registry.example/NAME:TAG"))
    })?;
    say_line(&store.push(&stored, &name, progress(false)).await?)
}

async fn save(store: &Store, images: &[String], output: Option<PathBuf>, format: Format) -> Done {
    let mut found = Vec::new();
    for image in images {
        found.push(find(store, image).await?);
    }
    let form = match (format, &output) {
        (Format::OciDir, Some(directory)) => {
            store.save_layout(&found, directory).await?;
            return Ok(ExitCode::SUCCESS);
        }
        (Format::OciDir, None) => {
            return Err(Failure::new(FailureKind::Invalid, "a layout in a directory needs the directory")
                .hint("name it with `--output DIR`"));
        }
        (Format::Docker, _) => ArchiveForm::Docker,
        (Format::Oci, _) => ArchiveForm::Oci,
    };
    let archive = store.save(&found, form).await?;
    match output {
        Some(file) => write_file(archive, &file).await?,
        None if io::stdout().is_terminal() => {
            return Err(Failure::new(FailureKind::Invalid, "an archive is nothing for a terminal")
                .hint("name a file with `--output FILE`, or pipe the output to a program"));
        }
        None => each(archive, say).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Beside its place first: who finds the file finds all of it.
async fn write_file(archive: ByteStream, file: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        io_failure("the archive could not be written", &error).fact("file", file.display().to_string())
    };
    let mut half = file.as_os_str().to_owned();
    half.push(".part");
    let half = PathBuf::from(half);
    let mut out = std::fs::File::create(&half).map_err(failed)?;
    let written = each(archive, |bytes| out.write_all(bytes).map_err(failed)).await;
    let placed = written.and_then(|()| std::fs::rename(&half, file).map_err(failed));
    if placed.is_err() {
        // The first failure is the one to report.
        let _ = std::fs::remove_file(&half);
    }
    placed
}

async fn each(
    mut stream: ByteStream,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = stream.read(&mut buffer).await;
        match read.map_err(|error| io_failure("an image could not be read", &error))? {
            0 => return Ok(()),
            read => take(&buffer[..read])?,
        }
    }
}

async fn load(store: &Store, input: Option<&Path>) -> Done {
    let archive = open(input.unwrap_or(Path::new("-"))).await?;
    let loaded = store.load(archive, progress(true)).await.map_err(|failure| match input {
        // The store reads a stream, and has no name for it but this.
        Some(file) => {
            let title = failure.title.replace("image docker-archive:-", &file.display().to_string());
            Failure { title, ..failure }
        }
        None => failure,
    });
    for (image, names) in loaded? {
        if names.is_empty() {
            say_line(&image.image.id)?;
        }
        for name in names {
            say_line(&name.familiar())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn commit(container: &str, new: NewImage) -> Done {
    say_line(&server().await?.commit(container, &new).await?.id)
}

async fn open(file: &Path) -> Result<ByteStream, Failure> {
    if file == Path::new("-") {
        let input = io::stdin().as_fd().try_clone_to_owned();
        let input = input.map_err(|error| io_failure("standard input cannot be read", &error))?;
        return Ok(Box::pin(tokio::fs::File::from_std(input.into())));
    }
    let opened = tokio::fs::File::open(file).await;
    let opened = opened.map_err(|error| {
        io_failure("the file cannot be read", &error).fact("file", file.display().to_string())
    })?;
    Ok(Box::pin(opened))
}

/// The image, and the name it was asked for by.
async fn find(store: &Store, image: &str) -> Result<(StoredImage, Option<ImageReference>), Failure> {
    let (wanted, name) = meant(store, image)?;
    Ok((store.obtain(&wanted, progress(false)).await?, name))
}

fn say_line(text: &str) -> Done {
    say(format!("{text}\n").as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
