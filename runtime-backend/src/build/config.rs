//! Instruction by instruction: what an image's configuration becomes, and what is left to do on its files.

mod files;
mod settings;

use super::dockerfile::ast::{Command, Dockerfile, Instruction, Kind, Run};
use super::dockerfile::{Mount, words};
use super::document::{Document, History};
use super::expand::Expander;
use super::path::absolute;
use super::plan::Plan;
use super::step::{Origin, RunStep, Step};
use shakedown_spec::Platform;
use shakedown_spec::{Failure, FailureKind};
use std::sync::Arc;

/// Docker's `PATH` for Linux.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Arguments that every build has without an `ARG`. They are seen by `RUN` and are not part of the image.
const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// A stage under construction, as far as its files are not concerned.
#[derive(Clone, Debug)]
pub struct State {
    plan: Arc<Plan>,
    stage: usize,
    /// The configuration so far. Its `rootfs` and `created` are the base image's.
    document: Document,
    /// What `$NAME` is: the image's environment and the `ARG`s, the last definition of each.
    variables: Vec<(String, String)>,
    /// Whether this stage has a `CMD`: an `ENTRYPOINT` takes away one that is the base image's.
    has_command: bool,
}

impl State {
    /// The beginning of a stage that is based on nothing.
    #[must_use]
    pub fn scratch(plan: &Arc<Plan>, stage: usize) -> Self {
        let Platform { os, architecture, variant } = plan.platforms[stage].clone();
        let mut document = Document { os, architecture, variant, ..Document::default() };
        document.config.working_dir = "/".to_owned();
        Self::on(plan, stage, document, Vec::new())
    }

    /// The beginning of a stage that is based on an image with this configuration.
    ///
    /// # Errors
    ///
    /// The configuration cannot be read.
    pub fn image(plan: &Arc<Plan>, stage: usize, configuration: &[u8]) -> Result<Self, Failure> {
        let document: Document = serde_json::from_slice(configuration).map_err(|error| {
            let title = format!("image {} cannot be built on", plan.dockerfile.stages[stage].from);
            Failure::new(FailureKind::ImageUnusable, title)
                .fact("reason", format!("its configuration cannot be read: {error}"))
        })?;
        let split =
            |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let variables = document.config.env.iter().filter_map(split).collect();
        Ok(Self::on(plan, stage, document, variables))
    }

    /// The beginning of a stage that is based on another stage. It sees the `ARG`s of that stage.
    #[must_use]
    pub fn stage(plan: &Arc<Plan>, stage: usize, base: &Self) -> Self {
        Self::on(plan, stage, base.document.clone(), base.variables.clone())
    }

    fn on(plan: &Arc<Plan>, stage: usize, document: Document, variables: Vec<(String, String)>) -> Self {
        let mut state = Self { plan: Arc::clone(plan), stage, document, variables, has_command: false };
        // Every image has a PATH, so that a shell form works.
        if !state.variables.iter().any(|(name, _)| name == "PATH") {
            state.set_environment("PATH", PATH);
        }
        state
    }

    /// Takes the triggers (`ONBUILD`) of the base off it: they come before the stage's own instructions.
    ///
    /// # Errors
    ///
    /// One of them is no instruction.
    pub fn triggers(&mut self) -> Result<Vec<Instruction>, Failure> {
        let stage = &self.plan.dockerfile.stages[self.stage];
        let triggers = std::mem::take(&mut self.document.config.on_build);
        let read = |trigger: &String| {
            let instruction = Dockerfile::parse_trigger(&stage.from, trigger)?;
            // What goes wrong with it is shown at the `FROM`: the file has no line for it.
            Ok(Instruction { lines: stage.lines, ..instruction })
        };
        triggers.iter().map(read).collect()
    }

