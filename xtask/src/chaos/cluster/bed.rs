//! What every scene needs: a cluster, and the load on it that is told what happens.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Options;
use super::net::Net;
use crate::cluster::{Place, Servers};
use crate::paths;

const RING_RIGHT_WITHIN: Duration = Duration::from_secs(60);

pub struct Bed {
    pub servers: Servers,
    /// When the scene cuts networks.
    pub net: Option<Net>,
    load: Option<(Child, ChildStdin)>,
    pub directory: PathBuf,
    binaries: PathBuf,
}

impl Bed {
    /// The servers run, and serve.
    pub fn make(options: &Options, scene: &str, binaries: PathBuf, seeds: String) -> Result<Self> {
        let directory = paths::target().join("chaos/cluster").join(scene);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let servers = Servers {
            binary: binaries.join("perdure"),
            seeds,
            keyspace: format!("chaos_{scene}_{}", std::process::id()),
            replication_factor: options.cassandra_nodes,
            directory: directory.clone(),
            arguments: options.server_args.split_whitespace().map(str::to_owned).collect(),
            all: Vec::new(),
        };
        let net = (scene == "cut").then(Net::make).transpose()?;
        let mut bed = Self { servers, net, load: None, directory, binaries };
        for number in 1..=options.servers {
            bed.add(number)?;
        }
        for number in 1..=options.servers {
            bed.servers.wait_ready(number)?;
        }
        println!("{} servers serve", options.servers);
        Ok(bed)
    }

    /// One more server; it is not waited for.
    pub fn add(&mut self, number: u8) -> Result<()> {
        let place = match &mut self.net {
            None => Place::loopback(number)?,
            Some(net) => {
                let (namespace, ip) = net.add(number)?;
                Place { number, ip, port: 7233, cluster_port: 7234, namespace: Some(namespace) }
            }
        };
        self.servers.add(place);
        self.servers.start(number)
    }

    pub fn numbers(&self) -> Vec<u8> {
        self.servers.all.iter().map(|server| server.place.number).collect()
    }

    /// Steady load; `without` is a server that no client knows.
    pub fn load(&mut self, options: &Options, without: Option<u8>, limits: &[&str]) -> Result<()> {
        let known = self.servers.all.iter().filter(|server| Some(server.place.number) != without);
        let addresses: Vec<String> = known.map(|server| server.place.address()).collect();
        let mut child = Command::new(self.binaries.join("perdure-load"))
            .args(["chaos", "--address", &addresses.join(","), "--in-flight", &options.in_flight.to_string()])
            .arg("--journal")
            .arg(self.directory.join("journal.jsonl"))
            .arg("--json")
            .arg(self.directory.join("report.json"))
            .args(limits)
            .args(options.load_args.split_whitespace())
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot run perdure-load")?;
        let input = child.stdin.take().context("the load has no standard input")?;
        self.load = Some((child, input));
        sleep(Duration::from_secs(options.settle_seconds));
        Ok(())
    }

    /// Lets the load know what happens now.
    pub fn tell(&mut self, what: &str) -> Result<()> {
        match &mut self.load {
            Some((_, input)) => Ok(writeln!(input, "{what}")?),
            None => Ok(()),
        }
    }

    /// Ends the load, and gives its report; an error if it found anything wrong. Servers must not have panicked.
    pub fn verdict(mut self, scene: &str) -> Result<Value> {
        let mut outcome = Ok(Value::Null);
        if let Some((mut child, input)) = self.load.take() {
            drop(input);
            let status = child.wait()?;
            outcome = if status.success() {
                Ok(serde_json::from_reader(File::open(self.directory.join("report.json"))?)?)
            } else {
                Err(anyhow::anyhow!("{scene}: the load found something wrong, see above"))
            };
        }
        let panics: usize = self.servers.all.iter().map(crate::cluster::Server::panics).sum();
        if panics > 0 {
            bail!("{scene}: {panics} panics in the logs of {}", self.directory.display());
        }
        outcome
    }

    /// Waits until all servers that run agree on who serves which shard, and that it is where it belongs. Gives how long.
    pub fn wait_ring(&mut self, within: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let wrong = match self.ring_fault() {
                Ok(None) => return Ok(begun.elapsed()),
                Ok(Some(wrong)) => wrong,
                Err(error) => format!("{error:#}"),
            };
            if begun.elapsed() > within {
                bail!("after {:.1} s the ring is wrong: {wrong}", begun.elapsed().as_secs_f64());
            }
            // Each look starts some processes, on a machine that has other things to do.
            sleep(Duration::from_millis(250));
        }
    }

    pub fn wait_ring_somewhen(&mut self) -> Result<Duration> {
        self.wait_ring(RING_RIGHT_WITHIN)
    }

    fn ring_fault(&mut self) -> Result<Option<String>> {
        let running: Vec<u8> =
            self.servers.all.iter().filter(|server| server.is_running()).map(|server| server.place.number).collect();
        let mut first: Option<Value> = None;
        for number in &running {
            let members = self.servers.ask(*number, &["members"])?;
            let known = members["members"].as_array().map_or(0, Vec::len);
            if known != running.len() {
                return Ok(Some(format!("server {number} knows {known} members of {}", running.len())));
            }
            let shards = self.servers.ask(*number, &["shards"])?;
            let none = Vec::new();
            let listed = shards["shards"].as_array().unwrap_or(&none);
            if listed.is_empty() {
                return Ok(Some(format!("server {number} knows no shards")));
            }
            let misplaced = |shard: &&Value| shard["servedBy"] != shard["wantedBy"] || shard["servedBy"] == "";
            if let Some(shard) = listed.iter().find(misplaced) {
                return Ok(Some(format!("server {number} says: {shard}")));
            }
            match &first {
                Some(first) if *first != shards => {
                    return Ok(Some(format!("servers {} and {number} differ", running[0])));
                }
                Some(_) => {}
                None => first = Some(shards),
            }
        }
        Ok(None)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.load.take() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
