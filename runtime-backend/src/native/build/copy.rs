//! `COPY`, `ADD` and `WORKDIR`: files get into the image without a container being started.

use super::Builder;
use super::mode::ModeChange;
use super::place::{Placed, Placing};
use super::sandbox::{Sandbox, Source};
use super::select::{NotSelected, Selection};
use super::stage::{Files, Made, Stage};
use super::written::Written;
use crate::build::dockerfile::ast::Instruction;
use crate::build::step::{CopySource, CopyStep, Origin};
use crate::driver::Result;
use crate::native::image::Digest;
use crate::native::launcher::{Identity, Job, Target};
use crate::native::users::Accounts;
use shakedown_spec::{Failure, FailureKind};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// The files of one root that a step copies.
struct Part {
    source: Source,
    selection: Selection,
    /// Whether archives among them are unpacked.
    unpack: bool,
    /// The digest of what is selected, as it was before it was copied.
    digest: Option<Digest>,
}

impl Builder<'_> {
    /// `WORKDIR`: the directory, made for the user in force if it is not there.
    pub(super) async fn workdir(&self, stage: &mut Stage, path: &str, about: &Instruction) -> Result<()> {
        let user = stage.state.user().to_owned();
        let key = stage.files.key("workdir").with(path).with(&user).finish();
        let files = stage.files.clone();
        let make = async {
            let sandbox = Sandbox::open(self.driver, &files.trees).await?;
            let resolved = sandbox.accounts.resolve(&user);
            let user = resolved.map_err(|reason| self.wrong(about, "", reason))?;
            let owner = Some((user.uid, user.gid));
            let job = Job::MakeDirectory { id: sandbox.id().to_owned(), path: path.into(), owner };
            let made = self.driver.launcher.work::<()>(job, self.null.as_fd()).await;
            made.map_err(|trouble| self.wrong(about, path, trouble.to_string()))?;
            let record = self.captured(&sandbox, &files.trees, Vec::new()).await?;
            sandbox.close().await?;
            Ok(record)
        };
        self.layer(&mut stage.files, &[key], make).await
    }

    /// `COPY` and `ADD`.
    pub(super) async fn copy(&self, stage: &mut Stage, step: &CopyStep, about: &Instruction) -> Result<()> {
        // A step of its own layer does not look at what is below, unless it needs to know a user by name.
        let named = step
            .chown
            .as_deref()
            .is_some_and(|owner| !owner.bytes().all(|b| b.is_ascii_digit() || b == b':'));
        let base = if step.link && !named { Files::default() } else { stage.files.clone() };
        let below = if step.link { Files::default() } else { stage.files.clone() };
        let key = || base.key("copy").with(format!("{step:?}"));
        let mut keys = Vec::new();
        let from = self.files(&step.from, stage).await?;
        // Two images with the same layers have the same files; the context has to be read.
        if let Some(from) = from.as_ref().filter(|_| only_paths(step)) {
            keys.push(key().with_all(from.diff_ids.iter().map(Digest::hex)).finish());
            if let Some(record) = self.known(&keys) {
                return self.add(&mut stage.files, record).await;
            }
        }
        let mut parts = self.parts(step, from.as_ref(), about).await?;
        let mut content = key();
        for part in &mut parts {
            let digest = self.digest_of(&part.source, &part.selection, about).await?;
            content = content.with(digest.to_string());
            part.digest = Some(digest);
        }
        keys.push(content.finish());
        if let Some(record) = self.known(&keys) {
            for part in parts {
                part.source.close().await?;
            }
            self.remember(&keys, &record)?;
            return self.add(&mut stage.files, record).await;
        }
        let users = stage.files.trees.clone();
        let make = self.copied(step, parts, &below, &users, about);
        self.layer(&mut stage.files, &keys, make).await
    }

    async fn copied(
        &self,
        step: &CopyStep,
        parts: Vec<Part>,
        below: &Files,
        users: &[PathBuf],
        about: &Instruction,
    ) -> Result<Made> {
        let sandbox = Sandbox::open(self.driver, &below.trees).await?;
        let owner = self.owner(step, &sandbox, users, about).await?;
        let mode = step.chmod.as_ref().map(ModeChange::read).transpose();
        let mode = mode.map_err(|reason| self.wrong(about, "--chmod", reason))?;
        let several = step.sources.len() > 1;
        let mut lasting = true;
        for part in parts {
            let selection = part.selection.clone();
            let placing = Placing {
                destination: step.destination.clone().into(),
                into_directory: several || step.destination.ends_with('/'),
                parents: step.parents,
                // In the context, owners are those of whoever builds.
                owner: owner.or_else(|| (!part.selection.owners).then_some((0, 0))),
                mode: mode.clone(),
                unpack: part.unpack,
                owners: self.driver.launcher.identity() != Identity::Single,
                selection: part.selection,
            };
            self.place(&part.source, Target::Container(sandbox.id().to_owned()), placing, about).await?;
            // Whoever writes to the context meanwhile gets what was copied, but no other build gets it.
            if matches!(part.source, Source::Directory(_)) {
                let digest = self.digest_of(&part.source, &selection, about).await;
                lasting &= digest.ok() == part.digest;
            }
            part.source.close().await?;
        }
        let record = self.captured(&sandbox, &below.trees, Vec::new()).await?;
        sandbox.close().await?;
        Ok(Made { record, lasting })
    }

    /// Copies what is selected of `source` to `to`.
    pub(super) async fn place(
        &self,
        source: &Source,
        to: Target,
        placing: Placing,
        about: &Instruction,
    ) -> Result<()> {
        let (from, data) = self.ends(source);
        let context = !placing.selection.owners;
        let job = Job::Place { to, from, placing: Box::new(placing) };
        let placed = self.driver.launcher.work::<Placed>(job, data).await;
        let placed = placed.map_err(|trouble| {
            self.broken(about, FailureKind::CopyFailed, &format!("cannot {}", trouble.doing))
                .fact("reason", trouble.reason.unwrap_or_default())
        })?;
        placed.map_err(|error| self.not_selected(&error, context, about))
    }

    fn ends<'s>(&'s self, source: &'s Source) -> (Option<String>, std::os::fd::BorrowedFd<'s>) {
        match source {
            Source::Directory(directory) => (None, directory.as_fd()),
            Source::Written(written) => (None, written.as_fd()),
            Source::Mounted(sandbox) => (Some(sandbox.id().to_owned()), self.null.as_fd()),
        }
    }

    /// The digest of what is selected of `source`.
    pub(super) async fn digest_of(
        &self,
        source: &Source,
        selection: &Selection,
        about: &Instruction,
    ) -> Result<Digest> {
        let (from, data) = self.ends(source);
        let job = Job::Digest { from, selection: Box::new(selection.clone()) };
        let digest = self.driver.launcher.work::<std::result::Result<Digest, NotSelected>>(job, data).await;
        let digest = digest.map_err(|trouble| self.failed(&trouble))?;
        digest.map_err(|error| self.not_selected(&error, !selection.owners, about))
    }

    /// The files of an origin that is no directory of the host.
    pub(super) async fn files(&self, origin: &Origin, stage: &Stage) -> Result<Option<Files>> {
        match origin {
            Origin::Context => Ok(None),
            Origin::Scratch => Ok(Some(Files::default())),
            Origin::Stage(index) => self.finished(*index).map(|stage| Some(stage.files)),
            Origin::Image(name) => {
                let platform = &self.plan.platforms[stage.index];
                Ok(Some(self.image(name, platform).await?.0))
            }
        }
    }

    /// An origin, open.
    pub(super) async fn open(&self, files: Option<&Files>) -> Result<Source> {
        match files {
            Some(files) => Sandbox::open(self.driver, &files.trees).await.map(Source::Mounted),
            None => self.context(),
        }
    }

    /// What an origin has at these paths.
    pub(super) fn selection(
        &self,
        from: Option<&Files>,
        patterns: Vec<String>,
        exclude: &[String],
    ) -> Selection {
        let ignore = if from.is_none() { self.request.context.ignore.clone() } else { Vec::new() };
        Selection { patterns, globs: true, ignore, exclude: exclude.to_owned(), owners: from.is_some() }
    }

    /// The files of a step by the root that they are in: its origin, and what is made for it.
    async fn parts(&self, step: &CopyStep, from: Option<&Files>, about: &Instruction) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let (mut paths, mut written) = (Vec::new(), None);
        for source in &step.sources {
            match source {
                CopySource::Path(path) => paths.push(path.clone()),
                CopySource::Inline { name, data } => {
                    let directory = self.written(&mut written)?;
                    directory.write(name, data.as_bytes(), 0o644).map_err(|error| self.storing(&error))?;
                }
                CopySource::Address(address) => {
                    let directory = self.written(&mut written)?;
                    self.fetch(address, step.checksum.as_deref(), directory, about).await?;
                }
                CopySource::Git(address) => {
                    let message =
                        format!("`{address}` is a repository of git, which the native driver cannot read");
                    return Err(self.broken(about, FailureKind::Unsupported, &message));
                }
            }
        }
        if !paths.is_empty() {
            let source = self.open(from).await?;
            let selection = self.selection(from, paths, &step.exclude);
            parts.push(Part {
                source,
                selection,
                unpack: step.add && step.unpack.unwrap_or(true),
                digest: None,
            });
        }
        if let Some(written) = written {
            let selection = Selection { patterns: written.names().to_owned(), ..Selection::default() };
            let source = Source::Written(written);
            parts.push(Part { source, selection, unpack: step.unpack == Some(true), digest: None });
        }
        Ok(parts)
    }

    fn written<'w>(&self, written: &'w mut Option<Written>) -> Result<&'w mut Written> {
        let made = match written.take() {
            Some(there) => there,
            None => Written::new(&self.driver.store).map_err(|error| self.storing(&error))?,
        };
        Ok(written.insert(made))
    }

    /// `--chown`, with names as the image knows them.
    async fn owner(
        &self,
        step: &CopyStep,
        sandbox: &Sandbox,
        users: &[PathBuf],
        about: &Instruction,
    ) -> Result<Option<(u32, u32)>> {
        let Some(text) = &step.chown else { return Ok(None) };
        let wrong = |reason: String| self.wrong(about, text, reason);
        if step.link && !text.bytes().all(|b| b.is_ascii_digit() || b == b':') {
            let whole = Sandbox::open(self.driver, users).await?;
            let owner = owner(text, &whole.accounts).map_err(wrong);
            whole.close().await?;
            return owner.map(Some);
        }
        owner(text, &sandbox.accounts).map(Some).map_err(wrong)
    }

    fn not_selected(&self, error: &NotSelected, context: bool, about: &Instruction) -> Failure {
        match error {
            NotSelected::Missing { pattern, ignored } => {
                let place = if context { "the build's context" } else { "what it is taken from" };
                let failure = self.wrong(about, pattern, format!("`{pattern}` is not in {place}"));
                if *ignored {
                    failure.hint(format!("`.dockerignore` leaves `{pattern}` out of the build's context"))
                } else {
                    failure
                }
            }
            NotSelected::Unreadable { path, reason } => {
                let message = format!("`{}` cannot be read", path.display());
                self.broken(about, FailureKind::CopyFailed, &message).fact("reason", reason)
            }
        }
    }
}

fn only_paths(step: &CopyStep) -> bool {
    step.sources.iter().all(|source| matches!(source, CopySource::Path(_)))
}

/// An owner as BuildKit reads it: a number alone is a group as well, a name alone has the group that it has in
/// `/etc/passwd`.
fn owner(text: &str, accounts: &Accounts) -> std::result::Result<(u32, u32), String> {
    let user = accounts.resolve(text)?;
    let number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    Ok((user.uid, if number { user.uid } else { user.gid }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `--chown` gives files to whom BuildKit would give them.
    #[test]
    fn owners_are_those_of_the_image() {
        let accounts = Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nshop:x:100:101::/:\n".to_owned(),
            group: "tills:x:200:\n".to_owned(),
        };
        let of = |text: &str| owner(text, &accounts);
        assert_eq!(of("shop"), Ok((100, 101)));
        assert_eq!(of("55"), Ok((55, 55)));
        assert_eq!(of("55:tills"), Ok((55, 200)));
        assert_eq!(of("shop:0"), Ok((100, 0)));
        assert!(of("nobody").is_err() && of("shop:none").is_err());
    }
}
