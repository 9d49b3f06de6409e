//! The certificate of a cluster that wants TLS, made by the `keytool` that comes with Java.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::install;
use crate::process::{command, run};

/// Nothing is secret in a cluster on loopback addresses; Cassandra wants a password for the file.
const PASSWORD: &str = "perdure";
const ALIAS: &str = "cassandra";

/// Where a node, by its directory, finds its key.
pub fn keystore(node: &Path) -> PathBuf {
    node.with_file_name("keystore.p12")
}

pub fn certificate(cluster: &Path) -> PathBuf {
    cluster.join("ca.pem")
}

/// One key for all nodes, whose certificate names their addresses, and is its own authority.
pub fn make(cluster: &Path, addresses: &[Ipv4Addr]) -> Result<()> {
    let names: Vec<String> = addresses.iter().map(|address| format!("ip:{address}")).collect();
    let (key, certificate) = (cluster.join("keystore.p12"), certificate(cluster));
    if key.exists() {
        fs::remove_file(&key)?;
    }
    let keytool = install::java()?.with_file_name("keytool");
    run(command(&keytool)
        .args(["-genkeypair", "-alias", ALIAS, "-keyalg", "EC", "-groupname", "secp256r1", "-validity", "365"])
        .args(["-dname", "CN=perdure test", "-ext", &format!("san={}", names.join(","))])
        .args(["-storetype", "PKCS12", "-storepass", PASSWORD, "-keystore"])
        .arg(&key))?;
    run(command(&keytool)
        .args(["-exportcert", "-rfc", "-alias", ALIAS, "-storepass", PASSWORD, "-keystore"])
        .arg(&key)
        .arg("-file")
        .arg(certificate))
}
