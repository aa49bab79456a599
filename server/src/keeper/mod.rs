//! The keeper's process, from its first instruction to its end.
//!
//! ```text
//! set up (one thread) ─► native driver's launcher ─► runtime ─► driver ─► socket ─► "ready" ─► serve ─► reap ─► end
//! ```

mod driver;
mod life;
mod serve;

pub use driver::{Finding, findings, local_driver, local_launcher, with_driver};

pub(crate) use driver::sweep;

use crate::config::{DriverChoice, Overrides};
use crate::fixtures::Session;
use crate::session::{self, Meta, ORDERS_VARIABLE, Orders, Place, ProcessIdentity, READY, SessionLock};
use driver::{Chosen, NativeAttempt};
use life::Life;
use rustix::io::fcntl_dupfd_cloexec;
use shakedown_spec::{Failure, FailureKind};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::UnixListener;
use tokio::time::timeout;

/// How long an ending keeper goes on to sweep dead sessions.
const SWEEP_LIMIT: Duration = Duration::from_secs(10);

/// The keeper's `main`: called before the binary's own one, while the process has one thread. Gives the exit code.
#[must_use]
pub fn main() -> i32 {
    let mut starter = match Starter::take() {
        Ok(starter) => Some(starter),
        Err(error) => {
            note(&format!("the keeper ends: {}", cannot("take over from its starter", &error)));
            return 1;
        }
    };
    let kept = keep(&mut starter);
    let Err(failure) = kept else { return 0 };
    note(&format!("the keeper ends: {failure}"));
    if let Some(starter) = starter {
        // The starter may have gone away; the log has it in any case.
        let _ = starter.answer(&serde_json::to_string(&failure).unwrap_or_default());
    }
    1
}

/// Takes the answer to the starter out of `starter` once it is ready.
fn keep(starter: &mut Option<Starter>) -> Result<(), Failure> {
    // 1. A session of its own: nextest ends a test by killing its process group.
    rustix::process::setsid().map_err(|error| cannot("setsid", &error.into()))?;
    // 2. What to do.
    let orders = std::env::var(ORDERS_VARIABLE).map_err(|_| cannot("read its orders", &missing_orders()))?;
    let orders: Orders =
        serde_json::from_str(&orders).map_err(|error| cannot("read its orders", &error.into()))?;
    let place = orders.place();
    // 3. The lock of its life. If the last keeper of this session is still taking things away, this waits for it; the
    //    starter holds `start`, so that nobody else can be waiting.
    let life_lock =
        session::lock(&place, SessionLock::Life).map_err(|error| cannot("lock the session", &error))?;
    // 4. The native driver's launcher is cloned now: after the runtime's first thread it would be too late.
    let native = driver::before_threads(orders.driver, &place.directory);
    // 5. One thread: the keeper mostly waits, and its memory is the test run's cost.
    let runtime = runtime()?;
    runtime.block_on(serve_session(&place, &orders, native, starter, &life_lock))?;
    drop(runtime);
    drop(life_lock);
    Ok(())
}

/// Serves the session of the orders.
async fn serve_session(
    place: &Place,
    orders: &Orders,
    native: NativeAttempt,
    starter: &mut Option<Starter>,
    life_lock: &File,
) -> Result<(), Failure> {
    let chosen = driver::choose_driver(orders.driver, &place.name, native).await;
    if let Err(failure) = sweep_predecessor(place).await {
        note(&format!("what the killed keeper of this session left is not all gone: {failure}"));
    }
    write_meta(place, orders.runner, &chosen)?;
    let session = Session::new(place.name.clone(), chosen.map(|chosen| chosen.driver), orders.overrides);
    // The lock is held: a socket that is still here belongs to a dead keeper.
    let listener = bind(&place.socket()).map_err(|error| cannot("listen", &error))?;
    let life = Life::new(&session, orders.runner).map_err(|error| cannot("watch for its end", &error))?;
    if let Some(starter) = starter.take() {
        // A starter that was killed meanwhile does not hear it; the other processes of the run need the keeper as well.
        let _ = starter.answer(READY);
    }
    let home = Home { place, life_lock };
    serve_and_clean_up(home, &session, Listening { listener, socket: place.socket() }, life).await
}

/// Takes away what a keeper of the same session left that died in mid-run, before its description is overwritten: it
/// would count as this keeper's own, and stay until the end of the run.
async fn sweep_predecessor(place: &Place) -> Result<(), Failure> {
    match Meta::read(place).map_err(|error| cannot("read what its predecessor was", &error))? {
        Some(meta) => sweep(&meta, &place.name).await,
        None => Ok(()),
    }
}

