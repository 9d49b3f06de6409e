//! Builds the server, and runs it for as long as a command needs it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::{cargo, command, run};

/// A new keyspace takes a while on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(240);
/// What a server logs when it serves.
const READY: &str = "perdure is ready";
const STOPS_WITHIN: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build; what tests and the demo use.
    Dev,
    Release,
}

/// Builds the given packages' binaries and returns the directory that they are in.
pub fn build(packages: &[&str], profile: Profile) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--locked", "--bins"]);
    for package in packages {
        build.args(["--package", package]);
    }
    if profile == Profile::Release {
        build.arg("--release");
    }
    run(&mut build)?;
    Ok(paths::target().join(if profile == Profile::Release { "release" } else { "debug" }))
}

/// `cargo xtask dev`: becomes the server, so that signals reach it.
pub fn dev(arguments: &[String]) -> Result<()> {
    let binary = build(&["perdure"], Profile::Dev)?.join("perdure");
    let error = command(&binary).arg("dev").args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", binary.display()))
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Where a server keeps its data.
#[derive(Clone, Debug)]
pub enum Store {
    /// In a directory: `perdure dev`.
    Embedded,
    /// In a keyspace of its own: `perdure server`.
    Cassandra { seeds: String, keyspace: String, replication_factor: u8 },
}

impl Store {
    /// How to run the server; `directory` is for its data.
    pub fn arguments(&self, directory: &Path) -> Vec<OsString> {
        match self {
            Self::Embedded => vec!["dev".into(), "--db-filename".into(), directory.join("data").into()],
            Self::Cassandra { seeds, keyspace, replication_factor } => {
                let replication_factor = replication_factor.to_string();
                let text = ["server", "--cassandra-seeds", seeds, "--keyspace", keyspace, "--namespace", "default"];
                // Its cluster is itself alone; tests run several servers side by side.
                let more = ["--replication-factor", &replication_factor, "--cluster-port", "0"];
                text.iter().chain(&more).map(Into::into).collect()
            }
        }
    }
}

/// A server process that is stopped when this value is dropped.
pub struct Server {
    process: Child,
    pub address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts a server on new data. What it keeps on disk, and its log, goes into `directory`.
    pub fn start(binary: &Path, directory: &Path, store: &Store, arguments: &[String]) -> Result<Self> {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
        let log = directory.join("server.log");
        let output = File::create(&log)?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let process = Command::new(binary)
            .args(store.arguments(directory))
            .args(["--ip", "127.0.0.1", "--port", &address.port().to_string()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        let mut server = Self { process, address, log };
        server.wait_ready()?;
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it serves: it listens before it has its store. For a server that logs at `info`.
    pub fn wait_serving(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while !fs::read_to_string(&self.log)?.contains(READY) {
            if let Some(status) = self.process.try_wait()? {
                bail!("the server did not start: {status}\n{}", self.tail());
            }
            if Instant::now() > deadline {
                bail!("the server did not serve within {} s\n{}", READY_WITHIN.as_secs(), self.tail());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// By its name without SIG: `STOP`, `CONT`.
    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid();
        let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().context("cannot run kill")?;
        if !status.success() {
            bail!("the server (process {pid}) could not be sent SIG{name}\n{}", self.tail());
        }
        Ok(())
    }

    /// Stops the server; an error if it had already ended by itself, or panicked on the way.
    pub fn stop(mut self) -> Result<()> {
        if let Some(status) = self.process.try_wait()? {
            bail!("the server ended by itself: {status}\n{}", self.tail());
        }
        self.terminate();
        let panics = fs::read_to_string(&self.log)?.lines().filter(|line| line.contains("panicked at")).count();
        if panics > 0 {
            bail!("the server panicked {panics} times: see {}", self.log.display());
        }
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.process.try_wait()? {
                bail!("the server did not start: {status}\n{}", self.tail());
            }
            if Instant::now() > deadline {
                bail!("the server did not listen within {} s\n{}", READY_WITHIN.as_secs(), self.tail());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// SIGTERM, then SIGKILL for one that does not end.
    fn terminate(&mut self) {
        let asked =
            Command::new("kill").arg(self.process.id().to_string()).status().is_ok_and(|status| status.success());
        let deadline = Instant::now() + STOPS_WITHIN;
        while asked && Instant::now() < deadline {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        // Both fail only for a process that is gone.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            self.terminate();
        }
    }
}
