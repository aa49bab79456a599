//! What an instruction leaves to be done to the file system, with everything expanded.
//!
//! `State::apply` of `build/config.rs` gives one for each instruction: what only changes the configuration
//! is done there, and what touches files is told in these words to whoever has the files.

use super::dockerfile::ast::{RunNetwork, Security};

/// What is left to do of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it changed the configuration alone.
    Config,
    /// `WORKDIR`: make this absolute directory, mode 0755, owned by the user in force, unless it is there.
    Workdir(String),
    /// `RUN`
    Run(RunStep),
    /// `COPY` and `ADD`
    Copy(CopyStep),
}

/// A process to run in the image under construction. User, working directory and environment are in the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunStep {
    /// The argument vector, the shell included.
    pub argv: Vec<String>,
    /// The environment: the image's, then `ARG`s that are set; sorted by nothing, later entries do not repeat earlier.
    pub env: Vec<(String, String)>,
    /// Absolute.
    pub workdir: String,
    /// `user`, `user:group`, or ids; empty for root.
    pub user: String,
    /// A script of its own (`RUN <<EOF` whose first line is `#!…`): mounted read-only, mode 0755, at this path.
    pub script: Option<(String, String)>,
    /// `--mount=`
    pub mounts: Vec<RunMount>,
    /// `--network=`
    pub network: RunNetwork,
    /// `--security=`
    pub security: Security,
}

/// One `--mount=` of a `RUN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunMount {
    /// `type=bind`: files of the context, a stage or an image. Writes are thrown away.
    Bind {
        /// Absolute, in the container.
        target: String,
        /// Where from.
        from: Origin,
        /// Path in it, absolute.
        source: String,
        /// `rw`
        writable: bool,
    },
    /// `type=cache`: a directory that outlives the build.
    Cache {
        /// Absolute, in the container.
        target: String,
        /// Its name; the target when not given.
        id: String,
        /// `ro`
        read_only: bool,
        /// Who may use it at the same time.
        sharing: Sharing,
        /// What it begins with, if it is new.
        from: Option<(Origin, String)>,
        /// Of the directory, if it is new.
        mode: u32,
        /// Of the directory, if it is new.
        uid: u32,
        /// Of the directory, if it is new.
        gid: u32,
    },
    /// `type=tmpfs`
    Tmpfs {
        /// Absolute, in the container.
        target: String,
        /// In bytes.
        size: Option<u64>,
    },
    /// `type=secret`
    Secret {
        /// Which.
        id: String,
        /// Absolute, in the container; `None` when it is only wanted as a variable.
        target: Option<String>,
        /// The variable it is wanted as.
        env: Option<String>,
        /// Whether its absence is an error.
        required: bool,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Owner.
        gid: u32,
    },
    /// `type=ssh`
    Ssh {
        /// Which agent; `default` when not given.
        id: String,
        /// Whether its absence is an error.
        required: bool,
    },
}

/// Who may use a cache directory at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Anybody.
    #[default]
    Shared,
    /// Each gets one of its own.
    Private,
    /// One after the other.
    Locked,
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The build context.
    Context,
    /// An earlier stage, by its index.
    Stage(usize),
    /// An image.
    Image(String),
    /// Nothing: `scratch`.
    Scratch,
}

/// Files to copy into the image under construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyStep {
    /// Whether it is an `ADD`: archives are unpacked, and addresses fetched.
    pub add: bool,
    /// Where from.
    pub from: Origin,
    /// In order.
    pub sources: Vec<CopySource>,
    /// Absolute. With a `/` at its end, or more than one source, it is a directory.
    pub destination: String,
    /// `user`, `user:group`, or ids. Root when unset, whatever `USER` says.
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<Mode>,
    /// `--link`: as a layer of its own that does not look at what is below.
    pub link: bool,
    /// `--parents`: keep the directories of sources.
    pub parents: bool,
    /// Patterns of what is left out.
    pub exclude: Vec<String>,
    /// `ADD --checksum=`: `sha256:…`.
    pub checksum: Option<String>,
    /// `ADD --keep-git-dir`
    pub keep_git_dir: bool,
    /// `ADD --unpack=`
    pub unpack: Option<bool>,
}

/// One source of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// A path or glob in [`CopyStep::from`].
    Path(String),
    /// `ADD https://…`
    Address(String),
    /// `ADD git@…`, `ADD https://….git`
    Git(String),
    /// A heredoc: file name and content, mode 0644.
    Inline {
        /// File name.
        name: String,
        /// Content.
        data: String,
    },
}

/// What `--chmod` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `0755`
    Bits(u32),
    /// `u=rwX,go=rX`, as chmod(1) reads it.
    Symbolic(String),
}
