//! From the daemon's answer to events of the build, and to the step that failed.

use super::lower::Lowered;
use super::wire::{Status, Vertex};
use crate::build::progress::{Tail, step_failed};
use crate::build::{BuildEvent, BuildProgress, BuildRequest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use shakedown_spec::{Failure, FailureKind};
use std::collections::{HashMap, HashSet};

/// One line of the answer, of the old builder or of BuildKit.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Message {
    stream: Option<String>,
    error: Option<String>,
    message: Option<String>,
    aux: Option<serde_json::Value>,
}

/// Follows one build.
pub(super) struct Follower<'b> {
    request: &'b BuildRequest,
    lowered: &'b Lowered,
    progress: &'b BuildProgress,
    /// How many of `sent` have been told.
    told: usize,
    /// The position in `sent` of each vertex that is an instruction.
    vertices: HashMap<String, usize>,
    cached: HashSet<String>,
    tails: HashMap<usize, Tail>,
    /// What of a line has come, by vertex.
    partial: HashMap<String, Vec<u8>>,
    /// The position that runs, in the old builder's answer.
    current: usize,
    failed: Option<(usize, String)>,
    error: Option<String>,
    image: Option<String>,
}

impl<'b> Follower<'b> {
    pub(super) fn new(request: &'b BuildRequest, lowered: &'b Lowered, progress: &'b BuildProgress) -> Self {
        Self {
            request,
            lowered,
            progress,
            told: 0,
            vertices: HashMap::new(),
            cached: HashSet::new(),
            tails: HashMap::new(),
            partial: HashMap::new(),
            current: 0,
            failed: None,
            error: None,
            image: None,
        }
    }

    pub(super) fn line(&mut self, line: &[u8]) {
        let Ok(message) = serde_json::from_slice::<Message>(line) else { return };
        if let Some(error) = message.error.or(message.message) {
            self.error = Some(error);
        }
        if let Some(text) = message.stream {
            text.lines().for_each(|line| self.old_builder(line));
        }
        match message.aux {
            Some(serde_json::Value::String(report)) => {
                self.status(Status::read(&STANDARD.decode(report).unwrap_or_default()));
            }
            Some(aux) => {
                if let Some(id) = aux.get("ID").and_then(serde_json::Value::as_str) {
                    self.image = Some(id.to_owned());
                }
            }
            None => {}
        }
    }

    /// The id of the image, or what failed.
    pub(super) fn finish(mut self) -> Result<String, Failure> {
        if self.error.is_none()
            && let Some(image) = self.image.take()
        {
            self.tell(self.lowered.sent.len());
            return Ok(image);
        }
        let error = self.error.take().unwrap_or_else(|| "the daemon ended its answer early".to_owned());
        let dockerfile = &self.request.plan.dockerfile;
        let (at, reason) = match self.failed.take() {
            Some((at, reason)) => (Some(at), reason),
            None if self.current > 0 => (Some(self.current - 1), error.clone()),
            None => (None, error.clone()),
        };
        let Some(at) = at else {
            let title = format!("{} could not be built", dockerfile.name);
            return Err(Failure::new(FailureKind::ImageUnusable, title).fact("reason", self.plain(&error)));
        };
        let (lines, text) = self.place(at);
        let tail = self.tails.remove(&at).unwrap_or_default();
        Err(step_failed(dockerfile, lines, &text, &self.plain(&reason), &tail))
    }

    fn place(&self, at: usize) -> (crate::build::dockerfile::ast::Span, String) {
        let (stage, instruction) = self.lowered.sent[at];
        let stage = &self.request.plan.dockerfile.stages[stage];
        match instruction {
            Some(index) => {
                let instruction = &stage.instructions[index];
                (instruction.lines, instruction.text.clone())
            }
            None => (stage.lines, stage.text.clone()),
        }
    }

    /// Without what this driver put into the Dockerfile, and without the daemon's names for its own parts.
    fn plain(&self, reason: &str) -> String {
        let reason =
            reason.replace(&format!("/{}", self.lowered.prefix), "/").replace(self.lowered.prefix, "");
        for (begin, shown) in [("exit code: ", "exit code "), ("returned a non-zero code: ", "exit code ")] {
            if let Some((_, code)) = reason.rsplit_once(begin) {
                return format!("{shown}{}", code.trim());
            }
        }
        let inner = reason.rsplit_once("failed to calculate checksum of ref ");
        match inner.and_then(|(_, rest)| rest.split_once(": ")) {
            Some((_, missing)) => missing.trim().to_owned(),
            None => reason.trim().to_owned(),
        }
    }

