//! One node: its files, its process, and what it answers.

use std::fs::{self, File};
use std::io::{ErrorKind::ConnectionReset, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{CQL_PORT, install, secrets};
use crate::paths;

const SERVES_WITHIN: Duration = Duration::from_secs(300);
const STOPS_WITHIN: Duration = Duration::from_secs(30);
const JOINS_TRIED: usize = 3;
/// How long a node may take to say which versions of CQL it speaks.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// The opcode of an answer that lists the options.
const SUPPORTED: u8 = 6;

pub struct Node {
    pub number: u8,
    pub address: Ipv4Addr,
    directory: PathBuf,
    is_secure: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Dead,
    /// Frozen by `pause`.
    Paused,
    /// Runs, and does not answer: it starts, or is busy.
    Silent,
    Serving,
}

impl Node {
    pub fn new(number: u8, address: Ipv4Addr, directory: PathBuf, is_secure: bool) -> Self {
        Self { number, address, directory, is_secure }
    }

    /// Writes the node's configuration.
    pub fn configure(&self, cluster: &str, seed: Ipv4Addr, commitlog_sync: &str, is_brief: bool) -> Result<()> {
        let authenticator = if self.is_secure { "PasswordAuthenticator" } else { "AllowAllAuthenticator" };
        let template = paths::root().join("deploy/cassandra/cassandra.yaml");
        let text = fs::read_to_string(&template).with_context(|| format!("cannot read {}", template.display()))?;
        let text = text
            .replace("{cluster}", cluster)
            .replace("{address}", &self.address.to_string())
            .replace("{seed}", &seed.to_string())
            .replace("{directory}", &self.directory.display().to_string())
            .replace("{commitlog_sync}", commitlog_sync)
            .replace("{authenticator}", authenticator)
            .replace("{encrypted}", if self.is_secure { "true" } else { "false" })
            .replace("{keystore}", &secrets::keystore(&self.directory).display().to_string());
        fs::create_dir_all(self.directory.join("tmp"))?;
        fs::write(self.yaml(), text)?;
        let mut arguments = fs::read_to_string(paths::root().join("deploy/cassandra/jvm.options"))?;
        if is_brief {
            // The optimizing compiler would take more than half of two cores for the first minutes of three nodes.
            arguments.push_str("-XX:TieredStopAtLevel=1\n");
        }
        fs::write(self.java_arguments(), arguments)?;
        Ok(())
    }

    /// Starts the process if there is none. It outlives this program.
    pub fn start(&self, library: &Path) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(self.log())?;
        let deploy = paths::root().join("deploy/cassandra");
        let directory = self.directory.display();
        let child = Command::new(install::java()?)
            .arg(format!("@{}", self.java_arguments().display()))
            .arg(format!("-Dcassandra.config=file://{}", self.yaml().display()))
            .arg(format!("-Dcassandra.storagedir={directory}"))
            .arg(format!("-Dcassandra.logdir={directory}"))
            .arg(format!("-Djava.io.tmpdir={directory}/tmp"))
            .arg(format!("-Dlogback.configurationFile={}", deploy.join("logback.xml").display()))
            .arg("-classpath")
            .arg(library.join("*"))
            .arg("org.apache.cassandra.service.CassandraDaemon")
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in the terminal is not meant for it.
            .process_group(0)
            .spawn()
            .context("cannot run Java")?;
        fs::write(self.directory.join("pid"), child.id().to_string())?;
        Ok(())
    }

    /// Starts it if need be, and waits until it serves. On a busy machine a node may give up its neighbours before they had
    /// the time to answer; it is started once more then.
    pub fn ensure_serving(&self) -> Result<()> {
        let library = install::library(&super::cluster::home())?;
        for _ in 0..JOINS_TRIED {
            self.start(&library)?;
            match self.wait_serving() {
                Err(_) if self.state() == State::Dead && self.tail_contains("Unable to gossip with any peers") => {}
                settled => return settled,
            }
        }
        self.wait_serving()
    }

    fn tail_contains(&self, text: &str) -> bool {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(100).collect();
        lines.iter().any(|line| line.contains(text))
    }

    pub fn wait_serving(&self) -> Result<()> {
        let deadline = Instant::now() + SERVES_WITHIN;
        loop {
            match self.state() {
                State::Serving => return Ok(()),
                State::Dead => bail!("node {} ended: see {}\n{}", self.number, self.log().display(), self.tail()),
                State::Paused => bail!("node {} is paused: `cargo xtask cassandra resume {0}`", self.number),
                State::Silent if Instant::now() > deadline => {
                    bail!("node {} does not serve: see {}\n{}", self.number, self.log().display(), self.tail())
                }
                State::Silent => sleep(Duration::from_millis(100)),
            }
        }
    }

    pub fn kill(&self) -> Result<()> {
        self.signal("KILL")?;
        self.wait_gone(STOPS_WITHIN)
    }

    pub fn pause(&self) -> Result<()> {
        self.signal("STOP")
    }

    pub fn resume(&self) -> Result<()> {
        self.signal("CONT")
    }

    pub fn state(&self) -> State {
        let Some(pid) = self.pid() else { return State::Dead };
        match process_state(pid) {
            Some('T') => State::Paused,
            Some(_) if answers(self.address, self.is_secure) && self.has_superuser() => State::Serving,
            _ => State::Silent,
        }
    }

    /// The process id, if that process is this node's.
    pub fn pid(&self) -> Option<u32> {
        let pid: u32 = fs::read_to_string(self.directory.join("pid")).ok()?.trim().parse().ok()?;
        if matches!(process_state(pid)?, 'Z' | 'X') {
            return None;
        }
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mine = format!("file://{}", self.yaml().display());
        let is_mine = String::from_utf8_lossy(&arguments).split('\0').any(|argument| argument.ends_with(&mine));
        // A process that just begins to run a program has none for a moment.
        (is_mine || arguments.is_empty()).then_some(pid)
    }

    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn java_arguments(&self) -> PathBuf {
        self.directory.join("jvm.options")
    }

    fn yaml(&self) -> PathBuf {
        self.directory.join("cassandra.yaml")
    }

    fn signal(&self, name: &str) -> Result<()> {
        let Some(pid) = self.pid() else { bail!("node {} does not run", self.number) };
        let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().context("cannot run kill")?;
        if !status.success() {
            bail!("node {} (process {pid}) could not be sent SIG{name}", self.number);
        }
        Ok(())
    }

    fn wait_gone(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.pid().is_some() {
            if Instant::now() > deadline {
                bail!("node {} has not ended within {} s", self.number, patience.as_secs());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Where a password is wanted, a new cluster has a user a moment after it serves.
    fn has_superuser(&self) -> bool {
        let text = || fs::read_to_string(self.log()).unwrap_or_default();
        !self.is_secure || self.number > 1 || text().contains("Created default superuser")
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let cut = |line: &&str| line.chars().take(200).collect::<String>();
        lines[lines.len().saturating_sub(20)..].iter().map(cut).collect::<Vec<_>>().join("\n")
    }
}

/// The letter for what a process does, from its `/proc/<pid>/stat`: there it follows the name, which is in parentheses.
fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether CQL is served there: asks for its options (opcode 5 of protocol version 4) and expects them (opcode 6). Who wants
/// TLS refuses to be asked in the clear, which is an answer too.
fn answers(address: Ipv4Addr, is_secure: bool) -> bool {
    let ask = || -> std::io::Result<u8> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, CQL_PORT)), ANSWERS_WITHIN)?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        stream.write_all(&[4, 0, 0, 0, 5, 0, 0, 0, 0])?;
        let mut header = [0; 9];
        if is_secure {
            let refused = stream.read(&mut header).map_or_else(|error| error.kind() == ConnectionReset, |_| true);
            return Ok(if refused { SUPPORTED } else { 0 });
        }
        stream.read_exact(&mut header)?;
        Ok(header[4])
    };
    ask().is_ok_and(|opcode| opcode == SUPPORTED)
}
