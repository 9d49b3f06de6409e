//! `cargo xtask chaos store`: what becomes of acknowledged work when owners of shards sleep and wake up as zombies, and when
//! the nodes of Cassandra die one by one, two at once, and all at once.
//!
//! Each part has two servers of its own, in a keyspace of its own, and no server is ever restarted: they have to come
//! through by themselves.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::dice::Dice;
use super::load::Load;
use crate::cassandra::{Cluster, CommitlogSync, UpOptions};
use crate::paths;
use crate::server::{Profile, Server, Store, build};

/// How long a server sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// From the death of a node to its restart, and from when it serves again to the next one's death.
const DEAD: Duration = Duration::from_secs(8);
const BETWEEN: Duration = Duration::from_secs(5);
/// Before the first blow, until workflows are in every stage.
const WARM_UP: Duration = Duration::from_secs(8);

/// Short workflows: many begin and close while the damage is done, and the last ones end soon. None continues as new: an
/// update whose answer was lost is sent again, and the next run does not know its id, as with Temporal.
const DEFAULTS: [(&str, u32); 6] = [
    ("--in-flight", 60),
    ("--workers", 4),
    ("--steps", 12),
    ("--steps-per-run", 12),
    ("--step-ms", 250),
    ("--activity-timeout-seconds", 20),
];

#[derive(Args, Clone)]
pub struct Options {
    /// Some parts only
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Fight, Part::Each, Part::Two, Part::All])]
    only: Vec<Part>,
    /// How long the servers fight
    #[arg(long, default_value_t = 60)]
    fight_seconds: u64,
    /// Nodes of the Cassandra, each row on all of them; with one, it is killed where parts kill several
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// When Cassandra acknowledges a write
    #[arg(long, value_enum, default_value_t)]
    commitlog_sync: CommitlogSync,
    /// Repeats the same damage
    #[arg(long)]
    seed: Option<u64>,
    /// Optimized servers and load
    #[arg(long)]
    release: bool,
    /// Use these binaries, and build nothing
    #[arg(long, requires = "load_binary")]
    server_binary: Option<PathBuf>,
    #[arg(long, requires = "server_binary")]
    load_binary: Option<PathBuf>,
    /// More arguments for `perdure-load chaos`
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Two servers fight for the same shards: each sleeps (SIGSTOP) for up to 30 s, and wakes up as an owner of the past
    Fight,
    /// Each node of Cassandra is killed and restarted in turn: no call may fail for good
    Each,
    /// Two of three nodes are killed at once: calls fail until they are back, and then no longer
    Two,
    /// All nodes are killed at once
    All,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Fight => "fight",
            Self::Each => "each",
            Self::Two => "two",
            Self::All => "all",
        }
    }
}

/// What the parts share.
pub struct Bench<'a> {
    pub cassandra: &'a Cluster,
    pub nodes: u8,
    pub server: PathBuf,
    pub load: PathBuf,
    /// How long the servers fight.
    pub fight: Duration,
    /// More for `perdure-load chaos`.
    pub arguments: &'a [String],
    pub dice: Dice,
}

pub fn run(options: &Options) -> Result<()> {
    let seed = options.seed.unwrap_or_else(Dice::any_seed);
    let (server, load) = binaries(options)?;
    let cassandra = Cluster::named(&format!("chaos-store-{}", options.nodes))?;
    let was_up = cassandra.exists()?;
    let up =
        UpOptions { nodes: Some(options.nodes), commitlog_sync: options.commitlog_sync, secure: false, brief: true };
    cassandra.up(&up)?;
    let mut bench = Bench {
        cassandra: &cassandra,
        nodes: options.nodes,
        server,
        load,
        fight: Duration::from_secs(options.fight_seconds),
        arguments: &options.arguments,
        dice: Dice::new(seed),
    };
    println!("seed {seed}");
    let failed: Vec<&str> = options.only.iter().filter(|part| !bench.holds(**part)).map(|part| part.name()).collect();
    if !was_up {
        cassandra.down()?;
    }
    if !failed.is_empty() {
        bail!("failed: {} (--seed {seed})", failed.join(", "));
    }
    Ok(())
}

fn binaries(options: &Options) -> Result<(PathBuf, PathBuf)> {
    if let (Some(server), Some(load)) = (&options.server_binary, &options.load_binary) {
        return Ok((server.clone(), load.clone()));
    }
    let profile = if options.release { Profile::Release } else { Profile::Dev };
    let directory = build(&["perdure", "perdure-loadtests"], profile)?;
    Ok((directory.join("perdure"), directory.join("perdure-load")))
}

