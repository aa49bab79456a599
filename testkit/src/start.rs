//! From a declaration to a running container: `.start()` on every module.

use crate::check::{Answer, Checked};
use crate::running::Running;
use crate::{Failure, Module, Pending, evidence, session, substitute};

/// Starts modules. It is there for every [`Module`].
pub trait Start: Module {
    /// Starts the container, and returns it when it is ready.
    ///
    /// # Errors
    ///
    /// The failure that kept it from being ready, with the line of this call and the container's log. Nothing of the
    /// container is left then.
    #[track_caller]
    fn start(self) -> Pending<Running<Self>> {
        let test = evidence::current_test();
        Pending::spawn(launch(self, test))
    }

    /// Adds a check of your own, asked again and again after the module's own readiness holds: `name` completes the
    /// sentence "waited for …".
    ///
    /// It is asked on a thread of its own, inside a tokio runtime, within the container's time limit; the exit of the
    /// container ends it.
    ///
    /// ```no_run
    /// use shakedown::{Answer, modules::Postgres, prelude::*};
    ///
    /// # fn main() -> shakedown::Result {
    /// let db = Postgres::new()
    ///     .wait_for("the port to be reachable from the test", async |db| {
    ///         match tokio::net::TcpStream::connect((db.host(), db.port())).await {
    ///             Ok(_) => Answer::Ready,
    ///             Err(error) => Answer::NotYet(error.to_string()),
    ///         }
    ///     })
    ///     .start()
    ///     .blocking()?;
    /// # Ok(()) }
    /// ```
    fn wait_for<F, A>(self, name: impl Into<String>, check: F) -> Checked<Self>
    where
        F: AsyncFn(&Self::Connection) -> A + Send + 'static,
        A: Into<Answer> + 'static,
    {
        Checked::new(self).wait_for(name, check)
    }
}

impl<M: Module> Start for M {}

/// Starts `module` for `test`. From the answer of the keeper on a guard owns the container.
pub(crate) async fn launch<M: Module>(module: M, test: String) -> Result<Running<M>, Failure> {
    let share = session::share().await?;
    let started = share.start(&substitute::apply(module.declare())).await?;
    let connection = module.connect(&started.endpoints);
    Ok(Running::new(share, test, started, connection))
}
