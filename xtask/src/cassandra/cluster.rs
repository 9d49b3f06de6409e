//! A cluster: its directory, its addresses, and its nodes together.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::node::{Node, State};
use super::{CQL_PORT, UpOptions, install, secrets};
use crate::paths;

const INTERNODE_PORT: u16 = 7000;

/// What `up` decided when it made the cluster, in the file `cluster`: `127.0.<network>.1` is the first of so many nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    network: u8,
    nodes: u8,
    is_secure: bool,
}

pub struct Cluster {
    name: String,
    directory: PathBuf,
}

pub fn home() -> PathBuf {
    paths::target().join("cassandra")
}

impl Cluster {
    pub fn named(name: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || !name.chars().all(plain) || name == "lib" {
            bail!("`{name}` cannot name a cluster: letters, digits, - and _ can");
        }
        Ok(Self { name: name.to_owned(), directory: home().join(name) })
    }

    /// Brings all nodes up, making the cluster if there is none.
    pub fn up(&self, options: &UpOptions) -> Result<()> {
        let _lock = self.lock()?;
        let library = install::library(&home())?;
        let shape = match self.shape()? {
            Some(shape) => shape,
            None => self.make(options)?,
        };
        if options.secure && !shape.is_secure {
            bail!("cluster `{}` is not a secure one: take it down first, or name another with --name", self.name);
        }
        if let Some(wanted) = options.nodes.filter(|wanted| *wanted != shape.nodes) {
            bail!(
                "cluster `{}` has {} nodes, not {wanted}: take it down first, or name another with --name",
                self.name,
                shape.nodes
            );
        }
        let nodes = self.nodes(shape);
        // The others join at the first. They may do so at once: there is nothing to stream.
        for node in &nodes {
            if node.number == 2 {
                nodes[0].wait_serving()?;
            }
            if node.state() == State::Dead {
                println!("starting node {} on {}, log in {}", node.number, node.address, node.log().display());
                node.start(&library)?;
            }
        }
        nodes.iter().try_for_each(Node::ensure_serving)
    }