impl Bench<'_> {
    /// Whether everything that was acknowledged is there; says what is wrong.
    pub fn holds(&mut self, part: Part) -> bool {
        println!("\n== {}", part.name());
        let outcome = self.run(part);
        if let Err(error) = &outcome {
            eprintln!("error: {error:#}");
        }
        outcome.is_ok()
    }

    fn run(&mut self, part: Part) -> Result<()> {
        // A part that failed may have left nodes dead.
        let numbers: Vec<u8> = (1..=self.nodes).collect();
        self.start(&numbers)?;
        let store = Store::Cassandra {
            seeds: self.cassandra.seeds()?,
            keyspace: format!("chaos_{}_{}", part.name(), std::process::id()),
            replication_factor: self.nodes,
        };
        let home = paths::target().join("chaos/store");
        let mut servers = [
            Server::start(&self.server, &home.join(format!("{}-1", part.name())), &store, &[])?,
            Server::start(&self.server, &home.join(format!("{}-2", part.name())), &store, &[])?,
        ];
        servers.iter_mut().try_for_each(Server::wait_serving)?;
        let mut load = Load::start(&self.load, &self.arguments(part, &servers, &home))?;
        sleep(WARM_UP);
        let outcome = match part {
            Part::Fight => self.fight(&mut load, &servers),
            Part::Each => self.each(&mut load),
            Part::Two => {
                self.kill_together(&mut load, &numbers[numbers.len().saturating_sub(2)..], Duration::from_secs(25))
            }
            Part::All => self.kill_together(&mut load, &numbers, DEAD),
        };
        let outcome = outcome.and_then(|()| load.finish());
        // They say whether they ended by themselves, or panicked.
        servers.into_iter().map(Server::stop).fold(outcome, Result::and)
    }

    fn arguments(&self, part: Part, servers: &[Server], home: &Path) -> Vec<String> {
        let addresses: Vec<String> = servers.iter().map(|server| server.address.to_string()).collect();
        let journal = home.join(format!("{}.journal", part.name()));
        let mut arguments =
            vec![format!("--address={}", addresses.join(",")), format!("--journal={}", journal.display())];
        for (option, value) in DEFAULTS {
            if !self.arguments.iter().any(|given| given.split('=').next() == Some(option)) {
                arguments.push(format!("{option}={value}"));
            }
        }
        if part == Part::Each && self.nodes > 1 {
            arguments.push("--no-failed-call".to_owned());
        }
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }

    /// Now one server sleeps, now the other, now both; each wakes up in the belief that it still owns its shards.
    fn fight(&mut self, load: &mut Load, servers: &[Server]) -> Result<()> {
        let end = Instant::now() + self.fight;
        while Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now()).min(LONGEST_SLEEP);
            let asleep = self.dice.time(Duration::from_secs(1)..left.max(Duration::from_secs(4)));
            let chosen = self.dice.below(5);
            let who: Vec<usize> = if chosen == 4 { vec![0, 1] } else { vec![chosen % 2] };
            for server in &who {
                load.tell(&format!("pause server {}", server + 1))?;
                servers[*server].signal("STOP")?;
            }
            sleep(asleep);
            for server in &who {
                load.tell(&format!("resume server {}", server + 1))?;
                servers[*server].signal("CONT")?;
            }
            // Often not long enough to settle.
            sleep(self.dice.time(Duration::from_millis(200)..Duration::from_secs(5)));
        }
        Ok(())
    }

    fn each(&self, load: &mut Load) -> Result<()> {
        for number in 1..=self.nodes {
            self.kill(load, &[number])?;
            sleep(DEAD);
            self.restart(load, &[number])?;
            sleep(BETWEEN);
        }
        Ok(())
    }

    fn kill_together(&self, load: &mut Load, numbers: &[u8], dead: Duration) -> Result<()> {
        self.kill(load, numbers)?;
        sleep(dead);
        self.restart(load, numbers)?;
        sleep(2 * BETWEEN);
        Ok(())
    }

    fn kill(&self, load: &mut Load, numbers: &[u8]) -> Result<()> {
        load.tell(&format!("kill nodes {numbers:?}"))?;
        numbers.iter().try_for_each(|number| self.cassandra.node(*number)?.kill())
    }

    fn restart(&self, load: &mut Load, numbers: &[u8]) -> Result<()> {
        load.tell(&format!("start nodes {numbers:?}"))?;
        self.start(numbers)?;
        load.tell(&format!("up nodes {numbers:?}"))
    }

    /// All at once: those that hold each other's data may wait for each other.
    fn start(&self, numbers: &[u8]) -> Result<()> {
        let starting: Vec<_> = numbers
            .iter()
            .map(|number| {
                let node = self.cassandra.node(*number)?;
                Ok(std::thread::spawn(move || node.ensure_serving()))
            })
            .collect::<Result<_>>()?;
        for node in starting {
            node.join().ok().context("a thread panicked")??;
        }
        Ok(())
    }
}
