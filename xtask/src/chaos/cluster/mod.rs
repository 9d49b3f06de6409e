//! `cargo xtask chaos cluster`: what happens to a cluster under load when its nodes are killed, stopped, frozen, cut off and added.
//!
//! Each scene has servers, a keyspace and a load of its own; the load proves that nothing acknowledged was lost or doubled,
//! and measures for how long any workflow stood still. A scene ends with one line that says what came of it. Logs and figures
//! are in `target/chaos/cluster/<scene>`.

mod bed;
mod net;
mod scenes;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::server::{Profile, build};
use crate::store::{CassandraBench, StoreKind};

#[derive(Args)]
pub struct Options {
    /// What to do
    #[arg(value_enum, required = true)]
    scenes: Vec<Scene>,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=8))]
    servers: u8,
    /// Nodes of the Cassandra, each row on all of them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    cassandra_nodes: u8,
    /// Kills, and stops of a server
    #[arg(long, default_value_t = 20)]
    times: u32,
    /// Events of the scene `flap`
    #[arg(long, default_value_t = 100)]
    flaps: u32,
    /// Workflows in flight
    #[arg(long, default_value_t = 300)]
    in_flight: u32,
    /// How long the load runs before the first event, and between two
    #[arg(long, default_value_t = 8)]
    settle_seconds: u64,
    /// Optimized servers
    #[arg(long)]
    release: bool,
    /// Take `perdure` and `perdure-load` from this directory instead of building them
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Fail if any workflow stood still for longer
    #[arg(long)]
    at_most_stall_ms: Option<u64>,
    /// Arguments for each server, in one string
    #[arg(long, default_value = "--log-level info", allow_hyphen_values = true)]
    server_args: String,
    /// Arguments for `perdure-load chaos`, in one string: how fast the load goes. By default its workflows take their time,
    /// since three servers, three nodes of Cassandra and the load may share two cores, and what is measured is a fault, not
    /// a queue
    #[arg(long, default_value = "--step-ms 4000 --news-ms 8000 --steps 12", allow_hyphen_values = true)]
    load_args: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scene {
    /// kill -9 of one server after the other, each started again
    Kill,
    /// SIGTERM of one server after the other, each started again
    Rolling,
    /// One more server
    Add,
    /// SIGSTOP of a server for 30 s, then SIGCONT
    Freeze,
    /// Cut networks: from the peers, from Cassandra, one way
    Cut,
    /// Each shard split in two
    Split,
    /// Servers that join, leave and die in a row
    Flap,
    /// Everything above
    All,
}

impl Scene {
    const EACH: [Self; 7] = [Self::Kill, Self::Rolling, Self::Add, Self::Freeze, Self::Cut, Self::Split, Self::Flap];

    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Rolling => "rolling",
            Self::Add => "add",
            Self::Freeze => "freeze",
            Self::Cut => "cut",
            Self::Split => "split",
            Self::Flap => "flap",
            Self::All => "all",
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    let binaries = match &options.binaries {
        Some(binaries) => binaries.clone(),
        None => {
            let profile = if options.release { Profile::Release } else { Profile::Dev };
            build(&["perdure", "perdure-loadtests"], profile)?
        }
    };
    let bench = CassandraBench::up(&[StoreKind::Cassandra], options.cassandra_nodes, "chaos", true)?;
    let outcome = run_scenes(options, &binaries, &bench);
    outcome.and(bench.down())
}

fn run_scenes(options: &Options, binaries: &std::path::Path, bench: &CassandraBench) -> Result<()> {
    let mut scenes = options.scenes.clone();
    if scenes.contains(&Scene::All) {
        scenes = Scene::EACH.to_vec();
    }
    let seeds = bench.seeds()?;
    let mut lines = Vec::new();
    let mut failed = 0;
    for scene in scenes {
        println!("\nscene: {}", scene.name());
        let line = match scenes::play(scene, options, binaries, &seeds) {
            Ok(line) => format!("{:<8} OK      {line}", scene.name()),
            Err(error) => {
                failed += 1;
                format!("{:<8} FAILED  {error:#}", scene.name())
            }
        };
        println!("\n{line}");
        lines.push(line);
    }
    println!("\n{}", lines.join("\n"));
    if failed > 0 {
        bail!("{failed} scenes failed");
    }
    Ok(())
}
