//! The command line. `perdure dev` takes the flags of `temporal server start-dev`; those of `perdure server` are in
//! [`crate::config`].

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use perdure_types::Limits;
use perdure_visibility::{CUSTOM_KINDS, Kind, is_reserved, kind_name};
use serde::Deserialize;

use crate::{admin::AdminArgs, config::Flags, health::HealthArgs, log_level::LogLevelArgs, traces::TracesConfig};

/// Durable execution: speaks Temporal's API, so Temporal's SDKs, CLI and UI work with it unmodified.
#[derive(Debug, Parser)]
#[command(name = "perdure", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in one process on the embedded store
    Dev(DevArgs),
    /// Run a server on Cassandra
    ///
    /// Each setting can be given by a flag, in the environment, or in a TOML file, and counts in that order. The names
    /// that Temporal's container images have for Cassandra (CASSANDRA_SEEDS, KEYSPACE and so on) are taken too.
    Server(Flags),
    /// Look at a cluster and its shards, and drain nodes
    Admin(AdminArgs),
    /// Ask a server whether it takes calls: exit code 0 if so
    Health(HealthArgs),
    /// Say or change what a running server logs, from its own machine
    LogLevel(LogLevelArgs),
    /// Look at the configuration of a server
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look at the schema in Cassandra, or bring it up to date
    #[command(subcommand)]
    Schema(SchemaCommand),
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the settings that `perdure server` would run with, and print them without secrets
    Check(Flags),
    /// List all settings, with their names in a file and in the environment, their flags and defaults
    List,
}

#[derive(Debug, Subcommand)]
pub enum SchemaCommand {
    /// Print the schema as CQL
    Show(Flags),
    /// Create or migrate the schema, as a server does when it starts
    Apply(Flags),
}

#[derive(Debug, Args)]
pub struct DevArgs {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub ip: IpAddr,
    /// Port of the gRPC API
    #[arg(long, default_value_t = 7233)]
    pub port: u16,
    /// Port of the HTTP API; when not given, 7243 beside the default gRPC port, else chosen by the system, and logged
    #[arg(long)]
    pub http_port: Option<u16>,
    /// Port for /metrics; chosen by the system when not given, and logged
    #[arg(long, default_value_t = 0)]
    pub metrics_port: u16,
    /// Port for `perdure admin`, on this machine only; when not given, 7234 beside the default gRPC port, else chosen by
    /// the system, and logged
    #[arg(long)]
    pub admin_port: Option<u16>,
    /// Port of the console; when not given, 8233 beside the default gRPC port, else chosen by the system, and logged
    #[arg(long)]
    pub ui_port: Option<u16>,
    /// Address to serve the console on; --ip when not given
    #[arg(long)]
    pub ui_ip: Option<IpAddr>,
    /// Serve no console
    #[arg(long, conflicts_with_all = ["ui_port", "ui_ip"])]
    pub headless: bool,
    /// Namespace to create at start, besides `default`; may be repeated
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Vec<String>,
    /// Search attribute of the namespaces created at start: `NAME=TYPE` with type Text, Keyword, Int, Double, Bool,
    /// Datetime or KeywordList; may be repeated
    #[arg(long, value_name = "NAME=TYPE", value_parser = search_attribute)]
    pub search_attribute: Vec<(String, Kind)>,
    /// Directory that holds all data, created if need be
    #[arg(long, short = 'f', value_name = "PATH", default_value = "perdure-data", conflicts_with = "ephemeral")]
    pub db_filename: PathBuf,
    /// Keep the data in a temporary directory that goes away with the process
    #[arg(long)]
    pub ephemeral: bool,
    /// Least severe level to log
    #[arg(long, default_value = "info")]
    pub log_level: LogLevel,
    /// Form of log lines
    #[arg(long, default_value = "text")]
    pub log_format: LogFormat,
    /// Where to send traces: an OpenTelemetry collector that takes OTLP by gRPC, like http://127.0.0.1:4317
    #[arg(long, value_name = "URL", env = "PERDURE_TRACES_ENDPOINT")]
    pub traces_endpoint: Option<String>,
    /// Set a knob by Temporal's dynamic configuration key; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub dynamic_config_value: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

fn search_attribute(pair: &str) -> Result<(String, Kind), String> {
    let (name, kind) = pair.split_once('=').ok_or("expected NAME=TYPE")?;
    if name.is_empty() || is_reserved(name) {
        return Err(format!("search attribute {name:?} is reserved by the system"));
    }
    let found = CUSTOM_KINDS.into_iter().find(|known| kind_name(*known).eq_ignore_ascii_case(kind));
    let known = || CUSTOM_KINDS.map(kind_name).join(", ");
    found.map(|kind| (name.to_owned(), kind)).ok_or_else(|| format!("unknown type {kind:?}; known are {}", known()))
}

impl DevArgs {
    pub fn traces(&self) -> TracesConfig {
        TracesConfig { endpoint: self.traces_endpoint.clone(), one_in: 1 }
    }

    /// The limits with all knobs of the command line set.
    pub fn limits(&self) -> Result<Limits, perdure_types::ConfigError> {
        let mut limits = Limits::default();
        for pair in &self.dynamic_config_value {
            limits.set(pair)?;
        }
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dev(args: &[&str]) -> DevArgs {
        let all = ["perdure", "dev"].iter().chain(args);
        match Cli::try_parse_from(all).expect("valid arguments").command {
            Command::Dev(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_temporals() {
        let args = dev(&[]);
        assert_eq!((args.ip.to_string().as_str(), args.port), ("127.0.0.1", 7233));
        assert_eq!(args.limits(), Ok(Limits::default()));
    }

    #[test]
    fn knobs_are_set_and_checked() {
        let args = dev(&["--dynamic-config-value", "limit.historyCount.error=100"]);
        assert_eq!(args.limits().expect("known knob").history_count_error, 100);
        assert!(dev(&["--dynamic-config-value", "no.such.key=1"]).limits().is_err());
    }

    #[test]
    fn search_attributes_have_types() {
        let args = dev(&["--search-attribute", "Customer=Keyword", "--search-attribute", "Size=int"]);
        let expected = [("Customer".to_owned(), Kind::Keyword), ("Size".to_owned(), Kind::Int)];
        assert_eq!(args.search_attribute, expected);
        for bad in ["Customer", "Customer=Word", "WorkflowId=Keyword", "=Int"] {
            assert!(Cli::try_parse_from(["perdure", "dev", "--search-attribute", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_console_can_be_elsewhere_or_nowhere() {
        let args = dev(&["--ui-port", "1", "--ui-ip", "127.0.0.2"]);
        assert_eq!((args.ui_port, args.ui_ip.map(|ip| ip.to_string()).as_deref()), (Some(1), Some("127.0.0.2")));
        assert!(dev(&["--headless"]).headless);
        assert!(Cli::try_parse_from(["perdure", "dev", "--headless", "--ui-port", "1"]).is_err());
    }

    #[test]
    fn ephemeral_excludes_a_directory() {
        assert!(Cli::try_parse_from(["perdure", "dev", "--ephemeral", "--db-filename", "x"]).is_err());
    }
}
