//! Builds images from Dockerfiles without a daemon.
//!
//! ```text
//! Plan ──► a Stage for each that is needed, two at once ──► step by step: known? else Sandbox ──► layer ──► image
//!                                                            Key, store     COPY: place.rs, in a worker
//!                                                                           RUN: a process, as in a container
//! ```
//! A step works on the layers so far with an empty upper layer above them; what it writes is captured as a layer, and
//! unpacked for the next step. In the store a layer is found again by the digest of everything that its step depends on.

mod address;
mod archive;
mod bzip2;
mod capture;
mod copy;
mod glob;
mod key;
mod layer;
mod mode;
mod mounts;
mod place;
mod run;
mod sandbox;
mod select;
mod stage;
mod tape;
pub(super) mod time;
mod written;

pub(crate) use capture::{CaptureOptions, Captured, capture};
pub(crate) use place::{Placing, make_directories, place};
pub(crate) use select::{Selection, digest};

use crate::build::config::State;
use crate::build::dockerfile::ast::Instruction;
use crate::build::plan::Plan;
use crate::build::step::{Origin, Step};
use crate::build::{BuildEvent, BuildProgress, BuildRequest};
use crate::driver::{Progress, Result};
use crate::native::NativeDriver;
use crate::native::image::{Descriptor, Ingest, StoredImage};
use crate::native::launch::Trouble;
use futures_util::stream::{FuturesUnordered, StreamExt};
use sandbox::Source;
use shakedown_spec::Platform;
use shakedown_spec::{Build, Failure, FailureKind, ImageSource};
use stage::{Files, Stage};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use written::Written;

/// How many stages are built at once.
const AT_ONCE: usize = 2;

/// One build at work.
struct Builder<'a> {
    driver: &'a NativeDriver,
    plan: Arc<Plan>,
    request: BuildRequest,
    progress: BuildProgress,
    ingest: Ingest,
    /// The directory of the context, and the files of one that was in memory.
    context: (PathBuf, Option<Written>),
    /// How many steps were begun.
    begun: AtomicUsize,
    /// No time in the image is later, in seconds since 1970.
    epoch: Option<i64>,
    null: OwnedFd,
    stages: Mutex<BTreeMap<usize, Stage>>,
}

impl NativeDriver {
    /// Builds an image.
    pub(super) async fn build_image(
        &self,
        request: BuildRequest,
        progress: BuildProgress,
    ) -> Result<StoredImage> {
        let plan = Arc::clone(&request.plan);
        let name = &plan.dockerfile.name;
        let invalid =
            |what: &str| Failure::new(FailureKind::Invalid, format!("{name} cannot be built: {what}"));
        let epoch = plan.settings.args.get("SOURCE_DATE_EPOCH").map(|text| text.parse::<i64>());
        let epoch = epoch.transpose().map_err(|_| invalid("SOURCE_DATE_EPOCH is no number"))?;
        let null = std::fs::File::open("/dev/null")
            .map_err(|error| invalid("/dev/null cannot be opened").fact("reason", error.to_string()))?;
        let context = self
            .context_of(&request)
            .map_err(|error| invalid("its context cannot be stored").fact("reason", error.to_string()))?;
        let about = Build::directory(context.0.to_string_lossy());
        let about = ImageSource::Build(Box::new(about));
        let ingest = self.store.ingest(&about, pulls(&progress)).await?;
        let (stages, begun) = (Mutex::default(), AtomicUsize::new(0));
        let null = null.into();
        let builder =
            Builder { driver: self, plan, request, progress, ingest, context, begun, epoch, null, stages };
        builder.stages().await?;
        let image = builder.finish().await?;
        if let Some(written) = builder.context.1 {
            let _ = written.close().await;
        }
        Ok(image)
    }

    /// The directory of a context; the files of one in memory are written to the store for as long as the build takes.
    fn context_of(&self, request: &BuildRequest) -> std::io::Result<(PathBuf, Option<Written>)> {
        if let Some(directory) = request.directory() {
            return Ok((directory.to_owned(), None));
        }
        let written = Written::new(&self.store)?;
        request.context.write(written.path())?;
        Ok((written.path().to_owned(), Some(written)))
    }
}

/// Tells a build's listener of images that are fetched.
fn pulls(progress: &BuildProgress) -> Progress {
    let progress = Arc::clone(progress);
    Arc::new(move |what, done, total| progress(BuildEvent::Pull { what: what.to_owned(), done, total }))
}

