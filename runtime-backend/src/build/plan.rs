//! Which stages a build needs, and what each is based on.

use super::dockerfile::ast::{Dockerfile, Instruction, Kind, Span};
use super::dockerfile::{Mount, near};
use super::expand::Expander;

use super::step::Origin;
use shakedown_spec::{Failure, FailureKind, Platform, PlatformError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a build is told from outside of its Dockerfile, as far as it changes what the Dockerfile means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Values of `ARG`s.
    pub args: BTreeMap<String, String>,
    /// The stage that is wanted, by name or number; the last when unset.
    pub target: Option<String>,
    /// What the image is for; this machine when unset.
    pub platform: Option<Platform>,
    /// Labels of the image, over those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
}

/// A Dockerfile with what it was told, its stages in the order they are needed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What was read.
    pub dockerfile: Arc<Dockerfile>,
    /// What was told.
    pub settings: Arc<Settings>,
    /// What each stage is based on; [`Origin::Context`] does not occur.
    pub bases: Vec<Origin>,
    /// What each stage is for: its `--platform`, else that of the build.
    pub platforms: Vec<Platform>,
    /// The stage that is wanted.
    pub target: usize,
    /// The stages it needs, itself last: each comes after those it needs.
    pub order: Vec<usize>,
    /// `ARG`s before the first `FROM`, and the platforms.
    pub(super) globals: BTreeMap<String, String>,
}

impl Plan {
    /// Reads the `FROM`s.
    ///
    /// # Errors
    ///
    /// A `FROM` cannot be expanded, or a stage is asked for that there is not.
    pub fn new(dockerfile: Arc<Dockerfile>, settings: Settings) -> Result<Self, Failure> {
        let here = Platform::here();
        let wanted = settings.platform.clone().unwrap_or_else(|| here.clone());
        let globals = globals(&dockerfile, &settings, &here, &wanted)?;
        let mut plan = Self {
            settings: Arc::new(settings),
            bases: Vec::new(),
            platforms: Vec::new(),
            target: 0,
            order: Vec::new(),
            globals,
            dockerfile,
        };
        for index in 0..plan.dockerfile.stages.len() {
            let (base, platform) = plan.base(index, &wanted)?;
            plan.bases.push(base);
            plan.platforms.push(platform);
        }
        plan.target = plan.find_target()?;
        plan.order = plan.needed()?;
        Ok(plan)
    }

    /// The images that the build needs, each once, with what they are needed for.
    ///
    /// # Errors
    ///
    /// As those of [`Plan::new`], which has looked at the same instructions.
    pub fn images(&self) -> Result<Vec<(String, Platform)>, Failure> {
        let mut images = Vec::new();
        let mut add = |origin: &Origin, platform: &Platform| {
            if let Origin::Image(image) = origin {
                let image = (image.clone(), platform.clone());
                if !images.contains(&image) {
                    images.push(image);
                }
            }
        };
        for &index in &self.order {
            let platform = &self.platforms[index];
            add(&self.bases[index], platform);
            for instruction in &self.dockerfile.stages[index].instructions {
                for from in sources(&instruction.kind) {
                    add(&self.origin(index, instruction.lines, &from)?, platform);
                }
            }
        }
        Ok(images)
    }

    /// How many instructions the needed stages have, `FROM` included: the `m` of "step n/m".
    #[must_use]
    pub fn steps(&self) -> usize {
        self.order.iter().map(|index| self.dockerfile.stages[*index].instructions.len() + 1).sum()
    }

    /// What `--from=` in stage `index` means: a number or a name of an earlier stage, else an image.
    ///
    /// # Errors
    ///
    /// It is the stage itself, or a later one.
    pub fn origin(&self, index: usize, lines: Span, from: &str) -> Result<Origin, Failure> {
        let stages = &self.dockerfile.stages;
        let lower = from.to_ascii_lowercase();
        let number = from.parse::<usize>().ok();
        let named = stages.iter().position(|stage| stage.name.as_deref() == Some(&lower));
        match number.or(named) {
            Some(stage) if stage < index => Ok(Origin::Stage(stage)),
            Some(stage) => {
                let message = match (stage == index, stage < stages.len()) {
                    (true, _) => format!("stage `{from}` cannot take files from itself"),
                    (_, true) => format!("stage `{from}` comes later"),
                    (_, false) => format!("there is no stage `{from}`: the first is 0"),
                };
                Err(self.dockerfile.wrong(lines, from, message))
            }
            None if from == "scratch" => Ok(Origin::Scratch),
            None => Ok(Origin::Image(from.to_owned())),
        }
    }

    /// The stages that stage `index` takes anything from.
    ///
    /// # Errors
    ///
    /// As those of [`Plan::new`], which has looked at the same instructions.
    pub fn needs(&self, index: usize) -> Result<BTreeSet<usize>, Failure> {
        let mut needed = BTreeSet::new();
        if let Origin::Stage(base) = self.bases[index] {
            needed.insert(base);
        }
        for instruction in &self.dockerfile.stages[index].instructions {
            for from in sources(&instruction.kind) {
                if let Origin::Stage(stage) = self.origin(index, instruction.lines, &from)? {
                    needed.insert(stage);
                }
            }
        }
        Ok(needed)
    }