    /// Tells of all steps before `end` that have not been told of.
    fn tell(&mut self, end: usize) {
        let total = self.lowered.sent.len();
        while self.told < end {
            let (lines, text) = self.place(self.told);
            self.told += 1;
            (self.progress)(BuildEvent::Step { number: self.told, total, text, line: lines.first });
        }
    }

    fn output(&mut self, at: usize, line: &str) {
        self.tails.entry(at).or_default().push(line);
        (self.progress)(BuildEvent::Output { line: line.to_owned() });
    }

    fn status(&mut self, status: Status) {
        for vertex in status.vertices {
            self.vertex(&vertex);
        }
        for log in status.logs {
            let Some(&at) = self.vertices.get(&log.vertex) else { continue };
            let mut text = self.partial.remove(&log.vertex).unwrap_or_default();
            text.extend(log.bytes);
            let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let whole = String::from_utf8_lossy(&text[..end]).into_owned();
            self.partial.insert(log.vertex, text.split_off(end));
            whole.lines().for_each(|line| self.output(at, line));
        }
    }

    fn vertex(&mut self, vertex: &Vertex) {
        let Some(at) = self.position(&vertex.name) else { return };
        self.vertices.insert(vertex.digest.clone(), at);
        if vertex.started || vertex.cached {
            self.tell(at + 1);
        }
        if vertex.cached && self.cached.insert(vertex.digest.clone()) {
            (self.progress)(BuildEvent::Cached);
        }
        if !vertex.error.is_empty() && !vertex.error.contains("context canceled") {
            if let Some(rest) = self.partial.remove(&vertex.digest).filter(|rest| !rest.is_empty()) {
                let line = String::from_utf8_lossy(&rest).into_owned();
                self.output(at, &line);
            }
            self.failed.get_or_insert((at, vertex.error.clone()));
        }
    }

    /// `[stage2 3/4] RUN …` is the third of four steps of `stage2` that touch files; the `FROM` of an image is one.
    fn position(&self, name: &str) -> Option<usize> {
        let (inside, _) = name.strip_prefix('[')?.split_once(']')?;
        let (stage, counts) = inside.rsplit_once(' ').unwrap_or(("", inside));
        let (number, total) = counts.split_once('/')?;
        let (number, total): (usize, usize) = (number.trim().parse().ok()?, total.trim().parse().ok()?);
        let number_of_stage = match stage.strip_prefix("stage") {
            Some(index) => index.trim_start_matches('-').parse().ok()?,
            None if stage.is_empty() => self.request.plan.target,
            None => return None,
        };
        let of_stage: Vec<usize> = (0..self.lowered.sent.len())
            .filter(|at| self.lowered.sent[*at].0 == number_of_stage && self.touches_files(*at))
            .collect();
        // Triggers of the base image come first, and are none of ours.
        let before = total.checked_sub(of_stage.len())?;
        match number.checked_sub(before + 1) {
            Some(index) => of_stage.get(index).copied(),
            None => (0..self.lowered.sent.len()).find(|at| self.lowered.sent[*at] == (number_of_stage, None)),
        }
    }

    fn touches_files(&self, at: usize) -> bool {
        use crate::build::dockerfile::ast::Kind;
        let (stage, Some(index)) = self.lowered.sent[at] else { return false };
        let kind = &self.request.plan.dockerfile.stages[stage].instructions[index].kind;
        matches!(kind, Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_))
    }

    /// `Step 3/4 : RUN …` begins a step; Podman writes `STEP 3/4: RUN …`.
    fn old_builder(&mut self, line: &str) {
        let step = line.strip_prefix("Step ").or_else(|| line.strip_prefix("STEP "));
        if let Some((number, _)) = step.and_then(|rest| rest.split_once('/')) {
            // `ARG`s before the first `FROM` are counted by the old builder.
            let before = self.request.plan.dockerfile.global_args.len();
            self.current = number.parse::<usize>().unwrap_or(0).saturating_sub(before);
            self.current = self.current.min(self.lowered.sent.len());
            self.tell(self.current);
            return;
        }
        let own = ["Successfully ", "Removing intermediate", " ---> Running in", "COMMIT", "--> "];
        if line.contains("Using cache") {
            (self.progress)(BuildEvent::Cached);
        } else if self.current > 0 && !line.trim().is_empty() && !own.iter().any(|own| line.starts_with(own))
        {
            let hexadecimal =
                line.strip_prefix(" ---> ").is_some_and(|id| id.bytes().all(|b| b.is_ascii_hexdigit()));
            if !hexadecimal {
                self.output(self.current - 1, line);
            }
        }
    }
}
