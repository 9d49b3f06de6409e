//! Every command of a developer and of CI: `cargo xtask …`.
//!
//! The commands compose other programs (cargo, python3, go) and keep all that they make under `target/`. Apart from `fix`,
//! none of them writes to the source tree.

mod cassandra;
mod chaos;
mod check;
mod cluster;
mod compare;
mod demo;
mod go_tool;
mod load;
mod paths;
mod peer;
mod process;
mod search;
mod server;
mod store;
mod test;
mod tidy;
mod venv;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Perdure's developer commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch an order survive the kill of its worker and of its server
    Demo(demo::Options),
    /// Build and run `perdure dev`; arguments are passed on
    Dev {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Formatting, lints, tidy, licences: writes nothing
    Check,
    /// Format, and apply what clippy can fix by itself
    Fix,
    /// The repository's own rules: crate edges, file lengths, links
    Tidy {
        /// Bring the generated parts of documents up to date first
        #[arg(long)]
        fix: bool,
    },
    /// Unit, property and end-to-end tests
    Test(test::Options),
    /// Measure speed and cost: a release server on a fresh data directory under `perdure-load`
    Load(load::Options),
    /// Our server and the real Temporal server under the same load, on the same Cassandra
    Compare(compare::Options),
    /// A real Cassandra on this machine
    Cassandra(cassandra::Options),
    /// Kill and freeze real processes under load, and check that nothing acknowledged was lost
    Chaos(chaos::Options),
    /// Run several servers on this machine, over a Cassandra
    Cluster(cluster::Options),
    /// Every model of the commit protocol, with the large bounds too
    Model(search::ModelOptions),
    /// Seeds of the simulation
    Sim(search::SimOptions),
    /// What CI runs: check, then test
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Dev { arguments } => server::dev(&arguments),
        Command::Check => check::check(),
        Command::Fix => check::fix(),
        Command::Tidy { fix } => if fix { tidy::fix() } else { Ok(()) }.and_then(|()| tidy::run()),
        Command::Test(options) => test::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Compare(options) => compare::run(&options),
        Command::Cassandra(options) => cassandra::run(&options),
        Command::Chaos(options) => chaos::run(&options),
        Command::Cluster(options) => cluster::run(&options),
        Command::Model(options) => search::model(&options),
        Command::Sim(options) => search::sim(&options),
        Command::Ci => check::check().and_then(|()| test::run(&test::Options::all())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