impl Builder<'_> {
    /// Builds the stages that are needed, each as soon as those it needs are there.
    async fn stages(&self) -> Result<()> {
        let mut waiting: Vec<usize> = self.plan.order.clone();
        let mut done = BTreeSet::new();
        let mut running = FuturesUnordered::new();
        loop {
            let mut index = 0;
            while running.len() < AT_ONCE && index < waiting.len() {
                if self.plan.needs(waiting[index])?.is_subset(&done) {
                    let stage = waiting.remove(index);
                    running.push(async move { self.stage(stage).await.map(|built| (stage, built)) });
                } else {
                    index += 1;
                }
            }
            let Some(ended) = running.next().await else { return Ok(()) };
            let (index, stage) = ended?;
            done.insert(index);
            self.stages.lock().unwrap_or_else(PoisonError::into_inner).insert(index, stage);
        }
    }

    /// A stage that was built before this one.
    fn finished(&self, index: usize) -> Result<Stage> {
        let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        stages.get(&index).cloned().ok_or_else(|| {
            Failure::new(FailureKind::Other, format!("stage {index} is needed before it is built"))
        })
    }

    async fn stage(&self, index: usize) -> Result<Stage> {
        let base = &self.plan.bases[index];
        let declared = &self.plan.dockerfile.stages[index];
        self.begin(&declared.text, declared.lines.first);
        let mut stage = match base {
            Origin::Stage(base) => {
                let base = self.finished(*base)?;
                Stage { index, state: State::stage(&self.plan, index, &base.state), files: base.files }
            }
            Origin::Image(name) => {
                let (files, configuration) = self.image(name, &self.plan.platforms[index]).await?;
                Stage { index, state: State::image(&self.plan, index, &configuration)?, files }
            }
            Origin::Scratch | Origin::Context => {
                Stage { index, state: State::scratch(&self.plan, index), files: Files::default() }
            }
        };
        for instruction in stage.state.triggers()? {
            self.instruction(&mut stage, &instruction).await?;
        }
        for instruction in &self.plan.dockerfile.stages[index].instructions {
            self.instruction(&mut stage, instruction).await?;
        }
        Ok(stage)
    }

    async fn instruction(&self, stage: &mut Stage, instruction: &Instruction) -> Result<()> {
        self.begin(&instruction.text, instruction.lines.first);
        match stage.state.apply(instruction)? {
            Step::Config => Ok(()),
            Step::Workdir(path) => self.workdir(stage, &path, instruction).await,
            Step::Run(step) => self.run(stage, &step, instruction).await,
            Step::Copy(step) => self.copy(stage, &step, instruction).await,
        }
    }

    fn begin(&self, text: &str, line: usize) {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        // Triggers of a base image are steps that the Dockerfile does not count.
        let total = self.plan.steps().max(number);
        (self.progress)(BuildEvent::Step { number, total, text: text.to_owned(), line });
    }

    /// An image's files and its configuration.
    async fn image(&self, name: &str, platform: &Platform) -> Result<(Files, Vec<u8>)> {
        let unusable = |kind, reason: String| {
            Failure::new(kind, format!("image {name} cannot be built on")).fact("reason", reason)
        };
        let here = Platform::here();
        if (&platform.os, &platform.architecture) != (&here.os, &here.architecture) {
            let reason = format!("the native driver builds for {here}, not for {platform}");
            return Err(unusable(FailureKind::Unsupported, reason));
        }
        let broken = |reason: String| unusable(FailureKind::ImageUnusable, reason);
        let wanted = self.request.base(name)?;
        let image = self.driver.store.obtain(&wanted, pulls(&self.progress)).await?;
        let configuration =
            self.driver.store.configuration(&image).map_err(|error| broken(error.to_string()))?;
        let document: crate::build::document::Document =
            serde_json::from_slice(&configuration).map_err(|error| broken(error.to_string()))?;
        let diff_ids = document.rootfs.diff_ids.iter().map(|digest| digest.parse());
        let diff_ids = diff_ids.collect::<std::result::Result<_, _>>().map_err(broken)?;
        let trees = image.layers.clone();
        Ok((Files { trees, diff_ids, base: Some(Arc::new(image)), made: Vec::new() }, configuration))
    }

    fn context(&self) -> Result<Source> {
        let directory = &self.context.0;
        Source::directory(directory).map_err(|error| {
            let title = format!("{} cannot be built: its context cannot be read", self.plan.dockerfile.name);
            Failure::new(FailureKind::Invalid, title)
                .fact("directory", directory.display().to_string())
                .fact("reason", error.to_string())
        })
    }

    /// Makes the image of the stage that is wanted.
    async fn finish(&self) -> Result<StoredImage> {
        let Stage { state, files, .. } = self.finished(self.plan.target)?;
        let last = files.made.last().map(|made| made.created.clone());
        let created = match self.epoch {
            Some(epoch) => time::rfc3339(epoch, 0),
            None => last.or_else(|| state.document().created.clone()).unwrap_or_else(|| self.now()),
        };
        let document = state.finish(files.diff_ids.iter().map(ToString::to_string).collect(), &created);
        let config = serde_json::to_vec(&document).map_err(|error| self.storing(&error.into()))?;
        let mut layers: Vec<Descriptor> = Vec::new();
        if let Some(base) = &files.base {
            for layer in self.driver.store.content(base).await?.layers {
                layers.push(self.ingest.take(&layer.descriptor, &layer.blob).await?);
            }
        }
        layers.extend(files.made.iter().map(|made| made.layer.clone()));
        self.ingest.finish(&config, &layers, &self.request.names).await
    }

    /// Now, or what `SOURCE_DATE_EPOCH` says.
    fn now(&self) -> String {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        match self.epoch {
            Some(epoch) => time::rfc3339(epoch, 0),
            None => time::rfc3339(now.as_secs().cast_signed(), now.subsec_nanos()),
        }
    }

    /// A failure about an instruction that says something wrong.
    fn wrong(&self, about: &Instruction, mark: &str, message: String) -> Failure {
        self.plan.dockerfile.wrong(about.lines, mark, message)
    }

    /// A failure of an instruction that went wrong.
    fn broken(&self, about: &Instruction, kind: FailureKind, message: &str) -> Failure {
        Failure { kind, ..self.plan.dockerfile.wrong(about.lines, "", message) }
    }

    fn failed(&self, trouble: &Trouble) -> Failure {
        let title = format!("{} cannot be built: cannot {}", self.plan.dockerfile.name, trouble.doing);
        let failure = Failure::new(FailureKind::Other, title);
        let failure = match &trouble.call {
            Some(call) => failure.fact("call", call),
            None => failure,
        };
        match &trouble.reason {
            Some(reason) => failure.fact("reason", reason),
            None => failure,
        }
    }

    fn storing(&self, error: &std::io::Error) -> Failure {
        let title =
            format!("{} cannot be built: the image store cannot be written", self.plan.dockerfile.name);
        Failure::new(FailureKind::Other, title).fact("reason", error.to_string())
    }
}
