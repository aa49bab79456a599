//! One instruction: its name, its flags, and what it says.

use super::ast::{Kind, Run, RunNetwork, Security};
use super::flags::{Flags, near};
use super::lines::Logical;
use super::mount::Mount;
use super::problem::Problem;
use super::{files, health, words};

/// What a line is.
pub(super) enum Parsed {
    /// The beginning of a stage.
    From { from: String, name: Option<String>, platform: Option<String> },
    /// Anything else.
    Kind(Kind),
}

const NAMES: [&str; 18] = [
    "FROM",
    "RUN",
    "COPY",
    "ADD",
    "ENV",
    "ARG",
    "LABEL",
    "WORKDIR",
    "USER",
    "EXPOSE",
    "VOLUME",
    "ENTRYPOINT",
    "CMD",
    "SHELL",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ONBUILD",
    "MAINTAINER",
];

pub(super) fn read(line: &Logical, escape: char) -> Result<Parsed, Problem> {
    read_text(&line.text, line, escape)
}

/// An instruction and its arguments, on their way to being understood.
pub(super) struct Reading<'l> {
    pub(super) name: &'static str,
    pub(super) arguments: &'l str,
    pub(super) line: &'l Logical,
}

impl Reading<'_> {
    pub(super) fn wrong(&self, mark: &str, message: impl Into<String>) -> Problem {
        Problem::about(self.line.lines, mark, message)
    }

    /// The arguments without flags, of which there are none.
    fn plain(&self) -> Result<&str, Problem> {
        Ok(self.flags(&[], &[])?.1)
    }

    pub(super) fn flags(&self, known: &[&str], repeated: &[&str]) -> Result<(Flags, &str), Problem> {
        let (flags, rest) = Flags::take(self.arguments, self.line.lines, self.name, known, repeated)?;
        if rest.is_empty() {
            let word = words::first(&self.line.text).0;
            return Err(self.wrong(word, format!("`{}` needs an argument", self.name)));
        }
        Ok((flags, rest))
    }

    /// The arguments as words or as a JSON list.
    pub(super) fn list(&self, rest: &str) -> Result<Vec<String>, Problem> {
        Ok(words::json(rest, self.line.lines)?.unwrap_or_else(|| words::blanks(rest)))
    }

    fn command(&self) -> Result<super::ast::Command, Problem> {
        words::command(self.plain()?, self.line.lines)
    }
}

fn read_text(text: &str, line: &Logical, escape: char) -> Result<Parsed, Problem> {
    let (word, arguments) = words::first(text);
    let upper = word.to_ascii_uppercase();
    let Some(name) = NAMES.iter().find(|name| **name == upper) else {
        let problem = Problem::about(line.lines, word, format!("there is no instruction `{word}`"));
        return Err(match near(&upper, NAMES.iter().copied()) {
            Some(near) => problem.hint(format!("did you mean `{near}`?")),
            None => problem,
        });
    };
    let reading = Reading { name, arguments, line };
    let kind = match *name {
        "FROM" => return from(&reading),
        "RUN" => Kind::Run(run(&reading)?),
        "COPY" => Kind::Copy(files::copy(&reading)?),
        "ADD" => Kind::Add(files::add(&reading)?),
        "ENV" => Kind::Env(pairs(&reading, escape)?),
        "LABEL" => Kind::Label(pairs(&reading, escape)?),
        "ARG" => Kind::Arg(args(&reading, escape)?),
        "WORKDIR" => Kind::Workdir(reading.plain()?.to_owned()),
        "USER" => Kind::User(reading.plain()?.to_owned()),
        "EXPOSE" => Kind::Expose(words::blanks(reading.plain()?)),
        "VOLUME" => Kind::Volume(volumes(&reading)?),
        "ENTRYPOINT" => Kind::Entrypoint(reading.command()?),
        "CMD" => Kind::Cmd(reading.command()?),
        "SHELL" => Kind::Shell(shell(&reading)?),
        "STOPSIGNAL" => Kind::StopSignal(reading.plain()?.to_owned()),
        "HEALTHCHECK" => Kind::Healthcheck(health::check(&reading)?),
        "ONBUILD" => Kind::Onbuild(onbuild(&reading, escape)?),
        _ => Kind::Maintainer(reading.plain()?.to_owned()),
    };
    Ok(Parsed::Kind(kind))
}

