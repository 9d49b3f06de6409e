//! `cargo xtask chaos`: real processes under load while they are killed and frozen. `perdure-load chaos` makes the load,
//! remembers what it was told, and compares that with the histories at the end; what is here does the damage.

mod cluster;
pub mod dice;
mod load;
pub mod store;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Servers of a cluster that are killed, stopped, frozen, cut off and added
    Cluster(cluster::Options),
    /// Two servers that fight for the same shards, and a Cassandra whose nodes die
    Store(store::Options),
}

pub fn run(options: &Options) -> Result<()> {
    match &options.command {
        Command::Cluster(options) => cluster::run(options),
        Command::Store(options) => store::run(options),
    }
}
