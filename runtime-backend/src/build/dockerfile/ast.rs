//! What a Dockerfile says, before anything is expanded or looked up.
//!
//! Words are kept as written, with their quotes and `$`: what a variable holds is known only where the instruction
//! runs (`build/config.rs`). Names and defaults are those of Docker's Dockerfile reference.

use std::fmt;
use std::time::Duration;

/// A whole Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// What messages call the file: its path in the context, or `inline`.
    pub name: String,
    /// The character that escapes and continues lines: `\`, or what `# escape=` says.
    pub escape: char,
    /// `ARG`s before the first `FROM`.
    pub global_args: Vec<Instruction>,
    /// The stages, first to last; there is at least one.
    pub stages: Vec<Stage>,
    /// Every line of the file, for messages.
    pub source: Vec<String>,
}

/// From one `FROM` to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What follows `AS`, in lower case.
    pub name: Option<String>,
    /// What it is based on, unexpanded: a reference, an earlier stage, or `scratch`.
    pub from: String,
    /// `--platform=`, unexpanded.
    pub platform: Option<String>,
    /// The lines of the `FROM` itself.
    pub lines: Span,
    /// The `FROM` as written, continuation lines joined.
    pub text: String,
    /// What follows it.
    pub instructions: Vec<Instruction>,
}

/// Line numbers of the file, counted from 1, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The line with the instruction's name.
    pub first: usize,
    /// The last line of the instruction, heredocs included.
    pub last: usize,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)
    }
}

/// One instruction of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Where it stands.
    pub lines: Span,
    /// It as written, continuation lines joined and comments left out, without the bodies of heredocs.
    pub text: String,
    /// What it says.
    pub kind: Kind,
}

/// What an instruction says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `RUN`
    Run(Run),
    /// `COPY`
    Copy(Copy),
    /// `ADD`
    Add(Add),
    /// `ENV`: names and values, in order.
    Env(Vec<(String, String)>),
    /// `ARG`: names, and defaults where there are any, in order.
    Arg(Vec<(String, Option<String>)>),
    /// `LABEL`: names and values, in order.
    Label(Vec<(String, String)>),
    /// `WORKDIR`
    Workdir(String),
    /// `USER`
    User(String),
    /// `EXPOSE`: ports, ranges, each with its protocol as written.
    Expose(Vec<String>),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `ENTRYPOINT`
    Entrypoint(Command),
    /// `CMD`
    Cmd(Command),
    /// `SHELL`
    Shell(Vec<String>),
    /// `STOPSIGNAL`
    StopSignal(String),
    /// `HEALTHCHECK`; `None` is `HEALTHCHECK NONE`.
    Healthcheck(Option<Check>),
    /// `ONBUILD`: the instruction that images based on this one begin with, as written.
    Onbuild(String),
    /// `MAINTAINER`
    Maintainer(String),
}

/// A command in one of its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A JSON list: the argument vector. Empty where a Dockerfile says `[]`.
    Exec(Vec<String>),
    /// Anything else: a line for the shell in force.
    Shell(String),
}

/// `RUN`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What is run. With heredocs it is a [`Command::Shell`] that still has its `<<NAME`.
    pub command: Command,
    /// Heredocs in the order of their `<<`.
    pub heredocs: Vec<Heredoc>,
    /// `--mount=`, unexpanded, one text for each.
    pub mounts: Vec<String>,
    /// `--network=`
    pub network: RunNetwork,
    /// `--security=`
    pub security: Security,
}

/// Which network a `RUN` sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunNetwork {
    /// What the build was asked to use.
    #[default]
    Default,
    /// Only a loopback interface.
    None,
    /// The host's.
    Host,
}

/// Which rights a `RUN` has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// Those of a usual container.
    #[default]
    Sandbox,
    /// Those of a privileged one.
    Insecure,
}

/// A document within the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// Its name, without quotes.
    pub name: String,
    /// Its lines, each with its line feed.
    pub data: String,
    /// Whether variables in it are expanded: its name was not quoted.
    pub expand: bool,
    /// Whether leading tabs are taken off: `<<-`.
    pub strip_tabs: bool,
}

impl Heredoc {
    /// The lines as they are meant: without leading tabs if it says so.
    #[must_use]
    pub fn content(&self) -> String {
        if !self.strip_tabs {
            return self.data.clone();
        }
        self.data.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// What a `COPY` or `ADD` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path, glob or address, unexpanded.
    Path(String),
    /// A heredoc: becomes a file of its name.
    Heredoc(Heredoc),
}

/// `COPY`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// What is copied; at least one.
    pub sources: Vec<Source>,
    /// Where to, unexpanded.
    pub destination: String,
    /// `--from=`, unexpanded: a stage, its number, or an image.
    pub from: Option<String>,
    /// `--chown=`, unexpanded.
    pub chown: Option<String>,
    /// `--chmod=`, unexpanded.
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--parents`
    pub parents: bool,
    /// `--exclude=`, unexpanded, one for each.
    pub exclude: Vec<String>,
}

/// `ADD`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// What is added; at least one.
    pub sources: Vec<Source>,
    /// Where to, unexpanded.
    pub destination: String,
    /// `--chown=`, unexpanded.
    pub chown: Option<String>,
    /// `--chmod=`, unexpanded.
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--exclude=`, unexpanded, one for each.
    pub exclude: Vec<String>,
    /// `--checksum=`, unexpanded.
    pub checksum: Option<String>,
    /// `--keep-git-dir`
    pub keep_git_dir: bool,
    /// `--unpack=`; archives of the context are unpacked and addresses are not, when unset.
    pub unpack: Option<bool>,
}

/// `HEALTHCHECK` with a command. Times are Docker's defaults when unset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is run.
    pub command: Command,
    /// `--interval=`
    pub interval: Option<Duration>,
    /// `--timeout=`
    pub timeout: Option<Duration>,
    /// `--start-period=`
    pub start_period: Option<Duration>,
    /// `--start-interval=`
    pub start_interval: Option<Duration>,
    /// `--retries=`
    pub retries: Option<u32>,
}
