//! `cargo xtask load`: the load program against a release build of this server, on either store.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
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
    /// Count the statements that a workflow costs Cassandra, by kind
    #[arg(long, conflicts_with = "recovery")]
    statements: bool,
    /// Compare the commit path with one lightweight transaction an update, on the same Cassandra
    #[arg(long, conflicts_with_all = ["recovery", "statements"])]
    commit_path: bool,
    /// Arguments for the server, in one string
    #[arg(long, default_value = "--log-level warn", allow_hyphen_values = true)]
    server_args: String,
    /// Arguments for `perdure-load run`, e.g. `--workload one-activity --concurrency 1,10 --seconds 20`, or for
    /// `perdure-load recovery`, `statements`, `commit-path`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let binaries = build(&["perdure", "perdure-loadtests"], Profile::Release)?;
    let bench = CassandraBench::up(&[options.store], options.nodes, "load", false)?;
    let store = bench.store(options.store, "load")?;
    let outcome = match options {
        Options { recovery: true, .. } => recovery(options, &binaries, &store),
        Options { statements: true, .. } => statements(options, &binaries, &store),
        Options { commit_path: true, .. } => commit_path(options, &binaries, &bench),
        _ => speed(options, &binaries, &store),
    };
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

fn statements(options: &Options, binaries: &Path, store: &Store) -> Result<()> {
    let metrics = free_port()?.to_string();
    let mut server_arguments: Vec<String> = options.server_args.split_whitespace().map(str::to_owned).collect();
    server_arguments.extend(["--metrics-port".to_owned(), metrics.clone()]);
    let directory = paths::target().join("load");
    let server = Server::start(&binaries.join("perdure"), &directory, store, &server_arguments)?;
    let address = server.address.to_string();
    let mut load = command(binaries.join("perdure-load"));
    load.args(["statements", "--address", &address, "--metrics", &format!("127.0.0.1:{metrics}")]);
    process::run(load.args(&options.arguments))?;
    server.stop()
}

fn commit_path(options: &Options, binaries: &Path, bench: &CassandraBench) -> Result<()> {
    let (seeds, replicas) = bench.for_tests()?.context("--commit-path needs --store cassandra")?;
    let mut load = command(binaries.join("perdure-load"));
    load.args(["commit-path", "--cassandra-seeds", &seeds, "--replication-factor", &replicas.to_string()]);
    process::run(load.args(&options.arguments))
}

/// The tables are written so late that the whole tail is in the log when the server is killed.
fn recovery(options: &Options, binaries: &Path, store: &Store) -> Result<()> {
    let directory = paths::target().join("load");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    let port = free_port()?.to_string();
    let mut arguments = store.arguments(&directory);
    if let Store::Cassandra { .. } = store {
        // As a node that is restarted: the same name.
        arguments.extend(["--cluster-name".into(), "recovered".into()]);
    }
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
