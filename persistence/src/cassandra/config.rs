//! How to reach Cassandra.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

/// Where Cassandra is and what of it is ours.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CassandraConfig {
    /// Some nodes to begin with, `host` or `host:port`; the others are found through them.
    pub seeds: Vec<String>,
    /// Port of seeds that are given without one.
    pub port: u16,
    pub keyspace: String,
    /// Used when the keyspace is created; one that exists keeps its own.
    pub replication_factor: u32,
    /// Work within one data centre, by LOCAL_QUORUM and LOCAL_SERIAL. `None`: over all, by QUORUM and SERIAL.
    pub local_datacenter: Option<String>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub tls: Option<CassandraTls>,
    /// Give up connecting after this long.
    pub connect_timeout_ms: u64,
    /// A request without an answer for this long counts as failed. Longer than Cassandra's own timeouts, which say more.
    pub request_timeout_ms: u64,
}

/// Encryption of the connections to Cassandra.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CassandraTls {
    /// PEM file with the authorities that sign the nodes' certificates.
    pub ca: Option<PathBuf>,
    /// PEM files with our own certificate chain and its key, if the nodes ask for one.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Whether a node's certificate has to name the address that it is reached by. The signature is always checked.
    pub verify_host: bool,
}

impl Default for CassandraTls {
    fn default() -> Self {
        Self { ca: None, cert: None, key: None, verify_host: true }
    }
}

impl Default for CassandraConfig {
    fn default() -> Self {
        Self {
            seeds: vec!["127.0.0.1".into()],
            port: 9042,
            keyspace: "perdure".into(),
            replication_factor: 1,
            local_datacenter: None,
            user: None,
            password: None,
            tls: None,
            connect_timeout_ms: 60_000,
            request_timeout_ms: 12_000,
        }
    }
}

impl CassandraConfig {
    pub(super) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms.max(1))
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms.max(1))
    }

    /// Seeds with their ports.
    pub fn addresses(&self) -> Vec<String> {
        let with_port = |seed: &String| {
            let has_port = match seed.rsplit_once(':') {
                // More than one colon is an IPv6 address, with a port only behind brackets.
                Some((host, _)) => !host.contains(':') || host.ends_with(']'),
                None => false,
            };
            match (has_port, seed.contains(':') && !seed.starts_with('[')) {
                (true, _) => seed.clone(),
                (false, true) => format!("[{seed}]:{}", self.port),
                (false, false) => format!("{seed}:{}", self.port),
            }
        };
        self.seeds.iter().filter(|seed| !seed.is_empty()).map(with_port).collect()
    }

    /// Refuses what cannot work whatever Cassandra says.
    pub fn check(&self) -> Result<(), ConnectError> {
        let refuse = |reason: String| Err(ConnectError::Config(reason));
        if self.addresses().is_empty() {
            return refuse("no seeds: name at least one Cassandra node".into());
        }
        let name = &self.keyspace;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || name.len() > 48 || !name.chars().all(is_plain) || name.starts_with('_') {
            return refuse(format!(
                "keyspace {name:?}: 1 to 48 ASCII letters, digits and underscores, the first not an underscore"
            ));
        }
        if name.to_ascii_lowercase().starts_with("system") {
            return refuse(format!("keyspace {name:?} is one of Cassandra's own"));
        }
        if self.replication_factor == 0 || self.replication_factor > 15 {
            return refuse(format!("replication_factor {}: give 1 to 15 (3 is usual)", self.replication_factor));
        }
        if self.user.is_some() != self.password.is_some() {
            return refuse("user and password go together".into());
        }
        if let Some(tls) = &self.tls
            && tls.cert.is_some() != tls.key.is_some()
        {
            return refuse("tls: cert and key go together".into());
        }
        match &self.local_datacenter {
            Some(name) if name.is_empty() || !name.chars().all(|c| is_plain(c) || "-.: ".contains(c)) => {
                refuse(format!("local_datacenter {name:?} is no name of a data centre"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Why there is no store. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("Cassandra settings: {0}")]
    Config(String),
    #[error("Cassandra TLS: {0}")]
    Tls(String),
    #[error("no Cassandra node can be reached ({seeds}) within {waited_s} s: {reason}")]
    Unreachable { seeds: String, waited_s: u64, reason: String },
    #[error("Cassandra refuses the credentials: {0}")]
    Credentials(String),
    /// Replication, Paxos or table settings under which acknowledged work could be lost.
    #[error("keyspace {keyspace} cannot be used safely: {reason}")]
    Unsafe { keyspace: String, reason: String },
    #[error(
        "keyspace {keyspace} has schema version {found}, this program knows up to {known}: start a newer release, or use \
         another keyspace"
    )]
    NewerSchema { keyspace: String, found: i32, known: i32 },
    #[error("the schema of keyspace {keyspace} cannot be applied: {reason}")]
    Schema { keyspace: String, reason: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_get_the_port() {
        let seeds = ["a", "b:1", "10.0.0.1", "::1", "[::1]:7", ""].map(String::from).to_vec();
        let config = CassandraConfig { seeds, ..CassandraConfig::default() };
        assert_eq!(config.addresses(), ["a:9042", "b:1", "10.0.0.1:9042", "[::1]:9042", "[::1]:7"]);
    }

    #[test]
    fn names_that_no_keyspace_has_are_refused() {
        for keyspace in ["", "a-b", "_a", "system_auth", "a b", "a\"; DROP KEYSPACE b", &"a".repeat(49)] {
            let config = CassandraConfig { keyspace: keyspace.into(), ..CassandraConfig::default() };
            assert!(config.check().is_err(), "{keyspace:?}");
        }
        assert!(CassandraConfig::default().check().is_ok());
    }
}
