//! TLS between nodes, and between operators and nodes: both sides show a certificate of the cluster's own authority.
//!
//! Nodes are reached by addresses that change, so a certificate does not name an address but the role: all nodes may share
//! one, and it has to name [`DEFAULT_NAME`] or what is set in its place. Gossip is not encrypted: it tells names, addresses and which
//! node serves which shard, and decides nothing that the store does not check. Who could forge it could still disturb the
//! cluster, so the port stays closed to strangers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Deserialize;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};

use crate::exit::Failure;

/// What certificates of nodes name.
pub const DEFAULT_NAME: &str = "perdure";

/// Where the certificates are.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterTls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    #[serde(default = "default_name")]
    pub name: String,
}

fn default_name() -> String {
    DEFAULT_NAME.to_owned()
}

/// The same for operators.
#[derive(Debug, Clone, Args)]
pub struct TlsArgs {
    /// PEM file with the authority of the cluster's certificates, if the cluster port has TLS
    #[arg(long, global = true, value_name = "FILE", env = "PERDURE_ADMIN_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// PEM file with the certificate to show
    #[arg(long, global = true, value_name = "FILE", env = "PERDURE_ADMIN_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// PEM file with the key of that certificate
    #[arg(long, global = true, value_name = "FILE", env = "PERDURE_ADMIN_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// What the certificates of nodes name
    #[arg(long, global = true, value_name = "NAME", env = "PERDURE_ADMIN_TLS_NAME", default_value = DEFAULT_NAME)]
    tls_name: String,
}

impl TlsArgs {
    /// None: without TLS.
    pub fn files(self) -> Result<Option<ClusterTls>, Failure> {
        let Self { tls_ca, tls_cert, tls_key, tls_name } = self;
        match (tls_ca, tls_cert, tls_key) {
            (None, None, None) => Ok(None),
            (Some(ca), Some(cert), Some(key)) => Ok(Some(ClusterTls { ca, cert, key, name: tls_name })),
            _ => Err(Failure::new(Failure::USAGE, "--tls-ca, --tls-cert and --tls-key go together")),
        }
    }
}

/// What both sides of a connection need.
pub struct Credentials {
    pub server: ServerTlsConfig,
    pub client: ClientTlsConfig,
}

impl ClusterTls {
    /// Reads the files, and makes sure that they can be used.
    pub fn read(&self) -> Result<Credentials, Failure> {
        let ca = Certificate::from_pem(read(&self.ca)?);
        let identity = Identity::from_pem(read(&self.cert)?, read(&self.key)?);
        let server = ServerTlsConfig::new().identity(identity.clone()).client_ca_root(ca.clone());
        let client = ClientTlsConfig::new().ca_certificate(ca).identity(identity).domain_name(&self.name);
        let unusable = |error: tonic::transport::Error| {
            let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Failure::new(Failure::USAGE, format!("TLS between nodes: {reason}"))
        };
        Server::builder().tls_config(server.clone()).map_err(unusable)?;
        Endpoint::from_static("https://perdure").tls_config(client.clone()).map_err(unusable)?;
        Ok(Credentials { server, client })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path)
        .map_err(|error| Failure::new(Failure::USAGE, format!("TLS between nodes: {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn files_are_tried_before_they_are_needed() {
        let directory = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new([DEFAULT_NAME.to_owned()]).expect("a name").self_signed(&key);
        let write = |name: &str, text: String| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        let cert = write("cert.pem", certificate.expect("signed").pem());
        let key = write("key.pem", key.serialize_pem());
        let garbage = write("garbage.pem", "no key".to_owned());
        let good = ClusterTls { ca: cert.clone(), cert, key, name: default_name() };
        assert!(good.read().is_ok());
        let bad = [
            ClusterTls { key: garbage.clone(), ..good.clone() },
            ClusterTls { cert: garbage, ..good.clone() },
            ClusterTls { ca: directory.path().join("nowhere.pem"), ..good },
        ];
        for tls in bad {
            let failure = tls.read().err().expect("refused");
            assert!(failure.to_string().starts_with("TLS between nodes: "), "{failure}");
        }
    }

    #[test]
    fn operators_give_all_files_or_none() {
        let args = |ca: Option<&str>, cert: Option<&str>, key: Option<&str>| TlsArgs {
            tls_ca: ca.map(Into::into),
            tls_cert: cert.map(Into::into),
            tls_key: key.map(Into::into),
            tls_name: default_name(),
        };
        assert!(args(None, None, None).files().is_ok_and(|files| files.is_none()));
        assert!(args(Some("a"), Some("b"), Some("c")).files().is_ok_and(|files| files.is_some()));
        assert!(args(Some("a"), None, Some("c")).files().is_err());
    }
}
