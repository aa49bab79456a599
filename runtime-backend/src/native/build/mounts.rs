//! What a `RUN` sees besides the image: its `--mount`s, and the files that name hosts.

use super::Builder;
use super::place::Placing;
use super::run::own_mounts;
use super::sandbox::Sandbox;
use super::select::Selection;
use super::stage::Stage;
use crate::build::dockerfile::ast::{Instruction, RunNetwork};
use crate::build::step::{Origin, RunMount, RunStep, Sharing};
use crate::driver::Result;
use crate::native::image::{Digest, Sharing as Held};
use crate::native::launcher::{Identity, Job, Part, PartKind, Target};
use crate::native::outbound::host_address;
use crate::pack::pack;
use shakedown_spec::{FailureKind, File, FileContent, Mount, MountSource};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// What is mounted for one step, and what it is held by.
#[derive(Debug, Default)]
pub(super) struct Mounted {
    /// As a container declares them.
    pub(super) mounts: Vec<Mount>,
    /// Which of them show a part of another root.
    pub(super) parts: Vec<Part>,
    /// Secrets that are wanted as variables.
    pub(super) env: Vec<(String, String)>,
    /// Roots that are shown.
    sandboxes: Vec<Sandbox>,
    /// The caches of the step by name, and what keeps others out of them.
    caches: BTreeMap<String, (PathBuf, fs::File)>,
}

impl Mounted {
    /// What the step leaves at these paths is no part of the image.
    pub(super) fn left_out(&self) -> Vec<PathBuf> {
        let targets = self.mounts.iter().map(|mount| PathBuf::from(&mount.target));
        targets.chain(own_mounts()).collect()
    }

    /// Takes everything away.
    pub(super) async fn close(self) -> Result<()> {
        for sandbox in self.sandboxes {
            sandbox.close().await?;
        }
        Ok(())
    }

    fn part(&mut self, target: &str, id: &str, path: &str, read_only: bool) {
        let source = MountSource::host(path);
        self.mounts.push(Mount { target: target.to_owned(), source, read_only });
        let kind = PartKind::Found;
        self.parts.push(Part { target: target.into(), id: id.to_owned(), path: path.into(), kind });
    }
}

