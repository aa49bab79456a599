//! Reads Dockerfiles: text to [`ast`], or the line that is wrong.
//!
//! ```text
//! text ──► lines (directives, comments, continuations, heredocs) ──► instruction (name, flags, arguments) ──► stages
//! ```
//! The rules are those of the Dockerfile reference; where it is silent, those of BuildKit.

pub mod ast;
mod lines;
pub(crate) mod words;
mod flags;
mod instruction;
mod files;
mod health;
mod mount;
mod problem;

pub(crate) use flags::near;
pub(crate) use mount::Mount;
pub(crate) use problem::Problem;

use ast::{Dockerfile, Instruction, Kind, Span, Stage};
use instruction::Parsed;
use lines::{Lines, Logical};
use shakedown_spec::Failure;

impl Dockerfile {
    /// Reads a Dockerfile; `name` is what messages call it.
    ///
    /// # Errors
    ///
    /// It is not one. The failure quotes the line.
    pub fn parse(name: &str, text: &str) -> Result<Self, Failure> {
        let source: Vec<String> = text.lines().map(str::to_owned).collect();
        let read = lines::read(text).and_then(|lines| collect(name, lines));
        match read {
            Ok(dockerfile) => Ok(Self { source, ..dockerfile }),
            Err(problem) => Err(problem.failure(name, &source)),
        }
    }

    /// Reads one instruction of an image's `ONBUILD`; `image` is what messages call the image.
    ///
    /// # Errors
    ///
    /// It is not one that may stand there.
    pub fn parse_trigger(image: &str, trigger: &str) -> Result<Instruction, Failure> {
        let name = format!("ONBUILD of {image}");
        let source: Vec<String> = trigger.lines().map(str::to_owned).collect();
        let read = lines::read(trigger).and_then(|lines| {
            let [line] = lines.logical.as_slice() else {
                return Err(Problem::at(1, "a trigger is one instruction"));
            };
            instruction::trigger(&line.text, line)?;
            command(line, lines.escape)
        });
        read.map_err(|problem| problem.failure(&name, &source))
    }

    /// A failure about this line of the file, with it quoted and `mark` underlined.
    pub(crate) fn wrong(&self, lines: Span, mark: &str, message: impl Into<String>) -> Failure {
        Problem::about(lines, mark, message).failure(&self.name, &self.source)
    }
}

fn command(line: &Logical, escape: char) -> Result<Instruction, Problem> {
    match instruction::read(line, escape)? {
        Parsed::Kind(kind) => Ok(Instruction { lines: line.lines, text: line.text.clone(), kind }),
        Parsed::From { .. } => Err(Problem::about(line.lines, "FROM", "a `FROM` may not stand here")),
    }
}

fn collect(name: &str, lines: Lines) -> Result<Dockerfile, Problem> {
    let (mut global_args, mut stages) = (Vec::new(), Vec::<Stage>::new());
    for line in &lines.logical {
        let kind = match instruction::read(line, lines.escape)? {
            Parsed::From { from, name, platform } => {
                if name.is_some() && stages.iter().any(|stage| stage.name == name) {
                    let name = name.unwrap_or_default();
                    let message = format!("there are two stages called `{name}`");
                    return Err(Problem::about(line.lines, &name, message));
                }
                let (text, instructions) = (line.text.clone(), Vec::new());
                stages.push(Stage { name, from, platform, lines: line.lines, text, instructions });
                continue;
            }
            Parsed::Kind(kind) => kind,
        };
        let is_arg = matches!(kind, Kind::Arg(_));
        let instruction = Instruction { lines: line.lines, text: line.text.clone(), kind };
        match stages.last_mut() {
            Some(stage) => stage.instructions.push(instruction),
            None if is_arg => global_args.push(instruction),
            None => {
                let word = line.text.split_whitespace().next().unwrap_or_default();
                return Err(Problem::about(line.lines, word, "only `ARG` may stand before the first `FROM`"));
            }
        }
    }
    if stages.is_empty() {
        let message = if lines.logical.is_empty() { "it is empty" } else { "it has no `FROM`" };
        return Err(Problem::at(lines.logical.last().map_or(1, |line| line.lines.first), message));
    }
    Ok(Dockerfile { name: name.to_owned(), escape: lines.escape, global_args, stages, source: Vec::new() })
}
