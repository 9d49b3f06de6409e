//! `cargo xtask load`: the load program against a release build of this server, on either store.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::paths;
use crate::process::{self, command};
use crate::server::{Profile, Server, Store, build, free_port};
use crate::store::{CassandraBench, StoreKind};

#[derive(Args)]
pub struct Options {
    /// Where the server keeps its data
    #[arg(long, value_enum, default_value_t)]
    store: StoreKind,
    /// Nodes of the Cassandra, each row on all of them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// Kill the server with many open workflows and a long log, and time how long it takes to serve them again
    #[arg(long)]
    recovery: bool,
    /// Arguments for the server, in one string
    #[arg(long, default_value = "--log-level warn", allow_hyphen_values = true)]
    server_args: String,
    /// Arguments for `perdure-load run`, e.g. `--workload one-activity --concurrency 1,10 --seconds 20`, or for
    /// `perdure-load recovery`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let binaries = build(&["perdure", "perdure-loadtests"], Profile::Release)?;
    let bench = CassandraBench::up(&[options.store], options.nodes, "load")?;
    let store = bench.store(options.store, "load")?;
    let outcome =
        if options.recovery { recovery(options, &binaries, &store) } else { speed(options, &binaries, &store) };
    outcome.and(bench.down())
}

fn speed(options: &Options, binaries: &Path, store: &Store) -> Result<()> {
    let directory = paths::target().join("load");
    let server_arguments: Vec<String> = options.server_args.split_whitespace().map(str::to_owned).collect();
    let begun = Instant::now();
    let server = Server::start(&binaries.join("perdure"), &directory, store, &server_arguments)?;
    println!("\nlistening after {} ms", begun.elapsed().as_millis());

    let load = binaries.join("perdure-load");
    let (address, pid) = (server.address.to_string(), server.pid().to_string());
    process::run(command(&load).args(["idle", "--server-pid", &pid]))?;
    process::run(
        command(&load)
            .args(["run", "--address", &address, "--server-pid", &pid, "--fsync-directory"])
            .arg(&directory)
            .arg("--json")
            .arg(directory.join("report.json"))
            .args(&options.arguments),
    )?;
    server.stop()
}

/// The tables are written so late that the whole tail is in the log when the server is killed.
fn recovery(options: &Options, binaries: &Path, store: &Store) -> Result<()> {
    let directory = paths::target().join("load");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    let port = free_port()?.to_string();
    let arguments = store.arguments(&directory);
    let arguments: Vec<String> = arguments.iter().map(|part| format!("'{}'", part.to_string_lossy())).collect();
    let server = format!(
        "env PERDURE_SHARDS_FLUSH_INTERVAL_MS=600000 PERDURE_SHARDS_FLUSH_LOG_BYTES=1000000000 '{}' {} --ip 127.0.0.1 \
         --port {port} {}",
        binaries.join("perdure").display(),
        arguments.join(" "),
        options.server_args
    );
    let mut load = command(binaries.join("perdure-load"));
    load.args(["recovery", "--address", &format!("127.0.0.1:{port}"), "--server-command", &server]);
    process::run(load.args(&options.arguments))
}