impl Builder<'_> {
    /// What a step's mount adds to the step's key: what it shows, not what is only kept there.
    pub(super) async fn mount_key(
        &self,
        mount: &RunMount,
        stage: &Stage,
        about: &Instruction,
    ) -> Result<String> {
        let (from, source) = match mount {
            RunMount::Bind { from, source, .. } => (from, source),
            RunMount::Cache { from: Some((from, source)), .. } => (from, source),
            other => return Ok(format!("{other:?}")),
        };
        let content = match self.files(from, stage).await? {
            Some(files) => files.diff_ids.iter().map(Digest::hex).collect::<Vec<_>>().join(" "),
            None => {
                let context = self.context()?;
                self.digest_of(&context, &self.shown(source), about).await?.to_string()
            }
        };
        Ok(format!("{mount:?} {content}"))
    }

    fn shown(&self, source: &str) -> Selection {
        Selection { globs: false, ..self.selection(None, vec![source.to_owned()], &[]) }
    }

    /// Everything that is mounted for a step.
    pub(super) async fn mounts(
        &self,
        step: &RunStep,
        resolver: &str,
        stage: &Stage,
        about: &Instruction,
    ) -> Result<Mounted> {
        let mut mounted = Mounted::default();
        self.written_files(step, resolver, &mut mounted, about).await?;
        // Caches in the order of their names, so that two steps never wait for each other.
        let mut ordered: Vec<&RunMount> = step.mounts.iter().collect();
        ordered.sort_by_key(|mount| if let RunMount::Cache { id, .. } = mount { id.as_str() } else { "" });
        for mount in ordered {
            match mount {
                RunMount::Bind { target, from, source, writable } => {
                    let sandbox = self.shown_root(from, source, stage, about).await?;
                    mounted.part(target, sandbox.id(), source, !writable);
                    mounted.sandboxes.push(sandbox);
                }
                RunMount::Cache { .. } => self.cache(mount, &mut mounted, stage, about).await?,
                RunMount::Tmpfs { target, size } => mounted.mounts.push(Mount {
                    target: target.clone(),
                    source: MountSource::Tmpfs { size: *size, mode: None },
                    read_only: false,
                }),
                RunMount::Secret { .. } | RunMount::Ssh { .. } => {}
            }
        }
        // What is mounted in a directory that is mounted itself comes after it.
        mounted.mounts.sort_by_key(|mount| Path::new(&mount.target).components().count());
        Ok(mounted)
    }

    /// The root that a mount shows a part of. Writes to it are thrown away with it.
    async fn shown_root(
        &self,
        from: &Origin,
        source: &str,
        stage: &Stage,
        about: &Instruction,
    ) -> Result<Sandbox> {
        if let Some(files) = self.files(from, stage).await? {
            return Sandbox::open(self.driver, &files.trees).await;
        }
        // What the context shows is only what the build may see of it, and belongs to root.
        let sandbox = Sandbox::open(self.driver, &[]).await?;
        let path = PathBuf::from("/").join(source.trim_start_matches('/'));
        let root = path == Path::new("/");
        let placing = Placing {
            selection: self.shown(source),
            destination: path,
            into_directory: false,
            parents: false,
            owner: Some((0, 0)),
            mode: None,
            unpack: false,
            owners: self.driver.launcher.identity() != Identity::Single,
        };
        let context = self.context()?;
        let placed = self.place(&context, Target::Container(sandbox.id().to_owned()), placing, about).await;
        // An empty context can be shown as a whole.
        if let Err(failure) = placed
            && !root
        {
            return Err(failure);
        }
        Ok(sandbox)
    }

    async fn cache(
        &self,
        mount: &RunMount,
        mounted: &mut Mounted,
        stage: &Stage,
        about: &Instruction,
    ) -> Result<()> {
        let RunMount::Cache { target, id, read_only, sharing, from, mode, uid, gid } = mount else {
            return Ok(());
        };
        let storing = |error: io::Error| self.storing(&error);
        let held = match sharing {
            Sharing::Shared => Held::Anybody,
            Sharing::Private => Held::Never,
            Sharing::Locked => Held::OneByOne,
        };
        if !mounted.caches.contains_key(id) {
            let cache = self.driver.store.cache(id, held).await.map_err(storing)?;
            mounted.caches.insert(id.clone(), cache);
        }
        let path = mounted.caches[id].0.clone();
        let _making = self.driver.store.lock_step(Digest::of(path.as_os_str().as_encoded_bytes())).await;
        if !path.exists() {
            // It has its name when it is whole.
            let beside = path.with_extension("new");
            let job = Job::MakeCache { path: beside.clone(), owner: (*uid, *gid), mode: *mode };
            let made = self.driver.launcher.work::<()>(job, self.null.as_fd()).await;
            made.map_err(|trouble| self.failed(&trouble))?;
            if let Some((from, source)) = from {
                let files = self.files(from, stage).await?;
                let source_root = self.open(files.as_ref()).await?;
                let patterns = vec![source.clone()];
                let placing = Placing {
                    selection: Selection { globs: false, ..self.selection(files.as_ref(), patterns, &[]) },
                    destination: "/".into(),
                    into_directory: true,
                    parents: false,
                    owner: Some((*uid, *gid)),
                    mode: None,
                    unpack: false,
                    owners: self.driver.launcher.identity() != Identity::Single,
                };
                self.place(&source_root, Target::Directory(beside.clone()), placing, about).await?;
                source_root.close().await?;
            }
            fs::rename(&beside, &path).map_err(storing)?;
        }
        let source = MountSource::host(path.to_string_lossy());
        mounted.mounts.push(Mount { target: target.clone(), source, read_only: *read_only });
        Ok(())
    }

    /// The files that are made for a step: those that name hosts, its script, its secrets.
    async fn written_files(
        &self,
        step: &RunStep,
        resolver: &str,
        mounted: &mut Mounted,
        about: &Instruction,
    ) -> Result<()> {
        const HOSTS: &str = "127.0.0.1\tlocalhost build\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        let hosts_own = self.network(step) == RunNetwork::Host;
        let line =
            |(name, address): (&String, &String)| format!("{}\t{name}\n", host_address(address, hosts_own));
        let extra = self.request.extra_hosts.iter().map(line);
        let hosts: String = std::iter::once(HOSTS.to_owned()).chain(extra).collect();
        let mut files = vec![
            ("/etc/hosts".to_owned(), File::bytes("", hosts)),
            ("/etc/resolv.conf".to_owned(), File::bytes("", resolver)),
        ];
        if let Some((path, script)) = &step.script {
            files.push((path.clone(), File::bytes("", script.as_bytes()).mode(0o755)));
        }
        for mount in &step.mounts {
            let RunMount::Secret { id, target, env, required, mode, uid, gid } = mount else { continue };
            let Some(secret) = self.request.secrets.get(id) else {
                if *required {
                    let message = format!("the build was given no secret `{id}`");
                    return Err(self.wrong(about, id, message));
                }
                continue;
            };
            if let Some(name) = env {
                let text = String::from_utf8(secret.clone()).map_err(|_| {
                    self.wrong(about, id, format!("the secret `{id}` is no text, and cannot be a variable"))
                })?;
                mounted.env.push((name.clone(), text));
            }
            if let Some(target) = target {
                let file = File::bytes("", secret.clone()).mode(*mode).owner(*uid, *gid);
                files.push((target.clone(), file));
            }
        }
        let sandbox = Sandbox::in_memory(self.driver).await?;
        let mut packed = Vec::new();
        for (number, (target, file)) in files.into_iter().enumerate() {
            let path = format!("/{number}");
            mounted.part(&target, sandbox.id(), &path, true);
            packed.push(File { path, ..file });
        }
        self.put(&sandbox, packed, about).await?;
        mounted.sandboxes.push(sandbox);
        Ok(())
    }

    async fn put(&self, sandbox: &Sandbox, files: Vec<File>, about: &Instruction) -> Result<()> {
        debug_assert!(files.iter().all(|file| matches!(file.content, FileContent::Bytes(_))));
        let (read, write) = io::pipe().map_err(|error| self.storing(&error))?;
        let packing = tokio::task::spawn_blocking(move || {
            pack(&files, io::BufWriter::with_capacity(1 << 17, write)).map_err(|(_, error)| error)
        });
        let job = Job::CopyIn { id: sandbox.id().to_owned(), path: "/".into() };
        let copied = self.driver.launcher.work::<()>(job, read.as_fd()).await;
        drop(read);
        let packed = packing.await.map_err(io::Error::other).and_then(|result| result);
        copied.map_err(|trouble| {
            self.broken(about, FailureKind::CopyFailed, "the files for a step could not be written")
                .fact("reason", trouble.to_string())
        })?;
        packed.map_err(|error| self.storing(&error))
    }
}
