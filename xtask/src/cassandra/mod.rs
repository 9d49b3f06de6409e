//! `cargo xtask cassandra`: a real Apache Cassandra of one or three nodes on this machine, from Maven Central.
//!
//! Everything lies in `target/cassandra`: the program in `lib`, and each cluster in a directory of its own name. What is
//! running is read from process ids and from the nodes themselves, so that no record of it can be wrong.

mod cluster;
mod install;
mod node;
mod secrets;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

pub use cluster::Cluster;

/// The port of every node; the addresses differ.
pub const CQL_PORT: u16 = 9042;

#[derive(Args)]
pub struct Options {
    /// Which cluster: several can be up side by side
    #[arg(long, global = true, default_value = "main")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the nodes that do not run, wait until all serve, and print their addresses
    Up(UpOptions),
    /// Stop all nodes, and delete their data
    Down,
    /// Start node N again, and wait until it serves
    Start { node: u8 },
    /// End node N at once (SIGKILL); its data stays
    Kill { node: u8 },
    /// Freeze node N (SIGSTOP)
    Pause { node: u8 },
    /// Let node N go on (SIGCONT)
    Resume { node: u8 },
    /// Say what each node does
    Status,
}

#[derive(Args)]
pub struct UpOptions {
    /// Size of a cluster that is made: 1 or 3
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub nodes: Option<u8>,
    /// When a write counts as durable in a cluster that is made
    #[arg(long, value_enum, default_value_t)]
    pub commitlog_sync: CommitlogSync,
    /// Make a cluster that wants TLS and a password: user `cassandra`, password `cassandra`; the certificate is in `ca.pem` of
    /// its directory
    #[arg(long)]
    pub secure: bool,
    /// Make a cluster that lives for minutes: its code is compiled once and simply, so that the processors are free sooner;
    /// not for measurements of Cassandra itself
    #[arg(long)]
    pub brief: bool,
}

/// When Cassandra acknowledges a write.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum CommitlogSync {
    /// When the disk has it
    #[default]
    Batch,
    /// When the disk has it, which is seen to every few milliseconds
    Group,
    /// Up to ten seconds before the disk has it: a power cut loses acknowledged writes
    Periodic,
}

pub fn run(options: &Options) -> Result<()> {
    let cluster = Cluster::named(&options.name)?;
    match &options.command {
        Command::Up(up) => {
            cluster.up(up)?;
            println!("CASSANDRA_SEEDS={}", cluster.seeds()?);
        }
        Command::Down => cluster.down()?,
        Command::Start { node } => cluster.node(*node)?.ensure_serving()?,
        Command::Kill { node } => cluster.node(*node)?.kill()?,
        Command::Pause { node } => cluster.node(*node)?.pause()?,
        Command::Resume { node } => cluster.node(*node)?.resume()?,
        Command::Status => cluster.print_status()?,
    }
    Ok(())
}