    /// The configuration so far.
    #[must_use]
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// `user`, `user:group` or ids that `RUN` has; empty for root.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.document.config.user
    }

    /// Does what the instruction says of the configuration, and gives what it says of files.
    ///
    /// # Errors
    ///
    /// The instruction contradicts itself or what came before; the failure quotes its line.
    pub fn apply(&mut self, instruction: &Instruction) -> Result<Step, Failure> {
        let plan = Arc::clone(&self.plan);
        let wrong = |message: String, mark: &str| plan.dockerfile.wrong(instruction.lines, mark, message);
        let step = match &instruction.kind {
            Kind::Run(run) => self.run(run, instruction)?,
            Kind::Copy(_) | Kind::Add(_) => self.files(instruction)?,
            Kind::Workdir(path) => {
                let path = self.word(path).map_err(|message| wrong(message, path))?;
                self.document.config.working_dir = absolute(self.workdir(), &path);
                Step::Workdir(self.document.config.working_dir.clone())
            }
            other => {
                self.configure(other).map_err(|message| wrong(message, ""))?;
                Step::Config
            }
        };
        self.document.history.push(History {
            created_by: instruction.text.clone(),
            empty_layer: matches!(step, Step::Config),
            ..History::default()
        });
        Ok(step)
    }

    fn run(&self, run: &Run, instruction: &Instruction) -> Result<Step, Failure> {
        let wrong = |message: String| self.plan.dockerfile.wrong(instruction.lines, "--mount", message);
        let mut mounts = Vec::new();
        for text in &run.mounts {
            let mount = Mount::read(text).map_err(wrong)?;
            let origin = match mount.from() {
                Some(from) => self.plan.origin(self.stage, instruction.lines, from)?,
                None => Origin::Context,
            };
            let absolute = |path: &str| absolute(self.workdir(), path);
            mounts.push(mount.step(|text| self.word(text), absolute, origin).map_err(wrong)?);
        }
        let (argv, script) = self.argv(run);
        let mut env = self.variables.clone();
        for (name, value) in &self.plan.settings.args {
            if PROXIES.contains(&name.as_str()) && !env.iter().any(|(there, _)| there == name) {
                env.push((name.clone(), value.clone()));
            }
        }
        Ok(Step::Run(RunStep {
            argv,
            env,
            workdir: self.workdir().to_owned(),
            user: self.document.config.user.clone(),
            script,
            mounts,
            network: run.network,
            security: run.security,
        }))
    }

    /// What is run. A heredoc alone is a script: for the shell, or for what its first line names.
    fn argv(&self, run: &Run) -> (Vec<String>, Option<(String, String)>) {
        let line = match &run.command {
            Command::Exec(argv) => return (argv.clone(), None),
            Command::Shell(line) => line,
        };
        match run.heredocs.as_slice() {
            [] => (self.with_shell(line), None),
            [only] if words::is_heredoc(line, self.plan.dockerfile.escape) => {
                let content = only.content();
                if content.starts_with("#!") {
                    let path = format!("/dev/pipes/{}", only.name);
                    return (vec![path.clone()], Some((path, content)));
                }
                (self.with_shell(&content), None)
            }
            several => {
                let bodies = several.iter().map(|doc| format!("\n{}{}", doc.data, doc.name));
                let whole: String = std::iter::once(line.clone()).chain(bodies).collect();
                (self.with_shell(&whole), None)
            }
        }
    }

    fn with_shell(&self, line: &str) -> Vec<String> {
        let shell = self.document.config.shell.clone();
        let mut argv = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
        argv.push(line.to_owned());
        argv
    }

    /// Absolute.
    fn workdir(&self) -> &str {
        let directory = self.document.config.working_dir.as_str();
        if directory.is_empty() { "/" } else { directory }
    }

    fn expanded<T>(&self, read: impl FnOnce(&Expander<'_>) -> T) -> T {
        let lookup = |name: &str| {
            let found = self.variables.iter().find(|(there, _)| there == name);
            found.map(|(_, value)| value.clone())
        };
        read(&Expander { escape: self.plan.dockerfile.escape, lookup: &lookup })
    }

    fn word(&self, text: &str) -> Result<String, String> {
        self.expanded(|with| with.word(text))
    }

    fn set_variable(&mut self, name: &str, value: &str) {
        match self.variables.iter_mut().find(|(there, _)| there == name) {
            Some((_, there)) => value.clone_into(there),
            None => self.variables.push((name.to_owned(), value.to_owned())),
        }
    }

    fn set_environment(&mut self, name: &str, value: &str) {
        self.set_variable(name, value);
        let (entry, prefix) = (format!("{name}={value}"), format!("{name}="));
        let env = &mut self.document.config.env;
        match env.iter_mut().find(|there| there.starts_with(&prefix) || *there == name) {
            Some(there) => *there = entry,
            None => env.push(entry),
        }
    }
}
