//! `cargo xtask compare`: our server and the real Temporal server under the same load, on the same Cassandra, by turns.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::paths;
use crate::peer::Peer;
use crate::process::{self, command};
use crate::server::{Profile, Server, Store, build};
use crate::store::{CassandraBench, StoreKind};

#[derive(Args)]
pub struct Options {
    /// Nodes of the Cassandra, each row on all of them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// Arguments for `perdure-load compare`, e.g. `--workload one-activity --concurrency 1,10 --rounds 5`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let binaries = build(&["perdure", "perdure-loadtests"], Profile::Release)?;
    let bench = CassandraBench::up(&[StoreKind::Cassandra], options.nodes, "compare", false)?;
    let outcome = compare(options, &binaries, &bench);
    outcome.and(bench.down())
}

fn compare(options: &Options, binaries: &Path, bench: &CassandraBench) -> Result<()> {
    let directory = paths::target().join("compare");
    let store = bench.store(StoreKind::Cassandra, "compare")?;
    let Store::Cassandra { seeds, .. } = &store else { bail!("there is no Cassandra") };
    let peer = Peer::start(&directory.join("peer"), seeds)?;
    let arguments = ["--log-level", "warn"].map(str::to_owned);
    let server = Server::start(&binaries.join("perdure"), &directory.join("server"), &store, &arguments)?;

    let store_pids: Vec<String> = bench.pids().context("the Cassandra has ended")?.iter().map(u32::to_string).collect();
    process::run(
        command(binaries.join("perdure-load"))
            .args(["compare", "--address", &server.address.to_string(), "--server-pid", &server.pid().to_string()])
            .args(["--peer-address", &peer.address.to_string(), "--peer-pid", &peer.pid().to_string()])
            .args(["--store-pid", &store_pids.join(",")])
            .arg("--json")
            .arg(directory.join("report.json"))
            .args(&options.arguments),
    )?;
    server.stop()
}
