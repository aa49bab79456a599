//! The command line `shakedown`.
//!
//! With `SHAKEDOWN_ROLE=keeper` this process never gets here: [`shakedown_server::hook`] makes it a keeper before.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
