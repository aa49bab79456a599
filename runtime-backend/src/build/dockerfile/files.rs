//! `COPY` and `ADD`.

use super::ast::{Add, Copy, Heredoc, Source};
use super::instruction::Reading;
use super::problem::Problem;
use super::words;

pub(super) fn copy(reading: &Reading<'_>) -> Result<Copy, Problem> {
    let (flags, rest) = reading.flags(&["from", "chown", "chmod", "link", "parents"], &["exclude"])?;
    let from = flags.value("from")?;
    if let Some(from) = from.as_ref().filter(|from| from.contains('$')) {
        return Err(reading.wrong(from, "variables are not expanded in `--from`").hint(
            "put an `ARG` before the first `FROM`, name a stage `FROM $… AS name`, and copy `--from=name`",
        ));
    }
    let (sources, destination) = paths(reading, rest)?;
    if from.is_some() && sources.iter().any(|source| matches!(source, Source::Heredoc(_))) {
        return Err(reading.wrong("--from", "a heredoc cannot come `--from` elsewhere"));
    }
    Ok(Copy {
        sources,
        destination,
        from,
        chown: flags.value("chown")?,
        chmod: flags.value("chmod")?,
        link: flags.switch("link")?.unwrap_or(false),
        parents: flags.switch("parents")?.unwrap_or(false),
        exclude: flags.values("exclude")?,
    })
}

pub(super) fn add(reading: &Reading<'_>) -> Result<Add, Problem> {
    let known = ["chown", "chmod", "link", "checksum", "keep-git-dir", "unpack"];
    let (flags, rest) = reading.flags(&known, &["exclude"])?;
    let (sources, destination) = paths(reading, rest)?;
    let checksum = flags.value("checksum")?;
    if checksum.is_some() && sources.len() != 1 {
        return Err(reading.wrong("--checksum", "`--checksum` needs exactly one source"));
    }
    Ok(Add {
        sources,
        destination,
        chown: flags.value("chown")?,
        chmod: flags.value("chmod")?,
        link: flags.switch("link")?.unwrap_or(false),
        exclude: flags.values("exclude")?,
        checksum,
        keep_git_dir: flags.switch("keep-git-dir")?.unwrap_or(false),
        unpack: flags.switch("unpack")?,
    })
}

/// All but the last are sources. A heredoc is found by its name, the last one of that name.
fn paths(reading: &Reading<'_>, rest: &str) -> Result<(Vec<Source>, String), Problem> {
    let mut list = reading.list(rest)?;
    let destination = list.pop().unwrap_or_default();
    if list.is_empty() {
        let message = format!("`{}` needs a source and a destination", reading.name);
        return Err(reading.wrong(rest, message));
    }
    if words::heredoc(&destination).is_some() {
        return Err(reading.wrong(&destination, "a heredoc cannot be a destination"));
    }
    let bodies: &[Heredoc] = &reading.line.heredocs;
    let source = |word: String| {
        let begun = words::heredoc(&word);
        let body = begun.and_then(|begun| bodies.iter().rev().find(|body| body.name == begun.name));
        match body {
            Some(body) => Source::Heredoc(body.clone()),
            None => Source::Path(word),
        }
    };
    Ok((list.into_iter().map(source).collect(), destination))
}
