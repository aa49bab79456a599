//! What a driver is asked to build, with everything read that is read before it is asked.

use super::context::{Context, Files};
use super::dockerfile::ast::{Dockerfile, RunNetwork};
use super::plan::{Plan, Settings};
use crate::driver::Result;
use crate::wanted::Wanted;
use shakedown_spec::{
    Build, BuildContext, BuildSecret, Dockerfile as Recipe, Failure, FailureKind, ImageReference,
    ImageSource, PlatformError, PullPolicy, ReferenceError,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where an image that a Dockerfile names comes from, and on which terms: the rules of whoever asks apply to it as to
/// any other.
pub type Resolve = Arc<dyn Fn(&str) -> Result<Wanted> + Send + Sync>;

/// Where an image comes from if there are no rules.
#[must_use]
pub fn as_written() -> Resolve {
    Arc::new(|image| {
        let title = format!("image {image} cannot be built on");
        let source: ImageSource = image.parse().map_err(|error: ReferenceError| {
            Failure::new(FailureKind::Invalid, title).fact("reason", error.to_string())
        })?;
        Ok(Wanted::new(source, PullPolicy::Missing))
    })
}

/// A build, ready to be carried out.
#[derive(Clone)]
pub struct BuildRequest {
    /// The Dockerfile, its stages, and what it was told.
    pub plan: Arc<Plan>,
    /// What it takes files from.
    pub context: Context,
    /// What `RUN --mount=type=secret` sees, by id.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// Whether everything is done again.
    pub no_cache: bool,
    /// Whether registries are asked for newer base images.
    pub pull: bool,
    /// The network of a `RUN` that says nothing else.
    pub network: RunNetwork,
    /// Extra lines of `/etc/hosts` during `RUN`: name to address.
    pub extra_hosts: BTreeMap<String, String>,
    /// What its steps may ask for beyond what any step may: `network.host`, `security.insecure`.
    pub allow: BTreeSet<String>,
    /// Names the image gets.
    pub names: Vec<ImageReference>,
    /// Where the images in it come from.
    pub resolve: Resolve,
}

impl fmt::Debug for BuildRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets = self.secrets.keys().collect::<Vec<_>>();
        f.debug_struct("BuildRequest")
            .field("plan", &self.plan)
            .field("context", &self.context)
            .field("secrets", &secrets)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// The file that is read when none is named.
const DOCKERFILE: &str = "Dockerfile";

/// A secret is small; a larger file is a mistake in its path.
const LARGEST_SECRET: u64 = 500 * 1024;

impl BuildRequest {
    /// Reads what the declaration names: the Dockerfile, `.dockerignore`, secrets. Its paths are absolute. Blocks.
    ///
    /// # Errors
    ///
    /// Something is not there, or the Dockerfile is wrong.
    pub fn read(build: &Build, resolve: Resolve) -> Result<Self> {
        let (name, text, file) = recipe(build)?;
        let dockerfile = Dockerfile::parse(&name, &text)?;
        let context = Context::open(&build.context, file.as_deref())?;
        let invalid = |title: String| Failure::new(FailureKind::Invalid, title);
        let platform = build.platform.as_deref().map(str::parse).transpose();
        let settings = Settings {
            args: build.args.clone(),
            target: build.target.clone(),
            platform: platform
                .map_err(|reason: PlatformError| invalid(format!("{name} cannot be built: {reason}")))?,
            labels: build.labels.clone(),
        };
        let network = match build.network.as_deref() {
            None | Some("default" | "bridge") => RunNetwork::Default,
            Some("none") => RunNetwork::None,
            Some("host") => RunNetwork::Host,
            Some(other) => {
                let title = format!("{name} cannot be built: there is no network `{other}` for builds");
                return Err(invalid(title).fact("networks", "default, none, host"));
            }
        };
        let secrets = build.secrets.iter().map(|(id, secret)| Ok((id.clone(), read_secret(id, secret)?)));
        Ok(Self {
            plan: Arc::new(Plan::new(Arc::new(dockerfile), settings)?),
            context,
            secrets: secrets.collect::<Result<_>>()?,
            no_cache: build.no_cache,
            pull: build.pull,
            network,
            extra_hosts: build.extra_hosts.clone(),
            allow: allowed(&name, &build.allow)?,
            names: Vec::new(),
            resolve,
        })
    }

    /// As [`BuildRequest::read`], for callers that may not block.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn open(build: Build, resolve: Resolve) -> Result<Self> {
        let read = tokio::task::spawn_blocking(move || Self::read(&build, resolve)).await;
        read.unwrap_or_else(|panic| {
            let title = "the build could not be prepared";
            Err(Failure::new(FailureKind::Other, title).fact("reason", panic.to_string()))
        })
    }

    /// Where an image that the Dockerfile names comes from, and on which terms.
    ///
    /// # Errors
    ///
    /// It is no name of an image, or one that would have to be built itself.
    pub fn base(&self, image: &str) -> Result<Wanted> {
        let mut wanted = (self.resolve)(image)?;
        if self.pull && !wanted.offline {
            wanted.policy = PullPolicy::Always;
        }
        match &wanted.source {
            ImageSource::Build(_) => {
                let title = format!("image {image} cannot be built on: it would have to be built itself");
                Err(Failure::new(FailureKind::Invalid, title)
                    .hint("build it first, and give it a name: `shakedown build -t NAME DIR`"))
            }
            _ => Ok(wanted),
        }
    }

    /// The directory whose files are the context's, if it is one.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match &self.context.files {
            Files::Directory(path) => Some(path),
            Files::Memory(_) => None,
        }
    }
}

