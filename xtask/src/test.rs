//! `cargo xtask test`: unit and property tests, then the official SDKs against the built server.
//!
//! A failing suite does not stop the others. The last line counts the tests of all of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::cassandra::{Cluster, CommitlogSync, UpOptions};
use crate::chaos::dice::Dice;
use crate::chaos::store as chaos_store;
use crate::go_tool::{TEMPORAL_CLI, TEMPORAL_UI};
use crate::process::{self, cargo, command, version_of};
use crate::server::{Profile, Server, build};
use crate::store::{CassandraBench, StoreKind};
use crate::{paths, venv};

/// Where tests find the Cassandra that is up, and how many replicas their keyspaces are to have.
const SEEDS: &str = "PERDURE_TEST_CASSANDRA_SEEDS";
const REPLICATION_FACTOR: &str = "PERDURE_TEST_REPLICATION_FACTOR";
/// One that wants TLS and a password, and its certificate.
const SECURE_SEEDS: &str = "PERDURE_TEST_SECURE_CASSANDRA_SEEDS";
const SECURE_CA: &str = "PERDURE_TEST_SECURE_CASSANDRA_CA";

#[derive(Args)]
pub struct Options {
    /// Run one suite only
    #[arg(long, value_enum)]
    only: Option<Suite>,
    /// What the end-to-end tests run on; with `cassandra` the stores' conformance tests do, too. Both, unless one suite is
    /// chosen: then the embedded one
    #[arg(long, value_enum, value_delimiter = ',')]
    store: Vec<StoreKind>,
    /// Nodes of the Cassandra, each row on all of them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// Run the end-to-end tests against an optimized server
    #[arg(long)]
    release: bool,
    /// More arguments for the one suite's runner, e.g. `--only python -- -k update`
    #[arg(last = true, requires = "only")]
    arguments: Vec<String>,
}

impl Options {
    /// What CI runs.
    pub fn all() -> Self {
        Self { only: None, store: Vec::new(), nodes: 1, release: false, arguments: Vec::new() }
    }