fn from(reading: &Reading<'_>) -> Result<Parsed, Problem> {
    let (flags, rest) = reading.flags(&["platform"], &[])?;
    let platform = flags.value("platform")?;
    let words = words::blanks(rest);
    let (from, name) = match words.as_slice() {
        [from] => (from, None),
        [from, middle, name] if middle.eq_ignore_ascii_case("as") => (from, Some(name)),
        [_, middle, ..] if middle.eq_ignore_ascii_case("as") => {
            return Err(reading.wrong(middle, "one name follows `AS`"));
        }
        [_, second, ..] => {
            let message =
                format!("`{second}` may not stand here: it is `FROM image` or `FROM image AS name`");
            return Err(reading.wrong(second, message));
        }
        [] => return Err(reading.wrong("FROM", "`FROM` needs an argument")),
    };
    let lower = name.map(|name| name.to_ascii_lowercase());
    if let (Some(name), Some(lower)) = (name, &lower)
        && !is_stage_name(lower)
    {
        let message =
            format!("`{name}` cannot name a stage: it is a letter, then letters, digits, `-`, `_`, `.`");
        return Err(reading.wrong(name, message));
    }
    Ok(Parsed::From { from: from.clone(), name: lower, platform })
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c))
}

fn run(reading: &Reading<'_>) -> Result<Run, Problem> {
    let (flags, rest) = reading.flags(&["network", "security"], &["mount"])?;
    let mounts = flags.values("mount")?;
    for mount in &mounts {
        Mount::read(mount).map_err(|message| reading.wrong("--mount", message))?;
    }
    let network = match flags.value("network")?.as_deref() {
        None | Some("default") => RunNetwork::Default,
        Some("none") => RunNetwork::None,
        Some("host") => RunNetwork::Host,
        Some(other) => {
            let message = format!("`--network` is `default`, `none` or `host`, not `{other}`");
            return Err(reading.wrong(other, message));
        }
    };
    let security = match flags.value("security")?.as_deref() {
        None | Some("sandbox") => Security::Sandbox,
        Some("insecure") => Security::Insecure,
        Some(other) => {
            let message = format!("`--security` is `sandbox` or `insecure`, not `{other}`");
            return Err(reading.wrong(other, message));
        }
    };
    let command = words::command(rest, reading.line.lines)?;
    Ok(Run { command, heredocs: reading.line.heredocs.clone(), mounts, network, security })
}

/// `name=value …`, or the old form `name value`, where the value is the rest of the line.
fn pairs(reading: &Reading<'_>, escape: char) -> Result<Vec<(String, String)>, Problem> {
    let rest = reading.plain()?;
    let words = words::split(rest, escape);
    if !words.first().is_some_and(|word| word.contains('=')) {
        let (name, value) = words::first(rest);
        if value.is_empty() {
            let message = format!("`{}` gives `{name}` no value", reading.name);
            return Err(reading.wrong(name, message).hint(format!("write `{name}=value`")));
        }
        return Ok(vec![(name.to_owned(), value.to_owned())]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some(("", _)) => Err(reading.wrong(word, format!("`{word}` has no name before its `=`"))),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(reading
            .wrong(word, format!("`{word}` has no `=`"))
            .hint("put a value with blanks in quotes: `name=\"a value\"`")),
    };
    words.iter().map(pair).collect()
}

fn args(reading: &Reading<'_>, escape: char) -> Result<Vec<(String, Option<String>)>, Problem> {
    let arg = |word: &String| match word.split_once('=') {
        Some(("", _)) => Err(reading.wrong(word, format!("`{word}` has no name before its `=`"))),
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((word.clone(), None)),
    };
    words::split(reading.plain()?, escape).iter().map(arg).collect()
}

fn volumes(reading: &Reading<'_>) -> Result<Vec<String>, Problem> {
    let volumes = reading.list(reading.plain()?)?;
    if volumes.iter().any(|volume| volume.trim().is_empty()) {
        return Err(reading.wrong("VOLUME", "a volume has an empty path"));
    }
    Ok(volumes.iter().map(|volume| volume.trim().to_owned()).collect())
}

fn shell(reading: &Reading<'_>) -> Result<Vec<String>, Problem> {
    let rest = reading.plain()?;
    match words::json(rest, reading.line.lines)? {
        Some(shell) if !shell.is_empty() => Ok(shell),
        _ => Err(reading
            .wrong(rest, "`SHELL` is a JSON list of strings")
            .hint("write it as `SHELL [\"/bin/sh\", \"-c\"]`")),
    }
}

/// The trigger as it is kept in the image: with its heredocs.
fn onbuild(reading: &Reading<'_>, escape: char) -> Result<String, Problem> {
    let text = reading.plain()?;
    trigger(text, reading.line)?;
    read_text(text, reading.line, escape)?;
    let bodies = reading.line.heredocs.iter().map(|doc| format!("\n{}{}", doc.data, doc.name));
    Ok(std::iter::once(text.to_owned()).chain(bodies).collect())
}

/// What may follow `ONBUILD`.
pub(super) fn trigger(text: &str, line: &Logical) -> Result<(), Problem> {
    let word = words::first(text).0;
    match word.to_ascii_uppercase().as_str() {
        name @ ("ONBUILD" | "FROM" | "MAINTAINER") => {
            Err(Problem::about(line.lines, word, format!("`{name}` may not follow `ONBUILD`")))
        }
        _ => Ok(()),
    }
}