/// What messages call the Dockerfile, its text, and its file if it is one.
fn recipe(build: &Build) -> Result<(String, String, Option<PathBuf>)> {
    let path = match &build.dockerfile {
        Some(Recipe::Text(text)) => return Ok(("the inline Dockerfile".to_owned(), text.clone(), None)),
        Some(Recipe::Path(path)) => path.as_str(),
        None => DOCKERFILE,
    };
    let missing = |reason: String| {
        let failure =
            Failure::new(FailureKind::Invalid, format!("{path} cannot be read")).fact("reason", reason);
        match &build.context {
            BuildContext::Directory(directory) => failure.fact("context", directory),
            BuildContext::Files(_) => failure,
        }
    };
    let directory = match &build.context {
        BuildContext::Directory(directory) => Path::new(directory),
        BuildContext::Files(files) if !Path::new(path).is_absolute() => {
            let file = files.iter().rev().find(|file| file.path.trim_start_matches("./") == path);
            let file = file.ok_or_else(|| missing("no file of the context has this path".to_owned()))?;
            return Ok((path.to_owned(), String::from_utf8_lossy(&file.bytes).into_owned(), None));
        }
        BuildContext::Files(_) => Path::new("/"),
    };
    let file = directory.join(path);
    let bytes = fs::read(&file).map_err(|error| missing(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| missing("it is not UTF-8".to_owned()))?;
    Ok((path.to_owned(), text, Some(file)))
}

/// What may be allowed, in the words of Docker's `--allow`.
const ENTITLEMENTS: [&str; 2] = ["network.host", "security.insecure"];

fn allowed(name: &str, allow: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    match allow.iter().find(|one| !ENTITLEMENTS.contains(&one.as_str())) {
        None => Ok(allow.clone()),
        Some(unknown) => {
            let title = format!("{name} cannot be built: there is nothing called `{unknown}` to allow");
            Err(Failure::new(FailureKind::Invalid, title).fact("there are", ENTITLEMENTS.join(", ")))
        }
    }
}

fn read_secret(id: &str, secret: &BuildSecret) -> Result<Vec<u8>> {
    let path = match secret {
        BuildSecret::Value(bytes) => return Ok(bytes.clone()),
        BuildSecret::File(path) => path,
    };
    let unreadable = |reason: String| {
        Failure::new(FailureKind::Invalid, format!("the build secret `{id}` cannot be read"))
            .fact("file", path)
            .fact("reason", reason)
    };
    let length = fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if length > LARGEST_SECRET {
        return Err(unreadable(format!("it has {length} bytes, and a secret has at most {LARGEST_SECRET}")));
    }
    fs::read(path).map_err(|error| unreadable(error.to_string()))
}
