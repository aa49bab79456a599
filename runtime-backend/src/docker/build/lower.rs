//! The Dockerfile as the daemon gets it.
//!
//! It says what the user's says, in words that every daemon of the last years knows: base images by the names they have
//! in the daemon, stages by number, heredocs as files or argument vectors, only the stages that are needed. The context
//! lies in a directory of its own, so that `COPY .` does not take this file.

use crate::build::BuildRequest;
use crate::build::config::State;
use crate::build::dockerfile::ast::{Command, Instruction, Kind, RunNetwork, Security};
use crate::build::path::absolute;
use crate::build::step::{CopySource, CopyStep, Mode, Origin, RunMount, RunStep, Sharing, Step};
use crate::driver::Result;
use shakedown_spec::{Failure, FailureKind};
use std::collections::HashMap;

/// What the daemon is sent besides the context.
#[derive(Default)]
pub(super) struct Lowered {
    /// The Dockerfile.
    pub(super) text: String,
    /// Files of its own.
    pub(super) files: Vec<OwnFile>,
    /// Where the context lies: empty, or with a `/` at its end.
    pub(super) prefix: &'static str,
    /// The instructions in the order they are sent: stage, and index in it; `None` is the `FROM`.
    pub(super) sent: Vec<(usize, Option<usize>)>,
}

/// A file that is sent beside the context.
#[derive(Clone)]
pub(super) struct OwnFile {
    pub(super) path: String,
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
}

/// What of Dockerfiles the daemon knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Engine {
    /// The first part of its version; the largest there is if it does not say.
    pub(super) major: u32,
    /// Whether it is not Docker: versions mean something else there.
    pub(super) other: bool,
}

impl Engine {
    fn since(self, major: u32) -> bool {
        self.other || self.major >= major
    }
}

/// An image that the build needs, as the daemon has it.
#[derive(Clone, Debug)]
pub(super) struct Base {
    /// How to name it in a Dockerfile.
    pub(super) name: String,
    /// Its configuration, as JSON.
    pub(super) config: Vec<u8>,
    /// Whether it has triggers: their paths are those of the context, and nobody can change them.
    pub(super) triggers: bool,
}

pub(super) fn lower(
    request: &BuildRequest,
    bases: &HashMap<String, Base>,
    engine: Engine,
) -> Result<Lowered> {
    let plan = &request.plan;
    let triggered = bases.values().any(|base| base.triggers);
    let prefix = if triggered { "" } else { "context/" };
    let mut lowering = Lowering { request, bases, engine, lowered: Lowered { prefix, ..Lowered::default() } };
    lowering.line(&format!("# escape={}", plan.dockerfile.escape));
    for instruction in &plan.dockerfile.global_args {
        lowering.line(&instruction.text);
    }
    let mut states: Vec<Option<State>> = vec![None; plan.bases.len()];
    for &stage in &plan.order {
        let mut state = match &plan.bases[stage] {
            Origin::Stage(base) => match &states[*base] {
                Some(base) => State::stage(plan, stage, base),
                None => State::scratch(plan, stage),
            },
            Origin::Image(image) => State::image(plan, stage, &lowering.base(image)?.config)?,
            Origin::Context | Origin::Scratch => State::scratch(plan, stage),
        };
        lowering.stage(stage, &mut state)?;
        states[stage] = Some(state);
    }
    Ok(lowering.lowered)
}

struct Lowering<'r> {
    request: &'r BuildRequest,
    bases: &'r HashMap<String, Base>,
    engine: Engine,
    lowered: Lowered,
}

