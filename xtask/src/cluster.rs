//! `cargo xtask cluster N`: so many servers on this machine, over a Cassandra of `cargo xtask cassandra`.
//!
//! They run until Ctrl-C, which reaches them too. A server that ends is not started again, so that a person may kill one and
//! watch.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cassandra::{Cluster, CommitlogSync, UpOptions};
use crate::paths;
use crate::server::{Profile, build, free_port};

#[derive(Args)]
pub struct Options {
    /// Servers
    #[arg(value_parser = clap::value_parser!(u8).range(1..=9))]
    servers: u8,
    /// Nodes of the Cassandra, each row on all of them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    cassandra_nodes: u8,
    /// Port of the first server; the others count on
    #[arg(long, default_value_t = 7233)]
    port: u16,
    /// Optimized servers
    #[arg(long)]
    release: bool,
    /// More arguments for each server
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let profile = if options.release { Profile::Release } else { Profile::Dev };
    let binary = build(&["perdure"], profile)?.join("perdure");
    let cassandra = Cluster::named(&format!("cluster-{}", options.cassandra_nodes))?;
    cassandra.up(&UpOptions {
        nodes: Some(options.cassandra_nodes),
        commitlog_sync: CommitlogSync::default(),
        secure: false,
    })?;
    let directory = paths::target().join("cluster");
    fs::create_dir_all(&directory)?;

    let mut nodes = Vec::new();
    for number in 1..=options.servers {
        nodes.push(Node::start(number, options, &binary, &cassandra.seeds()?, &directory)?);
    }
    println!(
        "\nCtrl-C ends all. Cassandra stays up, with the data: `cargo xtask cassandra --name {} down`",
        cassandra.name()
    );
    while !nodes.is_empty() {
        let mut running = Vec::new();
        for mut node in nodes {
            match node.process.try_wait()? {
                Some(status) => println!("server {} ended: {status}, see {}", node.number, node.log.display()),
                None => running.push(node),
            }
        }
        nodes = running;
        sleep(Duration::from_millis(200));
    }
    bail!("no server is left")
}

struct Node {
    number: u8,
    process: Child,
    log: PathBuf,
}

impl Node {
    fn start(number: u8, options: &Options, binary: &Path, seeds: &str, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("server{number}.log"));
        let output = File::create(&log)?;
        let port = options.port + u16::from(number) - 1;
        let process = Command::new(binary)
            .args(["server", "--ip", "127.0.0.1", "--port", &port.to_string()])
            .args(["--cluster-port", &free_port()?.to_string(), "--cluster-name", &format!("server{number}")])
            .args(["--cassandra-seeds", seeds, "--keyspace", "perdure", "--namespace", "default"])
            .args(["--replication-factor", &options.cassandra_nodes.to_string()])
            .args(&options.arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        println!("server {number} on 127.0.0.1:{port}, process {}, log in {}", process.id(), log.display());
        Ok(Self { number, process, log })
    }
}