/// Serves in the foreground at `socket` until SIGINT, SIGTERM or `DELETE /v1/session`. `ready` is told the socket and
/// what the driver is. To be called while the process has one thread.
///
/// # Errors
///
/// No driver works, the socket cannot be made, or something could not be taken away.
pub fn serve_foreground(
    socket: Option<PathBuf>,
    choice: DriverChoice,
    overrides: Overrides,
    ready: impl FnOnce(&Path, &str),
) -> Result<(), Failure> {
    let this = ProcessIdentity::this();
    let place = session::RunDirectory::find()?.place(&format!("serve-{}-{:x}", this.pid, this.started))?;
    let life_lock =
        session::lock(&place, SessionLock::Life).map_err(|error| cannot("lock the session", &error))?;
    let native = driver::before_threads(choice, &place.directory);
    let served = runtime()?.block_on(async {
        let chosen = Ok(driver::choose_driver(choice, &place.name, native).await?);
        write_meta(&place, None, &chosen)?;
        let driver = chosen?.driver;
        let described = format!("{}: {}", driver.name(), driver.description());
        let session = Session::new(place.name.clone(), Ok(driver), overrides);
        let socket = socket.unwrap_or_else(|| place.socket());
        let listener = bind_unused(&socket)?;
        let life = Life::in_foreground(&session).map_err(|error| cannot("watch for its end", &error))?;
        ready(&socket, &described);
        let home = Home { place: &place, life_lock: &life_lock };
        serve_and_clean_up(home, &session, Listening { listener, socket }, life).await
    });
    if served.is_err() && Meta::read(&place).is_ok_and(|meta| meta.is_none()) {
        // Nothing was made: no later session has to look at it.
        remove_place(Home { place: &place, life_lock: &life_lock })?;
    }
    served
}

/// A socket and where it is.
#[derive(Debug)]
struct Listening {
    listener: UnixListener,
    socket: PathBuf,
}

/// The session's directory, and the lock in it that this process holds for its life.
#[derive(Clone, Copy, Debug)]
struct Home<'a> {
    place: &'a Place,
    life_lock: &'a File,
}

/// Serves until the end of the session's life; removes its directory if nothing is left of it.
async fn serve_and_clean_up(
    home: Home<'_>,
    session: &Arc<Session>,
    listening: Listening,
    life: Life,
) -> Result<(), Failure> {
    // At the same time as the first containers start: what dead sessions left is in nobody's way.
    let sweeping = tokio::spawn({
        let place = home.place.clone();
        async move { session::sweep(&place).await }
    });
    let clean = serve::until(session, listening, life.end()).await;
    if timeout(SWEEP_LIMIT, sweeping).await.is_err() {
        note("the sweep of dead sessions did not come to its end; the next session will go on with it");
    }
    if !clean {
        let title = "something of the session could not be removed; the next session will try again";
        return Err(Failure::new(FailureKind::Other, title));
    }
    remove_place(home)
}

/// Removes the session's directory. Who holds `start` has made it his own already. So has the keeper of a directory that
/// was made in the place of this one, after somebody had removed it.
fn remove_place(Home { place, life_lock }: Home<'_>) -> Result<(), Failure> {
    if !session::is_held(life_lock, place, SessionLock::Life) {
        return Ok(());
    }
    match session::try_lock(place, SessionLock::Start) {
        Ok(Some(_start)) => {
            session::remove_directory(place).map_err(|error| cannot("remove its directory", &error))
        }
        _ => Ok(()),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| cannot("start its runtime", &error))
}

fn write_meta(
    place: &Place,
    runner: Option<ProcessIdentity>,
    chosen: &Result<Chosen, Failure>,
) -> Result<(), Failure> {
    let driver = chosen.as_ref().map_or("", |chosen| chosen.driver.name());
    let meta = Meta {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        keeper: ProcessIdentity::this(),
        runner,
        driver: driver.to_owned(),
        endpoint: chosen.as_ref().ok().and_then(|chosen| chosen.endpoint.clone()),
    };
    meta.write(place).map_err(|error| cannot("write meta.json", &error))
}

/// Binds the socket, for this user only.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Binds a socket that the user named: one on which somebody listens is not taken from him.
fn bind_unused(path: &Path) -> Result<UnixListener, Failure> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Failure::new(
            FailureKind::Invalid,
            format!("a server listens on {} already", path.display()),
        ));
    }
    bind(path).map_err(|error| cannot("listen", &error).fact("socket", path.display().to_string()))
}

/// What the starter waits for: its pipe, and the `start` lock. Dropping it without an answer tells it that the keeper
/// has died.
#[derive(Debug)]
struct Starter {
    pipe: File,
    _lock: OwnedFd,
}

impl Starter {
    /// Takes both from standard output and input and puts `/dev/null` there, so that whatever this process clones or
    /// starts has nothing of the starter as its standard streams.
    fn take() -> io::Result<Self> {
        let pipe = File::from(fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?);
        let lock = fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(Self { pipe, _lock: lock })
    }

    fn answer(mut self, text: &str) -> io::Result<()> {
        self.pipe.write_all(text.as_bytes())
    }
}

/// Writes a line to the keeper's log, which is its standard error.
pub(crate) fn note(text: &str) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // A log that cannot be written has nowhere to say so.
    let _ = writeln!(io::stderr(), "{}.{:03} {text}", now.as_secs(), now.subsec_millis());
}

fn cannot(what: &str, error: &io::Error) -> Failure {
    Failure::new(FailureKind::SessionLost, format!("the session keeper could not {what}"))
        .fact("reason", error.to_string())
}

fn missing_orders() -> io::Error {
    io::Error::other(format!("{ORDERS_VARIABLE} is not set; keepers are started by test processes"))
}