    pub fn down(&self) -> Result<()> {
        let _lock = self.lock()?;
        let Some(shape) = self.shape()? else {
            println!("cluster `{}` does not exist", self.name);
            return Ok(());
        };
        let nodes = self.nodes(shape);
        // All their data goes: no need to wait for a flush.
        for node in nodes.iter().filter(|node| node.pid().is_some()) {
            node.kill()?;
        }
        fs::remove_dir_all(&self.directory).with_context(|| format!("cannot delete {}", self.directory.display()))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The certificate of a cluster that wants TLS.
    pub fn certificate(&self) -> PathBuf {
        secrets::certificate(&self.directory)
    }

    pub fn exists(&self) -> Result<bool> {
        Ok(self.shape()?.is_some())
    }

    pub fn node(&self, number: u8) -> Result<Node> {
        let shape = self.shape()?.with_context(|| format!("cluster `{}` is not up", self.name))?;
        let mut nodes = self.nodes(shape);
        if number == 0 || number > shape.nodes {
            bail!("there is no node {number}: cluster `{}` has nodes 1 to {}", self.name, shape.nodes);
        }
        Ok(nodes.swap_remove(usize::from(number) - 1))
    }

    /// The addresses of all nodes, as drivers and servers want them.
    pub fn seeds(&self) -> Result<String> {
        let shape = self.shape()?.with_context(|| format!("cluster `{}` is not up", self.name))?;
        let addresses: Vec<String> = self.nodes(shape).iter().map(|node| node.address.to_string()).collect();
        Ok(addresses.join(","))
    }

    pub fn print_status(&self) -> Result<()> {
        let Some(shape) = self.shape()? else {
            println!("cluster `{}` does not exist", self.name);
            return Ok(());
        };
        for node in self.nodes(shape) {
            let state = match node.state() {
                State::Dead => "dead",
                State::Paused => "paused",
                State::Silent => "running, not serving",
                State::Serving => "serving",
            };
            let pid = node.pid().map(|pid| format!(", process {pid}")).unwrap_or_default();
            println!("node {} on {}: {state}{pid}", node.number, node.address);
        }
        println!("CASSANDRA_SEEDS={}", self.seeds()?);
        Ok(())
    }

    fn nodes(&self, shape: Shape) -> Vec<Node> {
        let node = |number| {
            let address = Ipv4Addr::new(127, 0, shape.network, number);
            Node::new(number, address, self.directory.join(format!("node{number}")), shape.is_secure)
        };
        (1..=shape.nodes).map(node).collect()
    }

    fn shape(&self) -> Result<Option<Shape>> {
        let path = self.shape_file();
        match fs::read_to_string(&path) {
            Ok(text) => {
                let shape = Shape::parse(&text).with_context(|| format!("{} reads {text:?}", path.display()))?;
                Ok(Some(shape))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Decides on the addresses and writes the nodes' files. The shape comes last: with it, the cluster exists.
    fn make(&self, options: &UpOptions) -> Result<Shape> {
        let nodes = options.nodes.unwrap_or(1);
        fs::create_dir_all(&self.directory)?;
        let shape = Shape { network: self.free_network(nodes)?, nodes, is_secure: options.secure };
        let all = self.nodes(shape);
        if options.secure {
            let addresses: Vec<Ipv4Addr> = all.iter().map(|node| node.address).collect();
            secrets::make(&self.directory, &addresses)?;
        }
        let sync = options.commitlog_sync.to_possible_value().context("a value without a name")?;
        for node in &all {
            node.configure(&format!("perdure {}", self.name), all[0].address, sync.get_name(), options.brief)?;
        }
        fs::write(self.shape_file(), shape.to_string())?;
        Ok(shape)
    }

    /// A number n of which nobody uses 127.0.n.1 and the next few. Copies of the repository begin their search at different
    /// ones, so that two that look at once hardly ever find the same.
    fn free_network(&self, nodes: u8) -> Result<u8> {
        let mut hasher = DefaultHasher::new();
        self.directory.hash(&mut hasher);
        let first = hasher.finish();
        (0..250)
            .map(|offset| 2 + (first.wrapping_add(offset) % 250) as u8)
            .find(|network| (1..=nodes).all(|number| is_free(Ipv4Addr::new(127, 0, *network, number))))
            .context("no loopback address from 127.0.2.1 to 127.0.251.1 is free")
    }

    fn shape_file(&self) -> PathBuf {
        self.directory.join("cluster")
    }

    /// One command at a time changes a cluster.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all(home())?;
        let path = home().join(format!("{}.lock", self.name));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}

impl Shape {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.lines().map(|line| line.split_once('='));
        let mut field = |name: &str| match fields.next()?? {
            (found, value) if found == name => Some(value),
            _ => None,
        };
        Some(Self {
            network: field("network")?.parse().ok()?,
            nodes: field("nodes")?.parse().ok()?,
            is_secure: field("secure").is_some_and(|value| value == "true"),
        })
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "network={}\nnodes={}\nsecure={}\n", self.network, self.nodes, self.is_secure)
    }
}

fn is_free(address: Ipv4Addr) -> bool {
    [CQL_PORT, INTERNODE_PORT].iter().all(|port| TcpListener::bind((address, *port)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_reads_back() {
        let shape = Shape { network: 37, nodes: 3, is_secure: true };
        assert_eq!(Shape::parse(&shape.to_string()), Some(shape));
        assert_eq!(Shape::parse("network=37\n"), None);
        assert_eq!(Shape::parse("nodes=3\nnetwork=37\n"), None);
    }

    #[test]
    fn an_address_in_use_is_not_free() {
        let address = Ipv4Addr::new(127, 0, 253, 77);
        assert!(is_free(address));
        let _listener = TcpListener::bind((address, CQL_PORT)).unwrap();
        assert!(!is_free(address));
    }

    #[test]
    fn names_stay_in_the_directory() {
        assert!(Cluster::named("main").is_ok());
        for name in ["", "..", "a/b", "lib"] {
            assert!(Cluster::named(name).is_err(), "{name}");
        }
    }
}
