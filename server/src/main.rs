//! The binary: configuration, wiring, telemetry, shutdown.

// Here the process gets its identity, and new clusters and namespaces theirs.
#![allow(clippy::disallowed_methods)]

mod admin;
mod admin_port;
mod cassandra;
mod cli;
mod cluster_tls;
mod config;
mod connection;
mod deletion;
mod dev;
mod exit;
mod grpc;
mod health;
mod lists;
mod log_level;
mod namespaces;
mod node;
mod node_service;
mod process;
mod serve;
mod signals;
mod telemetry;
mod traces;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    cli::{Cli, Command, ConfigCommand, LogFormat, LogLevel, SchemaCommand},
    config::{Flags, Loaded},
    exit::Failure,
    traces::{Traces, TracesConfig},
};

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("perdure: {failure}");
            failure.exit_code()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Dev(args) => {
            let (level, format, traces) = (args.log_level, args.log_format, args.traces());
            block_on(watched(level, format, traces, dev::run(args)))
        }
        Command::Server(flags) => {
            let config = load(&flags)?.config;
            let (level, format, traces) = (config.log_level, config.log_format, config.traces.clone());
            block_on(watched(level, format, traces, cassandra::run(config)))
        }
        Command::Admin(args) => block_on(admin::run(args)),
        Command::Health(args) => block_on(health::run(args)),
        Command::LogLevel(args) => block_on(log_level::run(args)),
        Command::Config(ConfigCommand::Check(flags)) => {
            print!("{}", load(&flags)?.describe());
            Ok(())
        }
        Command::Config(ConfigCommand::List) => {
            print!("{}", config::list());
            Ok(())
        }
        Command::Schema(SchemaCommand::Show(flags)) => {
            print!("{}", perdure_persistence::cassandra::render_schema(&load(&flags)?.config.cassandra));
            Ok(())
        }
        Command::Schema(SchemaCommand::Apply(flags)) => {
            let config = load(&flags)?.config;
            telemetry::init_logs(config.log_level, config.log_format, None);
            block_on(cassandra::apply_schema(&config.cassandra))
        }
    }
}

fn load(flags: &Flags) -> Result<Loaded, Failure> {
    Loaded::load(flags).map_err(|error| Failure::new(Failure::USAGE, error.to_string()))
}

/// Serves with logs and traces.
async fn watched(
    level: LogLevel,
    format: LogFormat,
    traces: TracesConfig,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let traces = Traces::start(&traces)?;
    telemetry::init_logs(level, format, traces.as_ref());
    let outcome = work.await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    outcome
}

fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("perdure").build();
    let runtime =
        runtime.map_err(|error| Failure::new(Failure::OTHER, format!("cannot start the runtime: {error}")))?;
    runtime.block_on(work)
}
