//! The table of all settings of `perdure server`: one line says by which names a setting is given, and what it takes.

use std::net::IpAddr;

use toml::Value;

/// One setting.
pub struct Setting {
    /// Its name in a file: `cassandra.port` is `port` in the section `cassandra`. `PERDURE_CASSANDRA_PORT` in the environment.
    pub key: &'static str,
    /// Its flag; secrets have none, since anybody can list the arguments of a process.
    pub flag: Option<&'static str>,
    /// Other names in the environment: those of Temporal's container images.
    pub aliases: &'static [&'static str],
    pub kind: Kind,
    /// As text; `None` if it is unset.
    pub default: Option<&'static str>,
    pub help: &'static str,
}

/// What a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Text that is not shown.
    Secret,
    Ip,
    Port,
    Count,
    Switch,
    /// In a flag or in the environment: with commas.
    List,
    Choice(&'static [&'static str]),
}

const fn setting(
    key: &'static str,
    flag: Option<&'static str>,
    aliases: &'static [&'static str],
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
) -> Setting {
    Setting { key, flag, aliases, kind, default, help }
}

pub const SETTINGS: &[Setting] = &[
    setting("ip", Some("ip"), &["BIND_ON_IP"], Kind::Ip, Some("127.0.0.1"), "Address to listen on"),
    setting("port", Some("port"), &["FRONTEND_GRPC_PORT"], Kind::Port, Some("7233"), "Port of the gRPC API"),
    setting(
        "http_port",
        Some("http-port"),
        &["FRONTEND_HTTP_PORT"],
        Kind::Port,
        None,
        "Port of the HTTP API; unset: 7243 beside the default gRPC port, else chosen by the system, and logged",
    ),
    setting(
        "metrics_port",
        Some("metrics-port"),
        &[],
        Kind::Port,
        Some("0"),
        "Port for /metrics; 0: chosen by the system, and logged",
    ),
    setting("namespace", Some("namespace"), &[], Kind::List, Some(""), "Namespaces to create at start"),
    setting(
        "log_level",
        Some("log-level"),
        &["LOG_LEVEL"],
        Kind::Choice(&["debug", "info", "warn", "error", "never"]),
        Some("info"),
        "Least severe level to log",
    ),
    setting("log_format", Some("log-format"), &[], Kind::Choice(&["text", "json"]), Some("text"), "Form of log lines"),
    setting(
        "console.port",
        Some("console-port"),
        &[],
        Kind::Port,
        None,
        "Port of the console, usually 8233; unset: it is not served",
    ),
    setting(
        "console.ip",
        Some("console-ip"),
        &[],
        Kind::Ip,
        Some("127.0.0.1"),
        "Address to serve the console on. Who reaches it sees all namespaces and the cluster, and can change nothing",
    ),
    setting(
        "traces.endpoint",
        Some("traces-endpoint"),
        &["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"],
        Kind::Text,
        None,
        "Where to send traces: an OpenTelemetry collector that takes OTLP by gRPC, like http://127.0.0.1:4317; unset: nowhere",
    ),
    setting(
        "traces.one_in",
        Some("traces-one-in"),
        &[],
        Kind::Count,
        Some("1"),
        "Trace one of so many calls; a call that comes with a trace goes by that",
    ),
    setting(
        "cluster.port",
        Some("cluster-port"),
        &[],
        Kind::Port,
        Some("7234"),
        "Port for the other nodes: gossip by UDP, calls by TCP. Never open it to clients",
    ),
    setting(
        "cluster.ip",
        Some("cluster-ip"),
        &[],
        Kind::Ip,
        None,
        "Address to listen on for the other nodes; unset: the one from which Cassandra is reached",
    ),
    setting(
        "cluster.advertise",
        Some("cluster-advertise"),
        &["TEMPORAL_BROADCAST_ADDRESS"],
        Kind::Ip,
        None,
        "Address by which other nodes reach this one, if it is not the one that it listens on",
    ),
    setting(
        "cluster.name",
        Some("cluster-name"),
        &[],
        Kind::Text,
        None,
        "Name of this node, the same after a restart: it gets back the shards that it had; unset: its address",
    ),
    setting(
        "cluster.tls.ca",
        Some("cluster-tls-ca"),
        &[],
        Kind::Text,
        None,
        "PEM file with the authority of all nodes' certificates. With it, nodes call each other by TLS and show certificates",
    ),
    setting(
        "cluster.tls.cert",
        Some("cluster-tls-cert"),
        &[],
        Kind::Text,
        None,
        "PEM file with the certificate of this node; all nodes may have the same",
    ),
    setting(
        "cluster.tls.key",
        Some("cluster-tls-key"),
        &[],
        Kind::Text,
        None,
        "PEM file with the key of that certificate",
    ),
    setting(
        "cluster.tls.name",
        Some("cluster-tls-name"),
        &[],
        Kind::Text,
        None,
        "What the certificates of all nodes name, as a DNS name; unset: perdure",
    ),
    setting(
        "cassandra.seeds",
        Some("cassandra-seeds"),
        &["CASSANDRA_SEEDS"],
        Kind::List,
        Some("127.0.0.1"),
        "Some Cassandra nodes, as HOST or HOST:PORT",
    ),
    setting(
        "cassandra.port",
        Some("cassandra-port"),
        &["CASSANDRA_PORT"],
        Kind::Port,
        Some("9042"),
        "Port of seeds that are given without one",
    ),
    setting(
        "cassandra.keyspace",
        Some("keyspace"),
        &["CASSANDRA_KEYSPACE", "KEYSPACE"],
        Kind::Text,
        Some("perdure"),
        "Keyspace, created if there is none",
    ),
    setting(
        "cassandra.replication_factor",
        Some("replication-factor"),
        &["CASSANDRA_REPLICATION_FACTOR"],
        Kind::Count,
        Some("1"),
        "Replicas of each row, when the keyspace is created; 3 outside of tests",
    ),
    setting(
        "cassandra.local_datacenter",
        Some("cassandra-datacenter"),
        &[],
        Kind::Text,
        None,
        "Keep to this data centre (LOCAL_QUORUM); it has to hold all replicas",
    ),
    setting("cassandra.user", Some("cassandra-user"), &["CASSANDRA_USER"], Kind::Text, None, "User of Cassandra"),
    setting("cassandra.password", None, &["CASSANDRA_PASSWORD"], Kind::Secret, None, "Password of that user"),
    setting(
        "cassandra.tls.enabled",
        Some("cassandra-tls"),
        &["CASSANDRA_ENABLE_TLS", "CASSANDRA_TLS_ENABLED"],
        Kind::Switch,
        None,
        "Encrypt connections to Cassandra; on when another TLS setting is given",
    ),
    setting(
        "cassandra.tls.ca",
        Some("cassandra-tls-ca"),
        &["CASSANDRA_TLS_CA", "CASSANDRA_CA"],
        Kind::Text,
        None,
        "PEM file with the authorities that Cassandra's certificates come from",
    ),
    setting(
        "cassandra.tls.cert",
        Some("cassandra-tls-cert"),
        &["CASSANDRA_TLS_CERT", "CASSANDRA_CERT"],
        Kind::Text,
        None,
        "PEM file with the certificate to show to Cassandra",
    ),
    setting(
        "cassandra.tls.key",
        Some("cassandra-tls-key"),
        &["CASSANDRA_TLS_KEY", "CASSANDRA_CERT_KEY"],
        Kind::Text,
        None,
        "PEM file with the key of that certificate",
    ),
    setting(
        "cassandra.tls.verify_host",
        Some("cassandra-tls-verify-host"),
        &["CASSANDRA_HOST_VERIFICATION", "CASSANDRA_TLS_HOST_VERIFICATION"],
        Kind::Switch,
        None,
        "Whether Cassandra's certificate has to name its address",
    ),
    setting(
        "cassandra.connect_timeout_ms",
        Some("cassandra-connect-timeout-ms"),
        &[],
        Kind::Count,
        Some("60000"),
        "Give up connecting to Cassandra after this long",
    ),
    setting(
        "cassandra.request_timeout_ms",
        Some("cassandra-request-timeout-ms"),
        &[],
        Kind::Count,
        Some("12000"),
        "Take a request to Cassandra as failed after this long",
    ),
    setting(
        "shards.cache_bytes",
        None,
        &[],
        Kind::Count,
        Some("67108864"),
        "Memory for executions, over all shards of the node",
    ),
    setting(
        "shards.flush_interval_ms",
        None,
        &[],
        Kind::Count,
        Some("5000"),
        "Longest time that a change waits in the log before it is written to the tables",
    ),
    setting(
        "shards.flush_log_bytes",
        None,
        &[],
        Kind::Count,
        Some("8388608"),
        "Log that makes the next write to the tables due at once; more of it makes recovery longer, and writes fewer",
    ),
];