    fn base(&self, index: usize, wanted: &Platform) -> Result<(Origin, Platform), Failure> {
        let stage = &self.dockerfile.stages[index];
        let lookup = |name: &str| self.globals.get(name).cloned();
        let expander = Expander { escape: self.dockerfile.escape, lookup: &lookup };
        let wrong = |mark: &str, message: String| self.dockerfile.wrong(stage.lines, mark, message);
        let expand = |text: &str| expander.word(text).map_err(|message| wrong(text, message));
        let platform = match &stage.platform {
            Some(text) => {
                expand(text)?.parse().map_err(|error: PlatformError| wrong(text, error.to_string()))?
            }
            None => wanted.clone(),
        };
        let name = expand(&stage.from)?;
        if name.is_empty() {
            let message = format!("`{}` is empty", stage.from);
            return Err(wrong(&stage.from, message)
                .hint("only `ARG`s before the first `FROM` are seen in a `FROM`; give them a default"));
        }
        let lower = name.to_ascii_lowercase();
        let earlier = self.dockerfile.stages[..index].iter();
        let base = match earlier.rev().position(|stage| stage.name.as_deref() == Some(&lower)) {
            Some(back) => Origin::Stage(index - 1 - back),
            None if name == "scratch" => Origin::Scratch,
            None => Origin::Image(name),
        };
        let platform = match (&base, &stage.platform) {
            (Origin::Stage(base), None) => self.platforms[*base].clone(),
            _ => platform,
        };
        Ok((base, platform))
    }

    fn find_target(&self) -> Result<usize, Failure> {
        let stages = &self.dockerfile.stages;
        let Some(target) = &self.settings.target else { return Ok(stages.len() - 1) };
        let lower = target.to_ascii_lowercase();
        let named = stages.iter().position(|stage| stage.name.as_deref() == Some(&lower));
        let numbered = target.parse().ok().filter(|index| *index < stages.len());
        named.or(numbered).ok_or_else(|| {
            let title = format!("{} cannot be built: it has no stage `{target}`", self.dockerfile.name);
            let names: Vec<&str> = stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
            let there = if names.is_empty() { "none has a name".to_owned() } else { names.join(", ") };
            let failure = Failure::new(FailureKind::Invalid, title).fact("stages", there);
            match near(&lower, names.into_iter()) {
                Some(near) => failure.hint(format!("did you mean `{near}`?")),
                None => failure,
            }
        })
    }

    /// Stages only refer to earlier ones, so that their numbers are an order.
    fn needed(&self) -> Result<Vec<usize>, Failure> {
        let (mut needed, mut open) = (BTreeSet::new(), vec![self.target]);
        while let Some(index) = open.pop() {
            if !needed.insert(index) {
                continue;
            }
            open.extend(self.needs(index)?);
        }
        Ok(needed.into_iter().collect())
    }
}

/// What an instruction takes files from, besides the context. It is never expanded.
fn sources(kind: &Kind) -> Vec<String> {
    match kind {
        Kind::Copy(copy) => copy.from.iter().cloned().collect(),
        Kind::Run(run) => {
            let mounts = run.mounts.iter().filter_map(|text| Mount::read(text).ok());
            mounts.filter_map(|mount| mount.from().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    }
}

fn globals(
    dockerfile: &Dockerfile,
    settings: &Settings,
    here: &Platform,
    wanted: &Platform,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut globals = BTreeMap::new();
    for (prefix, platform) in [("BUILD", here), ("TARGET", wanted)] {
        let variant = platform.variant.clone().unwrap_or_default();
        globals.insert(format!("{prefix}PLATFORM"), platform.to_string());
        globals.insert(format!("{prefix}OS"), platform.os.clone());
        globals.insert(format!("{prefix}ARCH"), platform.architecture.clone());
        globals.insert(format!("{prefix}VARIANT"), variant);
    }
    let target = settings.target.clone().unwrap_or_else(|| "default".to_owned());
    globals.insert("TARGETSTAGE".to_owned(), target);
    // A value from outside takes the place of a predefined one, too.
    for (name, value) in &settings.args {
        if globals.contains_key(name) {
            globals.insert(name.clone(), value.clone());
        }
    }
    for Instruction { lines, kind, .. } in &dockerfile.global_args {
        let Kind::Arg(args) = kind else { continue };
        for (name, default) in args {
            let value = match (settings.args.get(name), default) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => {
                    let lookup = |name: &str| globals.get(name).cloned();
                    let expander = Expander { escape: dockerfile.escape, lookup: &lookup };
                    let value = expander.word(default);
                    Some(value.map_err(|message| dockerfile.wrong(*lines, default, message))?)
                }
                (None, None) => None,
            };
            if let Some(value) = value {
                globals.insert(name.clone(), value);
            }
        }
    }
    Ok(globals)
}