    fn stores(&self) -> Vec<StoreKind> {
        match (self.store.is_empty(), self.only) {
            (false, _) => self.store.clone(),
            (true, None) => vec![StoreKind::Embedded, StoreKind::Cassandra],
            (true, Some(_)) => vec![StoreKind::Embedded],
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Unit and property tests of all crates
    Unit,
    /// The official Python SDK, with kills of worker and server
    Python,
    /// The official Go SDK
    Go,
    /// `cargo xtask chaos store`, short: on Cassandra only
    Chaos,
}

/// One line of the summary.
#[derive(Clone, Copy)]
enum Part {
    Unit,
    Python(StoreKind),
    Go(StoreKind),
    Chaos,
}

impl Part {
    fn all(options: &Options) -> Vec<Self> {
        let mut parts = vec![(Suite::Unit, Self::Unit)];
        for store in options.stores() {
            parts.push((Suite::Python, Self::Python(store)));
            parts.push((Suite::Go, Self::Go(store)));
            if store == StoreKind::Cassandra {
                parts.push((Suite::Chaos, Self::Chaos));
            }
        }
        parts.retain(|(suite, _)| options.only.is_none_or(|only| only == *suite));
        parts.into_iter().map(|(_, part)| part).collect()
    }

    fn name(self) -> String {
        let on = |store| if store == StoreKind::Cassandra { ", on Cassandra" } else { "" };
        match self {
            Self::Unit => "unit and property tests".to_owned(),
            Self::Python(store) => format!("end to end, Python SDK{}", on(store)),
            Self::Go(store) => format!("end to end, Go SDK{}", on(store)),
            Self::Chaos => "chaos of servers and Cassandra".to_owned(),
        }
    }

    fn run(self, bench: &mut Bench, tally: &mut Tally) -> Result<()> {
        match self {
            Self::Unit => unit(bench, tally),
            Self::Python(store) => python(bench, store, tally),
            Self::Go(store) => go(bench, store, tally),
            Self::Chaos => chaos(bench, tally),
        }
    }
}

/// What the suites share.
struct Bench<'a> {
    options: &'a Options,
    cassandra: CassandraBench,
    /// The server under test, once it is built.
    binary: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    let cassandra = CassandraBench::up(&options.stores(), options.nodes, "test", true)?;
    let mut bench = Bench { options, cassandra, binary: None };
    let outcome = run_parts(&mut bench);
    outcome.and(bench.cassandra.down())
}

fn run_parts(bench: &mut Bench) -> Result<()> {
    let mut total = Tally::default();
    let mut summary = Vec::new();
    let mut failed = Vec::new();
    for part in Part::all(bench.options) {
        let (mut tally, begun) = (Tally::default(), Instant::now());
        let outcome = part.run(bench, &mut tally);
        if let Err(error) = &outcome {
            eprintln!("\nerror: {}: {error:#}", part.name());
            failed.push(part.name());
        }
        summary.extend(tally.closing.iter().map(|line| format!("  {line}")));
        let (seconds, failure) = (begun.elapsed().as_secs(), if outcome.is_err() { " — FAILED" } else { "" });
        summary.push(format!("{}: {tally}, {seconds} s{failure}", part.name()));
        total.add(&tally);
    }
    println!("\n{}\n\n{total}", summary.join("\n"));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    Ok(())
}

fn unit(bench: &mut Bench, tally: &mut Tally) -> Result<()> {
    let test = || {
        let mut tests = cargo();
        tests.args(["test", "--locked"]);
        // With `--workspace`, cargo would not heed a `--package` of the arguments.
        if bench.options.arguments.is_empty() {
            tests.arg("--workspace");
        }
        tests
    };
    if bench.options.arguments.is_empty() {
        process::run(test().arg("--no-run"))?;
        // The tests of the server needed its binary, as did those of `perdure-load`. Another build of it alone would build
        // most dependencies again, for want of the features that only tests ask for.
        if !bench.options.release {
            bench.binary = Some(paths::target().join("debug/perdure"));
        }
    }
    let mut tests = test();
    tests.arg("--no-fail-fast").args(&bench.options.arguments);
    bench.set_cassandra(&mut tests)?;
    let secure = SecureCassandra::up(bench)?;
    if let Some(SecureCassandra { seeds, certificate, .. }) = &secure {
        tests.env(SECURE_SEEDS, seeds).env(SECURE_CA, certificate);
    }
    let outcome = process::run_watched(&mut tests, |line| tally.read_cargo(line));
    outcome.and(secure.map_or(Ok(()), |secure| secure.cluster.down()))
}

/// A cluster that wants TLS and a password, for the tests of just that.
struct SecureCassandra {
    cluster: Cluster,
    seeds: String,
    certificate: PathBuf,
}

impl SecureCassandra {
    fn up(bench: &Bench) -> Result<Option<Self>> {
        if bench.cassandra.for_tests()?.is_none() {
            return Ok(None);
        }
        let cluster = Cluster::named("test-secure")?;
        cluster.up(&UpOptions {
            nodes: Some(1),
            commitlog_sync: CommitlogSync::default(),
            secure: true,
            brief: true,
        })?;
        Ok(Some(Self { seeds: cluster.seeds()?, certificate: cluster.certificate(), cluster }))
    }
}

fn python(bench: &mut Bench, store: StoreKind, tally: &mut Tally) -> Result<()> {
    let suite = paths::root().join("e2e/python");
    let binary = bench.server_binary()?;
    let python = venv::prepare(&paths::target().join("e2e/venv"), &suite.join("requirements.txt"))?;
    let mut tests = command(python);
    tests
        .args(["-m", "pytest", "-p", "no:cacheprovider"])
        .args(&bench.options.arguments)
        .env("PERDURE_BIN", binary)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONUNBUFFERED", "1")
        .env_remove("PERDURE_ADDRESS")
        .env_remove("PERDURE_COMMAND")
        .env_remove(SEEDS)
        .current_dir(&suite);
    prepare_programs(&mut tests, tally)?;
    if store == StoreKind::Cassandra {
        bench.set_cassandra(&mut tests)?;
    }
    process::run_watched(&mut tests, |line| tally.read_pytest(line))
}

/// Official programs that the tests look at the server with; tests skip those that are not there.
fn prepare_programs(tests: &mut Command, tally: &mut Tally) -> Result<()> {
    for tool in [&TEMPORAL_CLI, &TEMPORAL_UI] {
        match tool.prepare()? {
            Some(program) => drop(tests.env(tool.variable, program)),
            None => tally.closing.push(format!("skipped: tests of {}, which Go builds", tool.title)),
        }
    }
    for program in ["chromium", "chromedriver"] {
        if version_of(program, &["--version"])?.is_none() {
            let advice = "on Debian: apt-get install chromium chromium-driver";
            println!("\n{program} is not installed: tests of {} are skipped ({advice})", TEMPORAL_UI.title);
            tally.closing.push(format!("skipped: tests of {}: there is no {program} ({advice})", TEMPORAL_UI.title));
        }
    }
    tests.env("PERDURE_SCREENSHOTS", paths::target().join("e2e/screenshots"));
    Ok(())
}

fn go(bench: &mut Bench, store: StoreKind, tally: &mut Tally) -> Result<()> {
    if version_of("go", &["version"])?.is_none() {
        println!("\nGo is not installed: the Go SDK's tests were skipped");
        tally.closing.push("skipped: Go is not installed".to_owned());
        return Ok(());
    }
    let binary = bench.server_binary()?;
    let store = bench.cassandra.store(store, "e2e_go")?;
    let server = Server::start(&binary, &paths::target().join("e2e/go-server"), &store, &[])?;
    let outcome = go_suite(&server, &paths::root().join("e2e/go"), bench.options, tally);
    outcome.and(server.stop())
}

/// Two servers that fight for a while, and a Cassandra that dies as a whole.
fn chaos(bench: &mut Bench, tally: &mut Tally) -> Result<()> {
    let server = bench.server_binary()?;
    let load = server.with_file_name("perdure-load");
    let cassandra = bench.cassandra.cluster().context("Cassandra is not up")?;
    let seed = Dice::any_seed();
    let mut chaos = chaos_store::Bench {
        cassandra,
        nodes: bench.options.nodes,
        server,
        load,
        fight: Duration::from_secs(20),
        arguments: &bench.options.arguments,
        dice: Dice::new(seed),
    };
    for part in [chaos_store::Part::Fight, chaos_store::Part::All] {
        *(if chaos.holds(part) { &mut tally.passed } else { &mut tally.failed }) += 1;
    }
    if tally.failed > 0 {
        bail!("see `cargo xtask chaos store --nodes {} --seed {seed}`", bench.options.nodes);
    }
    Ok(())
}

fn go_suite(server: &Server, suite: &Path, options: &Options, tally: &mut Tally) -> Result<()> {
    process::run_watched(
        command("go")
            .args(["test", "-count=1", "-v", "-timeout=10m", "./..."])
            .args(&options.arguments)
            .env("PERDURE_ADDRESS", server.address.to_string())
            .env("PERDURE_STRICT", "1")
            .current_dir(suite),
        |line| tally.read_go(line),
    )
}

impl Bench<'_> {
    fn server_binary(&mut self) -> Result<PathBuf> {
        if let Some(binary) = &self.binary {
            return Ok(binary.clone());
        }
        let profile = if self.options.release { Profile::Release } else { Profile::Dev };
        // Built apart, each would want its own features of what they share, and have most of that built again.
        let has_chaos = Part::all(self.options).iter().any(|part| matches!(part, Part::Chaos));
        let packages: &[&str] = if has_chaos { &["perdure", "perdure-loadtests"] } else { &["perdure"] };
        let binary = build(packages, profile)?.join("perdure");
        self.binary = Some(binary.clone());
        Ok(binary)
    }

