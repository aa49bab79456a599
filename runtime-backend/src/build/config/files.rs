//! `COPY` and `ADD`, with everything expanded.

use super::State;
use crate::build::dockerfile::ast::{Instruction, Kind, Source};
use crate::build::path::absolute;
use crate::build::step::{CopySource, CopyStep, Mode, Origin, Step};
use shakedown_spec::Failure;

impl State {
    pub(super) fn files(&self, instruction: &Instruction) -> Result<Step, Failure> {
        let wrong =
            |mark: &str, message: String| self.plan.dockerfile.wrong(instruction.lines, mark, message);
        let step = match &instruction.kind {
            Kind::Copy(copy) => {
                let from = match &copy.from {
                    Some(from) => self.plan.origin(self.stage, instruction.lines, from)?,
                    None => Origin::Context,
                };
                CopyStep {
                    from,
                    sources: self.sources(&copy.sources, false).map_err(|message| wrong("", message))?,
                    parents: copy.parents,
                    link: copy.link,
                    ..self
                        .common(&copy.destination, &copy.chown, &copy.chmod, &copy.exclude)
                        .map_err(|message| wrong("", message))?
                }
            }
            Kind::Add(add) => CopyStep {
                add: true,
                sources: self.sources(&add.sources, true).map_err(|message| wrong("", message))?,
                link: add.link,
                checksum: self
                    .checksum(add.checksum.as_deref())
                    .map_err(|message| wrong("--checksum", message))?,
                keep_git_dir: add.keep_git_dir,
                unpack: add.unpack,
                ..self
                    .common(&add.destination, &add.chown, &add.chmod, &add.exclude)
                    .map_err(|message| wrong("", message))?
            },
            _ => return Ok(Step::Config),
        };
        if step.sources.len() > 1 && !step.destination.ends_with('/') {
            let message = "several sources need a destination that ends with `/`".to_owned();
            return Err(wrong(&step.destination, message));
        }
        Ok(Step::Copy(step))
    }

    fn common(
        &self,
        destination: &str,
        chown: &Option<String>,
        chmod: &Option<String>,
        exclude: &[String],
    ) -> Result<CopyStep, String> {
        let optional = |text: &Option<String>| text.as_deref().map(|text| self.word(text)).transpose();
        let written = self.word(destination)?;
        let mut destination = absolute(self.workdir(), &written);
        let directory =
            written.is_empty() || written.ends_with('/') || written == "." || written.ends_with("/.");
        if directory && destination != "/" {
            destination.push('/');
        }
        Ok(CopyStep {
            add: false,
            from: Origin::Context,
            sources: Vec::new(),
            destination,
            chown: optional(chown)?.filter(|owner| !owner.is_empty()),
            chmod: optional(chmod)?
                .filter(|mode| !mode.is_empty())
                .map(|mode| read_mode(&mode))
                .transpose()?,
            link: false,
            parents: false,
            exclude: exclude.iter().map(|pattern| self.word(pattern)).collect::<Result<_, _>>()?,
            checksum: None,
            keep_git_dir: false,
            unpack: None,
        })
    }

    fn sources(&self, sources: &[Source], add: bool) -> Result<Vec<CopySource>, String> {
        let source = |source: &Source| match source {
            Source::Heredoc(document) => {
                let content = document.content();
                let data =
                    if document.expand { self.expanded(|with| with.document(&content))? } else { content };
                Ok(CopySource::Inline { name: document.name.clone(), data })
            }
            Source::Path(path) => {
                let path = self.word(path)?;
                Ok(if !add {
                    CopySource::Path(path)
                } else if is_git(&path) {
                    CopySource::Git(path)
                } else if path.starts_with("http://") || path.starts_with("https://") {
                    CopySource::Address(path)
                } else {
                    CopySource::Path(path)
                })
            }
        };
        sources.iter().map(source).collect()
    }

    fn checksum(&self, text: Option<&str>) -> Result<Option<String>, String> {
        let Some(text) = text else { return Ok(None) };
        let checksum = self.word(text)?;
        let hex = checksum.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Some(checksum.to_ascii_lowercase()));
        }
        Err(format!("`{checksum}` is not `sha256:` and 64 hexadecimal digits"))
    }
}

/// As the Dockerfile reference tells repositories from files.
fn is_git(source: &str) -> bool {
    let place = source.split('#').next().unwrap_or(source);
    let web = place.starts_with("http://") || place.starts_with("https://");
    place.starts_with("git@")
        || place.starts_with("git://")
        || place.starts_with("ssh://")
        || (web && place.ends_with(".git"))
}

fn read_mode(text: &str) -> Result<Mode, String> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o7777);
        return bits.map(Mode::Bits).ok_or_else(|| format!("`{text}` is not a mode from 0 to 7777"));
    }
    let clause = |clause: &str| {
        let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        rest.starts_with(['+', '-', '=']) && rest.chars().all(|c| "+-=rwxXstugo".contains(c))
    };
    if text.split(',').all(clause) {
        return Ok(Mode::Symbolic(text.to_owned()));
    }
    Err(format!("`{text}` is not a mode, such as `0755` or `u=rwX,go=rX`"))
}