/// Names of Temporal's container images that cannot be honoured, and what to do instead.
pub const UNSUPPORTED: &[(&str, &str)] = &[
    ("CASSANDRA_CA_DATA", "name a PEM file in CASSANDRA_CA"),
    ("CASSANDRA_CERT_DATA", "name a PEM file in CASSANDRA_CERT"),
    ("CASSANDRA_CERT_KEY_DATA", "name a PEM file in CASSANDRA_CERT_KEY"),
    ("CASSANDRA_HOST_NAME", "certificates are checked against the address of each node"),
    ("CASSANDRA_ADDRESS_TRANSLATOR", "Cassandra's nodes have to be reachable by their own addresses"),
];

impl Setting {
    pub fn env(&self) -> String {
        format!("PERDURE_{}", self.key.replace('.', "_").to_uppercase())
    }

    pub fn section(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(section, _)| section)
    }

    pub fn name(&self) -> &'static str {
        self.key.rsplit_once('.').map_or(self.key, |(_, name)| name)
    }
}

impl Kind {
    /// A value written as text: in a flag, in the environment, in the table above.
    pub fn parse(self, text: &str) -> Option<Value> {
        let value = match self {
            Self::Port | Self::Count => Value::Integer(text.parse().ok()?),
            Self::Switch => Value::Boolean(match text.to_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => true,
                "false" | "0" | "no" | "off" => false,
                _ => return None,
            }),
            Self::List => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Value::Array(parts.map(Value::from).collect())
            }
            Self::Choice(_) => Value::from(text.to_lowercase()),
            Self::Text | Self::Secret | Self::Ip => Value::from(text),
        };
        self.takes(&value).then_some(value)
    }

    /// Whether a value, of a file for instance, is one of this kind.
    pub fn takes(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Text | Self::Secret, Value::String(_)) | (Self::Switch, Value::Boolean(_)) => true,
            (Self::Ip, Value::String(text)) => text.parse::<IpAddr>().is_ok(),
            (Self::Port, Value::Integer(number)) => (0..=65535).contains(number),
            (Self::Count, Value::Integer(number)) => (1..=i64::from(u32::MAX)).contains(number),
            (Self::List, Value::Array(parts)) => parts.iter().all(Value::is_str),
            (Self::Choice(choices), Value::String(text)) => choices.contains(&text.as_str()),
            _ => false,
        }
    }

    pub fn expected(self) -> String {
        match self {
            Self::Text | Self::Secret => "text".to_owned(),
            Self::Ip => "an IP address".to_owned(),
            Self::Port => "a port number".to_owned(),
            Self::Count => "a positive number".to_owned(),
            Self::Switch => "true or false".to_owned(),
            Self::List => "a list of names".to_owned(),
            Self::Choice(choices) => format!("one of {}", choices.join(", ")),
        }
    }
}