    /// Lets tests know the Cassandra that is up.
    fn set_cassandra(&self, tests: &mut Command) -> Result<()> {
        if let Some((seeds, replicas)) = self.cassandra.for_tests()? {
            tests.env(SEEDS, seeds).env(REPLICATION_FACTOR, replicas.to_string());
        }
        Ok(())
    }
}

/// What the runners said.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
    /// Closing lines to show again at the end.
    closing: Vec<String>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// `test result: ok. 12 passed; 0 failed; 1 ignored; …`, one a test binary.
    fn read_cargo(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.count(result, &[';', '.']);
        }
    }

    /// `==== 1 failed, 30 passed, 2 skipped in 61.20s (0:01:01) ====`
    fn read_pytest(&mut self, line: &str) {
        let inner = line.trim_matches('=').trim();
        let counts = inner.split(" in ").next().unwrap_or_default();
        if line.starts_with("==") && inner.contains(" in ") && self.count(counts, &[',']) {
            self.closing.push(inner.to_owned());
        }
    }

    /// `--- PASS: TestName (0.10s)` for a test (indented for a part of one), `ok  <package> 8.1s` for a package.
    fn read_go(&mut self, line: &str) {
        match line {
            _ if line.starts_with("--- PASS: ") => self.passed += 1,
            _ if line.starts_with("--- FAIL: ") => self.failed += 1,
            _ if line.starts_with("--- SKIP: ") => self.skipped += 1,
            _ if line.starts_with("ok  \t") || line.starts_with("FAIL\t") => self.closing.push(line.to_owned()),
            _ => {}
        }
    }

    /// Adds up `<number> <word>` parts; whether there was any that it knows.
    fn count(&mut self, text: &str, separators: &[char]) -> bool {
        let mut any = false;
        for part in text.split(separators) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(word)) = (words.next().and_then(|n| n.parse::<u32>().ok()), words.next()) else {
                continue;
            };
            let counter = match word {
                "passed" | "xpassed" => &mut self.passed,
                "failed" | "error" | "errors" => &mut self.failed,
                "skipped" | "ignored" | "xfailed" => &mut self.skipped,
                _ => continue,
            };
            *counter += number;
            any = true;
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn counts_what_each_runner_prints() {
        let mut tally = Tally::default();
        tally.read_cargo(
            "test result: ok. 12 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.1s",
        );
        tally.read_cargo("running 12 tests");
        assert_eq!(tally.to_string(), "12 passed, 1 failed, 2 skipped");

        tally.read_pytest("============================= test session starts ==============================");
        tally.read_pytest("FAILED tests/test_a.py::test - assert 1 passed in 2");
        tally.read_pytest("======= 1 failed, 30 passed, 2 skipped, 1 error in 61.20s (0:01:01) =======");
        assert_eq!(tally.to_string(), "42 passed, 3 failed, 4 skipped");

        tally.read_go("=== RUN   TestA");
        tally.read_go("    --- PASS: TestA/part (0.00s)");
        tally.read_go("--- PASS: TestA (0.00s)");
        tally.read_go("--- FAIL: TestB (0.00s)");
        tally.read_go("ok  \tperdure/e2e\t1.2s");
        assert_eq!(tally.to_string(), "43 passed, 4 failed, 4 skipped");
        assert_eq!(
            tally.closing,
            ["1 failed, 30 passed, 2 skipped, 1 error in 61.20s (0:01:01)", "ok  \tperdure/e2e\t1.2s"]
        );
    }
}
