//! `cargo xtask load`: the load program against a release build of this server.

use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::paths;
use crate::process::{self, command};
use crate::server::{Profile, Server, Store, build};

#[derive(Args)]
pub struct Options {
    /// Arguments for the server, in one string
    #[arg(long, default_value = "--log-level warn", allow_hyphen_values = true)]
    server_args: String,
    /// Arguments for `perdure-load run`, e.g. `--workload one-activity --concurrency 1,10 --seconds 20`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let binaries = build(&["perdure", "perdure-loadtests"], Profile::Release)?;
    let directory = paths::target().join("load");
    let server_arguments: Vec<String> = options.server_args.split_whitespace().map(str::to_owned).collect();
    let begun = Instant::now();
    let server = Server::start(&binaries.join("perdure"), &directory, &Store::Embedded, &server_arguments)?;
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
