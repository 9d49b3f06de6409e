//! The binary: configuration, wiring, telemetry, shutdown.

// Here the process gets its identity, and new clusters and namespaces theirs.
#![allow(clippy::disallowed_methods)]

mod cli;
mod connection;
mod dev;
mod exit;
mod grpc;
mod namespaces;
mod telemetry;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    cli::{Cli, Command},
    exit::Failure,
};

fn main() -> ExitCode {
    let Cli { command: Command::Dev(args) } = Cli::parse();
    telemetry::init_logs(args.log_level, args.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("perdure").build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dev::run(args)),
        Err(error) => Err(Failure::new(Failure::OTHER, format!("cannot start the runtime: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("perdure: {failure}");
            failure.exit_code()
        }
    }
}
