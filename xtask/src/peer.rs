//! The real Temporal server on the Cassandra of our own runner, to compare with.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::cassandra::CQL_PORT;
use crate::paths;
use crate::process::{command, run};
use crate::server::free_port;

/// Its services, each with a port for calls and one for its membership.
const SERVICES: [&str; 4] = ["frontend", "history", "matching", "worker"];

/// One process with all its services. It ends when this value is dropped.
pub struct Peer {
    process: Child,
    pub address: SocketAddr,
}

impl Peer {
    /// Builds it on its first use, makes its tables in a new keyspace, and starts it. `directory` is emptied.
    pub fn start(directory: &Path, seeds: &str) -> Result<Self> {
        let programs = install()?;
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
        let keyspace = format!("peer_{}", std::process::id());
        create_tables(&programs, seeds, &keyspace)?;

        let (config, frontend) = config(directory, seeds, &keyspace)?;
        let file = directory.join("config.yaml");
        fs::write(&file, config)?;
        let log = File::create(directory.join("peer.log"))?;
        let process = Command::new(programs.join("server"))
            .args(["--allow-no-auth", "--config-file"])
            .arg(&file)
            .arg("start")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run the peer")?;
        Ok(Self { process, address: SocketAddr::from(([127, 0, 0, 1], frontend)) })
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only for a process that is gone. Its data goes with the Cassandra.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn install() -> Result<PathBuf> {
    let programs = paths::target().join("peer");
    run(command(paths::root().join("loadtests/peer/install.sh")).arg(&programs))?;
    Ok(programs)
}

fn create_tables(programs: &Path, seeds: &str, keyspace: &str) -> Result<()> {
    let host = seeds.split(',').next().context("no Cassandra node")?;
    let tool = || {
        let mut tool = command(programs.join("cassandra"));
        tool.args(["--endpoint", host, "--port", &CQL_PORT.to_string(), "--timeout", "120", "--keyspace", keyspace]);
        tool
    };
    let replication_factor = seeds.split(',').count().to_string();
    run(tool().args(["create-keyspace", "--keyspace", keyspace, "--replication-factor", &replication_factor]))?;
    run(tool().args(["setup-schema", "--version", "0.0"]))?;
    run(tool().args(["update-schema", "--schema-name", "cassandra/temporal"]))
}

/// Its configuration, and the port that clients use.
fn config(directory: &Path, seeds: &str, keyspace: &str) -> Result<(String, u16)> {
    let template = fs::read_to_string(paths::root().join("loadtests/peer/config.yaml"))?;
    let mut config = template
        .replace("@seeds@", seeds)
        .replace("@keyspace@", keyspace)
        .replace("@directory@", &directory.to_string_lossy());
    let mut frontend = 0;
    for service in SERVICES {
        let port = free_port()?;
        if service == "frontend" {
            frontend = port;
        }
        config = config
            .replace(&format!("@{service}@"), &port.to_string())
            .replace(&format!("@{service}_membership@"), &free_port()?.to_string());
    }
    Ok((config, frontend))
}
