//! The configuration of `perdure server`: flags, before the environment, before a TOML file, before defaults.
//!
//! [`options`] is the table of all settings, [`source`] gathers them. What comes out is plain structs, of which each crate
//! declares its own.

mod options;
mod source;

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use perdure_persistence::cassandra::CassandraConfig;
use perdure_shard::ShardConfig;
use perdure_types::Limits;
use serde::Deserialize;
use toml::{Table, Value};

pub use source::Flags;

use crate::{
    cli::{LogFormat, LogLevel},
    cluster_tls::ClusterTls,
    traces::TracesConfig,
};
use options::{Kind, SETTINGS};
use source::{DYNAMIC, Gathered, Origin};

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    pub ip: IpAddr,
    pub port: u16,
    pub http_port: Option<u16>,
    pub metrics_port: u16,
    pub namespace: Vec<String>,
    pub log_level: LogLevel,
    pub log_format: LogFormat,
    pub console: ConsoleConfig,
    pub traces: TracesConfig,
    pub cluster: ClusterConfig,
    pub cassandra: CassandraConfig,
    pub shards: ShardSettings,
    #[serde(skip)]
    pub limits: Limits,
}

/// What can be said about how shards work.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardSettings {
    pub cache_bytes: usize,
    pub flush_interval_ms: u64,
    pub flush_log_bytes: u64,
}

impl ServerConfig {
    /// How this node's shards are to work.
    pub fn shard_config(&self) -> ShardConfig {
        let ShardSettings { cache_bytes, flush_interval_ms, flush_log_bytes } = self.shards;
        let flush_interval = Duration::from_millis(flush_interval_ms);
        let limits = self.limits.clone();
        ShardConfig { limits, cache_bytes, flush_interval, flush_log_bytes, ..ShardConfig::default() }
    }
}

/// Where the console is served.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    pub port: Option<u16>,
    pub ip: IpAddr,
}

impl ConsoleConfig {
    /// Nowhere, unless a port is given: who runs a cluster decides which ports there are.
    pub fn address(&self) -> Option<SocketAddr> {
        self.port.map(|port| SocketAddr::new(self.ip, port))
    }
}

/// How other nodes reach this one.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    pub port: u16,
    pub ip: Option<IpAddr>,
    pub advertise: Option<IpAddr>,
    pub name: Option<String>,
    pub tls: Option<ClusterTls>,
}

/// What is wrong with a configuration. Each message names the setting as it was given.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    #[error("cannot read {file}: {reason}")]
    File { file: String, reason: String },
    #[error("{0}")]
    Syntax(String),
    #[error("unknown setting {name}; the nearest known one is {nearest}")]
    Unknown { name: String, nearest: String },
    #[error("{name} takes {expected}, not {found}")]
    BadValue { name: String, expected: String, found: String },
    #[error("{name} is not supported: {instead}")]
    Unsupported { name: String, instead: String },
    #[error(transparent)]
    Knob(#[from] perdure_types::ConfigError),
    #[error("{0}")]
    Refused(String),
    #[error("{file}: {error}")]
    InFile { file: String, error: Box<ConfigError> },
}

impl ConfigError {
    fn in_file(self, path: &Path) -> Self {
        Self::InFile { file: path.display().to_string(), error: Box::new(self) }
    }
}

/// A configuration that can be used, and where it came from.
#[derive(Debug)]
pub struct Loaded {
    pub config: ServerConfig,
    gathered: Gathered,
}

impl Loaded {
    /// From the command line and this process's environment.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let text = |text: std::ffi::OsString| text.into_string().ok();
        let env = std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect();
        Self::from(flags, &env)
    }

    fn from(flags: &Flags, env: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let gathered = Gathered::gather(flags, env)?;
        let mut limits = Limits::default();
        for pair in &gathered.dynamic {
            limits.set(pair)?;
        }
        let mut config = ServerConfig::deserialize(Value::Table(table(&gathered)))
            .map_err(|error| ConfigError::Refused(error.to_string()))?;
        config.limits = limits;
        config.cassandra.check().map_err(|error| ConfigError::Refused(error.to_string()))?;
        Ok(Self { config, gathered })
    }

    /// The effective configuration as a TOML file, with the origin of what is not a default, and without secrets.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for setting in SETTINGS {
            let Some((value, origin)) = self.gathered.values.get(setting.key) else { continue };
            if setting.section() != section {
                section = setting.section();
                let _ = writeln!(text, "\n[{section}]");
            }
            let value = if setting.kind == Kind::Secret { "\"********\"".to_owned() } else { value.to_string() };
            let line = format!("{} = {value}", setting.name());
            let _ = match origin {
                Origin::Default => writeln!(text, "{line}"),
                origin => writeln!(text, "{line:<40} # {origin}"),
            };
        }
        if !self.gathered.dynamic.is_empty() {
            let _ = writeln!(text, "\n[{DYNAMIC}]");
            // Of two with one key, the later counts.
            let knobs: BTreeMap<&str, &str> =
                self.gathered.dynamic.iter().filter_map(|pair| pair.split_once('=')).collect();
            for (key, value) in knobs {
                let _ = writeln!(text, "{} = {}", Value::from(key.trim()), Value::from(value.trim()));
            }
        }
        text
    }
}

/// All settings, one a line, with tabs between: key, name in the environment, flag, default, meaning.
pub fn list() -> String {
    let mut text = String::new();
    for setting in SETTINGS {
        let flag = setting.flag.map_or_else(String::new, |flag| format!("--{flag}"));
        let default = setting.default.unwrap_or_default();
        let _ = writeln!(text, "{}\t{}\t{flag}\t{default}\t{}", setting.key, setting.env(), setting.help);
    }
    text
}

/// What was gathered, as the sections of a file. Encryption is on if it is asked for, or if anything of it is set.
fn table(gathered: &Gathered) -> Table {
    let mut root = Table::new();
    for setting in SETTINGS {
        let Some((value, _)) = gathered.values.get(setting.key) else { continue };
        let mut table = &mut root;
        for part in setting.section().split('.').filter(|part| !part.is_empty()) {
            let inner = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else { return root };
            table = inner;
        }
        table.insert(setting.name().to_owned(), value.clone());
    }
    if let Some(Value::Table(cassandra)) = root.get_mut("cassandra")
        && let Some(Value::Table(tls)) = cassandra.get_mut("tls")
        && tls.remove("enabled") == Some(Value::Boolean(false))
    {
        cassandra.remove("tls");
    }
    root
}

#[cfg(test)]
mod tests;
