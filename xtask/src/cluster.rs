//! `cargo xtask cluster N`: so many servers on this machine, over a Cassandra of `cargo xtask cassandra`.
//!
//! They run until Ctrl-C, which reaches them too. A server that ends is not started again, so that a person may kill one and
//! watch. `cargo xtask chaos` does that by itself, with the same [`Servers`].

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cassandra::{Cluster, CommitlogSync, UpOptions};
use crate::paths;
use crate::server::{Profile, build, free_port};

/// The first one makes the schema, on a machine that may be busy.
const READY_WITHIN: Duration = Duration::from_secs(180);
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// What a server logs when it serves.
const READY: &str = "perdure is ready";

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
        brief: true,
    })?;
    let mut servers = Servers {
        binary,
        seeds: cassandra.seeds()?,
        keyspace: "perdure".to_owned(),
        replication_factor: options.cassandra_nodes,
        directory: paths::target().join("cluster"),
        arguments: options.arguments.clone(),
        all: Vec::new(),
    };
    fs::create_dir_all(&servers.directory)?;
    for number in 1..=options.servers {
        servers.add(Place { port: options.port + u16::from(number) - 1, ..Place::loopback(number)? });
        servers.start(number)?;
    }
    for number in 1..=options.servers {
        servers.wait_ready(number)?;
        let server = servers.get(number)?;
        println!(
            "server {number} on {}, process {}, operators on {}, log in {}",
            server.place.address(),
            server.pid()?,
            server.place.admin_address(),
            server.log.display()
        );
    }
    println!(
        "\nCtrl-C ends all. Cassandra stays up, with the data: `cargo xtask cassandra --name {} down`",
        cassandra.name()
    );
    while servers.all.iter().any(|server| server.process.is_some()) {
        for server in &mut servers.all {
            if let Some(status) = server.ended()? {
                println!("server {} ended: {status}, see {}", server.place.number, server.log.display());
            }
        }
        sleep(Duration::from_millis(200));
    }
    bail!("no server is left")
}

/// Where a server listens.
#[derive(Clone)]
pub struct Place {
    pub number: u8,
    pub ip: Ipv4Addr,
    pub port: u16,
    pub cluster_port: u16,
    /// The network namespace that it runs in.
    pub namespace: Option<String>,
}

impl Place {
    pub fn loopback(number: u8) -> Result<Self> {
        let ip = Ipv4Addr::LOCALHOST;
        Ok(Self { number, ip, port: free_port()?, cluster_port: free_port()?, namespace: None })
    }

    pub fn address(&self) -> String {
        format!("{}:{}", self.ip, self.port)
    }

    pub fn admin_address(&self) -> String {
        format!("{}:{}", self.ip, self.cluster_port)
    }
}

/// Servers of one cluster. Those that still run are killed when this value is dropped.
pub struct Servers {
    pub binary: PathBuf,
    pub seeds: String,
    pub keyspace: String,
    pub replication_factor: u8,
    /// For logs.
    pub directory: PathBuf,
    /// More arguments for each.
    pub arguments: Vec<String>,
    pub all: Vec<Server>,
}

pub struct Server {
    pub place: Place,
    process: Option<Child>,
    pub log: PathBuf,
    /// Where the log of this process begins.
    log_from: u64,
}

impl Servers {
    /// One more, which does not run yet.
    pub fn add(&mut self, place: Place) {
        let log = self.directory.join(format!("server{}.log", place.number));
        // Of an earlier run; there may be none.
        let _ = fs::remove_file(&log);
        self.all.push(Server { place, process: None, log, log_from: 0 });
    }

    pub fn get(&mut self, number: u8) -> Result<&mut Server> {
        let found = self.all.iter_mut().find(|server| server.place.number == number);
        found.with_context(|| format!("there is no server {number}"))
    }

    pub fn start(&mut self, number: u8) -> Result<()> {
        let place = self.get(number)?.place.clone();
        let mut command = match &place.namespace {
            None => Command::new(&self.binary),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.binary);
                command
            }
        };
        let ip = place.ip.to_string();
        command
            .args(["server", "--ip", &ip, "--port", &place.port.to_string()])
            .args(["--cluster-ip", &ip, "--cluster-port", &place.cluster_port.to_string()])
            .args(["--cluster-name", &format!("server{number}")])
            .args(["--cassandra-seeds", &self.seeds, "--keyspace", &self.keyspace, "--namespace", "default"])
            .args(["--replication-factor", &self.replication_factor.to_string()])
            .args(&self.arguments);
        self.get(number)?.spawn(&mut command)
    }

    /// Whether it serves; an error if it has ended.
    pub fn is_ready(&mut self, number: u8) -> Result<bool> {
        let server = self.get(number)?;
        if let Some(status) = server.ended()? {
            bail!("server {number} ended: {status}, see {}", server.log.display());
        }
        Ok(server.log_text()?.contains(READY))
    }

    pub fn wait_ready(&mut self, number: u8) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while !self.is_ready(number)? {
            if Instant::now() > deadline {
                bail!("server {number} does not serve: see {}", self.get(number)?.log.display());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks a server as an operator does.
    pub fn ask(&mut self, number: u8, what: &[&str]) -> Result<serde_json::Value> {
        let place = self.get(number)?.place.clone();
        let output = Command::new(&self.binary)
            .args(["admin", "--address", &place.admin_address(), "--json"])
            .args(what)
            .output()
            .with_context(|| format!("cannot run {}", self.binary.display()))?;
        if !output.status.success() {
            bail!("server {number} does not answer: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("its answer is not JSON")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.all {
            // It may have ended already.
            let _ = server.signal("KILL");
            let _ = server.wait_end();
        }
    }
}

impl Server {
    fn spawn(&mut self, command: &mut Command) -> Result<()> {
        let output = File::options().create(true).append(true).open(&self.log)?;
        self.log_from = output.metadata()?.len();
        let process = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
        self.process = Some(process.with_context(|| format!("cannot run {}", command.get_program().display()))?);
        Ok(())
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().with_context(|| format!("server {} does not run", self.place.number))?.id())
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid()?;
        let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().context("cannot run kill")?;
        if !status.success() {
            bail!("server {} could not be sent SIG{name}", self.place.number);
        }
        Ok(())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let status = process.try_wait()?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }

    pub fn wait_end(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + ENDS_WITHIN;
        self.pid()?;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("server {} does not end: see {}", self.place.number, self.log.display());
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// What the process that runs now, or ran last, has logged.
    pub fn log_text(&self) -> Result<String> {
        let log = fs::read(&self.log)?;
        let from = usize::try_from(self.log_from)?.min(log.len());
        Ok(String::from_utf8_lossy(&log[from..]).into_owned())
    }

    /// Panics of all its processes.
    pub fn panics(&self) -> usize {
        let text = |path: &Path| fs::read(path).map(|log| String::from_utf8_lossy(&log).into_owned());
        text(&self.log).unwrap_or_default().lines().filter(|line| line.contains("panicked at")).count()
    }
}
