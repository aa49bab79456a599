//! `network`: networks of a session that runs, and the containers on them.

use super::containers::server;
use super::{Done, say};
use clap::Subcommand;
use shakedown_spec::{Attachment, Network};
use std::net::Ipv4Addr;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists the networks of the session and the containers on them.
    Ls,
    /// Connects a container with a network, which is made if it is not there.
    Connect {
        /// A further name of the container on this network.
        #[arg(long)]
        alias: Vec<String>,
        /// The container's address on this network.
        #[arg(long)]
        ip: Option<Ipv4Addr>,
        /// The network's name.
        network: String,
        /// The container's id.
        id: String,
    },
    /// Takes a container from a network.
    Disconnect {
        /// The network's name.
        network: String,
        /// The container's id.
        id: String,
    },
}

pub(super) async fn network(command: Command) -> Done {
    match command {
        Command::Ls => list().await,
        Command::Connect { alias, ip, network, id } => {
            let server = server().await?;
            let there = server.networks().await?.into_iter().map(|state| state.network);
            let mut found = there.filter(|found| found.key == network);
            let network = found.next().unwrap_or_else(|| Network::named(network));
            server.join_network(&id, &Attachment { network, aliases: alias, ip }).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Disconnect { network, id } => {
            server().await?.leave_network(&id, &network).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn list() -> Done {
    let networks = server().await?.networks().await?;
    let width = networks.iter().map(|state| state.network.key.chars().count()).max().unwrap_or(0).max(7);
    let mut text = format!("{:width$}  CONTAINERS\n", "NETWORK");
    for state in networks {
        text.push_str(format!("{:width$}  {}", state.network.key, state.containers.join(", ")).trim_end());
        text.push('\n');
    }
    say(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