impl Lowering<'_> {
    fn line(&mut self, text: &str) {
        self.lowered.text.push_str(text);
        self.lowered.text.push('\n');
    }

    fn base(&self, image: &str) -> Result<&Base> {
        self.bases.get(image).ok_or_else(|| {
            Failure::new(FailureKind::Other, format!("image {image} was not fetched before the build"))
        })
    }

    fn stage(&mut self, stage: usize, state: &mut State) -> Result<()> {
        let plan = &self.request.plan;
        let platform = match &plan.platforms[stage] {
            platform if *platform == shakedown_spec::Platform::here() => String::new(),
            platform => format!("--platform={platform} "),
        };
        let base = self.origin(&plan.bases[stage])?;
        self.lowered.sent.push((stage, None));
        self.line(&format!("FROM {platform}{base} AS {}", stage_name(stage)));
        for trigger in state.triggers()? {
            let step = state.apply(&trigger)?;
            // Those of an image are run by the daemon; those of a stage are written out, with the paths that are sent.
            if matches!(plan.bases[stage], Origin::Stage(_)) {
                let text = self.instruction(&trigger, &step)?;
                self.lowered.sent.push((stage, None));
                self.line(&text);
            }
        }
        let is_base = plan.order.iter().any(|&other| plan.bases[other] == Origin::Stage(stage));
        for (index, instruction) in plan.dockerfile.stages[stage].instructions.iter().enumerate() {
            let step = state.apply(instruction)?;
            if is_base && matches!(instruction.kind, Kind::Onbuild(_)) {
                continue;
            }
            let text = self.instruction(instruction, &step)?;
            self.lowered.sent.push((stage, Some(index)));
            self.line(&text);
        }
        Ok(())
    }

    fn origin(&self, origin: &Origin) -> Result<String> {
        Ok(match origin {
            Origin::Stage(stage) => stage_name(*stage),
            Origin::Image(image) => self.base(image)?.name.clone(),
            Origin::Context | Origin::Scratch => "scratch".to_owned(),
        })
    }

    fn instruction(&mut self, instruction: &Instruction, step: &Step) -> Result<String> {
        let unsupported = |mark: &str, what: &str| {
            let message = format!("this engine knows no {what}");
            let failure = self.request.plan.dockerfile.wrong(instruction.lines, mark, message);
            Failure { kind: FailureKind::Unsupported, ..failure }
        };
        match (&instruction.kind, step) {
            (Kind::Run(run), Step::Run(step)) if !run.heredocs.is_empty() || !run.mounts.is_empty() => {
                if let Some(message) = step.mounts.iter().find_map(|mount| self.not_mountable(mount)) {
                    let dockerfile = &self.request.plan.dockerfile;
                    let failure = dockerfile.wrong(instruction.lines, "--mount", message);
                    return Err(Failure { kind: FailureKind::Unsupported, ..failure });
                }
                let (flags, variables) = self.run_flags(step)?;
                let command = match &run.command {
                    Command::Shell(line) if run.heredocs.is_empty() && variables.is_empty() => line.clone(),
                    _ => json(&with_variables(&variables, &step.argv)),
                };
                Ok(format!("RUN {flags}{command}"))
            }
            (Kind::Copy(_) | Kind::Add(_), Step::Copy(step)) => {
                if step.checksum.is_some() && !self.engine.since(25) {
                    return Err(unsupported("--checksum", "`--checksum`: it needs Docker 25"));
                }
                if !self.engine.since(29) && (!step.exclude.is_empty() || step.parents) {
                    let flag = if step.parents { "--parents" } else { "--exclude" };
                    return Err(unsupported(flag, &format!("`{flag}`: it needs Docker 29")));
                }
                self.copy(step)
            }
            (Kind::Healthcheck(Some(check)), _)
                if check.start_interval.is_some() && !self.engine.since(25) =>
            {
                let words = instruction.text.split_whitespace();
                let kept = words.filter(|word| !word.starts_with("--start-interval="));
                Ok(kept.collect::<Vec<_>>().join(" "))
            }
            (Kind::Onbuild(trigger), _) if trigger.contains('\n') => {
                if !self.engine.since(23) {
                    return Err(unsupported("<<", "heredocs in `ONBUILD`: they need Docker 23"));
                }
                Ok(format!("ONBUILD {trigger}"))
            }
            _ => Ok(instruction.text.clone()),
        }
    }

    /// Why a secret or an agent cannot be had: both go over a session of BuildKit's own protocol, which this driver does
    /// not speak. A secret that is given travels with the context; one that is neither given nor required is not there.
    fn not_mountable(&self, mount: &RunMount) -> Option<String> {
        match mount {
            RunMount::Secret { id, required, .. } => match self.request.secrets.get(id) {
                Some(_) if self.lowered.prefix.is_empty() => {
                    Some("the docker driver has no secrets for a build on an image with `ONBUILD`".to_owned())
                }
                None if *required => Some(format!("the build was given no secret `{id}`")),
                _ => None,
            },
            RunMount::Ssh { required: true, .. } => Some("the docker driver has no ssh agents".to_owned()),
            _ => None,
        }
    }

    /// The flags, and the variables that hold secrets: name and file.
    fn run_flags(&mut self, step: &RunStep) -> Result<(String, Vec<(String, String)>)> {
        let (mut flags, mut variables) = (String::new(), Vec::new());
        if let Some((path, content)) = &step.script {
            let file =
                self.file(path.rsplit('/').next().unwrap_or("script"), content.as_bytes(), 0o755, (0, 0));
            flags.push_str(&format!("--mount=type=bind,source={file},target={path} "));
        }
        for mount in &step.mounts {
            let secret = match mount {
                RunMount::Secret { id, target, env, mode, uid, gid, .. } => {
                    let given = self.request.secrets.get(id);
                    given.map(|bytes| (bytes, target, env, *mode, (*uid, *gid)))
                }
                _ => None,
            };
            if let Some((bytes, target, env, mode, owner)) = secret {
                // Bound for this step alone, so that no layer has it. `/dev` is in memory: no layer has the place either.
                let mut bind = |bytes: &[u8], target: &str, mode, owner| {
                    let file = self.file("secret", bytes, mode, owner);
                    let fields = [csv("source", &format!("/{file}")), csv("target", target)].join(",");
                    flags.push_str(&format!("--mount=type=bind,{fields} "));
                };
                target.iter().for_each(|target| bind(bytes, target, mode, owner));
                if let Some(name) = env {
                    let target = format!("/dev/shakedown/{}", variables.len());
                    bind(bytes, &target, 0o444, (0, 0));
                    variables.push((name.clone(), target));
                }
                continue;
            }
            if matches!(mount, RunMount::Secret { .. } | RunMount::Ssh { .. }) {
                continue;
            }
            let fields = self.mount(mount)?;
            flags.push_str(&format!("--mount={} ", fields.join(",")));
        }
        flags.push_str(match step.network {
            RunNetwork::Default => "",
            RunNetwork::None => "--network=none ",
            RunNetwork::Host => "--network=host ",
        });
        if step.security == Security::Insecure {
            flags.push_str("--security=insecure ");
        }
        Ok((flags, variables))
    }

    fn mount(&self, mount: &RunMount) -> Result<Vec<String>> {
        let mut fields = Vec::new();
        let mut say = |name: &str, value: &str| fields.push(csv(name, value));
        match mount {
            RunMount::Bind { target, from, source, writable } => {
                say("type", "bind");
                say("target", target);
                self.mount_origin(from, source, &mut say)?;
                if *writable {
                    say("rw", "true");
                }
            }
            RunMount::Cache { target, id, read_only, sharing, from, mode, uid, gid } => {
                let sharing = match sharing {
                    Sharing::Shared => "shared",
                    Sharing::Private => "private",
                    Sharing::Locked => "locked",
                };
                let numbers =
                    [("mode", format!("{mode:04o}")), ("uid", uid.to_string()), ("gid", gid.to_string())];
                for (name, value) in [("type", "cache"), ("target", target), ("id", id), ("sharing", sharing)]
                {
                    say(name, value);
                }
                numbers.iter().for_each(|(name, value)| say(name, value));
                if *read_only {
                    say("ro", "true");
                }
                if let Some((from, source)) = from {
                    self.mount_origin(from, source, &mut say)?;
                }
            }
            // No size: daemons before 23 have none.
            RunMount::Tmpfs { target, size } => {
                say("type", "tmpfs");
                say("target", target);
                if let Some(size) = size.filter(|_| self.engine.since(23)) {
                    say("size", &size.to_string());
                }
            }
            RunMount::Secret { .. } | RunMount::Ssh { .. } => {}
        }
        Ok(fields)
    }

    fn mount_origin(&self, from: &Origin, source: &str, say: &mut impl FnMut(&str, &str)) -> Result<()> {
        if *from == Origin::Context {
            say("source", &absolute("/", &format!("{}{source}", self.lowered.prefix)));
            return Ok(());
        }
        say("from", &self.origin(from)?);
        say("source", source);
        Ok(())
    }

    fn copy(&mut self, step: &CopyStep) -> Result<String> {
        let mut text = if step.add { "ADD ".to_owned() } else { "COPY ".to_owned() };
        if step.from != Origin::Context {
            text.push_str(&format!("--from={} ", self.origin(&step.from)?));
        }
        if let Some(owner) = &step.chown {
            text.push_str(&format!("--chown={owner} "));
        }
        match &step.chmod {
            Some(Mode::Bits(bits)) => text.push_str(&format!("--chmod={bits:04o} ")),
            Some(Mode::Symbolic(mode)) => text.push_str(&format!("--chmod={mode} ")),
            None => {}
        }
        if step.link && self.engine.since(23) {
            text.push_str("--link ");
        }
        let switches = [(step.parents, "--parents "), (step.keep_git_dir, "--keep-git-dir=true ")];
        switches.iter().filter(|(on, _)| *on).for_each(|(_, flag)| text.push_str(flag));
        step.checksum.iter().for_each(|sum| text.push_str(&format!("--checksum={sum} ")));
        step.exclude.iter().for_each(|pattern| text.push_str(&format!("--exclude={pattern} ")));
        let mut words = Vec::new();
        for source in &step.sources {
            let word = match source {
                CopySource::Path(path) if step.from == Origin::Context => self.context_path(path),
                CopySource::Path(other) | CopySource::Address(other) | CopySource::Git(other) => {
                    other.clone()
                }
                CopySource::Inline { name, data } => self.file(name, data.as_bytes(), 0o644, (0, 0)),
            };
            words.push(self.escaped(&word));
        }
        words.push(self.escaped(&step.destination));
        text.push_str(&json(&words));
        Ok(text)
    }

    fn context_path(&self, path: &str) -> String {
        let inside = absolute("/", path);
        let slash = if path.ends_with('/') && inside != "/" { "/" } else { "" };
        match (self.lowered.prefix, inside.as_str()) {
            ("", "/") => ".".to_owned(),
            (prefix, inside) => format!("{prefix}{}{slash}", inside.trim_start_matches('/')),
        }
    }

    /// The daemon expands it once more.
    fn escaped(&self, text: &str) -> String {
        let escape = self.request.plan.dockerfile.escape;
        let special = |c: char| c == escape || matches!(c, '$' | '"' | '\'');
        text.chars().flat_map(|c| special(c).then_some(escape).into_iter().chain([c])).collect()
    }

    /// A file of the build's own; its path in what is sent.
    fn file(&mut self, name: &str, content: &[u8], mode: u32, owner: (u32, u32)) -> String {
        let path = format!(".shakedown/{}/{name}", self.lowered.files.len());
        self.lowered.files.push(OwnFile { path: path.clone(), content: content.to_owned(), mode, owner });
        path
    }
}

fn stage_name(stage: usize) -> String {
    format!("stage{stage}")
}

/// A command that reads variables from files before it becomes the command that is meant. A shell's `$(…)` takes off the
/// line feeds at the end.
fn with_variables(variables: &[(String, String)], argv: &[String]) -> Vec<String> {
    if variables.is_empty() {
        return argv.to_owned();
    }
    let read = variables.iter().map(|(name, file)| format!("{name}=\"$(cat {file})\"; export {name}; "));
    let script = format!("{}exec \"$@\"", read.collect::<String>());
    let shell = ["/bin/sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()];
    shell.into_iter().chain(argv.iter().cloned()).collect()
}

fn json(words: &[String]) -> String {
    serde_json::Value::from(words).to_string()
}

fn csv(name: &str, value: &str) -> String {
    let field = format!("{name}={value}");
    if field.contains([',', '"']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}
