//! The commands: what is asked, and which file does it.

mod build;
mod bundle;
mod containers;
mod doctor;
mod images;
mod interactive;
mod local;
mod lock;
mod networks;
mod progress;
mod oci;
mod run;
mod serve;
mod transfer;

use clap::{Parser, Subcommand};
use shakedown_server::client::Client;
use shakedown_server::config::{Config, DriverChoice, Overrides};
use shakedown_spec::{Failure, FailureKind};
use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Real services for tests: containers without a daemon, taken away again whatever happens.
#[derive(Debug, Parser)]
#[command(name = "shakedown", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the REST API in the foreground, until SIGINT or SIGTERM.
    Serve {
        /// Where to listen; a socket in the run directory when unset.
        #[arg(long)]
        socket: Option<PathBuf>,
        /// `auto`, `native` or `docker`.
        #[arg(long)]
        driver: Option<DriverChoice>,
        #[command(flatten)]
        images: ImageOptions,
    },
    /// Runs a command in a session of its own and takes everything away when it has ended.
    Run {
        /// `auto`, `native` or `docker`.
        #[arg(long)]
        driver: Option<DriverChoice>,
        #[command(flatten)]
        images: ImageOptions,
        /// The command; it finds the session in SHAKEDOWN_SOCKET.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Writes down which bytes image references mean, in `shakedown.lock`.
    Lock(lock::Arguments),
    /// Carries the images of a lock file, or others, to machines without network.
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Builds an image from a Dockerfile; prints its id.
    Build(build::Options),
    /// Says what works on this machine, and what to do about the rest.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// The images of the local store.
    #[command(subcommand)]
    Images(images::Command),
    /// The networks of a session.
    #[command(subcommand)]
    Network(networks::Command),
    /// Runs containers from OCI bundles, as runc and crun do.
    Oci(Box<oci::Oci>),
    /// Lists the containers of a session.
    Ps,
    /// Prints the log of a container.
    Logs {
        /// The container's id.
        id: String,
        #[command(flatten)]
        options: containers::LogOptions,
    },
    /// Shows what containers use.
    Stats {
        /// The containers' ids; all of the session when none is given.
        ids: Vec<String>,
    },
    /// Runs a command in a container.
    Exec(containers::ExecOptions),
    /// Connects this terminal to the first process of a container. Ctrl-C goes there; close the terminal to leave.
    Attach {
        /// The container's id.
        id: String,
        /// Sends no input.
        #[arg(long)]
        no_stdin: bool,
    },
    /// Stops containers: their stop signal, then SIGKILL.
    Stop(containers::Named),
    /// Starts containers again that have ended, with the same files and ports.
    Start(containers::Named),
    /// Stops containers and starts them again.
    Restart(containers::Named),
    /// Halts all processes of containers.
    Pause(containers::Named),
    /// Lets them go on.
    Unpause(containers::Named),
    /// Sends a signal to the first process of containers.
    Kill {
        /// The signal, by name or number.
        #[arg(short, long, default_value = "SIGKILL")]
        signal: String,
        #[command(flatten)]
        named: containers::Named,
    },
}

/// What `run` and `serve` say about images.
#[derive(Clone, Copy, Debug, clap::Args)]
struct ImageOptions {
    /// Uses no network for images.
    #[arg(long)]
    offline: bool,
    /// Uses only images of `shakedown.lock`, and only if it is up to date.
    #[arg(long)]
    locked: bool,
}

impl From<ImageOptions> for Overrides {
    fn from(options: ImageOptions) -> Self {
        Self { offline: options.offline, locked: options.locked }
    }
}

/// Does what is asked. `serve`, `doctor`, `images` and `bundle` come to the native driver while the process has one
/// thread.
pub(crate) fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Serve { socket, driver, images } => serve::serve(socket, driver, images.into()),
        Command::Run { driver, images, command } => wait_for(run::run(driver, images.into(), command)),
        Command::Lock(arguments) => wait_for(lock::lock(arguments)),
        Command::Bundle(command) => bundle::bundle(command),
        Command::Build(options) => wait_for(build::build(options)),
        Command::Doctor { json } => doctor::doctor(json),
        Command::Images(command) => images::images(command),
        Command::Network(command) => wait_for(networks::network(command)),
        Command::Oci(asked) => oci::main(*asked),
        Command::Ps => wait_for(containers::ps()),
        Command::Logs { id, options } => wait_for(containers::logs(&id, &options)),
        Command::Stats { ids } => wait_for(containers::stats(ids)),
        Command::Exec(options) => wait_for(containers::exec(options)),
        Command::Attach { id, no_stdin } => wait_for(containers::attach(&id, !no_stdin)),
        Command::Stop(named) => each(&named, async |server, id| server.stop(id).await.map(drop)),
        Command::Start(named) => each(&named, async |server, id| server.start_again(id).await.map(drop)),
        Command::Restart(named) => each(&named, async |server, id| server.restart(id).await.map(drop)),
        Command::Pause(named) => each(&named, async |server, id| server.pause(id).await),
        Command::Unpause(named) => each(&named, async |server, id| server.unpause(id).await),
        Command::Kill { signal, named } => each(&named, async |server, id| server.kill(id, &signal).await),
    };
    done.unwrap_or_else(|failure| {
        // Nobody reads standard error if this fails.
        let _ = writeln!(io::stderr(), "error: {failure}");
        ExitCode::FAILURE
    })
}

/// Does the same with each container, one after the other.
fn each(named: &containers::Named, done: impl AsyncFn(&Client, &str) -> Result<(), Failure>) -> Done {
    wait_for(containers::each(named, done))
}

type Done = Result<ExitCode, Failure>;

fn wait_for(command: impl Future<Output = Done>) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| io_failure("the runtime could not be started", &error))?.block_on(command)
}

/// The driver that the option says, else what `shakedown.toml` and the environment say.
fn chosen(option: Option<DriverChoice>) -> Result<DriverChoice, Failure> {
    option.map_or_else(|| Ok(Config::find(&here()?)?.driver), Ok)
}

fn here() -> Result<PathBuf, Failure> {
    std::env::current_dir().map_err(|error| io_failure("the working directory is not known", &error))
}

/// Writes to standard output. A reader that has gone away (`| head`) ends the command.
fn say(bytes: &[u8]) -> Result<(), Failure> {
    io::stdout().write_all(bytes).map_err(|error| io_failure("standard output cannot be written", &error))
}

fn io_failure(title: &str, error: &io::Error) -> Failure {
    Failure::new(FailureKind::Other, title).fact("reason", error.to_string())
}
